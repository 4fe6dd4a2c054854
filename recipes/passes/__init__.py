"""Rows to rows: one file, one pass."""
