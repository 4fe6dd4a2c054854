"""One strategy in each file."""
