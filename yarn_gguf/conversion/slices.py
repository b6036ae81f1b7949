"""From the plan to pieces of a file: what the kernel can copy is copied, all else is read and encoded in slices.

Where the cuts are depends on the plan alone, never on the number of workers; whatever the size of a tensor, a worker
holds one slice of it. Several files of the same tensors are made of one reading (`spread`), and what is the same in
some of them is encoded once. Knows offsets and bytes; nothing of architectures, names of the checkpoint, or headers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf import ggml
from yarn_gguf.encode import BF16, F16, F32, Q8_0, Importance, Unfit, encoded, encoded_size
from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.gguf_file.fill import Copy, Made, Piece, Result, Spread
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.fs import BLOCK

if TYPE_CHECKING:
    from yarn_gguf.archs.tensors import Part, Planned
    from yarn_gguf.checkpoint.weights import Weight

SLICE: Final = 16 << 20  # bytes of source in a slice, unless one block takes more
QUANTIZED: Final = 2 << 20  # the same where libggml's quantizers are at work: what the last one takes, others wait for
STEP: Final = 2 << 20  # bytes of source that are read, encoded and written at a time, while they are in the cache
RESIDENT: Final = 48 << 20  # of Python, numpy and this program
ITEM_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_SAME: Final = {"F32": F32, "F16": F16, "BF16": BF16}
_QUICK: Final = (F32, F16, BF16, Q8_0)


def pieces(
    planned: Sequence[Planned], offsets: Sequence[int], data_start: int, *, check: bool = False
) -> Iterator[Piece]:
    """What fills the data of these tensors; `offsets` count from `data_start`. `check` looks at copied numbers, too."""
    for tensor, offset in zip(planned, offsets, strict=True):
        to = data_start + offset
        for part, length in zip(tensor.parts, _lengths(tensor), strict=True):
            yield from _pieces_of(_Source(tensor, part, length, to - data_start - offset), to, check)
            to += length


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's data begins: in which of several files, and at which of its bytes."""

    file: int
    start: int


def spread(variants: Sequence[Sequence[tuple[Planned, Place]]], *, check: bool = False) -> Iterator[Spread]:
    """What fills the data of several files that have the same tensors, of the same parts, in different types."""
    named = [{tensor.name: (tensor, place) for tensor, place in each} for each in variants]
    for name in named[0]:
        same = [each[name] for each in named]
        lengths = [_lengths(tensor) for tensor, _ in same]
        behind = [0] * len(same)
        for number, part in enumerate(same[0][0].parts):
            kinds: dict[tuple[int, bool], tuple[_Source, list[Place]]] = {}
            for n, (tensor, place) in enumerate(same):
                length = lengths[n][number]
                kind = tensor.type, tensor.importance is None
                source, places = kinds.setdefault(kind, (_Source(tensor, part, length, behind[n]), []))
                places.append(Place(place.file, place.start + source.behind))
                behind[n] += length
            yield from _spread_of(list(kinds.values()), check)


def _spread_of(kinds: Sequence[tuple[_Source, Sequence[Place]]], check: bool) -> Iterator[Spread]:
    sources = tuple(source for source, _ in kinds)
    _check_shapes(sources[0])
    for begin, end in _cuts(sources):
        results = tuple(
            Result(
                source.bytes_of(end - begin),
                tuple((place.file, place.start + source.bytes_of(begin)) for place in places),
            )
            for source, places in kinds
        )
        starts = tuple(result.places[0][1] for result in results)
        yield Spread(_Slice(sources, begin, end, starts, check), results, _are_quick(sources))


def _cuts(sources: Sequence[_Source]) -> Iterator[tuple[int, int]]:
    """The slices, as entries of the first axis."""
    count, step = sources[0].entries, sources[0].entries_in(SLICE if _are_quick(sources) else QUANTIZED)
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _are_quick(sources: Sequence[_Source]) -> bool:
    return all(source.tensor.type in _QUICK for source in sources)


def size_of(tensor: Planned) -> int:
    """Bytes of the tensor in the file."""
    return encoded_size(math.prod(tensor.shape), "", tensor.type)


