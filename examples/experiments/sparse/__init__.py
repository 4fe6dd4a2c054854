"""What ``docs/sparse-training.md`` measures: nine ways to tune one model on arithmetic problems."""
