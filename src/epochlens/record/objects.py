"""Objects below a URI: read, written, listed, copied and removed, again and again while that may help.

URIs are what `pyarrow.fs.FileSystem.from_uri` knows: s3, gs, abfs, hdfs. Credentials come from the
environment or the machine's role, as each provider's own tools take them.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs
else:
    pa, fs = LazyModule("pyarrow"), LazyModule("pyarrow.fs")

CACHE = "EPOCHLENS_CACHE"
"""environment variable: the folder of local copies"""
DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""seconds between tries of what failed, more or less; providers' clients try a few times themselves"""
AT_FIRST = DELAYS[:1]
"""those of what never worked before"""
AT_ONCE = 8
"""transfers at the same time"""
FINAL = (
    "NO_SUCH_BUCKET",
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "PERMANENT_REDIRECT",
    "not found",
)
"""what an error says that trying again does not mend"""
OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=10", "gcs": "retry_limit_seconds=10"}
"""small objects in one request; no quarter of an hour of silent retries"""
TIRED = 60.0
"""seconds after a place was given up in which nothing there is tried again for long"""
given_up: dict[str, float] = {}
"""when this process gave up a URI"""
Found = TypeVar("Found")
Item = TypeVar("Item")


class Place(NamedTuple):
    """A folder on object storage, and the local copy that is worked on."""

    root: str
    """URI of the results folder"""
    path: str
    """the folder's path below it"""
    folder: Path

    @property
    def uri(self) -> str:
        """The folder's own URI, without options."""
        return f"{self.root.partition('?')[0].rstrip('/')}/{self.path}"

    def below(self, path: str) -> Place:
        """A folder of the folder."""
        return Place(self.root, f"{self.path}/{path}", self.folder / path)


class RemoteError(OSError):
    """What is on object storage cannot be reached, read or written, tried again and again."""

    def __init__(self, root: str, reason: str) -> None:
        super().__init__(errno.EIO, reason, root)
        self.root, self.reason = root, reason

    def __str__(self) -> str:
        return f"{self.root}: {self.reason}. What is finished is safe in {local_copy(self.root)}"

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str]]:
        return RemoteError, (self.root, self.reason)


def is_uri(results: str) -> bool:
    """Whether the results folder lies on object storage."""
    return "://" in results


def local_copy(root: str) -> Path:
    """The folder of this computer that holds the local copy of what is below a URI."""
    home = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(home).expanduser().absolute() / ("" if os.environ.get(CACHE) else "epochlens")
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", root.partition("?")[0])[:60].strip("-")
    return base / f"{readable}-{hashlib.sha256(root.encode()).hexdigest()[:8]}"


@functools.lru_cache(16)
def connect(root: str) -> tuple[fs.FileSystem, str]:
    """The file system behind a URI, and the URI's path in it. Raises UsageError and RemoteError."""
    parts = urlsplit(root)
    if ("@" in parts.netloc and parts.scheme in ("s3", "gs", "gcs")) or "secret" in parts.query:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        problem = "was given with credentials, which would be recorded: set them in the environment instead"
        raise UsageError("results_dir", shown, problem)
    option = OPTIONS.get(parts.scheme, "")
    for uri in dict.fromkeys([f"{root}{'&' if parts.query else '?'}{option}" if option else root, root]):
        try:
            system, path = persistently(root, functools.partial(fs.FileSystem.from_uri, uri), AT_FIRST)
        except (ValueError, pa.ArrowException) as error:
            problem = first_line(error)
            continue
        if path.strip("/"):
            return system, path.rstrip("/")
        problem = "names no bucket"
    raise UsageError("results_dir", root, f"cannot be used: {problem}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line without what changes from request to request."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r" *\(Request ID: [^)]*\)", "", text)[:300].rstrip(" .")


