"""Where conversions lie: a name that replaces no file of a checkpoint, and the file that somebody else makes beside.

Knows nothing of what is in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ready:
    """A finished file that has no name yet."""

    path: Path
    bytes: int
    type: str


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that somebody else makes, and that takes its name together with the conversion's."""

    final: Path
    make: Callable[[], AbstractContextManager[Ready]]


@dataclass(frozen=True, slots=True)
class Beside:
    """What became of a companion; nobody knows its size before it is made."""

    path: Path
    bytes: int | None = None
    type: str | None = None


def check_no_source(final: Path, folders: Sequence[Path | None]) -> None:
    """Refuses to replace a file of a checkpoint, whatever is forced, and to add one that would be taken for its own."""
    parent = _real(final.parent)
    for folder in filter(None, folders):
        files = [path for path in folder.iterdir() if path.suffix != ".gguf"]
        if any(parent / final.name in (_real(folder) / path.name, _real(path)) for path in files):
            text = "is a file of the checkpoint, which is never replaced; use another name"
            raise UsageError(text, file=final, code="output_is_input")
        if parent == _real(folder) and final.suffix != ".gguf":
            text = "would lie among the checkpoint's files and could be taken for one; use a name that ends in .gguf"
            raise UsageError(text, file=final, code="output_in_checkpoint")


def _real(path: Path) -> Path:
    """Where a path leads; itself, where its links lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()
