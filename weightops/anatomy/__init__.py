"""Facts about a tensor from its name and the model's config: its part of the model, its layer, its sizes."""
