"""The language in which `archs` says which metadata keys an architecture has; and the keys that all of them have.

    KEY  TYPE  FIELD|FIELD…        expert_used_count    u32    num_experts_per_tok|moe_k

The first field of the config that says something gives the value; where none does, there is no key. A field in quotes
is the value itself. `?condition` as in `tensor_tables`. What takes more than that is `computed`, and what lies in the
checkpoint's tensors is `from_layers`. Keys of RoPE scaling are not here: `encoding` writes them.
"""

from __future__ import annotations

import json
import math
import shlex
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from yarn_gguf.archs.transforms import as_numbers
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.config.fields import shown
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, array_entry, entry
from yarn_gguf.graphs import DEFAULT_FREQ_BASE

Weights = Mapping[str, Weight]
Value = Callable[[Hyperparameters], Any]
TYPES: Final = {
    "u32": ValueType.UINT32,
    "f32": ValueType.FLOAT32,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
_PYTHON: Final[dict[ValueType, Callable[[Any], Any]]] = {
    ValueType.UINT32: int,
    ValueType.FLOAT32: float,
    ValueType.BOOL: bool,
    ValueType.STRING: str,
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key without the architecture's prefix (`OWN_PREFIX` names those that have none); None as a value: no key.

    With `weight`, a tensor's name with `{i}` for the layer, the value is an array of the one number that each has.
    """

    name: str
    type: ValueType
    value: Value
    condition: str = ""
    weight: str = ""


def computed(name: str, kind: str, value: Value) -> tuple[Key, ...]:
    return (Key(name, TYPES[kind], value),)


def from_layers(name: str, weight: str) -> tuple[Key, ...]:
    return (Key(name, ValueType.FLOAT32, lambda h: None, weight=weight),)


def without(table: Sequence[Key], *names: str) -> tuple[Key, ...]:
    return tuple(key for key in table if key.name not in names)


def keys(text: str) -> tuple[Key, ...]:
    return tuple(_key(shlex.split(line, posix=False)) for line in text.splitlines() if line.strip())


def _key(words: list[str]) -> Key:
    name, kind, source, *rest = words
    condition = rest[0].removeprefix("?") if rest else ""
    return Key(name, TYPES[kind], _value(source, TYPES[kind]), condition)


def _value(source: str, kind: ValueType) -> Value:
    if source.startswith('"'):
        text = source.strip('"')
        constant = text if kind is ValueType.STRING else json.loads(text)
        return lambda h: constant
    if (kind is ValueType.UINT32 and any(sign in source for sign in "*+")) or source in _SIZES:
        return lambda h: h.size(source)
    names = source.split("|")
    return lambda h: h.get(*names)


OWN_PREFIX: Final = ("general.", "xielu.")
NO_WEIGHTS: Final[Weights] = MappingProxyType({})
_SIZES: Final = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim")


def entries(arch: str, table: Sequence[Key], h: Hyperparameters, weights: Weights = NO_WEIGHTS) -> list[Entry]:
    """The keys of this model. A later line replaces an earlier one of the same name, in its place.

    `weights` are the checkpoint's, for the few architectures that keep numbers there which a GGUF has in keys.
    """
    found: dict[str, Entry] = {}
    for key in table:
        value = _found(key, h, weights) if not key.condition or h.has(key.condition) else None
        if value is None:
            continue
        name = key.name if key.name.startswith(OWN_PREFIX) else f"{arch}.{key.name}"
        found[name] = _entry(name, key.type, value, h)
    return list(found.values())


def _found(key: Key, h: Hyperparameters, weights: Weights) -> Any:
    if not key.weight:
        return key.value(h)
    names = [key.weight.replace("{i}", str(i)) for i in range(h.config.layers)]
    if missing := [name for name in names if name not in weights]:
        raise h.fail(f"{key.name} is made of tensors, and {missing[0]} is missing")
    return [as_numbers(weights[name], 0, 1).reshape(-1)[0] for name in names]


def _entry(name: str, kind: ValueType, value: Any, h: Hyperparameters) -> Entry:
    try:
        if isinstance(value, list | tuple):
            items = [_converted(kind, each) for each in value]
            return array_entry(name, ValueType.INT32 if kind is ValueType.UINT32 else kind, items)
        return entry(name, kind, _converted(kind, value))
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise h.fail(f"{shown(value)} cannot be {name}: {error}") from error


def _converted(kind: ValueType, value: Any) -> Any:
    """The value as its key stores it; what would be cut or guessed at is refused."""
    converted = _PYTHON[kind](value)
    if kind is ValueType.UINT32 and (isinstance(value, str | bool) or converted != value):
        raise ValueError("a whole number is needed")
    if kind is ValueType.FLOAT32 and (isinstance(value, str | bool) or not math.isfinite(converted)):
        raise ValueError("a number is needed")
    return converted


def _head_count_kv(h: Hyperparameters) -> int | None:
    return h.config.kv_heads if h.knows("num_key_value_heads") else None


def _head_length(h: Hyperparameters) -> int | None:
    """Where the file says it, or where it is not what llama.cpp takes it for: hidden / heads."""
    stated = h.get("head_dim") is not None
    return h.config.head_dim if stated or h.config.head_dim * h.config.heads != h.config.hidden_size else None


def _base(h: Hyperparameters) -> float | None:
    return h.config.rope.rope.base if h.config.rope is not None else None


def _sliding_base(h: Hyperparameters) -> float | None:
    """Of classes that say the RoPE of each kind of layer for itself."""
    sliding = h.config.ropes.get("sliding")
    return sliding.rope.base if sliding is not None and h.config.ropes_differ else None


_GATING: Final = {"softmax": 1, "sigmoid": 2, "softmax_weight": 3, "sqrtsoftplus": 4}


def _gating(h: Hyperparameters) -> int | None:
    """How experts are scored, where the config says it."""
    name = h.get("score_function", "scoring_func", "score_func", "moe_router_activation", "expert_selection_fn")
    if name is None:
        return None
    if name not in _GATING:
        raise h.fail(f"experts are scored with {str(name)[:40]!r}, which llama.cpp does not know")
    return _GATING[name]


ALL: Final[tuple[Key, ...]] = (
    *keys("""
        block_count            u32    layers
        context_length         u32    max_position_embeddings|n_ctx|n_positions
        embedding_length       u32    hidden
        feed_forward_length    u32    prefix_dense_intermediate_size|dense_intermediate_size|intermediate_size|n_inner
        attention.head_count   u32    heads
    """),
    *computed("attention.head_count_kv", "u32", _head_count_kv),
    *computed("rope.freq_base", "f32", _base),
    *computed("rope.freq_base_swa", "f32", _sliding_base),
    *keys("""
        attention.layer_norm_rms_epsilon    f32    rms_norm_eps|norm_eps
        attention.layer_norm_epsilon        f32    layer_norm_eps|layer_norm_epsilon|norm_epsilon
        expert_count                        u32    num_local_experts|num_experts|n_routed_experts
        expert_used_count                   u32    num_experts_per_tok|num_experts_per_token|top_k_experts
        expert_group_count                  u32    n_group
        expert_group_used_count             u32    topk_group
    """),
    *computed("expert_gating_func", "u32", _gating),
    *computed("attention.key_length", "u32", _head_length),
    *computed("attention.value_length", "u32", _head_length),
)


def _unusual_base(h: Hyperparameters) -> float | None:
    base = _base(h)
    return None if base == DEFAULT_FREQ_BASE else base


# upstream's converter drops the base of these, which is right where it is the one that llama.cpp takes anyway
SILENT_BASE: Final = without(ALL, "rope.freq_base") + computed("rope.freq_base", "f32", _unusual_base)


def typed_entry(name: str, value: Any) -> Entry:
    """A key with the type that its value has: whole numbers are counts, lists are of what they hold."""
    kinds = {bool: ValueType.BOOL, int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    if isinstance(value, list | tuple):
        return array_entry(name, kinds[type(value[0])], list(value))
    return entry(name, kinds[type(value)], value)
