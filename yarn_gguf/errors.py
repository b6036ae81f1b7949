"""Everything that can go wrong for a reason outside our code.

    YarnGgufError
    ├── CheckFailed      exit 1   a threshold was not met
    ├── UsageError       exit 2   what was asked for makes no sense
    ├── InputError       exit 3   the input is bad, or not supported
    ├── ResourceError    exit 4   disk, memory, permissions, a file that changed
    └── ChildError       exit 5   a child process died, hung or lied

Each is one line for a person, `FILE: what was found, what was expected, what to do`, and a `code` for a program. What
came from a file may hold anything; `printable` makes it safe to show. Knows nothing of files or models; the command
line turns these into exit codes in one place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

# what ends a line, moves the cursor, turns the writing round, or is no character: C0, DEL, C1, LS, PS, bidi, surrogates
_OBEYED: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str) -> str:
    """One line that no terminal obeys: control characters are spelled out, as in a Python string."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class YarnGgufError(Exception):
    """Base of all errors we raise on purpose; never raised itself."""

    exit_code: ClassVar[int] = 70

    def __init__(self, text: str, *, file: str | os.PathLike[str] | None = None, code: str = "") -> None:
        super().__init__(text)
        self.text = " ".join(text.split())
        self.file = None if file is None else os.fspath(file)
        self.code = code or type(self).__name__

    def __str__(self) -> str:
        return printable(self.text if self.file is None else f"{self.file}: {self.text}")


@contextmanager
def about(file: str | os.PathLike[str]) -> Iterator[None]:
    """Names the file in an error from code that knows none."""
    try:
        yield
    except YarnGgufError as error:
        if error.file is None:
            error.file = os.fspath(file)
        raise


class CheckFailed(YarnGgufError):
    exit_code = 1


class UsageError(YarnGgufError):
    exit_code = 2


class InputError(YarnGgufError):
    exit_code = 3


class ResourceError(YarnGgufError):
    exit_code = 4


class ChildError(YarnGgufError):
    exit_code = 5
