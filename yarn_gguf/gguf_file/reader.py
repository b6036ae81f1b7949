"""Bytes of a GGUF file -> `Header`, or one line that says why not.

Believes nothing: every count and length is checked against the bytes that remain before it is acted on, so that a small
file can cost neither time nor memory, and `format` caps what a large or sparse one can cost; integers are Python's and
never wrap. Refuses all that ggml's own reader refuses, and a few files more that no loader could use.
Only the header is read, in pieces that double, never mapped: a file that somebody cuts short is an error, not a signal.
Knows the format and no model: what the keys mean is not asked here.
"""

from __future__ import annotations

import codecs
import io
import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.files import Stamp, open_regular, stamp_of
from yarn_gguf.gguf_file.format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_ARRAY,
    MAX_DIMS,
    MAX_ENTRIES,
    MAX_HEADER,
    MAX_KEY,
    MAX_NAME,
    MAX_SIZE,
    MAX_STRING,
    MAX_TENSORS,
    SCALARS,
    TENSOR_TYPES,
    VERSIONS,
    ValueType,
    pad,
)
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, to_text

FIRST_PIECE: Final = 1 << 18
TEXT_STEP: Final = 1 << 20  # bytes decoded at a time to see whether they are UTF-8
MIN_ENTRY: Final = 8 + 1 + 4 + 1  # a one-letter key and a one-byte value
MIN_TENSOR: Final = 8 + 1 + 4 + 4 + 8  # a one-letter name and no dimensions
ALIGNMENT_KEY: Final = "general.alignment"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SIZES = {kind: struct.calcsize("<" + letter) for kind, letter in SCALARS.items()}


class _Cursor:
    """The file's bytes from its start, fetched as they are asked for, and a position in them."""

    def __init__(self, file: BinaryIO, path: Path, stamp: Stamp) -> None:
        self.file, self.path, self.stamp = file, path, stamp
        self.size = self.stamp.size
        self.buffer = bytearray()
        self.at = 0

    def fail(self, text: str, *, at: int | None = None, code: str = "bad_gguf") -> InputError:
        where = self.at if at is None else at
        return InputError(f"at byte {where}: {text}", file=self.path, code=code)

    def check_unchanged(self) -> None:
        if stamp_of(self.file.fileno()) != self.stamp:
            raise ResourceError("changed while it was read", file=self.path, code="input_changed")

    @property
    def remaining(self) -> int:
        return self.size - self.at

    def need(self, count: int, what: str) -> None:
        """Makes `count` bytes from here on available, or says that the file is too short for `what`."""
        end = self.at + count
        if end > self.size:
            raise self.fail(
                f"{what} needs {count} bytes, the file has {self.remaining} left; it is cut short or damaged"
            )
        if end > len(self.buffer):
            self.fetch(end)

    def fetch(self, end: int) -> None:
        """Doubles what is in memory until it reaches byte `end`, which must lie within the file."""
        if end > MAX_HEADER:
            raise self.fail(f"the header goes on past {MAX_HEADER} bytes, no model's does; it is damaged or hostile")
        while len(self.buffer) < end:
            try:
                piece = self.file.read(max(FIRST_PIECE, len(self.buffer)))
            except OSError as error:
                raise ResourceError(f"cannot be read: {error.strerror}", file=self.path, code="read_failed") from error
            if not piece:
                raise ResourceError("became shorter while it was read", file=self.path, code="input_changed")
            self.buffer += piece

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self.at += count
        return bytes(self.buffer[self.at - count : self.at])

    def u32(self, what: str) -> int:
        self.need(4, what)
        self.at += 4
        return int(_U32.unpack_from(self.buffer, self.at - 4)[0])

    def u64(self, what: str) -> int:
        self.need(8, what)
        self.at += 8
        return int(_U64.unpack_from(self.buffer, self.at - 8)[0])

    def since(self, begin: int) -> bytes:
        """All bytes from `begin` to here, copied once."""
        with memoryview(self.buffer) as view:
            return bytes(view[begin : self.at])

    def name(self, what: str) -> bytes:
        """A key or a tensor's name, which is held and decoded at once: so it must be short."""
        length = self.u64(f"the length of {what}")
        if length > MAX_KEY:
            raise self.fail(f"{what} declares {length} bytes, more than {MAX_KEY}", at=self.at - 8)
        return self.take(length, what)

    def value_type(self, what: str) -> ValueType:
        number = self.u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"{what} has the unknown value type {number}", at=self.at - 4) from None


