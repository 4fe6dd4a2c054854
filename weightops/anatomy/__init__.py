"""What a tensor is: its part, its layer, its place, and the config keys that describe it."""
