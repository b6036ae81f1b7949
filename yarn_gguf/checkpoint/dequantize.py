"""Weights out of quantized checkpoints, in float32, slice by slice: the formulas, and which tensors go into each.

    fp8                 weight · scale_inv, per tensor, row, or block (DeepSeek-V3, Ministral-3)
    modelopt            weight · scale (FP8 only)
    compressed-tensors  weight · scale (float-, int-, naive-quantized); (packed − zero point) · scale (pack-quantized)
    gptq, bitnet        packed integers, as those two lay them out
    mxfp4               nothing to do: the blocks are handed on as they are

Every operation is one float32 operation of upstream's converter, in its order, so the bits are the same. A method is
one row of `METHODS`; another is an error that names it. Knows names' endings; nothing of architectures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from yarn_gguf.checkpoint.safetensors_file import strict_json
from yarn_gguf.checkpoint.stored import Array, Source, Stored, as_float32
from yarn_gguf.errors import InputError, about
from yarn_gguf.files import open_regular

Sources: TypeAlias = Mapping[str, Source]
Settings: TypeAlias = Mapping[str, Any]
Numbers: TypeAlias = npt.NDArray[np.float32]

LARGEST_SETTINGS: Final = 16 << 20
EIGHT_BIT_FLOATS: Final = ("F8_E4M3", "F8_E5M2")
BYTES: Final = ("I8", "U8")
WORD: Final = 32  # bits that packed integers share


def _refusal(text: str) -> InputError:
    return InputError(text, code="quantization")


# ---- weights


@dataclass(frozen=True, slots=True)
class _Dequantized:
    name: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def stored(self) -> Stored | None:
        return None


@dataclass(frozen=True, slots=True)
class Scaled(_Dequantized):
    """weight[i, j, …] · scale[i // steps[0], j // steps[1], …]; `scales` is the scale's shape, with as many axes."""

    weight: Source
    scale: Source
    scales: tuple[int, ...]
    steps: tuple[int, ...]

    def read(self, begin: int, end: int) -> Numbers:
        values = self.weight.numbers(begin, end)
        if values.size:
            first, last = begin // self.steps[0], (end - 1) // self.steps[0] + 1
            scale = self.scale.numbers(first, last).reshape(last - first, *self.scales[1:])
            _multiply(values, scale, self.steps, begin - first * self.steps[0])
        return values


def _multiply(values: Numbers, scale: Numbers, steps: tuple[int, ...], skip: int) -> None:
    """values[i, …] *= scale[(skip + i) // steps[0], …], in place."""
    if scale[0].size == 1:
        rows = (np.arange(len(values)) + skip) // steps[0]
        values *= scale.reshape(len(scale), *(1,) * (values.ndim - 1))[rows]
        return
    for index, row in enumerate(scale):
        part = values[max(0, index * steps[0] - skip) : (index + 1) * steps[0] - skip]
        if part.ndim == 2:
            part *= np.repeat(row, steps[1])[: part.shape[1]]
        else:
            for entry in part:
                _multiply(entry, row, steps[1:], 0)


@dataclass(frozen=True, slots=True)
class Packed(_Dequantized):
    """Whole numbers of `bits` bits in int32 words along each row, minus a zero point, times a scale for each group.

    Zero points are packed along the columns instead; without them the middle of the range is zero.
    """

    packed: Source
    scale: Source
    zero_point: Source | None
    bits: int

    def read(self, begin: int, end: int) -> Numbers:
        rows, columns = end - begin, self.shape[1]
        numbers = _unpacked(self.packed.raw(begin, end)[..., None], self.bits).reshape(rows, -1)[:, :columns]
        scale = self.scale.numbers(begin, end)[..., None]
        groups = numbers.reshape(rows, scale.shape[1], -1)
        groups -= self._zero(begin, end)
        values: Numbers = groups.astype(np.float32)
        values *= scale
        return values.reshape(rows, columns)

    def _zero(self, begin: int, end: int) -> Array:
        if self.zero_point is None:
            return np.array(1 << self.bits - 1, np.int32)
        each = WORD // self.bits
        first = begin // each
        words = self.zero_point.raw(first, -(-end // each))
        zero = _unpacked(words[:, :, None], self.bits).transpose(0, 2, 1).reshape(-1, words.shape[1])
        return zero[begin - first * each : end - first * each, :, None]


def _unpacked(words: Array, bits: int) -> Array:
    """[…, 1] words → […, count] unsigned numbers, the lowest bits first; bits that do not fill a number are left."""
    shifts = np.arange(0, WORD - (bits - 1), bits, dtype=np.int32)
    numbers: Array = words >> shifts
    numbers &= np.int32((1 << bits) - 1)
    return numbers


@dataclass(frozen=True, slots=True)
class Gptq(_Dequantized):
    """scales[group] · (number − zero point[group]), the group of each input by `groups`; laid out inputs first.

    packed: [inputs / k, outputs] with k numbers in a word along the inputs; zero points: [groups, outputs / k].
    A slice of outputs is a range of columns there, so only those are read.
    """

    packed: Source
    zeros: Source
    scales: Source
    groups: Array
    bits: int
    shift: int  # version 1 stores its zero points one too low

    def read(self, begin: int, end: int) -> Numbers:
        each = WORD // self.bits
        words = self.packed.columns(begin, end)
        numbers = _unpacked(words[:, :, None], self.bits).transpose(0, 2, 1).reshape(-1, end - begin)
        first = begin // each
        zeros = _unpacked(self.zeros.columns(first, -(-end // each))[:, :, None], self.bits)
        zeros = zeros.reshape(len(zeros), -1)[:, begin - first * each : end - first * each] + np.int32(self.shift)
        scales = _columns_as_float32(self.scales, begin, end)
        values: Numbers = (numbers - zeros[self.groups]).astype(np.float32)
        return np.ascontiguousarray((scales[self.groups] * values).T)


def _columns_as_float32(source: Source, begin: int, end: int) -> Numbers:
    return as_float32(source.columns(begin, end), source.stored.dtype)


@dataclass(frozen=True, slots=True)
class Bitnet(_Dequantized):
    """(two bits − 1) / scale; row r of the first quarter in the lowest bits of packed row r, and so on."""

    packed: Source
    scale: Source

    def read(self, begin: int, end: int) -> Numbers:
        out = np.empty((end - begin, *self.shape[1:]), np.float32)
        rows = self.packed.shape[0]
        for quarter in range(4):
            first, last = max(begin, quarter * rows), min(end, (quarter + 1) * rows)
            if first < last:
                bits = self.packed.raw(first - quarter * rows, last - quarter * rows).view(np.uint8)
                out[first - begin : last - begin] = bits >> 2 * quarter & 3
        out -= np.float32(1)
        out /= self.scale.numbers(0, 1)
        return out


DequantizedWeight: TypeAlias = Scaled | Packed | Gptq | Bitnet


# ---- which tensors go into which


class _Collected:
    """What a method has made so far, and the tensors that went into it."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.made: dict[str, DequantizedWeight] = {}
        self.used: set[str] = set()

    def ending(self, *endings: str) -> list[str]:
        return [name for name in self.sources if name.endswith(endings)]

    def take(self, name: str, of: str) -> Source:
        if name not in self.sources:
            raise _refusal(f"tensor {of} needs {name}, which is not there")
        self.used.add(name)
        return self.sources[name]

    def drop(self, *endings: str) -> None:
        """Scales of activations, which a file of weights has no use for."""
        self.used.update(self.ending(*endings))

    def scaled(self, ending: str, weight_ending: str, block: tuple[int, ...] | None = None) -> None:
        for name in self.ending(ending):
            weight_name = name.removesuffix(ending) + weight_ending
            weight, scale = self.take(weight_name, name), self.take(name, name)
            scales, steps = _steps(weight_name, weight.shape, scale.stored.shape, block)
            self.made[weight_name] = Scaled(weight_name, weight.shape, weight, scale, scales, steps)

    def refuse_without_scale(self) -> None:
        """A weight of few bits is nothing without its scale, and would pass for numbers."""
        tensors = ((name, each.stored.dtype) for name, each in self.sources.items() if name not in self.used)
        bare = [n for n, dtype in tensors if dtype in EIGHT_BIT_FLOATS or (dtype in BYTES and n.endswith(".weight"))]
        if bare:
            raise _refusal(f"weights of few bits without a scale: {', '.join(bare[:8])} ({len(bare)} in all)")


def _steps(
    name: str, weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The scale's shape with as many axes as the weight, and how many entries of each axis share one scale."""
    scales = scale if block else scale + (1,) * (len(weight) - len(scale))
    sizes = (0,) * (len(weight) - len(block or ())) + (block or ())
    fits = len(scales) == len(weight) == len(sizes)
    steps = []
    for have, need, size in zip(scales, weight, sizes, strict=False):
        steps.append(size or (1 if have == need else max(need, 1)))
        fits = fits and have == (-(-need // size) if size else have if have in (1, need) else -1)
    if not fits:
        what = f"blocks of {list(block)}" if block else "one scale per tensor or row"
        raise _refusal(f"tensor {name} of {list(weight)} has scales of {list(scale)}, which do not fit {what}")
    return scales, tuple(steps)


def _block(settings: Settings, key: str) -> tuple[int, ...] | None:
    block = settings.get(key)
    if block is None:
        return None
    if not isinstance(block, list | tuple) or not block or not all(type(n) is int and n > 0 for n in block):
        raise _refusal(f"{key} is {block!r:.80}, but must be a list of sizes")
    return tuple(block)


def _fp8(found: _Collected, settings: Settings) -> None:
    block = _block(settings, "weight_block_size")
    found.drop(".activation_scale", "_activation_scale", ".qscale_act")
    found.scaled("_scale_inv", "", block)
    found.scaled(".qscale_weight", ".weight", block)
    found.refuse_without_scale()


def _modelopt(found: _Collected, settings: Settings) -> None:
    algorithm = settings.get("quant_algo")
    if algorithm not in (None, "FP8") or found.ending(".weight_scale_2"):
        raise _refusal(f"quantized by modelopt as {algorithm!r:.40}; of that only FP8 is supported")
    found.drop(".input_scale", ".k_scale", ".v_scale")
    found.scaled(".weight_scale", ".weight")
    found.refuse_without_scale()


def _bitnet(found: _Collected, settings: Settings) -> None:
    for name in found.ending(".weight_scale"):
        weight_name = name.removesuffix("_scale")
        packed, scale = found.take(weight_name, name), found.take(name, name)
        if packed.stored.dtype not in ("U8", "I8") or scale.shape != (1,):
            raise _refusal(f"tensor {weight_name} is {packed.stored.dtype} with scales of {list(scale.shape)}")
        found.made[weight_name] = Bitnet(weight_name, (packed.shape[0] * 4, *packed.shape[1:]), packed, scale)
    found.refuse_without_scale()


def _gptq(found: _Collected, settings: Settings) -> None:
    bits = settings.get("bits")
    if bits not in (2, 4, 8):
        raise _refusal(f"quantized by gptq with {bits!r:.20} bits; 2, 4 and 8 are supported")
    shift = int(settings.get("checkpoint_format", "gptq") == "gptq")
    for name in found.ending(".qweight"):
        base = name.removesuffix(".qweight")
        packed, zeros, scales, order = (
            found.take(f"{base}.{part}", name) for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        each = WORD // bits
        groups = order.raw(0, order.shape[0])
        inputs, outputs = packed.shape[0] * each, packed.shape[-1]
        fits = packed.stored.dtype == zeros.stored.dtype == "I32" and order.stored.dtype == "I32"
        fits = fits and len(packed.shape) == len(scales.shape) == 2 and groups.shape == (inputs,)
        fits = fits and scales.shape[1:] == (outputs,) and zeros.shape == (scales.shape[0], outputs // each)
        if not fits or (groups.size and not 0 <= groups.min() <= groups.max() < scales.shape[0]):
            raise _refusal(f"{base}: qweight, qzeros, scales and g_idx do not fit together")
        found.made[f"{base}.weight"] = Gptq(
            f"{base}.weight", (outputs, inputs), packed, zeros, scales, groups, bits, shift
        )


def _compressed_tensors(found: _Collected, settings: Settings) -> None:
    form, groups = settings.get("format"), settings.get("config_groups")
    if not isinstance(form, str) or form not in _FORMATS:
        raise _refusal(f"compressed-tensors in the format {form!r:.60}; supported are {', '.join(_FORMATS)}")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _refusal("compressed-tensors with other than one group of settings is not supported")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise _refusal("compressed-tensors without settings for the weights")
    found.drop(".input_scale", ".output_scale", ".k_scale", ".v_scale")
    _FORMATS[form](found, weights)


def _quantized(found: _Collected, weights: Settings) -> None:
    strategy = weights.get("strategy")
    if strategy not in ("tensor", "channel", "block") or weights.get("group_size") is not None:
        raise _refusal(f"compressed-tensors with the strategy {strategy!r:.40}; tensor, channel, block are supported")
    if shifted := found.ending(".weight_zero_point"):
        raise _refusal(f"compressed-tensors with zero points ({shifted[0]}) is supported when packed only")
    found.scaled(".weight_scale", ".weight", _block(weights, "block_structure"))
    found.refuse_without_scale()


def _pack_quantized(found: _Collected, weights: Settings) -> None:
    bits, size, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    if strategy != "group" or weights.get("type", "int") != "int" or type(bits) is not int or not 1 <= bits <= 8:
        raise _refusal(f"packed weights of {bits!r:.20} bits by {strategy!r:.40}; integers by group are supported")
    if type(size) is not int or size < 1:
        raise _refusal(f"group_size is {size!r:.40}, but must be a size")
    if reordered := found.ending(".weight_g_idx"):
        raise _refusal(f"packed weights in an order of their own ({reordered[0]}) are not supported")
    for name in found.ending(".weight_packed"):
        base = name.removesuffix("_packed")
        packed, scale, shape = (found.take(base + part, name) for part in ("_packed", "_scale", "_shape"))
        zero = found.take(f"{base}_zero_point", name) if f"{base}_zero_point" in found.sources else None
        found.made[base] = _packed(base, (packed, scale, zero), shape, bits, size)


def _packed(name: str, parts: tuple[Source, Source, Source | None], shape: Source, bits: int, size: int) -> Packed:
    packed, scale, zero = parts
    each = WORD // bits
    given = shape.raw(0, shape.shape[0]).tolist() if shape.shape == (2,) else [0, 0]
    rows, columns = (int(count) for count in given)
    fits = packed.stored.dtype == "I32" and rows > 0 and columns > 0 and columns % size == 0
    fits = fits and packed.shape == (rows, -(-columns // each)) and scale.shape == (rows, columns // size)
    if zero is not None:
        fits = fits and zero.stored.dtype == "I32" and zero.shape == (-(-rows // each), columns // size)
    if not fits:
        raise _refusal(f"{name}: packed weights, scales and shape {given} do not fit groups of {size}")
    return Packed(name, (rows, columns), packed, scale, zero, bits)


def _mxfp4(found: _Collected, settings: Settings) -> None:
    """Blocks and scales are what the GGUF holds too, in another order."""


_FORMATS: Final[Mapping[str, Callable[[_Collected, Settings], None]]] = {
    "float-quantized": _quantized,
    "int-quantized": _quantized,
    "naive-quantized": _quantized,
    "pack-quantized": _pack_quantized,
}
METHODS: Final[Mapping[str, Callable[[_Collected, Settings], None]]] = {
    "fp8": _fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "bitnet": _bitnet,
    "mxfp4": _mxfp4,
}


def dequantized(
    sources: Sources, settings: Settings | None, folder: Path
) -> tuple[Mapping[str, DequantizedWeight], set[str]]:
    """The weights that are computed, and the names of all tensors that go into them or are of no use."""
    found = _Collected(sources)
    if settings:
        method = settings.get("quant_method")
        with about(folder / "config.json"):
            if not isinstance(method, str) or method not in METHODS:
                raise _refusal(f"quantized by {method!r:.60}, which is not supported; {', '.join(METHODS)} are")
            METHODS[method](found, settings)
    return found.made, found.used


def modelopt_settings(folder: Path) -> Settings | None:
    """What ModelOpt says beside a config.json that says nothing."""
    path = folder / "hf_quant_config.json"
    if not os.path.lexists(path):
        return None
    with open_regular(path, "ModelOpt's settings") as file:
        text = file.read(LARGEST_SETTINGS)
    try:
        whole = strict_json(text)
        producer, settings = whole.get("producer") or {}, whole.get("quantization") or {}
        return {"quant_method": str(producer.get("name", "")).lower(), **settings}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"is not what ModelOpt writes: {error}", file=path, code="quantization") from error
