"""Entries and planned tensors -> the GGUF files, every byte's place known before one is written; one file or a set.

The unscaled model is laid out too, though it never reaches a disk: it is what `extend --restore` leads back to, and
what decides how a scaling is written. Knows layouts, split sets and the way back; nothing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from yarn_gguf.archs.tensors import Part, Planned
from yarn_gguf.archs.transforms import Given
from yarn_gguf.conversion.slices import Place, pieces, size_of
from yarn_gguf.files import Stamp
from yarn_gguf.gguf_file.fill import Held, Piece
from yarn_gguf.gguf_file.format import DEFAULT_ALIGNMENT, F32, ValueType, pad
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, encode_header, entry
from yarn_gguf.gguf_file.shards import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Model
from yarn_gguf.metadata import ROPE_FREQS
from yarn_gguf.provenance import RESTORE, Original, digest_of, restore_record, tensors_digest

VERSION: Final = 3
_NOT_ON_DISK: Final = Stamp(0, 0, 0)


@dataclass(frozen=True)
class Blueprint:
    """A model in full: what its files will hold. `rope_freqs` is kept apart, as an encoding may add or replace it."""

    path: Path  # for messages
    entries: Mapping[str, Entry]
    sets: tuple[tuple[Planned, ...], ...]  # the tensors of each file
    rope_freqs: tuple[float, ...] | None = None
    added: bool = False  # those are the scaling's: the unscaled model has none

    @property
    def tensors(self) -> tuple[tuple[Planned, ...], ...]:
        """With `rope_freqs.weight` as the last tensor of the first file."""
        if self.rope_freqs is None:
            return self.sets
        return ((*self.sets[0], vector(ROPE_FREQS, self.rope_freqs)), *self.sets[1:])

    @property
    def headers(self) -> tuple[Header, ...]:
        sets = self.tensors
        # only part 1 counts a tensor that the scaling added, as `extend` has it: the other parts are the unscaled set's
        count = sum(map(len, sets))
        split = [_split_entries(i, len(sets), count - (self.added and i > 0)) for i in range(len(sets))]
        first = {**self.entries, **split[0]}
        return tuple(_header(self.path, first if i == 0 else split[i], each) for i, each in enumerate(sets))

    @property
    def model(self) -> Model:
        return Model(self.headers)


@dataclass(frozen=True)
class File:
    """One file, ready to be written."""

    pieces: tuple[Piece, ...]
    size: int


def vector(name: str, values: Sequence[float]) -> Planned:
    """A float32 vector that is not from the checkpoint."""
    array = np.array(values, np.float32)
    return Planned(name, array.shape, F32, (Part((Given(name, array),)),))


def shards(tensors: Iterable[Planned], largest: int | None) -> tuple[tuple[Planned, ...], ...]:
    """Runs of tensors of at most `largest` bytes; a tensor above that has a file of its own."""
    found: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        size = size_of(tensor)
        if largest is not None and found[-1] and filled + size > largest:
            found.append([])
            filled = 0
        found[-1].append(tensor)
        filled += size
    return tuple(map(tuple, found))


def _split_entries(number: int, count: int, tensors: int) -> dict[str, Entry]:
    if count == 1:
        return {}
    made = (
        entry(SPLIT_NO, ValueType.UINT16, number),
        entry(SPLIT_COUNT, ValueType.UINT16, count),
        entry(SPLIT_TENSORS, ValueType.INT32, tensors),
    )
    return {e.key: e for e in made}


def _header(path: Path, entries: Mapping[str, Entry], tensors: Sequence[Planned]) -> Header:
    infos, end = {}, 0
    for tensor in tensors:
        dims, start = tuple(reversed(tensor.shape)), pad(end, DEFAULT_ALIGNMENT)
        infos[tensor.name] = TensorInfo(tensor.name, dims, tensor.type, start)
        end = start + size_of(tensor)
    data = len(encode_header(VERSION, list(entries.values()), list(infos.values()), DEFAULT_ALIGNMENT))
    stamp = replace(_NOT_ON_DISK, size=data + pad(end, DEFAULT_ALIGNMENT))
    return Header(path, VERSION, entries, infos, DEFAULT_ALIGNMENT, data, stamp)


def encoded(header: Header) -> bytes:
    return encode_header(VERSION, list(header.entries.values()), list(header.tensors.values()), header.alignment)


def with_way_back(base: Blueprint, written: Blueprint) -> Blueprint:
    """The written model with the record from which `extend --restore` makes the unscaled one."""
    headers = base.headers
    original = Original(
        headers[0].entries,
        digest_of(encoded(headers[0])),
        body=headers[0].stamp.size - headers[0].data_offset,
        parts=tuple(digest_of(encoded(part)) for part in headers[1:]),
        infos=tuple(tensors_digest(part) for part in headers[1:]),
    )
    added = base.rope_freqs is None and written.rope_freqs is not None
    changed = base.rope_freqs is not None and written.rope_freqs != base.rope_freqs
    old = np.array(base.rope_freqs, "<f4").tobytes() if changed else None
    record = restore_record(original, written.headers[0].entries, added=added, replaced=old)
    entries = {**written.entries, RESTORE: entry(RESTORE, ValueType.STRING, record)}
    return replace(written, entries=entries, added=added)


def files(blueprint: Blueprint, *, check: bool) -> tuple[File, ...]:
    """The files, laid out. `check`: numbers that are copied as they are get looked at, too."""
    return tuple(_file(*pair, check=check) for pair in zip(blueprint.headers, blueprint.tensors, strict=True))


def _file(header: Header, tensors: Sequence[Planned], *, check: bool) -> File:
    infos = list(header.tensors.values())
    data = pieces(tensors, [info.offset for info in infos], header.data_offset, check=check)
    return File((*frame(header), *data), header.stamp.size)


def frame(header: Header) -> tuple[Held, ...]:
    """All of a file but its tensors' data."""
    return (Held(encoded(header), 0), *_padding(header))


def places(blueprint: Blueprint, first: int) -> list[tuple[Planned, Place]]:
    """Every tensor, and where its data goes; `first`: the number of the blueprint's first file among several."""
    return [
        (tensor, Place(first + n, header.data_offset + header.tensors[tensor.name].offset))
        for n, (header, tensors) in enumerate(zip(blueprint.headers, blueprint.tensors, strict=True))
        for tensor in tensors
    ]


def _padding(header: Header) -> list[Held]:
    """Zeros behind each tensor, written too: nothing of the file is left to what the filesystem has there."""
    infos = list(header.tensors.values())
    ends = [header.data_offset + info.offset + info.size for info in infos]
    begins = [*(header.data_offset + info.offset for info in infos[1:]), header.stamp.size]
    return [Held(bytes(to - end), end) for end, to in zip(ends, begins, strict=True) if to > end]
