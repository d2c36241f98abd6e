"""Looks at a sweep in the browser: `python -m sweeps.explore --help`."""

import sys

from epochlens.commands import explore

if __name__ == "__main__":
    sys.exit(explore(sys.argv[1:]))