def _skip_strings(cursor: _Cursor, count: int, what: str) -> bool:
    """Steps over `count` strings, each checked against the bytes that remain; says whether all are UTF-8.

    The loop is all that a vocabulary of 150,000 words costs, so it touches each length once and nothing else.
    """
    buffer, at, unpack = cursor.buffer, cursor.at, _U64.unpack_from
    first, left = at, count
    long: list[tuple[int, int]] = []
    while left:
        try:
            for left in range(left, 0, -1):  # noqa: B007, B020 - goes on after a refill
                (length,) = unpack(buffer, at)
                if length > 127:
                    if length > min(cursor.size, MAX_STRING):
                        raise cursor.fail(f"a string of {what} declares {length} bytes", at=at)
                    long.append((at, length))
                at += 8 + length
            left = 0
        except struct.error:  # past what has been fetched
            if at + 8 > cursor.size:
                raise cursor.fail(f"{what} is cut short: {left} of {count} strings missing", at=cursor.size) from None
            cursor.fetch(at + 8)
    if at > cursor.size:
        raise cursor.fail(f"{what} is cut short in its last string", at=cursor.size)
    cursor.fetch(at)
    cursor.at = at
    return _all_utf8(buffer, first, at, long)


def _all_utf8(buffer: bytearray, first: int, end: int, long: list[tuple[int, int]]) -> bool:
    """Whether each length-prefixed string in the region is UTF-8; `long` are those of 128 bytes and more.

    Prefixes below 128 are eight ASCII bytes, which can neither begin nor continue a longer character: a stretch of such
    strings is UTF-8 exactly when each of them is. So stretches are looked at whole, and long strings one by one.
    """
    for at, length in long:
        if not (_is_utf8(buffer, first, at) and _is_utf8(buffer, at + 8, at + 8 + length)):
            return False
        first = at + 8 + length
    return _is_utf8(buffer, first, end)


def _is_utf8(raw: bytes | bytearray, start: int, end: int) -> bool:
    """Looks at a region in steps, so that its text, four times its bytes at worst, is never held whole."""
    with memoryview(raw) as view:
        while start < end:
            stop = min(start + TEXT_STEP, end)
            try:
                start += codecs.utf_8_decode(view[start:stop], "strict", stop == end)[1]
            except UnicodeDecodeError:
                return False
    return True


def _read_entry(cursor: _Cursor) -> Entry:
    begin = cursor.at
    raw_key = cursor.name("a key")
    key, what = to_text(raw_key), f"key {to_text(raw_key)[:80]!r}"
    if not raw_key:
        raise cursor.fail("an empty key", at=begin)
    kind, item_kind, count = cursor.value_type(what), None, 1
    if kind is ValueType.ARRAY:
        item_kind = cursor.value_type(what)
        count = cursor.u64(f"the count of {what}")
        if item_kind is ValueType.ARRAY:
            raise cursor.fail(f"{what} is an array of arrays; no reader knows them")
    stored = item_kind if item_kind is not None else kind
    size = _SIZES.get(stored, 8)  # a string takes at least its length
    if count > MAX_ARRAY or count * size > cursor.remaining:
        raise cursor.fail(f"{what} declares {count} items of {size} bytes or more, {cursor.remaining} bytes remain")
    if cursor.at + count * size > MAX_HEADER:
        raise cursor.fail(f"{what} declares {count} items, no model has a header beyond {MAX_HEADER} bytes")
    start = cursor.at - begin
    if stored is ValueType.STRING:
        utf8 = _skip_strings(cursor, count, what)
    else:
        cursor.need(count * size, what)
        cursor.at, utf8 = cursor.at + count * size, True
    utf8 = utf8 and _is_utf8(raw_key, 0, len(raw_key))
    return Entry(key, kind, item_kind, count, cursor.since(begin), start, utf8)


