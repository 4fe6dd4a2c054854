"""LoRA adapters as results: several merged into one, and one extracted from a tuned model."""
