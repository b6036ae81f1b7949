"""GGUF key/values <-> what they say of a model's context and RoPE: the only home of key strings.

Reading (`read_facts`) takes what the file says as it stands, and refuses numbers that no model has, lest they cost
memory and time later; writing (`Changes`) names keys to set and to remove. Knows no formula (that is `rope`), and not
what a runtime makes of a key (`graphs`, `effective`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, entry
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_keys import Bound, Keys
from yarn_gguf.graphs import GRAPHS, OLD_FACTOR_KEY
from yarn_gguf.graphs import Rope as RopeKind

ROPE_FREQS: Final = "rope_freqs.weight"
LONG_FACTORS: Final = ("rope_factors_long.weight", "rope_factors_short.weight")
CONTEXT: Final = "context_length"
TYPE: Final = "rope.scaling.type"
FACTOR: Final = "rope.scaling.factor"
ORIGINAL: Final = "rope.scaling.original_context_length"
ATTN_FACTOR: Final = "rope.scaling.attn_factor"
EXT_FACTOR: Final = "rope.scaling.yarn_ext_factor"
DEAD_ATTN_FACTOR: Final = "rope.scaling.yarn_attn_factor"
BETA_FAST: Final = "rope.scaling.yarn_beta_fast"
BETA_SLOW: Final = "rope.scaling.yarn_beta_slow"
LOG_MULTIPLIER: Final = "rope.scaling.yarn_log_multiplier"
TRUNCATE: Final = "rope.scaling.yarn_truncate"  # read by the patched library; absent means true
DYNAMIC: Final = "rope.scaling.yarn_dynamic"  # read by the patched library; absent means false
FINETUNED: Final = "rope.scaling.finetuned"
ALPHA: Final = "rope.scaling.alpha"
BASE: Final = "rope.freq_base"
BASE_SWA: Final = "rope.freq_base_swa"
WINDOW: Final = "attention.sliding_window"
PATTERN: Final = "attention.sliding_window_pattern"
LAYERS: Final = "block_count"
WIDTH: Final = "embedding_length"
HEADS: Final = "attention.head_count"
HEADS_KV: Final = "attention.head_count_kv"
KEY_LENGTH: Final = "attention.key_length"
KEY_LENGTH_SWA: Final = "attention.key_length_swa"
DIMENSIONS: Final = "rope.dimension_count"
DIMENSIONS_SWA: Final = "rope.dimension_count_swa"

# how each key that we write is stored, as llama.cpp reads it: with another type it refuses the file
WRITTEN_TYPES: Final[dict[str, ValueType]] = {
    CONTEXT: ValueType.UINT32,
    TYPE: ValueType.STRING,
    ORIGINAL: ValueType.UINT32,
    TRUNCATE: ValueType.BOOL,
    DYNAMIC: ValueType.BOOL,
    **dict.fromkeys(
        (FACTOR, ATTN_FACTOR, BETA_FAST, BETA_SLOW, LOG_MULTIPLIER, BASE, BASE_SWA, DEAD_ATTN_FACTOR, EXT_FACTOR),
        ValueType.FLOAT32,
    ),
}
# every key that says how RoPE is scaled: what an extension starts from a clean slate of
SCALING_KEYS: Final = (
    TYPE,
    FACTOR,
    ORIGINAL,
    ATTN_FACTOR,
    EXT_FACTOR,
    DEAD_ATTN_FACTOR,
    BETA_FAST,
    BETA_SLOW,
    LOG_MULTIPLIER,
    TRUNCATE,
    DYNAMIC,
    OLD_FACTOR_KEY,
)

# what a number may be: far beyond any model, and small enough that a list of as many costs nothing. 0 is "not set" for
# llama.cpp's factors; of dimensions, `_check_rotation` says more
_MAX_LAYERS: Final = 10_000
_MAX_WIDTH: Final = 1 << 16
_MAX_32: Final = (1 << 32) - 1
_MAX_TOKENS: Final = (1 << 31) - 1  # llama.cpp counts positions in 31 bits
_MAX_NUMBER: Final = float(np.finfo(np.float32).max)
_NOT_NEGATIVE: Final = "it cannot be negative"
_ABOVE_1: Final = "a number above 1 is needed"
_BOUNDS: Final[dict[str, Bound]] = {
    LAYERS: Bound(1, _MAX_LAYERS),
    WIDTH: Bound(1, _MAX_32),
    HEADS: Bound(0, _MAX_WIDTH, _NOT_NEGATIVE),
    HEADS_KV: Bound(0, _MAX_WIDTH, _NOT_NEGATIVE),
    KEY_LENGTH: Bound(1, _MAX_WIDTH),
    KEY_LENGTH_SWA: Bound(1, _MAX_WIDTH),
    DIMENSIONS: Bound(0, _MAX_WIDTH, _NOT_NEGATIVE),
    DIMENSIONS_SWA: Bound(0, _MAX_WIDTH, _NOT_NEGATIVE),
    CONTEXT: Bound(1, _MAX_TOKENS),
    ORIGINAL: Bound(1, _MAX_TOKENS),
    WINDOW: Bound(0, _MAX_32, _NOT_NEGATIVE),
    PATTERN: Bound(0, _MAX_32, _NOT_NEGATIVE),
    FACTOR: Bound(0, _MAX_NUMBER, _NOT_NEGATIVE),
    OLD_FACTOR_KEY: Bound(0, _MAX_NUMBER, _NOT_NEGATIVE),
    BASE: Bound(float(np.nextafter(1, 2)), _MAX_NUMBER, _ABOVE_1),
    BASE_SWA: Bound(float(np.nextafter(1, 2)), _MAX_NUMBER, _ABOVE_1),
    ALPHA: Bound(-_MAX_NUMBER, 1_000_000_000),  # any power of it that is taken must stay a number
}

_PER_TOKEN: Final = {"tokenizer.ggml.scores": ValueType.FLOAT32, "tokenizer.ggml.token_type": ValueType.INT32}
_TOKENS: Final = "tokenizer.ggml.tokens"
_MERGES: Final = "tokenizer.ggml.merges"
_OTHER_KINDS: Final = {
    "mmproj": "a multimodal projector (mmproj)",
    "adapter": "a LoRA or control-vector adapter",
    "imatrix": "an importance matrix",
    "vocab": "a vocabulary",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the keys say, with None for a key that is not there. Arrays over layers are kept as tuples."""

    arch: str
    name: str
    context_length: int
    layers: int
    head_dim: int  # key length
    head_count: tuple[int, ...]
    head_count_kv: tuple[int, ...]
    type: str | None
    factor: float | None
    attn_factor: float | None
    original_context: int | None
    finetuned: bool | None
    ext_factor: float | None
    dead_attn_factor: float | None
    beta_fast: float | None
    beta_slow: float | None
    log_multiplier: float | None
    truncate: bool | None
    dynamic: bool | None
    alpha: float | None
    base: float | None
    base_swa: float | None
    dimensions: int | None
    dimensions_swa: int | None
    sections: tuple[int, ...] | None
    window: int | None
    pattern: int | tuple[bool, ...] | None
    rope_pattern: tuple[bool, ...] | None


