"""What happens to a tensor on its way: rearrangements of whole blocks, and weights whose numbers are changed.

A rearrangement does not look at the numbers, so 16-bit floats stay the bits that they are; each says what shape it
gives and in which parts. What computes (`Added`, `Rows`) is a weight that wraps another. Knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from yarn_gguf.archs.tensors import Transform
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.config.hyperparameters import Hyperparameters

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Result = tuple[Shape, tuple[Transform, ...]]
Rearrangement = Callable[[Hyperparameters, Shape], Result]
QUARTET: Final = 32  # elements of an MXFP4 block


def permute(h: Hyperparameters, shape: Shape) -> Result:
    """Rows of a head from transformers' halves (0..d/2, d/2..d) to llama.cpp's pairs (0, d/2, 1, d/2 + 1, …)."""
    dim = h.size("head_dim")

    def pairs(rows: Array) -> Array:
        return rows.reshape(-1, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    return shape, (Transform("permuted", dim, pairs),)


def _cut(shape: Shape, rows: int, name: str, make: Callable[[Array], Array]) -> Result:
    return (shape[0], rows, *shape[2:]), (Transform(name, 1, make),)


def upper(h: Hyperparameters, shape: Shape) -> Result:
    """Of each expert the first half of the rows: (experts, 2·ff, hidden) -> (experts, ff, hidden)."""
    half = shape[1] // 2
    return _cut(shape, half, "first half", lambda block: block[:, :half])


def lower(h: Hyperparameters, shape: Shape) -> Result:
    """Of each expert the second half of the rows."""
    half = shape[1] // 2
    return _cut(shape, half, "second half", lambda block: block[:, half:])


def transposed(h: Hyperparameters, shape: Shape) -> Result:
    """Of each expert the matrix: (experts, in, out) -> (experts, out, in)."""
    return (shape[0], shape[2], shape[1]), (Transform("transposed", 1, lambda block: block.swapaxes(1, 2)),)


def _every_other(start: int) -> Rearrangement:
    def rearrangement(h: Hyperparameters, shape: Shape) -> Result:
        if len(shape) == 2:  # a bias per expert
            bias = Transform("every other", 1, lambda block: block[:, start::2])
            return (shape[0], shape[1] // 2), (bias,)
        matrix = Transform("transposed, every other", 1, lambda block: block.swapaxes(1, 2)[:, start::2])
        return (shape[0], shape[2] // 2, shape[1]), (matrix,)

    return rearrangement


def _mxfp4(start: int, step: int) -> Rearrangement:
    """Blocks (experts, rows, groups, 16) and scales (experts, rows, groups) to ggml's blocks of 17 bytes.

    gpt-oss has elements 2j and 2j + 1 in byte j; ggml has j in its low and j + 16 in its high half.
    """

    def rearrangement(h: Hyperparameters, shape: Shape) -> Result:
        experts, rows, groups, _ = shape

        def packed(blocks: Array, scales: Array) -> Array:
            codes = blocks[:, start::step]
            both = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], QUARTET)
            halves = both[..., :16] | (both[..., 16:] << 4)
            return np.concatenate((scales[:, start::step, :, None], halves), axis=-1)

        return (experts, rows // step, groups * QUARTET), (Transform("repacked", 1, packed),)

    return rearrangement


def key_part(h: Hyperparameters, shape: Shape) -> Result:
    """The keys' half of latent attention's kv_b, transposed: (heads·(nope + v), rank) -> (heads, rank, nope)."""
    nope, value, rank = h.size("qk_nope_head_dim"), h.size("v_head_dim"), shape[1]

    def keys(rows: Array) -> Array:
        return rows.reshape(-1, nope + value, rank)[:, :nope].swapaxes(1, 2)

    return (shape[0] // (nope + value), rank, nope), (Transform("k_b, transposed", nope + value, keys),)


def value_part(h: Hyperparameters, shape: Shape) -> Result:
    """The values' half: (heads·(nope + v), rank) -> (heads, v, rank)."""
    nope, value, rank = h.size("qk_nope_head_dim"), h.size("v_head_dim"), shape[1]

    def values(rows: Array) -> Array:
        return rows.reshape(-1, nope + value, rank)[:, nope:]

    return (shape[0] // (nope + value), value, rank), (Transform("v_b", nope + value, values),)


def _grouped(sizes: Callable[[Hyperparameters], tuple[int, int, int]]) -> Rearrangement:
    """Queries, keys and values that lie together per group of heads -> all queries, all keys, all values."""

    def rearrangement(h: Hyperparameters, shape: Shape) -> Result:
        counts = sizes(h)
        whole, starts = sum(counts), (0, counts[0], counts[0] + counts[1])

        def take(start: int, count: int) -> Callable[[Array], Array]:
            def rows_of(rows: Array) -> Array:
                return rows.reshape(-1, whole, *rows.shape[1:])[:, start : start + count]

            return rows_of

        names = ("queries", "keys", "values")
        parts = zip(names, starts, counts, strict=True)
        return shape, tuple(Transform(name, whole, take(start, n), (n, whole)) for name, start, n in parts)

    return rearrangement


def _neox(h: Hyperparameters) -> tuple[int, int, int]:
    dim = h.size("head_dim")
    return dim, dim, dim


def _falcon(h: Hyperparameters) -> tuple[int, int, int]:
    dim = h.size("head_dim")
    return dim * (h.size("heads") // h.size("kv_heads")), dim, dim


def squeezed(h: Hyperparameters, shape: Shape) -> Result:
    """Without the axis of length 1 that a convolution's weight has: (channels, 1, width) -> (channels, width)."""
    return (shape[0], *shape[2:]), (Transform("squeezed", 1, lambda block: block[:, 0]),)


REARRANGEMENTS: Final[dict[str, Rearrangement]] = {
    "permute": permute,
    "upper": upper,
    "lower": lower,
    "transpose": transposed,
    "even": _every_other(0),
    "odd": _every_other(1),
    "mxfp4": _mxfp4(0, 1),
    "mxfp4_even": _mxfp4(0, 2),
    "mxfp4_odd": _mxfp4(1, 2),
    "k_b": key_part,
    "v_b": value_part,
    "neox_qkv": _grouped(_neox),
    "falcon_qkv": _grouped(_falcon),
    "squeeze": squeezed,
}


@dataclass(frozen=True, slots=True)
class Added:
    """A weight with a number added to every element, in the precision in which upstream's converter adds it."""

    weight: Weight
    number: float

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dtype(self) -> str:
        return "F16" if self.weight.dtype == "F16" else "F32"

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def stored(self) -> None:
        return None

    def read(self, begin: int, end: int) -> Array:
        return np.asarray(as_numbers(self.weight, begin, end) + np.float32(self.number), dtype=_NUMPY[self.dtype])


_NUMPY: Final = {"F16": np.float16, "F32": np.float32}


def as_numbers(weight: Weight, begin: int, end: int) -> Array:
    """Entries of a weight as floats that can be computed with: BF16 as float32, the others as they are."""
    found = weight.read(begin, end)
    return (found.astype(np.uint32) << 16).view(np.float32) if weight.dtype == "BF16" else found


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a weight, as a weight."""

    weight: Weight
    first: int
    count: int

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dtype(self) -> str:
        return self.weight.dtype

    @property
    def shape(self) -> Shape:
        return (self.count, *self.weight.shape[1:])

    @property
    def stored(self) -> None:
        return None

    def read(self, begin: int, end: int) -> Array:
        return self.weight.read(self.first + begin, self.first + end)


@dataclass(frozen=True, slots=True)
class Given:
    """A weight whose numbers are held: float32, not from the checkpoint's files."""

    name: str
    values: Array

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> Shape:
        return tuple(self.values.shape)

    @property
    def stored(self) -> None:
        return None

    def read(self, begin: int, end: int) -> Array:
        return self.values[begin:end].astype("<f4")
