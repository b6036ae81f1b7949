"""What a model needs in the memory of a computer and its GPU, and what of it fits.

    shape = shape_of(read_model(path))
    setting = Setting(context=131072, kv=("q8_0", "q8_0"))
    needs(shape, setting).gpu.total                       # bytes, by device and by kind
    layers_that_fit(shape, setting, vram=8 << 30)         # for -ngl; None where not even 0 fits
    longest_context(shape, setting, vram=8 << 30, ram=16 << 30)

Weights and cache are llama.cpp's own figures to the byte but for padding, its compute buffers are foretold (`graph`).
What a driver takes besides is `Room.reserve`. Knows no device that is present (`devices`), and no file.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.memory.cache import CELLS, layer_cache
from yarn_gguf.memory.graph import Batch
from yarn_gguf.memory.layers import compute_bytes
from yarn_gguf.memory.shape import Shape, read_shape

UBATCH: Final = 512  # llama.cpp's own
LONGEST: Final = 1 << 24  # tokens; beyond what any model here reaches
_PROBES: Final = 16  # contexts that are looked at between one that fits and what weights and cache leave room for
# types that ggml lays out anew on a processor with AVX2, or with the dot products of ARM: a copy that rows cannot be
# looked up in, so an embedding that is the head too is there twice
_ARM: Final = frozenset(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"))
_X86: Final = frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))
REPACKED: Final = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
RESERVE: Final = 512 << 20  # of a GPU's memory: the driver's context and what else lives there


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is run. `gpu_layers` as llama.cpp's -ngl counts: the head is one, then layers from the last on."""

    context: int
    kv: tuple[str, str] = ("f16", "f16")
    flash: bool = True
    gpu_layers: int = 0
    ubatch: int = UBATCH
    outputs: int | None = None  # tokens of a batch whose logits are wanted; None: all, as a bare context reserves
    swa_full: bool = False
    gpu: bool = False  # one is there, even if no layer lies on it
    offload_ops: bool = True  # it computes the CPU's layers too, in large batches
    repack: bool = True  # ggml lays matrices out anew as the CPU likes them, an embedding that is the head as well


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes in one memory."""

    weights: int = 0
    kv: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class Needs:
    setting: Setting
    cpu: Part
    gpu: Part

    @property
    def weights(self) -> int:
        return self.cpu.weights + self.gpu.weights

    @property
    def kv(self) -> int:
        return self.cpu.kv + self.gpu.kv

    @property
    def compute(self) -> int:
        return self.cpu.compute + self.gpu.compute

    @property
    def total(self) -> int:
        return self.cpu.total + self.gpu.total


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that there is. `vram` 0: no GPU; None: as much as anybody wants. `unified`: both are the same."""

    vram: int | None = 0
    ram: int | None = None
    reserve: int = RESERVE
    unified: bool = False

    def holds(self, needs: Needs) -> bool:
        in_ram = needs.total if self.unified else needs.cpu.total
        return self._holds(self.ram, in_ram) and self._holds(self.gpu, needs.gpu.total)

    @property
    def gpu(self) -> int | None:
        """Of the GPU's memory, what a model can have."""
        return None if self.vram is None else max(self.vram - self.reserve, 0)

    @staticmethod
    def _holds(room: int | None, wanted: int) -> bool:
        return room is None or wanted <= room


def shape_of(model: Model) -> Shape:
    """The shape of a model by its headers; refuses one whose cache or graph is not known here."""
    shape = read_shape(model)
    try:
        needs(shape, Setting(CELLS))
    except (LookupError, ArithmeticError) as error:
        text = f"its layers have not the tensors of a {shape.arch} as it is known here, so nobody can tell its buffers"
        raise InputError(text, file=model.path, code="unknown_layers") from error
    return shape


def most_gpu_layers(shape: Shape) -> int:
    """What -ngl counts up to: every layer, and the head."""
    return len(shape.layers) + 1


def needs(shape: Shape, setting: Setting) -> Needs:
    """Bytes of weights, cache and compute buffers, on the CPU and on the GPU."""
    least, compute = stored(shape, setting), _compute(shape, setting)
    cpu, gpu = (replace(part, compute=size) for part, size in zip((least.cpu, least.gpu), compute, strict=True))
    return Needs(setting, cpu, gpu)


def stored(shape: Shape, setting: Setting) -> Needs:
    """The same without compute buffers, which are what takes time to tell."""
    first = len(shape.layers) + 1 - _on_gpu(shape, setting)
    kv, weights = layer_caches(shape, setting), [layer.weights for layer in shape.layers]
    on_gpu = first <= len(shape.layers)
    alone = not (on_gpu or setting.gpu)  # with a GPU weights lie where it reads them
    twice = alone and setting.repack and shape.head_type in REPACKED.get(platform.machine().lower(), ())
    head = shape.output + (shape.tied if on_gpu or twice else 0)
    cpu = Part(shape.embedding + (0 if on_gpu else head) + sum(weights[:first]), sum(kv[:first]))
    return Needs(setting, cpu, Part((head if on_gpu else 0) + sum(weights[first:]), sum(kv[first:])))


