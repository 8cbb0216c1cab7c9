"""`python -m benchmarks.knn`."""

from benchmarks.evaluation import run

if __name__ == "__main__":
    run("knn")
