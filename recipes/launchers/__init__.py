"""Where the parts of a dispersal are trained: one file, one launcher."""
