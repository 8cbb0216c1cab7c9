"""A checkpoint in, a `result.json` out; and the report over many."""

import pretrain  # noqa: F401  (sets the threads up before torch is imported)
