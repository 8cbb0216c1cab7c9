"""Pre-train a small vision backbone without labels and without a teacher network: images in, run directory out."""

import sslight.core  # noqa: F401  (sets the threads up before torch is imported)
