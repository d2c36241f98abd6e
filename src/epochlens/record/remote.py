"""Results on object storage: folders worked on in a local copy, and mirrored below a URI.

    URI/NAME/marker.json                 which objects are the sweep's own files: sweep.json, tables
    URI/NAME/objects/*
    URI/NAME/lock.json                   who works on the sweep
    URI/NAME/runs/RUN_ID/marker.json     which objects are the run's files
    URI/NAME/runs/RUN_ID/objects/*

An object counts only if a marker names it, with its size and SHA-256. `push` uploads what has changed, under
keys that were never used before, and writes the marker last; then it removes objects that no marker needs. So
a reader finds the files before a push or those after it, whatever happens in between; and an object that is
damaged or gone makes only what depends on it count as not there, as `retrieval` finds in the local copy.

Two attempts at one run push the same bytes. The marker lists their tokens in the order in which they came:
one that is no longer the last marks nothing, and finds the run claimed by another in its local copy.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from epochlens.errors import UsageError, unknown
from epochlens.record import ledger, objects, retrieval
from epochlens.record.files import (
    checksum,
    file_checksum,
    known_checksum,
    make_folder,
    read_json,
    unheld,
    write_json,
    write_whole,
)
from epochlens.record.objects import Place, RemoteError

MARKER = "marker.json"
APART = ("runs", "tune", "damaged")
"""folders that are not mirrored: runs have markers, Ray Tune's state is scratch, damaged files stay here"""
FINISHED = 10**9
"""progress of a finished run: more than any number of epochs"""
damaged: set[tuple[str, str]] = set()
"""folder's URI and key of objects that this process has found damaged: never to be named by a marker again"""


class Kept(NamedTuple):
    """A file as a marker names it."""

    key: str
    """its object's, below the marker's own folder"""
    size: int
    sha256: str


class Marker(NamedTuple):
    """The files of a folder by name, as they are on object storage."""

    files: dict[str, Kept]
    progress: int = 0
    """committed epochs, or FINISHED"""
    attempts: tuple[str, ...] = ()
    """tokens of the attempts at the run that have pushed"""


def find_place(results: str, name: str) -> Place | None:
    """Where a sweep lies on object storage; None when its results folder is a plain path."""
    return Place(results, name, objects.local_copy(results) / name) if objects.is_uri(results) else None


def check(place: Place) -> None:
    """Raises UsageError unless objects can be written, read and removed below the URI."""
    key = f".check-{uuid.uuid4().hex}"
    try:
        objects.write(place, key, b"readable", objects.AT_FIRST)
        found = objects.read(place, key)
        objects.remove(place, [key])
    except RemoteError as error:
        raise UsageError("results_dir", place.root, f"cannot be used: {advice(error.reason)}") from None
    if found != b"readable":
        raise UsageError("results_dir", place.root, "cannot be used: what is written there cannot be read")


def advice(reason: str) -> str:
    """The reason with what may mend it."""
    means = {
        "NO_SUCH_BUCKET": "there is no such bucket; make it first",
        "ACCESS_DENIED": "these credentials may not write there, or there are none in the environment",
        "INVALID_ACCESS_KEY_ID": "the credentials in the environment are not known there",
        "SIGNATURE_DOES_NOT_MATCH": "the secret key in the environment is not the right one",
    }
    told = next((text for word, text in means.items() if word in reason), "is it reachable from here?")
    return f"{told} ({reason})"


