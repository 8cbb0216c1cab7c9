"""A checkpoint in, a `result.json` out; and the report over many."""

import sslight.core  # noqa: F401  (sets the threads up before torch is imported)
