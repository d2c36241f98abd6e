"""Writes the maps of a sweep in another format: `python -m sweeps.export --help`."""

import sys

from epochlens.commands import export

if __name__ == "__main__":
    sys.exit(export(sys.argv[1:]))
