"""Faults in real sweeps: a few of them in every test run, all of them when asked for (pytest -m faults)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disturbance
import pytest

TOLD: list[tuple[str, str, int]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests marked `faults` out unless the command line's -m speaks of them."""
    if "faults" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("faults")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("faults")]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what each fault cost."""
    if TOLD:
        terminalreporter.section("fault | how injected | committed epochs trained again")
        for fault, how, epochs in TOLD:
            terminalreporter.write_line(f"| {fault} | {how} | {epochs} |")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """What a test that failed has left running would disturb the next one."""
    yield
    disturbance.end_all()


@pytest.fixture(scope="session")
def address(cluster) -> str:
    """The address of the session's Ray cluster, for processes that need not start their own."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def calm_root(tmp_path_factory: pytest.TempPathFactory, cluster) -> Path:
    """Where an undisturbed sweep lies, not to be changed."""
    root = tmp_path_factory.mktemp("calm")
    outcome = disturbance.run(root)
    assert outcome.code == 0, outcome.said
    assert disturbance.repeated(root) == 0
    return root


@pytest.fixture(scope="session")
def calm(calm_root: Path) -> dict[str, Any]:
    """What an undisturbed sweep leaves."""
    return disturbance.contents(calm_root)


@pytest.fixture
def recovered(calm: dict[str, Any]) -> Callable[..., None]:
    """Checks that a sweep has ended in the bits of an undisturbed one after a fault.

    Tells the committed epochs that were trained again, at most so many as given; unless `epochs` says how
    many, the store is asked, which knows of them as long as its ledgers were not damaged.
    """

    def check(root: Path, fault: str, how: str, at_most: int, epochs: int | None = None) -> None:
        assert disturbance.differences(disturbance.contents(root), calm) == []
        epochs = disturbance.repeated(root) if epochs is None else epochs
        TOLD.append((fault, how, epochs))
        assert epochs <= at_most
        assert "damaged" in fault or not [*root.rglob("damaged")]

    return check


@pytest.fixture
def recovers(recovered: Callable[..., None]) -> Callable[..., None]:
    """Runs the command again after a fault, and checks as `recovered` does."""

    def check(root: Path, fault: str, how: str, at_most: int, *options: str) -> None:
        outcome = disturbance.run(root, *options)
        assert outcome.code == 0, outcome.said
        recovered(root, fault, how, at_most)

    return check
