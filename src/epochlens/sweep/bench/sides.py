"""Ours and the peer's work in a process each: what one leaves behind in memory does not serve the other.

Ours is set up as a trial is. The two take turns, and each times itself.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from epochlens.learn.training import keep_freed_memory
from epochlens.sweep.bench.timing import Comparison, Result, measure, one_thread, timed


def measure_apart(part: str, quick: bool, repeats: int) -> Iterator[Result | str]:
    """The results of a part whose comparisons are the same in every process."""
    context = multiprocessing.get_context("spawn")
    links, workers = [], []
    for side in ("ours", "theirs"):
        link, other = context.Pipe()
        links.append(link)
        workers.append(context.Process(target=serve, args=(other, part, quick, side), daemon=True))
        workers[-1].start()
        other.close()
    for item in comparisons_of(part, quick):
        if isinstance(item, Comparison):
            yield measure(item, repeats, *(partial(ask, link) for link in links))
            for link in links:
                link.send("next")
        else:
            yield item
    for worker in workers:
        worker.join()


def ask(link: Connection) -> tuple[float, Any]:
    """Seconds that the other process took for its side of the comparison, and its result."""
    link.send("again")
    return link.recv()


def serve(link: Connection, part: str, quick: bool, side: str) -> None:
    """Does one side's work of each comparison as often as it is asked to."""
    one_thread()
    if side == "ours":
        keep_freed_memory()
    with suppress(KeyboardInterrupt):  # the command is interrupted too, and says so
        for item in comparisons_of(part, quick):
            if isinstance(item, Comparison):
                while link.recv() == "again":
                    link.send(timed(getattr(item, side), item.clock))


def comparisons_of(part: str, quick: bool) -> Iterator[Comparison | Result | str]:
    """What a part compares, and what it says of itself in words."""
    module: Any = importlib.import_module(f"epochlens.sweep.bench.{part}")
    return module.comparisons(quick)