def persistently(root: str, operation: Callable[[], Found], delays: Sequence[float] = DELAYS) -> Found:
    """What the operation returns, tried again after errors that may pass. Raises RemoteError.

    FileNotFoundError and ArrowInvalid pass through: that there is no such thing is an answer.
    """
    if time.monotonic() < given_up.get(root, -math.inf) + TIRED:
        delays = ()
    for delay in (*delays, None):
        try:
            found = operation()
        except (FileNotFoundError, pa.ArrowInvalid):
            raise
        except (OSError, pa.ArrowException) as error:
            if delay is None or any(word in str(error) for word in FINAL):
                given_up[root] = time.monotonic()
                raise RemoteError(root, first_line(error)) from error
            time.sleep(delay * random.SystemRandom().uniform(0.5, 1.5))
        else:
            given_up.pop(root, None)
            return found
    raise AssertionError


def in_parallel(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """What the function returns for each item, several at the same time."""
    wanted = list(items)
    if len(wanted) < 2:
        return [function(item) for item in wanted]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, wanted))


def locate(place: Place, key: str) -> tuple[fs.FileSystem, str]:
    """The file system, and the path in it of the object under the key; of the folder itself for ""."""
    system, base = connect(place.root)
    return system, "/".join(filter(None, (base, place.path, key)))


def read(place: Place, key: str) -> bytes | None:
    """The object's content, or None when there is no such object. Raises RemoteError."""
    system, path = locate(place, key)

    def get() -> bytes:
        with system.open_input_stream(path) as stream:
            return stream.read()

    try:
        return persistently(place.root, get)
    except FileNotFoundError:
        return None


def write(place: Place, key: str, content: bytes, delays: Sequence[float] = DELAYS) -> None:
    """Writes the object, whole or not at all. Raises RemoteError."""
    system, path = locate(place, key)

    def put() -> None:
        with system.open_output_stream(path) as stream:
            stream.write(content)

    def put_in_new_folder() -> None:
        system.create_dir(path.rpartition("/")[0], recursive=True)
        put()

    try:
        persistently(place.root, put, delays)
    except FileNotFoundError:  # a file system that has folders, and this one not yet
        try:
            persistently(place.root, put_in_new_folder, delays)
        except FileNotFoundError as error:
            raise RemoteError(place.root, first_line(error)) from error


def remove(place: Place, keys: Iterable[str]) -> None:
    """Removes objects as far as possible: nothing depends on it."""

    def drop(key: str) -> None:
        system, path = locate(place, key)
        with suppress(OSError, pa.ArrowException):
            system.delete_file(path)

    in_parallel(drop, keys)


def objects(place: Place, recursive: bool) -> list[fs.FileInfo]:
    """What lies below the place, folders among it; nothing when it does not exist. Raises RemoteError."""
    system, path = locate(place, "")
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return persistently(place.root, lambda: system.get_file_info(selector))


def subfolders(place: Place) -> list[str]:
    """The names of the folders in a folder. Raises RemoteError."""
    found = objects(place, recursive=False)
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def written_at(place: Place, key: str) -> float | None:
    """When the object was written, in seconds by the storage's own clock; None when there is none."""
    system, path = locate(place, key)
    [info] = persistently(place.root, lambda: system.get_file_info([path]))
    return info.mtime.timestamp() if info.type == fs.FileType.File else None


def set_aside(place: Place, spare: str = "") -> Place | None:
    """Moves all objects of a folder to another beside it, keeping them; None when there are none.

    Copies come first, those under other names than `marker.json` before those; an interrupted move leaves
    everything in its place. The object named `spare` stays.
    """
    system, base = locate(place, "")
    files = [i.path for i in objects(place, True) if i.type == fs.FileType.File]
    files = [path for path in files if path != f"{base}/{spare}"]
    if not files:
        return None
    number = 1
    while objects(target := place._replace(path=f"{place.path}.old-{number}"), recursive=False):
        number += 1
    _, new_base = locate(target, "")

    def copy(path: str) -> None:
        there = new_base + path.removeprefix(base)
        system.create_dir(there.rpartition("/")[0], recursive=True)
        persistently(place.root, lambda: system.copy_file(path, there))

    markers = [path for path in files if path.endswith("/marker.json")]
    in_parallel(copy, [path for path in files if path not in markers])
    in_parallel(copy, markers)
    keys = [path.removeprefix(base).lstrip("/") for path in (*markers, *files)]
    remove(place, keys[: len(markers)])
    remove(place, keys[len(markers) :])
    return target
