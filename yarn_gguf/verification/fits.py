"""Whether several models fit this machine's memory at once. Estimates from headers; opens nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from yarn_gguf.metadata import read_facts
from yarn_gguf.verification.sides import Checkpoint, Reference, Side

SPARE: Final = 600 << 20  # for processes, buffers and logits
SHARE: Final = 0.9  # of what is free
_BITS: Final[Mapping[str, float]] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}


def free_memory() -> int | None:
    """What could be had without pushing others out; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def cache_bytes(side: Side, context: int, kv: str) -> int:
    """Of keys and values; an upper bound where layers have a window."""
    facts = read_facts(side.model)
    heads = sum(facts.head_count_kv) or facts.layers
    return int(2 * heads * facts.head_dim * context * _BITS[kv] / 8)


def reference_bytes(reference: Reference, context: int, kv: str, dtype: str) -> int:
    match reference:
        case Side():
            return reference.model.bytes + cache_bytes(reference, context, kv)
        case Checkpoint():
            config = reference.config
            stored = _stored_bits(reference)
            cache = 2 * config.layers * config.kv_heads * config.head_dim * context * _BITS[dtype] / 8
            return int(reference.bytes * _BITS[dtype] / stored + cache)
    return 0


def _stored_bits(checkpoint: Checkpoint) -> float:
    """Of a weight, by what config.json says of them all."""
    name = str(checkpoint.config.raw.get("dtype") or checkpoint.config.raw.get("torch_dtype") or "bfloat16")
    return 32.0 if "float32" in name else 16.0


def all_fit(needs: list[int]) -> bool:
    free = free_memory()
    return free is None or sum(needs) + SPARE * len(needs) <= SHARE * free
