"""Measures how the maps of a sweep move: `python -m sweeps.analyze --help`."""

import sys

from epochlens.commands import analyze

if __name__ == "__main__":
    sys.exit(analyze(sys.argv[1:]))
