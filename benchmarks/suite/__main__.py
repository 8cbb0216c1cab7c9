"""`python -m benchmarks.suite`."""

from benchmarks.suite.suite import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
