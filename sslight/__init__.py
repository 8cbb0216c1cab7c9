"""Pre-train small vision backbones without labels, and measure what any checkpoint is worth downstream."""