@dataclass(frozen=True)
class Changes:
    """What becomes of a file's entries, by the name behind the architecture's prefix; and its `rope_freqs.weight`."""

    values: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    rope_freqs: tuple[float, ...] | None = None

    def apply(self, arch: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Changed entries keep their place, new ones come last."""
        gone = {f"{arch}.{name}" for name in self.removed}
        result = {key: old for key, old in entries.items() if key not in gone}
        for name, value in self.values.items():
            key = f"{arch}.{name}"
            result[key] = entry(key, WRITTEN_TYPES[name], value)
        return result


def read_facts(model: Model) -> Facts:
    """What the file says of itself; refuses other kinds of GGUF and numbers that no model can have."""
    _check_kind(model)
    keys = Keys(model, _BOUNDS)
    if keys.arch not in GRAPHS:
        raise keys.fail(f"architecture {keys.arch!r} is not one of the {len(GRAPHS)} we know", "unknown_arch")
    _check_tokenizer(keys)
    facts = _facts(keys)
    _check_rotation(keys, facts)
    return facts


def _facts(keys: Keys) -> Facts:
    layers = keys.required(LAYERS)
    heads = keys.per_layer(HEADS, layers)
    factor = FACTOR if f"{keys.arch}.{FACTOR}" in keys.model.entries else OLD_FACTOR_KEY
    flags = keys.flags(PATTERN)
    return Facts(
        arch=keys.arch,
        name=keys.text("general.name") or keys.model.path.stem,
        context_length=keys.required(CONTEXT),
        layers=layers,
        head_dim=_head_dim(keys, heads),
        head_count=heads,
        head_count_kv=keys.per_layer(HEADS_KV, layers),
        type=keys.text(f"{keys.arch}.{TYPE}"),
        factor=keys.number(factor),
        attn_factor=keys.number(ATTN_FACTOR),
        original_context=keys.integer(ORIGINAL),
        finetuned=keys.boolean(FINETUNED),
        ext_factor=keys.number(EXT_FACTOR),
        dead_attn_factor=keys.number(DEAD_ATTN_FACTOR),
        beta_fast=keys.number(BETA_FAST),
        beta_slow=keys.number(BETA_SLOW),
        log_multiplier=keys.number(LOG_MULTIPLIER),
        truncate=keys.boolean(TRUNCATE),
        dynamic=keys.boolean(DYNAMIC),
        alpha=keys.number(ALPHA),
        base=keys.number(BASE),
        base_swa=keys.number(BASE_SWA),
        dimensions=keys.integer(DIMENSIONS),
        dimensions_swa=keys.integer(DIMENSIONS_SWA),
        sections=keys.array("rope.dimension_sections"),
        window=keys.integer(WINDOW),  # llama.cpp reads one for all layers, and stops at an array
        pattern=keys.integer(PATTERN) if flags is None else flags,
        rope_pattern=keys.flags("attention.rope_pattern"),
    )


def _head_dim(keys: Keys, heads: tuple[int, ...]) -> int:
    """The key length, which defaults to n_embd / n_head."""
    if GRAPHS[keys.arch].rope is not RopeKind.NONE and not any(heads):
        raise keys.fail(f"{keys.arch}.{HEADS} is missing or 0, a positive number is needed")
    width, count = keys.required(WIDTH), max(heads[0] if heads else 1, 1)
    found = keys.integer(KEY_LENGTH) or width // count
    if not 0 < found <= _MAX_WIDTH:
        text = f"{WIDTH} {width} over {HEADS} {count} makes heads of {found} dimensions"
        raise keys.fail(f"{text}, from 1 to {_MAX_WIDTH} are supported")
    return found


def _check_rotation(keys: Keys, facts: Facts) -> None:
    """Pairs are turned, within a head; of a latent head, which is part position and part content, only some."""
    if GRAPHS[facts.arch].rope is RopeKind.NONE:
        return
    rows = (
        (DIMENSIONS, facts.dimensions, facts.head_dim),
        (DIMENSIONS_SWA, facts.dimensions_swa, keys.integer(KEY_LENGTH_SWA) or facts.head_dim),
    )
    for name, value, widest in rows:
        if value is not None and (value % 2 or not 0 < value <= widest):
            text = f"an even number from 2 to the key length {widest} is needed"
            raise keys.fail(f"{facts.arch}.{name} is {value}, {text}")


def _check_kind(model: Model) -> None:
    """Row by row what is no model: refused by its name, since each has its own use."""
    kind = model.first.get("general.type")
    arch = model.first.get("general.architecture")
    found = _OTHER_KINDS.get(kind if isinstance(kind, str) else "")
    if found is None and arch == "clip":
        found = _OTHER_KINDS["mmproj"]
    if found is None and "adapter.type" in model.entries:
        found = _OTHER_KINDS["adapter"]
    if found is None and "imatrix.datasets" in model.entries:
        found = _OTHER_KINDS["imatrix"]
    if found is None and not model.tensors and _TOKENS in model.entries:
        found = _OTHER_KINDS["vocab"]
    if found is not None:
        raise InputError(f"is {found}, not a model; give the model itself", file=model.path, code="other_kind")
    if not model.tensors:
        raise InputError("holds no tensors, so it is not a model", file=model.path, code="other_kind")


def _check_tokenizer(keys: Keys) -> None:
    tokens = keys.model.entries.get(_TOKENS)
    if tokens is None:
        return
    for key in (_TOKENS, _MERGES):
        found = keys.model.entries.get(key)
        if found is not None and found.item_type is not ValueType.STRING:
            raise keys.fail(f"{key} must be an array of strings")
    for key, kind in _PER_TOKEN.items():
        found = keys.model.entries.get(key)
        if found is None:
            continue
        if found.item_type is not kind:
            raise keys.fail(f"{key} must be an array of {kind.name.lower()}")
        if found.count != tokens.count:
            raise keys.fail(f"{key} has {found.count} items, {_TOKENS} has {tokens.count}")


def read_vector(model: Model, name: str) -> tuple[float, ...] | None:
    """A one-dimensional F32 tensor's values, or None where there is no such tensor."""
    found = model.tensors.get(name)
    if found is None:
        return None
    part, tensor = found
    if tensor.type != 0 or len(tensor.dims) != 1 or tensor.elements > 1 << 16:
        raise InputError(f"tensor {name} must be a short F32 vector", file=model.path, code="bad_tensor")
    header = model.parts[part]
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        values = np.frombuffer(file.read(tensor.size), "<f4")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"tensor {name} holds values that are not positive", file=model.path, code="bad_tensor")
    return tuple(float(v) for v in values)
