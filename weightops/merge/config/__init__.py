"""mergekit's YAML: read, checked, and its parameters resolved for each tensor."""
