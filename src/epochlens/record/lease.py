"""A sweep on object storage held by one process: a lock object, renewed while its holder lives."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from epochlens.errors import UsageError
from epochlens.record import objects
from epochlens.record.objects import Place, RemoteError

LOCK = "lock.json"
RENEWED, STALE = 20.0, 120.0
"""seconds between two signs of life of a lock's holder; without one for so long it is taken over"""
SETTLING = 0.2
"""seconds, besides twice what writing it took, after which a lock is looked at again"""


@contextmanager
def only_process(place: Place, lost: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the sweep for this process by a lock object that is renewed while it does.

    Raises UsageError, naming the other process, while another one holds it; calls `lost`, in a thread, when
    another one has taken it all the same. A lock is taken over once its holder has given no sign of life for
    STALE seconds, or at once if it was a process of this computer.
    """
    mine = {
        "process": os.getpid(),
        "host": os.uname().nodename,
        "space": pid_space(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }
    document = json.dumps({**mine, "token": uuid.uuid4().hex}).encode()
    began = time.monotonic()
    refuse_if_held(place)
    objects.write(place, LOCK, document)
    # another one that saw no lock either has written its own by then, unless far slower: the last has it
    time.sleep(SETTLING + 2 * (time.monotonic() - began))
    refuse_if_held(place, document)
    ended = threading.Event()
    renewing = threading.Thread(target=renew, args=(place, document, ended, lost), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        with suppress(RemoteError):
            renewing.join()
            if objects.read(place, LOCK) == document:
                objects.remove(place, [LOCK])


def renew(place: Place, document: bytes, ended: threading.Event, lost: Callable[[], None]) -> None:
    """Writes a lock anew from time to time until it has ended, or is another process's: then calls `lost`."""
    while not ended.wait(RENEWED):
        with suppress(RemoteError):
            if objects.read(place, LOCK) not in (document, None):
                lost()
                return
            objects.write(place, LOCK, document)


def refuse_if_held(place: Place, mine: bytes | None = None) -> None:
    """Raises UsageError when a living process other than the one with the lock `mine` holds the sweep."""
    content = objects.read(place, LOCK)
    if content is None or content == mine:
        return
    try:
        holder: dict[str, Any] = json.loads(content)
        who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
        if has_died(holder):
            return
    except (KeyError, OverflowError, TypeError, ValueError):
        who = "another process"
    silent = silence(place)
    if silent < STALE:
        problem = f"is being worked on by {who}, alive {silent:.0f} s ago: wait, or stop it"
        raise UsageError("sweep", place.uri, f"{problem} (a dead one's lock is free after {STALE:.0f} s)")


def has_died(holder: dict[str, Any]) -> bool:
    """Whether a lock's holder is known to be dead: it was a process of this computer, and is no more."""
    if (holder["host"], holder.get("space")) != (os.uname().nodename, pid_space()):
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def pid_space() -> str:
    """What tells containers apart that share a host's name: within it a number means one process."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def silence(place: Place) -> float:
    """Seconds since the lock was renewed, by the storage's clock; infinite when it has gone."""
    key = f".clock-{uuid.uuid4().hex}"
    objects.write(place, key, b"")
    now, renewed = objects.written_at(place, key), objects.written_at(place, LOCK)
    objects.remove(place, [key])
    return float("inf") if renewed is None or now is None else now - renewed
