"""Rows to train on: where they come from, their token ids, several in one."""
