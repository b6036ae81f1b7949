"""What a person should be told about a file besides the result: a level, a code for programs, a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    ERROR = "error"  # the file will not do what it says
    WARNING = "warning"  # it may not, for somebody
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    code: str
    text: str
    command: str = ""  # what does something about it, as a shell takes it; it stands on a line of its own

    @property
    def whole(self) -> str:
        return f"{self.text}: {self.command}" if self.command else self.text


def error(code: str, text: str) -> Finding:
    return Finding(Level.ERROR, code, text)


def warning(code: str, text: str) -> Finding:
    return Finding(Level.WARNING, code, text)


def note(code: str, text: str, command: str = "") -> Finding:
    return Finding(Level.NOTE, code, text, command)
