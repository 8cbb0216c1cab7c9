"""A checkpoint of any family in, a verified file for any framework out."""

import sslight.core  # noqa: F401  (sets the threads up before torch is imported)
