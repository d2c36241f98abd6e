"""Being asked to stop: the first SIGINT or SIGTERM ends a command in order, a second one at once."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
asked: list[int] = []
"""signals that asked this process to stop"""


class Interrupted(BaseException):
    """The user asked the sweep to stop."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into Interrupted; a second one ends the process at once.

    Files that cannot be written end the process with a line that says so, and exit code 1.
    """
    asked.clear()

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
        raise Interrupted

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        stop_if_asked()
    except BaseException as error:
        if asked:  # what is raised inside Ray's compiled code comes out as some other error
            raise Interrupted from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise SystemExit(f"error: {error}: mend that and run the same command again") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raises Interrupted again if the one that a signal raised was lost on its way."""
    if asked:
        raise Interrupted
