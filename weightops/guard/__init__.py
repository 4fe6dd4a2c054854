"""Guards: models that say with one token whether a text is safe."""
