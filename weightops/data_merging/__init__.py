"""Merges whose coefficients come from data: what each model computes on a sample of its own text."""
