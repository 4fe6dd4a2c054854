"""Writes an output folder: weights, configuration, tokenizer, record and model card."""
