"""What of a model goes where, and whether its context has room: `plan`'s figures, asked for what a person left open.

The GPU gets as many layers as it holds; a context that this machine's memory cannot hold is refused before llama.cpp
tries. Models whose cache `memory` does not know are left to llama.cpp. Asks the system; opens nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.logits import piece_length
from yarn_gguf.memory.devices import devices, memory
from yarn_gguf.memory.needs import Room, Setting, longest_context, most_gpu_layers, needs, placed, shape_of
from yarn_gguf.memory.shape import Shape
from yarn_gguf.opened import padded
from yarn_gguf.running.wanted import Wanted
from yarn_gguf.runtime import vocabulary_size
from yarn_gguf.sizes import size_text

ALL: Final = -1
LEAST: Final = 4096  # tokens that a server is given, whatever the memory


def fitting_layers(model: Model, wanted: Wanted, context: int, *, gpu: bool, server: bool = False) -> int:
    """For llama.cpp's -ngl. `gpu`: whether the library can compute on one. Other machines get everything."""
    if wanted.gpu_layers is not None:
        return wanted.gpu_layers
    shape = _shape(model)
    if wanted.rpc or not gpu or shape is None:
        return ALL if wanted.rpc or gpu else 0
    found = devices()
    if not found.gpus:  # llama.cpp knows of one that nobody else does
        return ALL
    room = Room(found.vram, None)
    counts = placed(shape, _setting(model, wanted, context, server=server), room)
    layers = 0 if counts is None else counts.gpu_layers
    return ALL if layers == most_gpu_layers(shape) else layers


def spares_gpu(wanted: Wanted, layers: int) -> bool:
    """Whether a GPU that holds no layer is not to help either: what it would need for that may be more than it has."""
    return layers == 0 and wanted.gpu_layers is None


def fitting_context(model: Model, wanted: Wanted, longest: int, *, gpu: bool) -> int:
    """For a server: the longest up to this one that the memory here holds; all of it where other machines help."""
    shape, ram = _shape(model), memory()
    if wanted.rpc or shape is None or ram is None:
        return longest
    room = Room(devices().vram if gpu and wanted.gpu_layers != 0 else 0, ram.free)
    setting = _setting(model, wanted, longest, server=True)
    return min(longest, max(longest_context(shape, setting, room, most=padded(longest)), LEAST))


def check_room(model: Model, wanted: Wanted, context: int, layers: int, *, server: bool = False) -> None:
    """Raises where cache and buffers are more than the memory that is free; weights may be read as they are used."""
    shape, ram = _shape(model), memory()
    if wanted.rpc or shape is None or ram is None:
        return
    on_gpu = most_gpu_layers(shape) if layers < 0 else layers
    found = needs(shape, replace(_setting(model, wanted, context, server=server), gpu_layers=on_gpu)).cpu
    if found.kv + found.compute > ram.free:
        text = f"a context of {padded(context)} tokens takes {size_text(found.kv + found.compute)} of memory"
        ways = "give a smaller --ctx or another -ctk and -ctv"
        raise ResourceError(f"{text}, {size_text(ram.free)} are free; {ways}", file=model.path, code="no_room")


def _shape(model: Model) -> Shape | None:
    try:
        return shape_of(model)
    except InputError:
        return None


def _setting(model: Model, wanted: Wanted, context: int, *, server: bool) -> Setting:
    """llama-server keeps no more of a sliding layer than its window; a bare context does."""
    batch = wanted.batch or piece_length(max(vocabulary_size(model), 1))
    flash = wanted.flash_attention is not False
    return Setting(padded(context), (wanted.kv_k, wanted.kv_v), flash, ubatch=batch, swa_full=not server)
