"""Pre-train a small vision backbone without labels and without a teacher network: images in, run directory out."""
