"""An importance matrix as `llama-imatrix` writes it: which columns of a tensor matter, by tensor.

Both formats: a GGUF of sums and counts, and the older binary one. What is accepted, and what the numbers come to, is as
in `llama-quantize`; all of the file is looked at when it is opened, and a tensor's numbers are read when they are asked
for, so that the matrix of a large model takes no room. Knows no quantization and no model.

The older format, all little-endian 32-bit:

    entries | entry … | [calls | length, data set]      entry: length, name | calls | values | float32 × values
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.files import Stamp, changed, open_regular, stamp_of
from yarn_gguf.gguf_file.format import F32, MAGIC, MAX_TENSORS, ValueType
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, entry, to_text
from yarn_gguf.gguf_file.reader import read_header

Numbers = NDArray[np.float32]

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
DATASETS: Final = "imatrix.datasets"
CHUNK_COUNT: Final = "imatrix.chunk_count"
CHUNK_SIZE: Final = "imatrix.chunk_size"
STEP: Final = 1 << 22  # bytes looked at in one go
KEPT: Final = 8  # tensors whose numbers are at hand: workers are at neighbouring ones
MOST_TEXT: Final = 127  # bytes of a text that llama-quantize writes into a file
MOST_NAME: Final = 1 << 16
_WORD: Final = struct.Struct("<i")


@dataclass(frozen=True, slots=True)
class Lies:
    """Where a tensor's numbers lie, float32 all of them, and what they are divided by."""

    start: int
    values: int
    calls: int = 0  # of the older format
    counts: tuple[int, int] | None = None  # of the GGUF: where they begin, and how many there are


@dataclass(frozen=True, eq=False)
class Imatrix:
    """`given`: the name of the file as it was given, which goes into the files that are made with it."""

    path: Path
    given: str
    stamp: Stamp
    entries: Mapping[str, Lies]
    dataset: str | None
    chunks: int

    def size_of(self, name: str) -> int | None:
        """How many numbers there are for a tensor; None where it is not in the matrix."""
        found = self.entries.get(name)
        return None if found is None else found.values

    def weights(self, name: str) -> Numbers:
        """The numbers for a tensor: one for each column, of one matrix after the other."""
        return _weights(self, name)

    def keys(self) -> list[Entry]:
        """What `llama-quantize` writes about it, as it is written there."""
        made = [entry("quantize.imatrix.file", ValueType.STRING, _cut(self.given))]
        if self.dataset is not None:
            made.append(entry("quantize.imatrix.dataset", ValueType.STRING, _cut(self.dataset)))
        made.append(entry("quantize.imatrix.entries_count", ValueType.UINT32, len(self.entries)))
        if self.chunks > 0:
            made.append(entry("quantize.imatrix.chunks_count", ValueType.UINT32, self.chunks))
        return made


def _cut(text: str) -> str:
    return to_text(text.encode("utf-8", "surrogateescape")[:MOST_TEXT])


@lru_cache(maxsize=KEPT)
def _weights(matrix: Imatrix, name: str) -> Numbers:
    lies = matrix.entries[name]
    with _opened(matrix.path, matrix.stamp) as file:
        sums = _floats(file, matrix.path, lies.start, lies.values)
        if lies.counts is None:
            return sums / np.float32(lies.calls) if lies.calls > 0 else sums
        counts = _rounded(_floats(file, matrix.path, *lies.counts))
    sums = sums.reshape(len(counts), -1)
    seen = counts > 0
    sums[seen] /= counts[seen, None]
    sums[~seen] = 1  # an expert that no token went to
    return sums.reshape(-1)


def _rounded(counts: Numbers) -> Numbers:
    """To whole numbers, halves away from zero, as `lround` does."""
    wide = counts.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.float32)


# ---- reading


def read_imatrix(given: str) -> Imatrix:
    """`given`: a path; the name that the file was given by goes into what is made with it."""
    path = Path(given)
    with open_regular(path, "an importance matrix") as file:
        stamp, is_gguf = stamp_of(file.fileno()), file.read(len(MAGIC)) == MAGIC
    found = _from_gguf(path) if is_gguf else _Legacy(path, stamp).read()
    with _opened(path, found.stamp) as file:
        for name, lies in found.entries.items():
            _check_numbers(file, path, name, lies)
    return replace(found, given=given)


def _opened(path: Path, stamp: Stamp) -> BinaryIO:
    file = open_regular(path, "an importance matrix")
    if stamp_of(file.fileno()) != stamp:
        file.close()
        raise changed(path)
    return file


