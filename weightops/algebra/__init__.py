"""Opening models and combining them: checkpoints and deltas as values."""
