"""Frozen values for what stands before the tensor data, and their bytes.

An `Entry` keeps the bytes that it was read from, so that a file that passes through us changes only where it was meant
to: text that is not UTF-8, unusual number types and empty arrays all survive. Opens no file, knows no key by name.

Layout of a file, all little-endian:

    "GGUF" | u32 version | u64 tensors | u64 entries | entry … | tensor info … | zeros up to the alignment | data
    entry:        u64 length, key | u32 type | value      (array: u32 item type, u64 count, items)
    tensor info:  u64 length, name | u32 dims | u64 × dims, fastest first | u32 type | u64 offset from the data's start
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.files import Stamp
from yarn_gguf.gguf_file.format import MAGIC, SCALARS, TENSOR_TYPES, ValueType, pad

Scalar = bool | int | float | str
Value = Scalar | list[str] | np.ndarray[Any, Any]


def to_text(raw: bytes) -> str:
    """Text of any bytes; what is not UTF-8 becomes lone surrogates that `to_bytes` turns back."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key with its value. `start` is where the items begin in `raw`."""

    key: str
    type: ValueType
    item_type: ValueType | None  # of an array
    count: int  # items of an array, else 1
    raw: bytes
    start: int
    utf8: bool = True  # whether all its text is UTF-8

    def value(self) -> Value:
        """The decoded value; strings that are not UTF-8 carry lone surrogates."""
        kind = self.item_type if self.item_type is not None else self.type
        if kind is ValueType.STRING:
            texts = self._strings()
            return texts if self.type is ValueType.ARRAY else texts[0]
        items = np.frombuffer(self.raw, np.dtype(SCALARS[kind]).newbyteorder("<"), self.count, self.start)
        if self.type is ValueType.ARRAY:
            return items
        scalar: Scalar = items[0].item()
        return scalar

    def _strings(self) -> list[str]:
        texts, at, length_of = [], self.start, struct.Struct("<Q").unpack_from
        for _ in range(self.count):
            (length,) = length_of(self.raw, at)
            texts.append(to_text(self.raw[at + 8 : at + 8 + length]))
            at += 8 + length
        return texts


def _string(text: str) -> bytes:
    raw = to_bytes(text)
    return struct.pack("<Q", len(raw)) + raw


def _items(kind: ValueType, values: Sequence[Scalar]) -> bytes:
    if kind is ValueType.STRING:
        return b"".join(_string(str(v)) for v in values)
    return struct.pack(f"<{len(values)}{SCALARS[kind]}", *values)


def entry(key: str, kind: ValueType, value: Scalar) -> Entry:
    """A new scalar or string entry."""
    head = _string(key) + struct.pack("<I", kind)
    return Entry(key, kind, None, 1, head + _items(kind, [value]), len(head))


def array_entry(key: str, item_kind: ValueType, values: Sequence[Scalar]) -> Entry:
    """A new array entry."""
    head = _string(key) + struct.pack("<IIQ", ValueType.ARRAY, item_kind, len(values))
    return Entry(key, ValueType.ARRAY, item_kind, len(values), head + _items(item_kind, values), len(head))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is. `dims` are in the file's order: fastest first."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int  # from the start of the data region

    @property
    def elements(self) -> int:
        product = 1
        for dim in self.dims:
            product *= dim
        return product

    @property
    def size(self) -> int:
        """Bytes of data, without padding."""
        kind = TENSOR_TYPES[self.type]
        return self.elements // kind.block * kind.size

    def encode(self) -> bytes:
        fields = struct.pack(f"<I{len(self.dims)}QIQ", len(self.dims), *self.dims, self.type, self.offset)
        return _string(self.name) + fields


@dataclass(frozen=True)
class Header:
    """One GGUF file, all but its tensor data."""

    path: Path
    version: int
    entries: Mapping[str, Entry]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_offset: int
    stamp: Stamp

    @property
    def end(self) -> int:
        """Where the last tensor's data ends, its padding not counted."""
        return self.data_offset + max((t.offset + t.size for t in self.tensors.values()), default=0)

    @cached_property
    def padded_end(self) -> int:
        """The end of the data with all the padding that the file really has."""
        return min(pad(self.end, self.alignment), self.stamp.size)  # ggml pads the header of a file without tensors too

    @property
    def trailing(self) -> int:
        """Bytes of the file that belong to nothing."""
        return self.stamp.size - self.padded_end

    def get(self, key: str) -> Value | None:
        found = self.entries.get(key)
        return None if found is None else found.value()


def encode_header(version: int, entries: Sequence[Entry], tensors: Sequence[TensorInfo], alignment: int) -> bytes:
    """The bytes before the data region, padded to where it starts; a file without tensors has no padding."""
    head = MAGIC + struct.pack("<IQQ", version, len(tensors), len(entries))
    body = b"".join([head, *(e.raw for e in entries), *(t.encode() for t in tensors)])
    return body.ljust(pad(len(body), alignment), b"\0") if tensors else body
