"""A checkpoint of any family in, a verified file for any framework out."""

import pretrain  # noqa: F401  (sets the threads up before torch is imported)
