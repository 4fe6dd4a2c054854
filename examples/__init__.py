"""What the README and the pages in docs/ claim, as files that run."""
