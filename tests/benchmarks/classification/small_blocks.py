"""`python -m tests.benchmarks.classification.small_blocks knn|linear|semisup ...`: in blocks of a few images.

So that small data, too, are read in several parts and shared over the ranks.
"""

import sys

from benchmarks.classification import features as cache
from pretrain import neighbours
from sslight.cli import dispatch
from sslight.core.processes import run_command

SIZES = [(cache, "PART", 16), (neighbours, "QUERIES", 8), (neighbours, "BANK", 32)]

if __name__ == "__main__":
    for owner, name, value in SIZES:
        setattr(owner, name, value)
    run_command(lambda: dispatch(["bench", *sys.argv[1:]]))
