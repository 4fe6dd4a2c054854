"""How anything is trained: settings, the model, the one trainer, unfinished runs."""
