"""Tensors as they lie in the files of a checkpoint: where each one is, and how a slice of it is read.

Files are opened once, when first needed, and shared by all threads; every byte comes by `pread`, so nothing stays
mapped and no position is shared. A file that is no longer the one whose header was read is an error, and so is a read
that comes back short. Knows dtypes and offsets; nothing of headers, folders or quantization.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.files import Stamp, changed, open_regular, stamp_of
from yarn_gguf.gguf_file import fs

Array: TypeAlias = npt.NDArray[Any]

# what numpy holds of each dtype of safetensors; bfloat16 and the 8-bit floats as bits
HELD: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": np.uint16,
        "F8_E4M3": np.uint8,
        "F8_E5M2": np.uint8,
        "F8_E8M0": np.uint8,
        "I64": np.int64,
        "U64": np.uint64,
        "I32": np.int32,
        "U32": np.uint32,
        "I16": np.int16,
        "U16": np.uint16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.uint8,
    }
)
_LOOKED_UP: Final = 1 << 16  # table look-ups go through 8-byte indices, so few at a time: these stay in the cache


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it lies in a file. `dtype` is safetensors' name; `start` counts from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    stamp: Stamp
    start: int
    length: int


class Files:
    """The files that tensors are read from, each open once until `close`."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[BinaryIO, Stamp]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for file, _ in self._open.values():
                file.close()
            self._open.clear()

    def verify(self) -> None:
        """Raises ResourceError when a file that was read has changed meanwhile."""
        for path, (file, stamp) in list(self._open.items()):
            if stamp_of(file.fileno()) != stamp:
                raise changed(path)

    def read_into(self, stored: Stored, offset: int, out: memoryview) -> None:
        """Fills `out` with the tensor's bytes from `offset` on."""
        if offset < 0 or offset + out.nbytes > stored.length:
            raise IndexError(f"{stored.name}: bytes {offset} to {offset + out.nbytes} of {stored.length}")
        try:
            _fill(self._descriptor(stored), out, stored.start + offset, stored.file)
        except OSError as error:
            text = f"cannot be read: {error.strerror}"
            raise ResourceError(text, file=stored.file, code="read_failed") from error

    def _descriptor(self, stored: Stored) -> int:
        found = self._open.get(stored.file)
        return self._opened(stored) if found is None else found[0].fileno()

    def _opened(self, stored: Stored) -> int:
        with self._lock:
            if self._closed:
                raise ValueError("read after close")
            if stored.file not in self._open:
                file = open_regular(stored.file, "a shard of the checkpoint")
                if stamp_of(file.fileno()) != stored.stamp:
                    file.close()
                    raise changed(stored.file)
                self._open[stored.file] = file, stored.stamp
            return self._open[stored.file][0].fileno()


def _fill(fd: int, out: memoryview, offset: int, path: Path) -> None:
    """A system call reads 2 GiB at most, so more than one may be needed; one that reads nothing met the file's end."""
    while out:
        if fs.FAST and hasattr(os, "preadv"):
            done = os.preadv(fd, [out], offset)
        else:
            data = fs.pread(fd, min(len(out), 1 << 20), offset)
            done = len(data)
            out[:done] = data
        if not done:
            raise changed(path)
        out, offset = out[done:], offset + done


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor that can be read. `shape` has at least one axis: a scalar counts as (1,)."""

    stored: Stored
    files: Files

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape or (1,)

    @property
    def row(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * int(np.dtype(HELD[self.stored.dtype]).itemsize)

    def raw(self, begin: int, end: int) -> Array:
        """Entries [begin, end) of the first axis, as numpy holds them; the array is the caller's."""
        if not 0 <= begin <= end <= self.shape[0]:
            raise IndexError(f"{self.stored.name}: entries {begin} to {end} of {self.shape[0]}")
        out = np.empty((end - begin, *self.shape[1:]), HELD[self.stored.dtype])
        if out.nbytes:
            self.files.read_into(self.stored, begin * self.row, out.reshape(-1).view(np.uint8).data)
        return out

    def numbers(self, begin: int, end: int) -> npt.NDArray[np.float32]:
        """The same entries in float32, rounded to nearest where it cannot hold them."""
        return as_float32(self.raw(begin, end), self.stored.dtype)

    def columns(self, begin: int, end: int) -> Array:
        """Entries [begin, end) of the second axis of a matrix, read row by row."""
        rows, _ = self.shape
        out = np.empty((rows, end - begin), HELD[self.stored.dtype])
        if out.nbytes:
            for index, row in enumerate(out):
                self.files.read_into(self.stored, index * self.row + begin * out.itemsize, row.view(np.uint8).data)
        return out


def source(stored: Stored, files: Files) -> Source:
    """Raises InputError for a dtype that has no meaning for us."""
    if stored.dtype not in HELD:
        text = f"tensor {stored.name} is {stored.dtype}, which is not supported; {', '.join(HELD)} are"
        raise InputError(text, file=stored.file, code="dtype")
    return Source(stored, files)


def as_float32(raw: Array, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype in _TABLES:
        return _looked_up(_TABLES[dtype], raw)
    with np.errstate(over="ignore"):  # beyond float32's range lies infinity, as in torch
        return raw.astype(np.float32, copy=False)


def _looked_up(table: npt.NDArray[np.float32], bits: Array) -> npt.NDArray[np.float32]:
    out = np.empty(bits.shape, np.float32)
    flat, into = bits.reshape(-1), out.reshape(-1)
    for begin in range(0, flat.size, _LOOKED_UP):
        step = slice(begin, begin + _LOOKED_UP)
        np.take(table, flat[step], out=into[step], mode="clip")
    return out


def _table(exponent_bits: int) -> npt.NDArray[np.float32]:
    """The value of every byte: sign, exponent, mantissa, as in IEEE 754 with 8 bits."""
    byte = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = (1 << exponent_bits - 1) - 1
    exponent = byte >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (byte & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    size = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    return np.where(byte & 128, -size, size).astype(np.float32)


def _e4m3() -> npt.NDArray[np.float32]:
    """E4M3 "fn" has no infinity: only the largest exponent with the largest mantissa is set apart, as NaN."""
    table = _table(4)
    table.view(np.uint32)[[0x7F, 0xFF]] = 0x7FF00000, 0xFFF00000  # torch's bits
    return table


def _e5m2() -> npt.NDArray[np.float32]:
    """The upper half of a float16."""
    table = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
    table.view(np.uint32)[np.isnan(table)] |= 0x400000  # a quiet NaN, as torch's are
    return table


def _e8m0() -> npt.NDArray[np.float32]:
    """A power of two without sign; 255 is NaN."""
    table = np.zeros(256, np.float32)
    table[:255] = np.ldexp(1.0, np.arange(255) - 127)
    table.view(np.uint32)[255] = 0x7F800001  # torch's bits
    return table


_TABLES: Final = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2(), "F8_E8M0": _e8m0()}
