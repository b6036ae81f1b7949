"""A new file made of another file's tensors: where everything goes, as pieces for the writer.

Tensor data is never looked at. Runs of tensors that keep their distance to each other are one copy, paddings included:
a file whose tensors all stay is copied as a whole. No two pieces overlap. Knows no key but the alignment's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from yarn_gguf.gguf_file.fill import Copy, Held, Piece
from yarn_gguf.gguf_file.format import DEFAULT_ALIGNMENT, pad
from yarn_gguf.gguf_file.fs import BLOCK
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, encode_header
from yarn_gguf.gguf_file.reader import ALIGNMENT_KEY


@dataclass(frozen=True)
class Layout:
    """One whole file, ready to be written."""

    header: bytes
    pieces: tuple[Piece, ...]
    size: int
    tensors: int


@dataclass(frozen=True)
class Edit:
    """What is different from the source."""

    entries: Sequence[Entry]
    dropped: frozenset[str] = frozenset()  # tensors that go
    added: tuple[tuple[TensorInfo, bytes], ...] = ()  # tensors that come last; their offsets are set here
    overlaid: Mapping[str, bytes] = field(default_factory=dict)  # new data, of the same size, for tensors that stay
    body: int | None = None  # bytes of the data region's old part; None: with all the padding that is there
    trailing: int = 0  # bytes at the end of the source that go to the end of the file
    gap: bytes = b""  # what fills the space behind the header, if not zeros and if the space is as long


def alignment_of(entries: Sequence[Entry]) -> int:
    value = next((e.value() for e in entries if e.key == ALIGNMENT_KEY), DEFAULT_ALIGNMENT)
    return value if isinstance(value, int) else DEFAULT_ALIGNMENT


def rearranged(source: Header, edit: Edit, padding: Callable[[int], Entry] | None = None) -> Layout:
    """The source with the edit applied. `padding` makes an entry that fills the header until the data lies as it did
    modulo the filesystem's block: then a filesystem that can shares the data instead of copying it."""
    alignment = alignment_of(edit.entries)
    kept, end = _packed([t for t in source.tensors.values() if t.name not in edit.dropped], alignment)
    added, _ = _packed([tensor for tensor, _ in edit.added], alignment, pad(end, alignment))
    entries, tensors = list(edit.entries), [new for _, new in kept] + [new for _, new in added]
    if padding is not None:
        entries.append(_fitting(source, entries, tensors, alignment, padding))
    header = _gapped(encode_header(source.version, entries, tensors, alignment), entries, tensors, edit.gap)
    base, body = len(header), _body(source, kept, end, alignment, edit)
    pieces: list[Piece] = [Held(header, 0), *_copies(source, kept, base, body, edit.overlaid)]
    pieces += [Held(edit.overlaid[old.name], base + new.offset) for old, new in kept if old.name in edit.overlaid]
    size = base + body
    if not tensors and edit.body:  # what stands behind a header that no data follows
        size = base + min(edit.body, alignment - 1)
        pieces.append(Held(edit.gap if len(edit.gap) == size - base else bytes(size - base), base))
    for (_, data), (_, new) in zip(edit.added, added, strict=True):
        pieces.append(Held(data.ljust(pad(len(data), alignment), b"\0"), base + new.offset))
        size = base + new.offset + pad(len(data), alignment)
    if edit.trailing:
        start = source.stamp.size - edit.trailing
        pieces.append(Copy(source.path, source.stamp, start, edit.trailing, size))
    return Layout(header, tuple(pieces), size + edit.trailing, len(tensors))


def _packed(
    tensors: Sequence[TensorInfo], alignment: int, start: int = 0
) -> tuple[list[tuple[TensorInfo, TensorInfo]], int]:
    """(old, new) with offsets that follow each other, and where the last one's data ends."""
    found, end = [], start
    for tensor in tensors:
        new = replace(tensor, offset=pad(end, alignment))
        found.append((tensor, new))
        end = new.offset + new.size
    return found, end


def _body(source: Header, kept: Sequence[tuple[TensorInfo, TensorInfo]], end: int, alignment: int, edit: Edit) -> int:
    """How long the kept tensors' region is: as long as it was, as far as that is anywhere between bare and padded."""
    if not kept:
        return 0
    padded = pad(end, alignment)
    old, new = kept[-1]
    available = new.offset + min(pad(old.size, alignment), source.stamp.size - source.data_offset - old.offset)
    wanted = min(padded, available) if edit.body is None else edit.body
    return wanted if end <= wanted <= padded else end


def _copies(
    source: Header, kept: Sequence[tuple[TensorInfo, TensorInfo]], base: int, body: int, overlaid: Mapping[str, bytes]
) -> list[Piece]:
    """Runs of tensors with one and the same shift, each one copy, up to the next run or the end of the region.

    A tensor with new data is left out, as workers keep no order among pieces; the padding behind it is not.
    """
    if not kept:
        return []
    runs: list[tuple[int, int]] = []  # (old offset, new offset) of where each run begins
    ends: list[int] = []  # new offset of where each run ends
    for old, new in kept:
        if not runs or runs[-1][0] - runs[-1][1] != old.offset - new.offset:
            ends += [new.offset] * bool(runs)
            runs.append((old.offset, new.offset))
        if old.name in overlaid:
            ends.append(new.offset)
            runs.append((old.offset + old.size, new.offset + new.size))
    return [
        Copy(source.path, source.stamp, source.data_offset + old, _within(source, old, end - new), base + new)
        for (old, new), end in zip(runs, [*ends, body], strict=True)
        if end > new
    ]


def _within(source: Header, offset: int, length: int) -> int:
    """A copy never reaches beyond its source: padding that is not there is zeros in the new file."""
    return min(length, source.stamp.size - source.data_offset - offset)


def length_of(entries: Sequence[Entry], tensors: Sequence[TensorInfo]) -> int:
    """Bytes of a header without the space behind it."""
    return 24 + sum(len(e.raw) for e in entries) + sum(len(t.encode()) for t in tensors)


def _gapped(header: bytes, entries: Sequence[Entry], tensors: Sequence[TensorInfo], gap: bytes) -> bytes:
    """The header with its padding replaced by `gap`, where that is as long."""
    used = length_of(entries, tensors)
    return header[:used] + gap if gap and len(header) - used == len(gap) else header


def _fitting(
    source: Header,
    entries: Sequence[Entry],
    tensors: Sequence[TensorInfo],
    alignment: int,
    padding: Callable[[int], Entry],
) -> Entry:
    """The padding entry with which the data starts at the same place modulo BLOCK as the source's."""
    unpadded = length_of([*entries, padding(0)], tensors)
    return padding((source.data_offset - unpadded) % max(BLOCK, alignment))
