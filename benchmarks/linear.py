"""`python -m benchmarks.linear`: the entry point of `benchmarks.classification.linear`."""

from benchmarks.classification.linear import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
