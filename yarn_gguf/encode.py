"""Bytes of one tensor slice in the type of the file.

F32, F16, BF16 and Q8_0 are the bytes that upstream's converter gives. It goes through float32 and numpy (gguf-py's
`quants`); so do we in value, a chunk at a time that stays in the processor's cache, with libggml's vector code where
there is some. All other types are made by libggml's own quantizers. Numbers that cannot be told in the target type stop
everything. Knows no tensor names, no files, and not which tensor gets which type.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf import ggml
from yarn_gguf.gguf_file.format import TENSOR_TYPES

Bits = NDArray[Any]

CHUNK: Final = 1 << 17  # elements at a time: fewer turns of the interpreter, and still mostly in the cache
F32: Final = 0
F16: Final = 1
Q8_0: Final = 8
BF16: Final = 30
MXFP4: Final = 39  # whose scales reach as far as float32
_FLOATS: Final = {F32: "F32", F16: "F16", BF16: "BF16"}
_BITS: Final = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
_EXPONENT: Final = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # all ones in it: infinite, or no number
_LARGEST: Final = {"F32": 0x58000000, "F16": 0x7C00, "BF16": 0x5800}  # 2^49: no block's scale reaches as far
_BLOCK: Final = 32  # elements of Q8_0 that share a scale
_Q8_0_BLOCK: Final = np.dtype([("scale", np.float16), ("numbers", "V32")])


class Unfit(Exception):
    """A number that the target type cannot hold; `index` counts elements within the slice that was given."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"{value} at {index}")
        self.index, self.value = index, value


def fitting_type(type: int, row: int) -> int:
    """`type`, or F16 where a row is no whole number of its blocks: upstream falls back to that."""
    return F16 if row % TENSOR_TYPES[type].block else type


def encoded_size(count: int, dtype: str, type: int) -> int:
    """The bytes that so many elements of `dtype` take once they are encoded."""
    if dtype == "U8":
        return count
    kind = TENSOR_TYPES[type]
    if count % kind.block:
        raise AssertionError(f"{count} elements are no whole blocks of {kind.name}")
    return count // kind.block * kind.size


@dataclass(frozen=True, slots=True)
class Importance:
    """What an error in each column counts, for quantizers that take it into account.

    `weights`: float32; a row for each matrix of a tensor. `rows`: of one matrix; `first`: where in the tensor the slice
    begins, in rows.
    """

    weights: Bits
    rows: int
    first: int


def encoded(
    values: Bits, dtype: str, type: int, row: int, out: Bits | None = None, importance: Importance | None = None
) -> Bits:
    """The bytes of whole rows, as uint8: in `out` where given, else in an array of their own or in `values` itself.

    `values`: C-contiguous, of dtype F32, F16, BF16 (its bits) or U8 (encoded already, and passed on).
    """
    if dtype == "U8" or dtype == _FLOATS.get(type):
        flat = values.reshape(-1)
        if dtype != "U8":
            check_finite(flat, dtype)
        return _placed(flat.view(np.uint8), out)
    if row % TENSOR_TYPES[type].block:
        raise AssertionError(f"rows of {row} elements are no whole blocks of {TENSOR_TYPES[type].name}")
    if type not in _STEPS:
        return _quantized(values.reshape(-1, row), dtype, type, importance, out)
    return _encoded(values.reshape(-1), dtype, type, out)


def _placed(data: Bits, out: Bits | None) -> Bits:
    if out is None:
        return data
    out[:] = data
    return out


def _encoded(flat: Bits, dtype: str, type: int, out: Bits | None) -> Bits:
    step = _STEPS[type]
    if out is None:
        out = np.empty(encoded_size(flat.size, dtype, type), np.uint8)
    done = 0
    for begin in range(0, flat.size, CHUNK):
        chunk = flat[begin : begin + CHUNK]
        size = encoded_size(chunk.size, dtype, type)
        try:
            step(chunk, dtype, out[done : done + size], _SCRATCH)
        except Unfit as unfit:
            unfit.index += begin
            raise
        done += size
    return out


# ---- libggml's quantizers


