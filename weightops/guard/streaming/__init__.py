"""Judging a text while it arrives."""