def _on_gpu(shape: Shape, setting: Setting) -> int:
    return min(max(setting.gpu_layers, 0), most_gpu_layers(shape))


def layer_caches(shape: Shape, setting: Setting) -> tuple[int, ...]:
    """Bytes of each layer's keys, values and state."""
    found = []
    for layer in shape.layers:
        turned = layer.value and not setting.flash  # values lie turned then, all layers alike
        each = replace(layer, value=shape.value_largest) if turned else layer
        found.append(layer_cache(shape, each, setting.context, setting.ubatch, setting.kv, swa_full=setting.swa_full))
    return tuple(found)


def _compute(shape: Shape, setting: Setting) -> tuple[int, int]:
    batch = Batch(setting.context, setting.ubatch, setting.outputs, setting.kv, setting.flash, setting.swa_full)
    on_gpu = _on_gpu(shape, setting)
    helps = setting.offload_ops and on_gpu < most_gpu_layers(shape) and (setting.gpu or on_gpu > 0)
    return _reserved(_Key(shape), batch, on_gpu, helps)


class _Key:
    """A shape as a key of what is remembered: the same object is the same shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def __hash__(self) -> int:
        return id(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.shape is self.shape


@lru_cache(maxsize=4096)
def _reserved(key: _Key, batch: Batch, gpu_layers: int, offload_ops: bool) -> tuple[int, int]:
    return compute_bytes(key.shape, batch, gpu_layers, offload_ops=offload_ops)


def layers_that_fit(
    shape: Shape, setting: Setting, *, vram: int | None, ram: int | None = None, reserve: int = RESERVE
) -> int | None:
    """The most layers for -ngl with which the model fits both memories; None where it fits with none of them.

    `vram`, `ram`: bytes that are free; None: as many as anybody wants. `setting.gpu_layers` is of no consequence.
    0 may mean that the GPU is not to be used at all; `placed` tells.
    """
    found = placed(shape, setting, Room(vram, ram, reserve))
    return None if found is None else found.gpu_layers


def placed(shape: Shape, setting: Setting, room: Room, layers: int | None = None) -> Setting | None:
    """The setting with the most layers on the GPU that fit, or with `layers`; None where it fits in no way.

    With no layer on it the GPU still computes large batches, and may lack room for a matrix as large as the head: the
    last choice is not to use it (`gpu` is False then).
    """
    return next((each for each in _ways(shape, setting, room, layers) if holds(shape, each, room)), None)


def _ways(shape: Shape, setting: Setting, room: Room, layers: int | None) -> Iterator[Setting]:
    """From all layers on the GPU to none. Compute buffers follow no order (a single layer can need less than none), so
    each count is a way that the GPU could hold but for them."""
    setting = replace(setting, gpu=room.vram != 0)
    if layers is not None:
        yield replace(setting, gpu_layers=layers)
    elif setting.gpu:
        gpu_alone = replace(room, ram=None)
        most = most_gpu_layers(shape)
        held = _last(1, most, lambda n: gpu_alone.holds(stored(shape, replace(setting, gpu_layers=n))))
        for count in range(held, -1, -1):
            yield replace(setting, gpu_layers=count)
    if not layers:
        yield replace(setting, gpu_layers=0, gpu=False)


def holds(shape: Shape, setting: Setting, room: Room) -> bool:
    return room.holds(stored(shape, setting)) and room.holds(needs(shape, setting))


def longest_context(
    shape: Shape, setting: Setting, room: Room, *, layers: int | None = None, most: int = LONGEST
) -> int:
    """The longest context that fits, a multiple of 256; 0 where none does. `layers`: with so many on the GPU, else with
    however many."""

    def at(steps: int) -> Setting:
        return replace(setting, context=steps * CELLS)

    def fits(steps: int) -> bool:
        return placed(shape, at(steps), room, layers) is not None

    def could(steps: int) -> bool:
        return any(room.holds(stored(shape, each)) for each in _ways(shape, at(steps), room, layers))

    found, bound = _last(1, most // CELLS, fits), _last(1, most // CELLS, could)
    # a longer context may need smaller buffers, so what lies between is looked through as well
    for probe in range(_PROBES, 0, -1):
        steps = found + (bound - found) * probe // _PROBES
        if steps > found and fits(steps):
            found = _last(steps, found + (bound - found) * (probe + 1) // _PROBES, fits)
            break
    return CELLS * found


def _last(low: int, high: int, true: Callable[[int], bool]) -> int:
    """The last number for which it holds, of those from `low` on for which it holds up to some point; 0 for none."""
    found = 0
    while low <= high:
        middle = (low + high) // 2
        if true(middle):
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found
