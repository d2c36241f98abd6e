"""Explains one test image by every method: `python -m sweeps.explain --help`."""

import sys

from epochlens.commands import explain

if __name__ == "__main__":
    sys.exit(explain(sys.argv[1:]))
