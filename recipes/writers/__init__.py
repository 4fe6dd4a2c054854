"""Who writes text for a pass: one file, one writer."""
