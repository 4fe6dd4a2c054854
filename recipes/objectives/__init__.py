"""What a training minimises: one file, one objective."""
