"""Short trainings that make the models weightops combines."""
