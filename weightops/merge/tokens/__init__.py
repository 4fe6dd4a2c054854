"""Vocabularies of a merge: tokens aligned, rows gathered, tokenizer files written."""
