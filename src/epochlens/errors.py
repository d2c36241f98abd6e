"""The one error that is the user's to mend: commands print it and exit with code 2. Checks that all share."""

from __future__ import annotations

import contextlib
import difflib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MOST_SHOWN, LONGEST = 200, 4000
"""characters of a value, and of all that is said of it"""
LARGEST = 2**31 - 1
"""what a count may be: files keep epochs and rows as int32"""


class UsageError(ValueError):
    """A setting that cannot work, with the field, the value and what would do instead."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{one_line(field)}: {shown(value)} {one_line(problem)}")
        self.field, self.value, self.problem = field, value, problem

    def __reduce__(self) -> tuple[type[UsageError], tuple[str, object, str]]:
        return UsageError, (self.field, self.value, self.problem)


def unknown(field: str, value: object, choices: Iterable[str], also: str = "") -> UsageError:
    """A UsageError that lists the choices and names the nearest one."""
    names = list(choices)
    near = difflib.get_close_matches(str(value)[:MOST_SHOWN], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UsageError(field, value, f"is unknown{hint} Choices: {', '.join(names)}{also}")


def shown(value: object) -> str:
    """The value as Python writes it, its middle left out where that is long."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"


def one_line(text: str) -> str:
    """The text as one line for a terminal: what cannot be printed is escaped, long words are shortened."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return shortened(" ".join(map(shortened, line.split(" "))), LONGEST)


def shortened(text: str, most: int = MOST_SHOWN) -> str:
    """The text, or its beginning and end around an ellipsis where it has more characters than that."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def whole_number(field: str, value: object, least: int = 0, most: int = LARGEST) -> int:
    """The whole number that ASCII digits write. Raises UsageError for other words and beyond the bounds."""
    text = str(value)
    if not (text.isascii() and text.isdigit()):
        raise UsageError(field, value, f"is not a whole number from {least} to {most}")
    number = int(text.lstrip("0")[:20] or "0")  # int() refuses thousands of digits; 20 are too many anyway
    if number < least:
        raise UsageError(field, value, f"must be at least {least}")
    if number > most:
        raise UsageError(field, value, f"must be at most {most}")
    return number


def check_printable(field: str, text: str) -> str:
    """The text. Raises UsageError when it holds a control character or half a character."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise UsageError(field, text, "holds a character that cannot be printed: choose another name")
    return text


def check_folder(field: str, folder: str | Path) -> Path:
    """The folder's absolute path, existing or not. Raises UsageError for what cannot be one."""
    path = Path(check_printable(field, str(folder))).absolute()
    try:
        for part in (*path.parts[1:], path / ("x" * 255)):  # parts may be too long, and all of them together
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(path.anchor / Path(part))
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(field, str(folder), f"cannot be a folder: {problem}") from None
    return path
