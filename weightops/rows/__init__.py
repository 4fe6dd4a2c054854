"""Rows of data: what a row may hold, how files are read, and how rows become token ids."""
