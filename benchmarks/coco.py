"""`python -m benchmarks.coco`."""

from benchmarks.evaluation import run

if __name__ == "__main__":
    run("coco")
