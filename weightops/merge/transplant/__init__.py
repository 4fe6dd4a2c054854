"""Another model's tokenizer for a model: rows of embedding and head for its tokens."""