def memory_of(planned: Sequence[Planned], jobs: int) -> int:
    """About what a conversion takes: for each worker what is read in a step, in float32 and encoded, and ourselves."""
    steps = [
        sum(math.prod(w.shape[1:]) * ITEM_SIZES[w.dtype] for w in part.weights) * _entries_read(part)
        for tensor in planned
        for part in tensor.parts
    ]
    return RESIDENT + jobs * 4 * max([STEP, *steps])


def _entries_read(part: Part) -> int:
    return part.transform.block if part.transform else 1


def _lengths(tensor: Planned) -> list[int]:
    """Bytes of each part's result. One that stays as it lies says itself; the others share the rest by their size."""
    plain = {n: _plain_length(tensor, part) for n, part in enumerate(tensor.parts) if part.transform is None}
    rest = size_of(tensor) - sum(plain.values())
    sizes = {n: _elements(part) for n, part in enumerate(tensor.parts) if n not in plain}
    whole = sum(sizes.values())
    if (rest if not whole else any(rest * size % whole for size in sizes.values())) or rest < 0:
        raise AssertionError(f"{tensor.name}: the parts do not make up {tensor.shape}")
    shared = {n: rest * size // whole for n, size in sizes.items()}
    return [(plain | shared)[n] for n in range(len(tensor.parts))]


def _elements(part: Part) -> int:
    """How many elements of its first weight a part takes."""
    taken, of = part.transform.share if part.transform else (1, 1)
    return math.prod(part.weights[0].shape) * taken // of


def _plain_length(tensor: Planned, part: Part) -> int:
    (weight,) = part.weights
    return encoded_size(math.prod(weight.shape), weight.dtype, tensor.type)


@dataclass(frozen=True, slots=True)
class _Source:
    """One part of a tensor and the bytes that it becomes."""

    tensor: Planned
    part: Part
    length: int
    behind: int  # bytes of the tensor that come before

    @property
    def block(self) -> int:
        return self.part.transform.block if self.part.transform else 1

    @property
    def entries(self) -> int:
        return _entries(self.part.weights[0])

    def bytes_of(self, entries: int) -> int:
        """What so many entries of the first axis become."""
        if self.length * entries % self.entries:
            raise AssertionError(f"{self.tensor.name}: {entries} of {self.entries} entries are no whole bytes")
        return self.length * entries // self.entries

    def entries_in(self, size: int) -> int:
        """How many entries of the first axis have about `size` bytes of source: whole blocks, at least one."""
        entry = sum(math.prod(w.shape[1:]) * ITEM_SIZES[w.dtype] for w in self.part.weights)
        return max(self.block, size // max(entry, 1) // self.block * self.block)

    def values(self, begin: int, end: int) -> NDArray[Any]:
        """These entries of the part, as numbers of the checkpoint's type."""
        values = [weight.read(begin, end) for weight in self.part.weights]
        transform = self.part.transform
        return values[0] if transform is None else np.ascontiguousarray(transform.make(*values))

    def encode(self, values: NDArray[Any], begin: int, out: NDArray[Any], *, check: bool) -> None:
        tensor, dtype = self.tensor, _DTYPES[values.dtype.str]
        if not check and tensor.type == _SAME.get(dtype):
            out[:] = values.reshape(-1).view(np.uint8)
            return
        row = tensor.shape[-1] if tensor.shape else 1
        try:
            with ggml.doing(tensor.name):
                encoded(values, dtype, tensor.type, row, out, self.importance(begin))
        except Unfit as unfit:
            raise self._explained(unfit, begin) from None
        except ggml.Missing:
            text = "llama.cpp's libggml-base, which quantizes, is not to be found; install llama-cpp-python"
            raise ResourceError(text, file=ggml.library_folder(), code="no_quantizer") from None

    def importance(self, begin: int) -> Importance | None:
        tensor = self.tensor
        if tensor.importance is None:
            return None
        row = tensor.shape[-1]
        return Importance(tensor.importance().reshape(-1, row), tensor.shape[-2], self._element(begin) // row)

    def _element(self, begin: int) -> int:
        """How many elements of the tensor come before this entry."""
        kind = TENSOR_TYPES[self.tensor.type]
        return (self.behind + self.bytes_of(begin)) // kind.size * kind.block

    def _explained(self, unfit: Unfit, begin: int) -> InputError:
        """The error names the tensor on both sides, and the element by its place in the new one."""
        tensor, weight = self.tensor, self.part.weights[0]
        kind = TENSOR_TYPES[tensor.type]
        place = [int(n) for n in np.unravel_index(self._element(begin) + unfit.index, tensor.shape or (1,))]
        where = f"{tensor.name} (from {weight.name}): {unfit.value:g} at {place}"
        file = weight.stored.file if weight.stored else None
        if not math.isfinite(unfit.value):
            text = f"{where} is no finite number; the checkpoint is damaged: fetch it again, or mend the tensor"
            return InputError(text, file=file, code="not_finite")
        text = f"{where} is too large for {kind.name}; use --outtype bf16, or f32 if that is too small as well"
        return InputError(text, file=file, code="f16_overflow")


def _entries(weight: Weight) -> int:
    return weight.shape[0] if weight.shape else 1


def _pieces_of(source: _Source, to: int, check: bool) -> Iterator[Piece]:
    weight = source.part.weights[0]
    if weight.stored is not None and _is_copy(source, weight) and (not check or weight.dtype == "U8"):
        stored = weight.stored
        yield Copy(stored.file, stored.stamp, stored.start, stored.length, to)
        return
    _check_shapes(source)
    for begin, end in _cuts([source]):
        start = to + source.bytes_of(begin)
        made = _Slice((source,), begin, end, (start,), check=True)
        yield Made(made.only, source.bytes_of(end - begin), start, _are_quick([source]))


def _is_copy(source: _Source, weight: Weight) -> bool:
    """Whether the part's bytes lie in a file as they shall lie in ours."""
    if source.part.transform is not None or weight.stored is None:
        return False
    same = weight.dtype == "U8" or _SAME.get(weight.dtype) == source.tensor.type
    return same and weight.stored.length == source.length


def _check_shapes(source: _Source) -> None:
    if source.entries % source.block or any(_entries(w) != source.entries for w in source.part.weights):
        shapes = [w.shape for w in source.part.weights]
        raise AssertionError(f"{source.tensor.name}: {shapes} cannot be read in step by {source.block}")


class _Buffer(threading.local):
    """Where a worker puts a step together; used again for its next one."""

    data: NDArray[Any] = np.empty(0, np.uint8)

    def of(self, size: int, to: int) -> NDArray[Any]:
        """It lies in memory as it will in the file from `to` on, modulo the block: so it can go past the cache."""
        if self.data.size < size + 2 * BLOCK:
            self.data = np.empty(size + 2 * BLOCK, np.uint8)
        start = (to - int(self.data.__array_interface__["data"][0])) % BLOCK
        return self.data[start : start + size]


_BUFFER: Final = _Buffer()


@dataclass(frozen=True, slots=True)
class _Slice:
    """Makes the bytes of some entries of a part, step by step; each is good until the same thread makes the next.

    `sources`: the same part, one for each type that it becomes. `check`: numbers that stay as they are get looked at.
    """

    sources: tuple[_Source, ...]
    begin: int
    end: int
    starts: tuple[int, ...]  # of each source, where in a file it goes
    check: bool

    def __call__(self) -> Iterator[tuple[int, memoryview]]:
        """With each step which of the sources it is of."""
        first = self.sources[0]
        step = first.entries_in(STEP)
        for begin in range(self.begin, self.end, step):
            end = min(begin + step, self.end)
            values = first.values(begin, end)
            for number, (source, start) in enumerate(zip(self.sources, self.starts, strict=True)):
                out = _BUFFER.of(source.bytes_of(end - begin), start + source.bytes_of(begin - self.begin))
                source.encode(values, begin, out, check=self.check)
                yield number, out.data

    def only(self) -> Iterator[memoryview]:
        """Of one source."""
        return (data for _, data in self())


# numpy's names of what `Weight.read` and transforms give
_DTYPES: Final = {
    np.dtype(np.float32).str: "F32",
    np.dtype(np.float16).str: "F16",
    np.dtype(np.uint16).str: "BF16",
    np.dtype(np.uint8).str: "U8",
}
