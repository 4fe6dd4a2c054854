"""Dense models as the experts of one mixture-of-experts model: mergekit-moe's files."""
