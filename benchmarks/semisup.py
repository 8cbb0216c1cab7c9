"""`python -m benchmarks.semisup`."""

from benchmarks.evaluation import run

if __name__ == "__main__":
    run("semisup")
