"""How passes have text written and judged: what they ask, and the run that answers many rows together."""
