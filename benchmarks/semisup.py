"""`python -m benchmarks.semisup`: the entry point of `benchmarks.classification.semisup`."""

from benchmarks.classification.semisup import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
