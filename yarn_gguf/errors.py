"""Everything that can go wrong for a reason outside our code.

    YarnGgufError
    ├── CheckFailed      exit 1   a threshold was not met
    ├── UsageError       exit 2   what was asked for makes no sense
    ├── InputError       exit 3   the input is bad, or not supported
    ├── ResourceError    exit 4   disk, memory, permissions, a file that changed
    └── ChildError       exit 5   a child process died, hung or lied

Each is one line for a person, `FILE: what was found, what was expected, what to do`, and a `code` for a program.
Knows nothing of files, models or the terminal; the command line turns these into exit codes in one place.
"""

from __future__ import annotations

import os
from typing import ClassVar


class YarnGgufError(Exception):
    """Base of all errors we raise on purpose; never raised itself."""

    exit_code: ClassVar[int] = 70

    def __init__(self, text: str, *, file: str | os.PathLike[str] | None = None, code: str = "") -> None:
        super().__init__(text)
        self.text = " ".join(text.split())
        self.file = None if file is None else os.fspath(file)
        self.code = code or type(self).__name__

    def __str__(self) -> str:
        return self.text if self.file is None else f"{self.file}: {self.text}"


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
