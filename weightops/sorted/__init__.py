"""Models that can be cut at any depth: cutting them, and decoding with their early exits."""
