"""attribute: attribution methods as pure functions of a model, images and targets.

The package shares its name with the public function `epochlens.attribute`, so calling it calls the function.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class CallablePackage(types.ModuleType):
    """Lets `epochlens.attribute(model, ...)` work also once Python has bound the name to this package."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from epochlens.attribute.methods import attribute

        return attribute(*arguments, **options)


sys.modules[__name__].__class__ = CallablePackage