def read_marker(place: Place) -> Marker | None:
    """The folder's marker, or None when there is none, or a damaged one. Raises RemoteError."""
    content = objects.read(place, MARKER)
    try:
        document = json.loads(content or b"")
        expected = document.pop("checksum")
        if expected != checksum(json.dumps(document, sort_keys=True).encode()):
            return None
        files = {name: Kept(**kept) for name, kept in document["files"].items()}
        if not all(is_inside(name) and is_inside(kept.key) for name, kept in files.items()):
            return None
        return Marker(files, document["progress"], tuple(document["attempts"]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def is_inside(name: str) -> bool:
    """Whether a name leads to a file below the folder that it is taken in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def write_marker(place: Place, marker: Marker) -> None:
    """Makes the marker's files those of the folder."""
    files = {name: kept._asdict() for name, kept in marker.files.items()}
    document = {"files": files, "progress": marker.progress, "attempts": list(marker.attempts)}
    document["checksum"] = checksum(json.dumps(document, sort_keys=True).encode())
    objects.write(place, MARKER, json.dumps(document, indent=1).encode())


def local_files(folder: Path) -> list[str]:
    """The names of the folder's own files, those that are being written left out."""
    found = []
    for at, folders, names in os.walk(folder):
        if Path(at) == folder:
            folders[:] = [name for name in folders if name not in APART]
        found += [(Path(at) / name).relative_to(folder).as_posix() for name in names if name[0] != "."]
    return sorted(found)


def progress(folder: Path, verify: bool) -> int:
    """Committed epochs of a run, the whole ones if verified; FINISHED for a finished run, 0 for no run."""
    if retrieval.is_done(folder):
        return FINISHED if not verify or retrieval.run_status(folder)[0] == "done" else -1
    return len(retrieval.committed(folder) if verify else ledger.read_ledger(folder))


def push(place: Place) -> bool:
    """Makes the local copy what counts on object storage.

    False, and nothing is marked, when another attempt at the run has come since: the local copy then says so.
    Raises RemoteError; what counted before counts then still.
    """
    while True:
        pushed = try_push(place, read_marker(place) or Marker({}))
        if pushed is not None:
            return pushed


def try_push(place: Place, before: Marker) -> bool | None:
    """As `push`; None, and nothing is marked, when the marker is no longer the one `before`."""
    token = str((read_json(place.folder / "attempt.json") or {}).get("token", ""))
    reached = progress(place.folder, verify=False)
    mended = any(uri == place.uri for uri, _ in damaged)
    if is_lost(before, token, reached) and not mended:
        write_json(place.folder / "attempt.json", {"token": (*before.attempts, "finished")[-1]})
        return False
    if token and token not in before.attempts and reached < before.progress and not mended:
        objects.set_aside(place)  # the attempt began anew: it is of another kind, and so are its bits
        before = Marker({})
    known = {k.sha256: k for k in before.files.values() if (place.uri, k.key) not in damaged}
    names = local_files(place.folder)
    found = dict(zip(names, objects.in_parallel(lambda name: keep(place, name, known), names), strict=True))
    files = {name: kept for name, kept in found.items() if kept is not None}
    attempts = before.attempts if token in ("", *before.attempts) else (*before.attempts, token)
    marker = Marker(files, reached, attempts)
    if marker != before:
        if (read_marker(place) or Marker({})) != before:
            return None
        write_marker(place, marker)
        damaged.difference_update([found for found in damaged if found[0] == place.uri])
        remove_unneeded(place, before, marker)
    return True


def is_lost(before: Marker, token: str, reached: int) -> bool:
    """Whether another attempt has finished the run, or pushed after the one with this token last did."""
    if reached < before.progress == FINISHED:
        return bool(token)
    return reached < FINISHED and token in before.attempts[:-1]


def keep(place: Place, name: str, known: dict[str, Kept]) -> Kept | None:
    """Uploads a file unless an object of this content is known; None when the file has gone meanwhile."""
    path = place.folder / name
    same = known.get(known_checksum(path))
    if same is not None:
        return same
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    key = f"objects/{uuid.uuid4().hex}-{path.name}"
    objects.write(place, key, content)
    return Kept(key, len(content), checksum(content))


def remove_unneeded(place: Place, before: Marker, now: Marker) -> None:
    """Removes objects that the marker before named and this one does not; at a run's end all others."""
    needed = {kept.key for kept in now.files.values()}
    there = {kept.key for kept in before.files.values()}
    if now.progress == FINISHED:
        with suppress(RemoteError):
            listed = objects.objects(place.below("objects"), recursive=False)
            there |= {f"objects/{info.base_name}" for info in listed if info.is_file}
    objects.remove(place, there - needed)


def pull(place: Place) -> bool:
    """Makes the local copy what the marker says, unless that copy has committed more.

    True when the copy holds what object storage does not. Files that are as the marker says are not read
    again; a damaged or missing object leaves its file out. Raises RemoteError.
    """
    while True:
        marker = read_marker(place)
        local = progress(place.folder, verify=True)
        if marker is None or local > marker.progress:
            return (place.folder / "run.json").exists()
        make_folder(place.folder)
        names = sorted(marker.files, key=lambda name: name == "run.json")  # what says "done" comes last
        lacking = [name for name in names if not is_same(place.folder / name, marker.files[name])]
        fetched = objects.in_parallel(
            lambda name, files=marker.files: fetch(place, name, files[name]), lacking
        )
        if all(fetched) or marker == read_marker(place):
            for name in set(local_files(place.folder)) - set(names):
                (place.folder / name).unlink(missing_ok=True)
            return False


def is_same(path: Path, kept: Kept) -> bool:
    """Whether the file is the one that a marker names."""
    return file_checksum(path) == kept.sha256


def fetch(place: Place, name: str, kept: Kept) -> bool:
    """Downloads a file; False, and the local one is removed, when its object is damaged or missing."""
    content = objects.read(place, kept.key)
    path = place.folder / name
    if content is None or len(content) != kept.size or checksum(content) != kept.sha256:
        damaged.add((place.uri, kept.key))
        path.unlink(missing_ok=True)
        return False
    make_folder(path.parent)
    write_whole(path, content)
    return True


def pull_runs(place: Place, wanted: Collection[str] | None = None) -> list[Place]:
    """Pulls a sweep's runs, all or those wanted; returns those of which the local copy holds more."""
    there = {name for name in objects.subfolders(place.below("runs")) if ".old-" not in name}
    here = {
        path.parent.name for path in place.folder.glob("runs/*/run.json") if ".old-" not in path.parent.name
    }
    names = sorted(there | here if wanted is None else (there | here) & set(wanted))
    runs = [place.below(f"runs/{name}") for name in names]
    ahead = objects.in_parallel(pull, runs)
    return [run for run, more in zip(runs, ahead, strict=True) if more]


def pull_sweep(results: str, name: str) -> Path:
    """The local copy of a whole sweep, made current unless a process of this computer works on it.

    Raises UsageError, listing sweeps, when there is no such sweep.
    """
    place = find_place(results, name)
    assert place is not None
    if read_marker(place) is None:
        raise unknown("sweep", name, list_sweeps(results) or [f"none yet in {results}"])
    with unheld(place.folder) as free:
        if free:
            pull(place)
            pull_runs(place)
    return place.folder


def list_sweeps(results: str) -> list[str]:
    """The names of the sweeps below a URI."""
    root = Place(results, "", objects.local_copy(results))
    return [name for name in objects.subfolders(root) if read_marker(root._replace(path=name)) is not None]


def pull_run(results: str, run_id: str) -> Path:
    """The local copy of the results folder, with a run current in it in every sweep that has it."""
    root = Place(results, "", objects.local_copy(results))
    for name in list_sweeps(results):
        sweep = Place(results, name, root.folder / name)
        if read_marker(run := sweep.below(f"runs/{Path(run_id).name}")) is not None:
            with unheld(sweep.folder) as free:
                if free:
                    pull(sweep)
                    pull(run)
    return root.folder
