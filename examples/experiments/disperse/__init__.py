"""Disperse, then merge: what ``docs/disperse-then-merge.md`` shows."""