def _floats(file: BinaryIO, path: Path, start: int, count: int) -> Numbers:
    try:
        file.seek(start)
        data = bytearray()
        while len(data) < 4 * count:
            piece = file.read(4 * count - len(data))
            if not piece:
                raise changed(path)
            data += piece
    except OSError as error:
        raise ResourceError(f"cannot be read: {error.strerror}", file=path, code="read_failed") from error
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _check_numbers(file: BinaryIO, path: Path, name: str, lies: Lies) -> None:
    """Mean squares: finite, as llama-quantize wants them, and none below zero, over which ggml's quantizers break."""
    runs = [(lies.start, lies.values), *([] if lies.counts is None else [lies.counts])]
    for start, count in runs:
        for begin in range(0, count, STEP // 4):
            numbers = _floats(file, path, start + 4 * begin, min(STEP // 4, count - begin))
            bad = ~(np.isfinite(numbers) & (numbers >= 0))
            if bad.any():
                at = int(np.argmax(bad))
                text = f"importance {begin + at} of {name} is {numbers[at]:g}; a matrix of llama-imatrix has none such"
                raise InputError(f"{text}: make it again", file=path, code="bad_imatrix")


def _fail(path: Path, text: str) -> InputError:
    return InputError(f"{text}; give a file that llama-imatrix wrote", file=path, code="bad_imatrix")


def _from_gguf(path: Path) -> Imatrix:
    header = read_header(path)
    if absent := [key for key in (DATASETS, CHUNK_COUNT, CHUNK_SIZE) if key not in header.entries]:
        raise _fail(path, f"has no {', '.join(absent)}, so it is no importance matrix")
    count = header.entries[CHUNK_COUNT]
    if count.type is not ValueType.UINT32:
        raise _fail(path, f"{CHUNK_COUNT} is no 32-bit number")
    texts = header.entries[DATASETS]
    sets = texts.value() if texts.item_type is ValueType.STRING else []
    dataset = str(sets[0]) if isinstance(sets, list) and sets else None
    chunks = count.value()
    entries = dict(_pairs(header))
    if not entries:
        raise _fail(path, "holds no tensor's importance")
    return Imatrix(path, str(path), header.stamp, entries, dataset, chunks if isinstance(chunks, int) else 0)


def _pairs(header: Header) -> Iterator[tuple[str, Lies]]:
    stems = {name.removesuffix(end) for name in header.tensors for end in (SUMS, COUNTS) if name.endswith(end)}
    for stem in sorted(stems):
        sums, counts = header.tensors.get(stem + SUMS), header.tensors.get(stem + COUNTS)
        if sums is None or counts is None:
            raise _fail(header.path, f"{stem} lacks its {SUMS if sums is None else COUNTS}")
        if (sums.type, counts.type) != (F32, F32):
            raise _fail(header.path, f"the numbers for {stem} are not F32")
        if not counts.elements or not sums.elements or sums.elements % counts.elements:
            raise _fail(header.path, f"{sums.elements} sums and {counts.elements} counts for {stem} do not fit")
        yield stem, Lies(_start(header, sums), sums.elements, counts=(_start(header, counts), counts.elements))


def _start(header: Header, tensor: TensorInfo) -> int:
    return header.data_offset + tensor.offset


class _Legacy:
    """The older format, read from its start; believes no length before it was held against what is left."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self.path, self.stamp, self.at = path, stamp, 0

    def read(self) -> Imatrix:
        with _opened(self.path, self.stamp) as self.file:
            count = self.word("the number of entries")
            if not 0 < count <= MAX_TENSORS:
                raise _fail(self.path, f"is no GGUF, and no importance matrix of the older format ({count} entries)")
            entries = dict(self.entry() for _ in range(count))
            chunks, dataset = self.trailer()
        return Imatrix(self.path, str(self.path), self.stamp, entries, dataset, chunks)

    def entry(self) -> tuple[str, Lies]:
        name = self.take(self.length("a name", MOST_NAME), "a name").partition(b"\0")[0]
        calls, values = self.word("calls"), self.word("values")
        if values < 1:
            raise _fail(self.path, f"at byte {self.at}: {values} values for {to_text(name)}")
        lies = Lies(self.at, values, calls)
        self.skip(4 * values, f"values for {to_text(name)}")
        return to_text(name), lies

    def trailer(self) -> tuple[int, str | None]:
        """Which files of the first versions do not have."""
        if self.stamp.size - self.at < _WORD.size:
            return 0, None
        chunks = self.word("chunks")
        if self.stamp.size - self.at < _WORD.size:
            return chunks, None
        length = self.word("a length")
        if not 0 < length <= self.stamp.size - self.at:
            return chunks, None
        return chunks, to_text(self.take(length, "a data set").partition(b"\0")[0])

    def length(self, what: str, most: int) -> int:
        found = self.word(f"the length of {what}")
        if not 0 <= found <= most:
            raise _fail(self.path, f"at byte {self.at}: {what} of {found} bytes")
        return found

    def word(self, what: str) -> int:
        return int(_WORD.unpack(self.take(_WORD.size, what))[0])

    def skip(self, count: int, what: str) -> None:
        if self.at + count > self.stamp.size:
            left = self.stamp.size - self.at
            raise _fail(self.path, f"at byte {self.at}: {what} take {count} bytes, {left} are left")
        self.at += count

    def take(self, count: int, what: str) -> bytes:
        start = self.at
        self.skip(count, what)
        self.file.seek(start)
        data: Any = self.file.read(count)
        if len(data) != count:
            raise changed(self.path)
        return bytes(data)
