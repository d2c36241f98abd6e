"""A model that fails and is slow to go, importable by workers."""

from __future__ import annotations

import time

from planted import Raising


class Lingering(Raising):
    """Raises after a few training steps, and takes seconds to be cleaned up."""

    def __del__(self) -> None:
        time.sleep(3)
