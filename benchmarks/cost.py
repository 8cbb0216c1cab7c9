"""`python -m benchmarks.cost`."""

from benchmarks.evaluation import run

if __name__ == "__main__":
    run("cost")
