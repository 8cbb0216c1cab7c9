"""`python -m benchmarks.report`."""

from benchmarks.report.report import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
