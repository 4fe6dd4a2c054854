"""What of a model moves in training: one file, one update."""
