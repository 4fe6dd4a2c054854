"""Sorted sub-models: the losses by exit that ``docs/sorted.md`` shows."""
