"""Rows to train on."""
