"""`python -m tests.benchmarks.small_blocks knn|linear|semisup ...`: that benchmark, in blocks of a few images.

So that small data, too, are read in several parts and shared over the ranks.
"""

import sys

from benchmarks.classification import features as cache, knn
from pretrain import neighbours
from sslight.cli import dispatch
from sslight.core.processes import run_command

SIZES = [(cache, "PART", 16), (knn, "QUERIES", 8), (neighbours, "QUERIES", 8), (neighbours, "BANK", 32)]

if __name__ == "__main__":
    for owner, name, value in SIZES:
        setattr(owner, name, value)
    run_command(lambda: dispatch(["bench", *sys.argv[1:]]))
