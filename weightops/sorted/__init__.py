"""Models whose first layers are models of their own: cut and compared with the whole, and decoded with early exits."""
