"""Guards that stream: what ``docs/guard.md`` shows."""
