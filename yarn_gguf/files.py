"""Opening the files that we read: regular ones only, and what tells later that one is still the same.

A leaf: knows no format. Nothing here waits, whatever lies at a path.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from yarn_gguf.errors import InputError, ResourceError


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file is still the one that was opened."""

    size: int
    mtime_ns: int
    inode: int


def stamp_of(descriptor: int) -> Stamp:
    info = os.fstat(descriptor)
    return Stamp(info.st_size, info.st_mtime_ns, info.st_ino)


def open_regular(path: Path, wanted: str = "a GGUF file") -> BinaryIO:
    """The open file, refused before it is opened when it is no regular one: a FIFO would block, a tape rewind."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        if regular:
            # should it become a FIFO only now, opening must still not wait for a writer; regular files do not care
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no such file; give {wanted}", file=path, code="not_found") from error
    except OSError as error:
        raise ResourceError(f"cannot be opened: {error.strerror}", file=path, code="open_failed") from error
    except ValueError as error:  # a NUL, or text that the filesystem cannot spell
        raise InputError(f"{os.fspath(path)!r} is no name that a file can have", code="not_found") from error
    if regular and not (regular := stat.S_ISREG(os.fstat(descriptor).st_mode)):
        os.close(descriptor)
    if not regular:
        raise InputError(f"is not a regular file; give {wanted}", file=path, code="not_regular")
    return os.fdopen(descriptor, "rb", buffering=0)


def changed(path: Path) -> ResourceError:
    """What is raised when a file is no longer the one that it was."""
    text = "changed while it was read; run again when nothing writes to it"
    return ResourceError(text, file=path, code="input_changed")
