"""The one error that is the user's to mend: commands print it and exit with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A setting that cannot work, with the field, the value and what would do instead."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field}: {value!r} {problem}")
        self.field, self.value, self.problem = field, value, problem

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, object, str]]:
        return UsageError, (self.field, self.value, self.problem)


def unknown(field: str, value: object, choices: Iterable[str], also: str = "") -> UsageError:
    """A UsageError that lists the choices and names the nearest one."""
    names = list(choices)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UsageError(field, value, f"is unknown{hint} Choices: {', '.join(names)}{also}")
