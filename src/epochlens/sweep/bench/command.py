"""`python -m sweeps.bench`: every part times us and our peers in turn, after checking that results agree."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from epochlens.errors import UsageError, unknown
from epochlens.sweep.bench.sides import comparisons_of, measure_apart
from epochlens.sweep.bench.timing import Comparison, Result, Unavailable, measure, one_thread
from epochlens.sweep.progress import duration, grid_table

PARTS = (
    "training",
    "attribution",
    "quality",
    "stability",
    "storage",
    "overhead",
    "memory",
    "explorer",
    "gpu",
)
"""modules beside this one, each with `comparisons(quick)`"""
APART = ("attribution", "quality")
"""parts that compare what a trial does: ours and the peer's in a process each"""
ALL = "all"
SLOW = 1.0
"""seconds from which on times are told in seconds"""
PLAIN_WIDTH = 220
UNWINDING = 10.0
"""seconds that an interrupted part has to end"""
HEADER = ["part", "work", "peer", "ours", "peer's", "ratio", "spread", "at least", "of the limit"]


class Died(RuntimeError):
    """The process of a part ended before its last result."""


def bench(arguments: Sequence[str]) -> int:
    """Prints the table of the parts asked for; exit code 1 when results differ or a ratio is missed.

    A part that this machine cannot measure is left out of `all`, and a failure when it is named.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.bench",
        description="Ratios of medians against peers doing the same work on the same thread, in turn.",
    )
    parser.add_argument("parts", nargs="*", default=[ALL], help=f"{' '.join(PARTS)} or {ALL} (default)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller work")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write the numbers to a file")
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part not in (*PARTS, ALL):
            raise unknown("part", part, [*PARTS, ALL])
    if given.json and not Path(given.json).absolute().parent.is_dir():
        raise UsageError("json", given.json, "lies in a folder that does not exist")
    chosen = PARTS if ALL in given.parts else tuple(given.parts)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    started = time.monotonic()
    results, notes, skipped, died = [], [], [], False
    for part in chosen:
        try:
            for item in run_part(part, given.quick):
                if isinstance(item, str):
                    notes.append(f"{part}: {item}")
                    console.print(notes[-1])
                else:
                    results.append(item)
                    console.print(line(item))
        except (Unavailable, Died) as reason:
            skipped.append(f"{part}: {reason}")
            console.print(skipped[-1])
            died |= isinstance(reason, Died)
    if results:
        console.print(grid_table([row(result) for result in results], HEADER))
    console.print(f"{machine()}; done in {duration(time.monotonic() - started)}")
    if given.json:
        document = {
            "machine": machine(),
            "results": [r._asdict() for r in results],
            "notes": notes + skipped,
        }
        Path(given.json).write_text(json.dumps(document, indent=2), encoding="utf-8")
    if died or (skipped and ALL not in given.parts):
        return 1
    return 0 if all(result.ratio >= result.target for result in results) else 1


def run_part(part: str, quick: bool) -> Iterator[Result | str]:
    """The results of one part as they come in, and what it says of itself in words.

    It runs in a process of its own, for how fast memory comes depends on what a process did before. Raises
    Unavailable as the part does, and Died when its process did not come to its end.
    """
    context = multiprocessing.get_context("spawn")
    link, other = context.Pipe(duplex=False)
    worker = context.Process(target=send_part, args=(other, part, quick))
    worker.start()
    other.close()
    try:
        while (item := link.recv()) is not None:
            if isinstance(item, Unavailable):
                raise item
            yield item
        worker.join()
    except EOFError:
        worker.join()
        raise Died(f"failed: its process ended with code {worker.exitcode}") from None
    finally:
        worker.join(UNWINDING)  # it is interrupted too, and may have a cluster to end
        worker.terminate()


def send_part(link: Connection, part: str, quick: bool) -> None:
    """Sends what the part measures, then None; or why this machine cannot measure it."""
    one_thread()
    repeats = 3 if quick else 9
    with contextlib.suppress(KeyboardInterrupt):  # the command itself is interrupted too, and says so
        try:
            found = measure_apart(part, quick, repeats) if part in APART else comparisons_of(part, quick)
            for item in found:
                link.send(measure(item, repeats) if isinstance(item, Comparison) else item)
            link.send(None)
        except Unavailable as reason:
            link.send(reason)


def line(result: Result) -> str:
    """One result as it comes in."""
    promise = f" (at least {result.target:g}x)" if result.target else ""
    told = result.note or f"{result.ratio:.1f}x{promise}"
    return f"{result.part}: {result.task} against {result.peer}: {told}"


def row(result: Result) -> list[str]:
    """The table's row of a result."""
    spread = (
        f"{result.ratio_low:.1f} to {result.ratio_high:.1f}" if result.ratio_low == result.ratio_low else ""
    )
    limit = f"{result.limit:.0%}" if result.limit == result.limit else ""
    return [
        result.part,
        result.task,
        result.peer,
        seconds_text(result.ours),
        seconds_text(result.theirs),
        f"{result.ratio:.1f}x" if not result.note else "differs",
        spread,
        f"{result.target:g}x" if result.target else "",
        limit,
    ]


def seconds_text(seconds: float) -> str:
    """Seconds or milliseconds with three digits."""
    return f"{seconds:.3g} s" if seconds >= SLOW else f"{seconds * 1000:.3g} ms"


def machine() -> str:
    """What this ran on."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            row.partition(":")[2].strip() for row in cpuinfo.read_text().splitlines() if "model name" in row
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
