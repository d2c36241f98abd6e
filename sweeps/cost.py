"""Operations, memory and time of every method on networks: `python -m sweeps.cost --help`."""

import sys

from epochlens.commands import cost

if __name__ == "__main__":
    sys.exit(cost(sys.argv[1:]))
