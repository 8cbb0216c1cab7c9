"""`python -m pretrain`."""

from pretrain.errors import run_command
from pretrain.train import main

if __name__ == "__main__":
    run_command(main)