def _quantized(rows: Bits, dtype: str, type: int, importance: Importance | None, out: Bits | None) -> Bits:
    """A few rows at a time, never of two matrices: each has an importance of its own."""
    if out is None:
        out = np.empty(encoded_size(rows.size, dtype, type), np.uint8)
    row, size = rows.shape[1], encoded_size(rows.shape[1], dtype, type)
    begin = 0
    while begin < len(rows):
        end, weights = min(begin + max(1, CHUNK // row), len(rows)), None
        if importance is not None:
            matrix, inside = divmod(importance.first + begin, importance.rows)
            end, weights = min(end, begin + importance.rows - inside), importance.weights[matrix]
        try:
            _quantize(rows[begin:end].reshape(-1), dtype, type, row, weights, out[begin * size : end * size])
        except Unfit as unfit:
            unfit.index += begin * row
            raise
        begin = end
    return out


def _quantize(flat: Bits, dtype: str, type: int, row: int, weights: Bits | None, out: Bits) -> None:
    """What is not finite never reaches the quantizers, which end the process over it; nor what is when it is squared,
    of which some make zeros without a word."""
    if not _all_below(flat, dtype, _EXPONENT[dtype] if type == MXFP4 else _LARGEST[dtype]):
        check_finite(flat, dtype)
        raise _worst(flat, dtype, 0)
    numbers = _as_f32(flat, dtype, _SCRATCH)
    if not numbers.flags.aligned:
        numbers = numbers.copy()
    if not ggml.quantize(type, numbers, row, weights, out):
        raise _worst(flat, dtype, 0)


# ---- numbers that do not fit


def check_finite(flat: Bits, dtype: str) -> None:
    """Raises Unfit at the first element that is infinite or no number."""
    if not _all_finite(flat, dtype):
        raise _unfit(flat, dtype, flat, dtype)


def _all_finite(flat: Bits, dtype: str) -> bool:
    return _all_below(flat, dtype, _EXPONENT[dtype])


def _all_below(flat: Bits, dtype: str, most: int) -> bool:
    """By the bits: as signed numbers the largest positive one shows, as unsigned ones the largest negative."""
    bits = flat.view(_BITS[dtype])
    if not bits.size:
        return True
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.max() >= sign + most:
        return False
    return bool(bits.view(f"i{bits.itemsize}").max() < most)


def _unfit(source: Bits, dtype: str, result: Bits, target: str) -> Unfit:
    """About the first element of `source` whose counterpart in `result` is not finite."""
    exponent = _EXPONENT[target]
    index = int(np.argmax((result.view(_BITS[target]) & exponent) == exponent))
    value = ggml.converted(source[index : index + 1], dtype, "F32")
    return Unfit(index, float(value[0]))


# ---- one chunk


class _Scratch(threading.local):
    """What one thread computes in, used again for each chunk."""

    def __init__(self) -> None:
        self.numbers = np.empty(CHUNK, np.float32)
        self.wide = np.empty((2, CHUNK), np.uint32)
        self.short = self.wide.view(np.uint16)[:, :CHUNK]
        self.integers = np.empty((2, CHUNK), np.int16)
        self.bytes = np.empty(CHUNK, np.int8)

    def numbers_for(self, count: int) -> Bits:
        """A row can be longer than a chunk."""
        if self.numbers.size < count:
            self.numbers = np.empty(count, np.float32)
        return self.numbers[:count]


_SCRATCH: Final = _Scratch()


def _cast(chunk: Bits, source: str, target: str, out: Bits) -> None:
    """The chunk's numbers into `out`, in another float type."""
    run = ggml.kernel(source, target)
    if run is not None and chunk.flags.aligned and out.flags.aligned:
        run(chunk, out)
    else:
        out[:] = ggml.converted(chunk, source, target)


def _as_f32(chunk: Bits, dtype: str, scratch: _Scratch) -> Bits:
    if dtype == "F32":
        return chunk
    numbers = scratch.numbers_for(chunk.size)
    _cast(chunk, dtype, "F32", numbers)
    return numbers


def _to_f32(chunk: Bits, dtype: str, out: Bits, scratch: _Scratch) -> None:
    check_finite(chunk, dtype)
    _cast(chunk, dtype, "F32", out.view(np.float32))


def _to_f16(chunk: Bits, dtype: str, out: Bits, scratch: _Scratch) -> None:
    result = out.view(np.float16)
    _cast(_as_f32(chunk, dtype, scratch), "F32", "F16", result)
    if not _all_finite(result, "F16"):
        raise _unfit(chunk, dtype, result, "F16")


def _to_bf16(chunk: Bits, dtype: str, out: Bits, scratch: _Scratch) -> None:
    result = out.view(np.uint16)
    _cast(_as_f32(chunk, dtype, scratch), "F32", "BF16", result)
    if not _all_finite(result, "BF16"):
        raise _unfit(chunk, dtype, result, "BF16")


def _to_q8_0(chunk: Bits, dtype: str, out: Bits, scratch: _Scratch) -> None:
    """Blocks of a float16 scale d = max |x| / 127 and 32 bytes x / d, rounded to the nearest, ties away from zero."""
    largest = _block_maxima(chunk, dtype, scratch)
    with np.errstate(over="ignore", divide="ignore"):
        scale = largest / np.float32(127)
        half = scale.astype(np.float16)
        inverse = np.float32(1) / scale
    if half.view(np.uint16).max() >= _EXPONENT["F16"]:
        block = int(np.argmax(half.view(np.uint16) >= _EXPONENT["F16"])) * _BLOCK
        raise _worst(chunk[block : block + _BLOCK], dtype, block)
    inverse[np.isinf(inverse)] = 0  # a block of nothing, or of numbers so small that their scale is nothing in float16
    whole = _rounded(_as_f32(chunk, dtype, scratch), inverse, scratch)
    blocks = out.view(_Q8_0_BLOCK)
    blocks["scale"] = half
    blocks["numbers"] = whole.view("V32")


def _rounded(numbers: Bits, inverse: Bits, scratch: _Scratch) -> Bits:
    """The numbers of each block times its inverse, to the nearest integer, ties away from zero.

    Twice the product, cut off, is halved upwards: (t + 1) // 2, and for t < 0 one less goes in. Small integers take
    fewer bytes through the processor than a rounding in float32 does.
    """
    with np.errstate(over="ignore"):
        doubled = inverse + inverse
    product = scratch.numbers_for(numbers.size)
    whole, sign = scratch.integers[:, : numbers.size]
    if np.isinf(doubled).any():  # of denormal numbers; the product is small all the same
        np.multiply(numbers, np.repeat(inverse, _BLOCK), out=product)
        np.add(product, product, out=product)
    else:  # the same: twice as much is exact
        np.multiply(numbers, np.repeat(doubled, _BLOCK), out=product)
    np.copyto(whole, product, casting="unsafe")
    np.right_shift(whole, 15, out=sign)
    np.add(whole, sign, out=whole)
    np.add(whole, 1, out=whole)
    np.right_shift(whole, 1, out=whole)
    result = scratch.bytes[: numbers.size]
    np.copyto(result, whole, casting="unsafe")
    return result


def _block_maxima(chunk: Bits, dtype: str, scratch: _Scratch) -> Bits:
    """The largest magnitude of each block, as float32. Without their sign, the bits of floats are ordered as they are.

    Each pass takes in twice as many neighbours; what stands at the start of four, and of a block in the end, is right.
    """
    bits = chunk.view(_BITS[dtype])
    first, second = scratch.wide if dtype == "F32" else scratch.short
    one, other = first[: bits.size], second[: bits.size]
    np.bitwise_and(bits, bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1), out=one)
    np.maximum(one[:-1], one[1:], out=other[:-1])
    np.maximum(other[:-2], other[2:], out=one[:-2])
    fours, other = second[: bits.size // 4], first[: bits.size // 4]
    fours[:] = one[::4]
    np.maximum(fours[:-1], fours[1:], out=other[:-1])
    np.maximum(other[:-2], other[2:], out=fours[:-2])
    np.maximum(fours[:-4], fours[4:], out=other[:-4])
    maxima = other[:: _BLOCK // 4].copy()
    return ggml.converted(maxima.view(chunk.dtype), dtype, "F32")


def _worst(block: Bits, dtype: str, begin: int) -> Unfit:
    numbers = ggml.converted(block, dtype, "F32")
    index = int(np.argmax(np.where(np.isnan(numbers), np.float32(np.inf), np.abs(numbers))))
    return Unfit(begin + index, float(numbers[index]))


_STEPS: Final[dict[int, Callable[[Bits, str, Bits, _Scratch], None]]] = {
    F32: _to_f32,
    F16: _to_f16,
    BF16: _to_bf16,
    Q8_0: _to_q8_0,
}
