"""What an interrupted run has scored, so that the next one need not: a file of frames in the user's cache folder.

Its name is a hash of everything that the figures depend on, so that it is only ever found by a run that would compute
the same. A frame that was not written whole ends the file: it is cut off. Removed when the run is complete.

    frame: u32 length | u32 CRC-32 of the payload | payload: u32 window, u32 rows, `ROW` × rows for each candidate
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.cache import cache_folder
from yarn_gguf.errors import ResourceError
from yarn_gguf.metrics import ROW, Rows

_FRAME: Final = struct.Struct("<II")
_HEAD: Final = struct.Struct("<II")


class Journal:
    """The rows of all candidates, by window; in memory, and on disk as they come."""

    def __init__(self, key: Mapping[str, Any], candidates: int, *, resume: bool) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.path = cache_folder() / "verify" / f"{name}.scores"
        self.candidates = candidates
        self.frames: list[tuple[int, list[Rows]]] = []
        self.resumed = 0  # positions that were there already
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            end = self._read() if resume else 0
            os.ftruncate(self.descriptor, end)
            os.lseek(self.descriptor, end, os.SEEK_SET)
        except OSError as error:
            text = f"the figures of an unfinished run cannot be kept there: {error.strerror or error}"
            raise ResourceError(text, file=self.path, code="journal") from error
        self.resumed = sum(len(rows[0]) for _, rows in self.frames)

    def _read(self) -> int:
        """Takes all whole frames; returns where they end."""
        data = self.path.read_bytes()
        at = 0
        while at + _FRAME.size <= len(data):
            length, check = _FRAME.unpack_from(data, at)
            payload = data[at + _FRAME.size : at + _FRAME.size + length]
            if len(payload) < length or zlib.crc32(payload) != check or not self._take(payload):
                break
            at += _FRAME.size + length
        return at

    def _take(self, payload: bytes) -> bool:
        window, count = _HEAD.unpack_from(payload)
        size = count * ROW.itemsize
        if len(payload) != _HEAD.size + size * self.candidates:
            return False
        starts = (_HEAD.size + size * number for number in range(self.candidates))
        self.frames.append((window, [np.frombuffer(payload, ROW, count, start) for start in starts]))
        return True

    def add(self, window: int, rows: list[Rows]) -> None:
        """Keeps one piece's rows of all candidates."""
        payload = _HEAD.pack(window, len(rows[0])) + b"".join(each.tobytes() for each in rows)
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            os.write(self.descriptor, frame)
        except OSError as error:
            raise ResourceError(f"cannot be written: {error.strerror}", file=self.path, code="journal") from error
        self.frames.append((window, rows))

    def done(self, window: int, context: int) -> NDArray[np.bool_]:
        """Which positions of a window have their rows."""
        found = np.zeros(context, bool)
        for where, rows in self.frames:
            if where == window:
                found[rows[0]["position"]] = True
        return found

    def rows(self, candidate: int) -> Rows:
        """All of a candidate's, in the order of windows and positions."""
        parts = [(window, rows[candidate]) for window, rows in self.frames]
        parts.sort(key=lambda each: (each[0], int(each[1]["position"][0])))
        found: Rows = np.concatenate([rows for _, rows in parts]) if parts else np.zeros(0, ROW)
        return found

    def close(self, *, finished: bool) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if finished:
            with contextlib.suppress(OSError):
                self.path.unlink()
