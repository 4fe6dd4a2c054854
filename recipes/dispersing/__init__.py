"""How rows are dispersed into parts: one file, one way."""
