"""Rows in parts that share none: texts, duplicates, embeddings, gradients, and the folder of the parts."""
