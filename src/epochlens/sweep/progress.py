"""Live progress of a sweep: runs done, epochs per second, time left, and what is running now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SHOWN_AT_MOST = 16
PLAIN_SECONDS = 10.0
"""time between lines when the output is not a terminal"""


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Shows how far the runs are, in place on a terminal and in lines elsewhere."""

    def __init__(self, console: Console, done: int, total: int, epochs_left: int) -> None:
        self.console, self.total = console, total
        self.done = done
        self.failed: set[str] = set()
        self.epochs_left, self.epochs_seen = epochs_left, 0
        self.running: dict[str, Mapping[str, Any]] = {}
        self.started: float | None = None
        self.printed = time.monotonic()
        self.live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def report(self, result: Mapping[str, Any]) -> None:
        """Takes one epoch's report of a run."""
        if result.get("status") == "failed":
            if result["run"] not in self.failed:  # a pack that begins again tells it again
                self.console.print(f"[red]failed[/red] {result['run']}", highlight=False)
            self.failed.add(result["run"])
            self.running.pop(result["run"], None)
        else:
            self.started = self.started or time.monotonic()
            self.epochs_seen += 1
            self.running[result["run"]] = result
        self.show()

    def complete(self, run_id: str) -> None:
        """Takes the end of a run."""
        if self.running.pop(run_id, None) is not None:
            self.done += 1
        self.show()

    def forget(self, left: Sequence[str]) -> None:
        """Takes that nothing is running, and that of what was, all but `left` has ended."""
        for run_id in {*self.running} - {*left}:
            self.complete(run_id)
        self.running.clear()

    def show(self) -> None:
        """Redraws, or prints a line when the last one is old enough."""
        if self.live:
            self.live.update(self.render())
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(self.line(), highlight=False)

    def rate(self) -> float:
        """Epochs per second since the first report."""
        seconds = time.monotonic() - self.started if self.started else 0
        return self.epochs_seen / seconds if seconds > 0.5 else 0.0

    def line(self) -> str:
        """One line: runs done, speed, time left."""
        rate = self.rate()
        left = duration((self.epochs_left - self.epochs_seen) / rate) if rate else "?"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self.done}/{self.total} runs done{failed}, {rate:.1f} epochs/s, {left} left"

    def render(self) -> Group:
        """The line, a bar of epochs, and a row per running trial."""
        total = max(1, self.epochs_left)
        bar = Table.grid()
        bar.add_row(ProgressBar(total=total, completed=min(self.epochs_seen, total), width=60))
        rows = Table.grid(padding=(0, 2))
        for run_id, result in list(self.running.items())[-SHOWN_AT_MOST:]:
            rows.add_row(run_id, f"epoch {result['epoch']}", f"accuracy {result['accuracy']:.3f}")
        return Group(Text(self.line()), bar, rows)


def grid_table(rows: Sequence[Sequence[object]], header: Sequence[str], title: str | None = None) -> Table:
    """A plain rich table of texts, numbers aligned right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column, name in enumerate(header):
        numeric = all(isinstance(row[column], int | float) or str(row[column])[:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
