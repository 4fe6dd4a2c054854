"""Two routines, one model: what a merge keeps of each, measured for ``docs/two-recipes.md``."""
