"""Who says whether an answer is right: one file, one judge."""
