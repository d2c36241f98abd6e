"""Trains a grid of runs and analyses it: `python -m sweeps.grid --help`."""

import sys

from epochlens.commands import grid

if __name__ == "__main__":
    sys.exit(grid(sys.argv[1:]))
