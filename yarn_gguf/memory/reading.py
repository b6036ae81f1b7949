"""What is read of a model's memory for every token that it writes, which is what decides how fast it writes.

The weights, of experts those that a token has, and the whole cache; no token embedding, and next to nothing of the
buffers. Knows no device by name.
"""

from __future__ import annotations

from typing import Final

from yarn_gguf.memory.needs import Setting, layer_caches
from yarn_gguf.memory.shape import Layer, Shape

GPU_FASTER: Final = 8  # times as fast as the memory of a processor, roughly
_EXPERTS: Final = "_exps."


def read_per_token(shape: Shape, setting: Setting) -> float:
    """Bytes; those on a GPU count for so much less as it is faster."""
    first = len(shape.layers) + 1 - setting.gpu_layers
    head = (shape.output + shape.tied) / (GPU_FASTER if setting.gpu_layers else 1)
    parts = zip(shape.layers, layer_caches(shape, setting), strict=True)
    read = (
        (_weights(shape, layer) + cache) / (GPU_FASTER if number >= first else 1)
        for number, (layer, cache) in enumerate(parts)
    )
    return head + sum(read)


def _weights(shape: Shape, layer: Layer) -> float:
    found = 0.0
    for name, part in layer.parts.items():
        count = part.dims[-1] if _EXPERTS in name else 0
        found += part.bytes * min(shape.experts_used / count, 1.0) if count else part.bytes
    return found
