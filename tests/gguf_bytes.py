"""GGUF bytes put together by hand, right or wrong as asked. Shares nothing with the package, which is held against it.

gguf([u32(b"a", 1), pair(b"b", ARRAY, array(U8, 3, b"abc"))], [tensor(b"t", (2,), F32, 0)], b"8 bytes.")
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)
WIDTHS = {U8: 1, I8: 1, U16: 2, I16: 2, U32: 4, I32: 4, FLOAT32: 4, BOOL: 1, U64: 8, I64: 8, FLOAT64: 8}
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12  # tensor types


def string(raw: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def strings(*raw: bytes) -> bytes:
    return b"".join(map(string, raw))


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def u32(key: bytes, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def text(key: bytes, value: bytes) -> bytes:
    return pair(key, STRING, string(value))


def array(item_kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", item_kind, count) + items


def tensor(name: bytes, dims: Sequence[int], kind: int, offset: int, *, n_dims: int | None = None) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts are the true ones unless others are given."""
    counts = len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment if tensors else 0) + data


def small() -> bytes:
    """A complete file with every kind of value, two tensors and the padding between them."""
    numbers = [pair(b"n.%d" % kind, kind, b"\1" + bytes(width - 1)) for kind, width in WIDTHS.items()]
    arrays = [
        pair(b"a.bytes", ARRAY, array(U8, 3, b"\1\2\3")),
        pair(b"a.floats", ARRAY, array(FLOAT32, 2, struct.pack("<2f", 0.5, -1.0))),
        pair(b"a.empty", ARRAY, array(I32, 0, b"")),
        pair(b"a.texts", ARRAY, array(STRING, 3, strings(b"", "ж".encode(), b"x" * 130))),
    ]
    head = [text(b"general.architecture", b"llama"), u32(b"general.alignment", 32), text(b"empty", b"")]
    tensors = [tensor(b"first", (3, 2), F32, 0), tensor(b"second", (32,), Q8_0, 32)]
    return gguf([*head, *numbers, *arrays], tensors, bytes(range(24)) + bytes(8) + bytes(range(34)) + bytes(30))
