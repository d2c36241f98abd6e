"""Heavy modules, imported when first used: help and usage errors answer before torch has loaded."""

from __future__ import annotations

import importlib
import types
from typing import Any


class LazyModule(types.ModuleType):
    """Stands for the module of its name; the first attribute asked of it imports the real one."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.__name__), attribute)
