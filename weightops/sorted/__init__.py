"""Models whose first layers are models of their own: cut, compared with the whole model."""
