"""Memory that a parent and its children see: numbers that would be too many for a pipe.

An anonymous file where the system has one, else a temporary file that is removed with the room. Knows bytes only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import Final

ANONYMOUS: bool = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")  # noqa: PTH112 - no path of ours
_PREFIX: Final = "yarn-gguf-"


class Room:
    """The parent's end. `path` is what a child opens, if `inherited` is among the descriptors that it gets."""

    def __init__(self) -> None:
        if ANONYMOUS:
            self.descriptor = os.memfd_create(_PREFIX + "logits")
            self.path = f"/proc/self/fd/{self.descriptor}"
        else:
            self.descriptor, self.path = tempfile.mkstemp(prefix=_PREFIX)
        self.memory: mmap.mmap | None = None

    @property
    def inherited(self) -> tuple[int, ...]:
        return (self.descriptor,) if ANONYMOUS else ()

    def resize(self, size: int) -> mmap.mmap:
        """The memory, of this size; what was there before is gone."""
        self._unmap()
        os.ftruncate(self.descriptor, size)
        self.memory = mmap.mmap(self.descriptor, size)
        return self.memory

    def _unmap(self) -> None:
        if self.memory is not None:
            with contextlib.suppress(BufferError):  # an array still looks at it; it goes when that does
                self.memory.close()
            self.memory = None

    def close(self) -> None:
        """Can be done twice."""
        self._unmap()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            if not ANONYMOUS:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)  # noqa: PTH108 - as mkstemp gave it


def opened(path: str, size: int) -> mmap.mmap:
    """The child's end."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
