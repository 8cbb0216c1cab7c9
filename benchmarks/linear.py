"""`python -m benchmarks.linear`."""

from benchmarks.evaluation import run

if __name__ == "__main__":
    run("linear")
