"""Bytes of the KV cache, and of recurrent states, at a context; layer by layer.

llama.cpp keeps for a layer that attends `key` + `value` numbers per cell; a cell per token of the context, and for one
that slides only its window and a batch more; under MLA the latent alone, with no values beside it. A state does not
grow. Knows no device and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from yarn_gguf.gguf_file.format import TENSOR_TYPES, pad
from yarn_gguf.memory.shape import Layer, Shape
from yarn_gguf.quant_names import tensor_type_number

CELLS: Final = 256  # llama.cpp rounds every context, and every window, up to a multiple of it


def _row(name: str) -> tuple[int, int]:
    number = tensor_type_number(name)
    assert number is not None
    kind = TENSOR_TYPES[number]
    return kind.block, kind.size


ROWS: Final[Mapping[str, tuple[int, int]]] = {
    name: _row(name) for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
}
QUANTIZED: Final = frozenset(name for name, (block, _) in ROWS.items() if block > 1)


def cells(shape: Shape, layer: Layer, context: int, ubatch: int, *, swa_full: bool = False) -> int:
    """How many tokens a layer's cache has room for."""
    size = pad(context, CELLS)
    if not layer.sliding or swa_full:
        return size
    return min(pad(min(size, shape.window + ubatch), CELLS), size)


def row_bytes(numbers: int, kind: str) -> int:
    """Of so many numbers in a type of the cache; the last block is whole."""
    block, size = ROWS[kind]
    return -(-numbers // block) * size


def layer_cache(
    shape: Shape, layer: Layer, context: int, ubatch: int, kv: tuple[str, str], *, swa_full: bool = False
) -> int:
    """Keys, values and state of one layer."""
    room = cells(shape, layer, context, ubatch, swa_full=swa_full)
    return room * (row_bytes(layer.key, kv[0]) + row_bytes(layer.value, kv[1])) + layer.state
