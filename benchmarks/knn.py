"""`python -m benchmarks.knn`: the entry point of `benchmarks.classification.knn`."""

from benchmarks.classification.knn import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
