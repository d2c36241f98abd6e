"""Files that appear whole or not at all, their checksums, and folders held by one process."""

from __future__ import annotations

import collections
import fcntl
import functools
import hashlib
import json
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from epochlens.errors import UsageError

STEPS = ("beside", "maps", "quality", "ledger", "moved", "state", "gathered", "metrics", "done")
"""points of the commit protocol: a file is flushed beside its place; an epoch's maps, quality and ledger line
are in place; the old checkpoint has made room for the new one; that is in place; a finished run's maps and
metrics are in place; run.json says so"""
CRASH_AT = "EPOCHLENS_CRASH_AT"
"""environment variable for tests: "ledger:3" kills the process when it gets to that point the third time"""
_passed: collections.Counter[str] = collections.Counter()
LOCK = ".lock"
PATIENCE = 1.0
"""seconds in which a lock may still be let go: a reader holds it for a moment"""


def step(name: str) -> None:
    """A named point of the commit protocol, where nothing happens unless a test asks to be killed there."""
    asked, _, count = os.environ.get(CRASH_AT, "").partition(":")
    if asked == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_whole(path: Path, content: bytes) -> str:
    """Writes the file so that it appears whole or not at all; returns its SHA-256."""
    with written_beside(path, content) as beside:
        beside.replace(path)
    sync_folder(path.parent)
    return checksum(content)


@contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """The content on disk under another name in the same folder, to be renamed; removed if it was not."""
    beside = name_beside(path)
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        step("beside")
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def name_beside(path: Path) -> Path:
    """A name in the same folder that no other process or thread uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def publish(finished: Path, path: Path) -> None:
    """Puts a closed file, written beside its place, into its place."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes the folder, with those above it, so that they survive a power cut."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in made:
        sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """Writes the document whole, indented, with its keys in the given order."""
    write_whole(path, (json.dumps(document, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, or None when the file is missing or not a JSON object."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def file_checksum(path: Path) -> str:
    """SHA-256 of the file, or "" when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@functools.lru_cache(4096)
def unchanged_checksum(path: Path, inode: int, size: int, modified: int) -> str:
    """The file's SHA-256, worked out once as long as it stays the same file."""
    return file_checksum(path)


def known_checksum(path: Path) -> str:
    """As `file_checksum`, worked out again only when the file's time, size or inode is another."""
    try:
        stamp = path.stat()
    except OSError:
        return ""
    return unchanged_checksum(path, stamp.st_ino, stamp.st_size, stamp.st_mtime_ns)


@contextmanager
def only_process(folder: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with it, however it ends.

    While another one holds it, raises UsageError that names it, or tells `waiting` its name and waits.
    """
    make_folder(folder)
    with open_lock(folder, os.O_RDWR | os.O_CREAT) as file:
        if not is_locked(file, folder, fcntl.LOCK_EX, PATIENCE):
            holder = file.read().strip() or "another process"
            if waiting is None:
                raise UsageError("sweep", str(folder), f"is being worked on by {holder}: wait, or stop it")
            waiting(holder)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether no process holds the folder; none can begin to before this is left."""
    if not (folder / LOCK).exists():
        yield True
        return
    with open_lock(folder, os.O_RDONLY) as file:
        yield is_locked(file, folder, fcntl.LOCK_SH)


def open_lock(folder: Path, flags: int) -> IO[str]:
    """The folder's lock file, never what a link leads to. Raises UsageError."""
    try:
        descriptor = os.open(folder / LOCK, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UsageError("results_dir", str(folder), f"cannot be locked: {error.strerror}") from None
    return os.fdopen(descriptor, "r+" if flags & os.O_RDWR else "r")


def is_locked(file: IO[str], folder: Path, kind: int, patience: float = 0.0) -> bool:
    """Locks a folder's open lock file; False when another process keeps it for `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError as error:
            raise UsageError("results_dir", str(folder), f"cannot be locked: {error.strerror}") from None


def slug(text: str, most: int) -> str:
    """The text without what no file's name may hold, cut to so many bytes."""
    return re.sub(r"[^\w.=+-]+", "-", text).encode()[:most].decode(errors="ignore")


def set_aside(folder: Path) -> Path:
    """Moves a folder out of the way, keeping it, and returns its new place."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    sync_folder(folder.parent)
    return target
