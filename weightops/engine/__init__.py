"""The engine: a plan made from headers, executed in slices."""
