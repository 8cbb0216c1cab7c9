"""`python -m sslight`."""

from sslight.cli import main

main()
