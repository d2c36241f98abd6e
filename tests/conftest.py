"""One Ray cluster for the whole test session: starting one takes longer than most tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def cluster():
    """A local Ray cluster of two CPUs, with the settings that sweeps use."""
    from epochlens.config import Sweep
    from epochlens.sweep.cluster import ray_cluster

    with ray_cluster(Sweep(dashboard=False), num_cpus=2):
        yield
