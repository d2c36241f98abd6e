"""Times EpochLens against its peers: `python -m sweeps.bench --help`."""

import sys

from epochlens.commands import bench

if __name__ == "__main__":
    sys.exit(bench(sys.argv[1:]))
