"""Files that appear whole or not at all, their checksums, and folders held by one process."""

from __future__ import annotations

import collections
import fcntl
import functools
import hashlib
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from epochlens.errors import UsageError

STEPS = ("beside", "maps", "quality", "ledger", "moved", "state", "gathered", "metrics", "done")
"""points of the commit protocol: a file is flushed beside its place; an epoch's maps, quality and ledger line
are in place; the old checkpoint has made room for the new one; that is in place; a finished run's maps and
metrics are in place; run.json says so"""
CRASH_AT = "EPOCHLENS_CRASH_AT"
"""environment variable for tests: "ledger:3" kills the process when it gets to that point the third time"""
_passed: collections.Counter[str] = collections.Counter()


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


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with it, however it ends.

    Raises UsageError, naming the other process, while another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            problem = f"is being worked on by {file.read().strip() or 'another process'}: wait, or stop it"
            raise UsageError("sweep", str(folder), problem) from None
        except OSError as error:
            raise UsageError("results_dir", str(folder), f"cannot be locked: {error.strerror}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def set_aside(folder: Path) -> Path:
    """Moves a folder out of the way, keeping it, and returns its new place."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    sync_folder(folder.parent)
    return target
