"""One file, one routine: a dataclass of settings and a `run`."""
