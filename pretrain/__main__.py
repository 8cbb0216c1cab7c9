"""`python -m pretrain`."""

from sslight.core.processes import run_command


def main() -> int:
    from pretrain.train import main  # takes seconds, in which a signal to stop must already find its handler

    return main()


if __name__ == "__main__":
    run_command(main)
