"""Which output tensors a merge makes, and from which tensors of which models."""