def parse_entry(raw: bytes) -> Entry:
    """One entry of these very bytes, held to the same rules as in a file."""
    cursor = _Cursor(io.BytesIO(raw), Path("entry"), Stamp(len(raw), 0, 0))
    found = _read_entry(cursor)
    if cursor.remaining:
        raise cursor.fail(f"{cursor.remaining} bytes follow the entry")
    return found


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    begin = cursor.at
    raw_name = cursor.name("a tensor name")
    name, what = to_text(raw_name), f"tensor {to_text(raw_name)[:80]!r}"
    if not 0 < len(raw_name) <= MAX_NAME or b"\0" in raw_name:
        raise cursor.fail(f"{what}: a name of {len(raw_name)} bytes; 1 to {MAX_NAME} and no NUL are allowed", at=begin)
    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMS:
        raise cursor.fail(f"{what} has {n_dims} dimensions, at most {MAX_DIMS} are allowed", at=cursor.at - 4)
    dims = tuple(cursor.u64(what) for _ in range(n_dims))
    kind, offset = cursor.u32(what), cursor.u64(what)
    if kind not in TENSOR_TYPES:
        raise cursor.fail(f"{what} has the unknown or retired type {kind}", at=begin)
    tensor = TensorInfo(name, dims, kind, offset)
    product = 1
    for dim in dims:
        product *= max(dim, 1)  # ggml refuses an overflow on the way, even where a zero follows
    block = TENSOR_TYPES[kind].block
    if product > MAX_SIZE or max(product // block * TENSOR_TYPES[kind].size, offset) > MAX_SIZE:
        raise cursor.fail(f"{what} of shape {dims} overflows", at=begin)
    if (dims[0] if dims else 1) % block:
        raise cursor.fail(
            f"{what}: rows of {dims[0] if dims else 1} are no multiple of {TENSOR_TYPES[kind].name}'s {block}"
        )
    return tensor


def _alignment(cursor: _Cursor, entries: dict[str, Entry]) -> int:
    found = entries.get(ALIGNMENT_KEY)
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value() if found.type is ValueType.UINT32 else None
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(f"{ALIGNMENT_KEY} must be an unsigned 32-bit power of two up to {MAX_ALIGNMENT}")
    return value


def _check_layout(cursor: _Cursor, tensors: dict[str, TensorInfo], alignment: int, data_offset: int) -> None:
    """Tensors lie in the order of their infos, each at the aligned end of the one before, all within the file."""
    expected = 0
    for tensor in tensors.values():
        if tensor.offset != expected:
            raise cursor.fail(f"tensor {tensor.name!r} lies at offset {tensor.offset}, expected {expected}")
        end = data_offset + tensor.offset + tensor.size
        if end > cursor.size:
            raise cursor.fail(
                f"tensor {tensor.name!r} needs the file to have {end} bytes, it has {cursor.size}; download it again",
                code="truncated",
            )
        expected += pad(tensor.size, alignment)


def _check_magic(cursor: _Cursor) -> int:
    """The version, or what the file is instead."""
    if cursor.size == 0:
        raise cursor.fail("the file is empty", code="not_gguf")
    magic = cursor.take(min(4, cursor.size), "the magic")
    if magic != MAGIC:
        cursor.need(min(64, cursor.remaining), "the start")
        if cursor.buffer.startswith(b"version https://git-lfs"):
            raise cursor.fail(
                "a git-LFS pointer, not the file it stands for; run `git lfs pull`", at=0, code="lfs_pointer"
            )
        raise cursor.fail(f"starts with {magic!r}, a GGUF file starts with {MAGIC!r}", at=0, code="not_gguf")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        why = "byte-swapped (big-endian) GGUF" if swapped else f"GGUF version {version}"
        raise cursor.fail(f"{why}; little-endian versions 2 and 3 are read", at=4, code="bad_version")
    return version


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and entries follow, no more than the remaining bytes could hold."""
    n_tensors, n_entries = cursor.u64("the tensor count"), cursor.u64("the entry count")
    declares = f"declares {n_entries} entries and {n_tensors} tensors"
    if n_entries * MIN_ENTRY + n_tensors * MIN_TENSOR > cursor.remaining:
        raise cursor.fail(f"{declares}, {cursor.remaining} bytes cannot hold them", at=8)
    if n_entries > MAX_ENTRIES or n_tensors > MAX_TENSORS:
        raise cursor.fail(f"{declares}; up to {MAX_ENTRIES} and {MAX_TENSORS} are read", at=8)
    return n_tensors, n_entries


def _read(cursor: _Cursor) -> Header:
    version = _check_magic(cursor)
    n_tensors, n_entries = _counts(cursor)
    entries: dict[str, Entry] = {}
    for _ in range(n_entries):
        begin, found = cursor.at, _read_entry(cursor)
        if found.key in entries:
            raise cursor.fail(f"key {found.key[:80]!r} stands twice", at=begin)
        entries[found.key] = found
    alignment = _alignment(cursor, entries)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        begin, tensor = cursor.at, _read_tensor(cursor)
        if tensor.name in tensors:
            raise cursor.fail(f"tensor {tensor.name!r} stands twice", at=begin)
        tensors[tensor.name] = tensor
    data_offset = pad(cursor.at, alignment) if tensors else cursor.at
    if data_offset > cursor.size:
        raise cursor.fail(f"the data should start at byte {data_offset}, the file has {cursor.size}", code="truncated")
    _check_layout(cursor, tensors, alignment, data_offset)
    return Header(cursor.path, version, entries, tensors, alignment, data_offset, cursor.stamp)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads and proves everything before the data. O(header) time and memory."""
    where = Path(path)
    with open_regular(where) as file:
        cursor = _Cursor(file, where, stamp_of(file.fileno()))
        try:
            header = _read(cursor)
        except InputError:
            cursor.check_unchanged()  # else the fault may be the moment's, not the file's
            raise
        cursor.check_unchanged()
        return header
