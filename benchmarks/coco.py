"""`python -m benchmarks.coco`: the entry point of `benchmarks.detection.coco`."""

from benchmarks.detection.coco import main
from sslight.core.processes import run_command

if __name__ == "__main__":
    run_command(main)
