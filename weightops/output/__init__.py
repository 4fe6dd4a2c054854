"""The folder that is written: weights, configuration, tokenizer, record and model card."""
