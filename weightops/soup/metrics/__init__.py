"""One metric in each file."""
