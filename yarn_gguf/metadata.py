"""GGUF key/values <-> what they say of a model's context and RoPE: the only home of key strings.

Reading (`read_facts`) takes what the file says as it stands and judges nothing; writing (`Changes`) names keys to set
and to remove. Knows no formula (that is `rope`), and not what a runtime makes of a key (`graphs`, `effective`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.format import INTEGERS, ValueType
from yarn_gguf.gguf_file.header import Entry, entry
from yarn_gguf.gguf_file.shards import Model
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
FINETUNED: Final = "rope.scaling.finetuned"
ALPHA: Final = "rope.scaling.alpha"
BASE: Final = "rope.freq_base"
BASE_SWA: Final = "rope.freq_base_swa"
WINDOW: Final = "attention.sliding_window"
PATTERN: Final = "attention.sliding_window_pattern"

# how each key that we write is stored, as llama.cpp reads it: with another type it refuses the file
WRITTEN_TYPES: Final[dict[str, ValueType]] = {
    CONTEXT: ValueType.UINT32,
    TYPE: ValueType.STRING,
    ORIGINAL: ValueType.UINT32,
    TRUNCATE: ValueType.BOOL,
    **dict.fromkeys(
        (FACTOR, ATTN_FACTOR, BETA_FAST, BETA_SLOW, LOG_MULTIPLIER, BASE, BASE_SWA, DEAD_ATTN_FACTOR, EXT_FACTOR),
        ValueType.FLOAT32,
    ),
}
# every key that says how RoPE is scaled: what an extension starts from a clean slate of
SCALING_KEYS: Final = (
    *(
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
    ),
    OLD_FACTOR_KEY,
)

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


class _Keys:
    """Typed access to a model's entries; a wrong type is an error that names the key."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.arch = self.text("general.architecture") or ""
        if not self.arch:
            raise self.fail("general.architecture is missing: not a model that llama.cpp can load")

    def fail(self, text: str, code: str = "bad_metadata") -> InputError:
        return InputError(text, file=self.model.path, code=code)

    def text(self, key: str) -> str | None:
        found = self.model.entries.get(key)
        if found is None:
            return None
        if found.type is not ValueType.STRING:
            raise self.fail(f"{key} must be a string")
        return str(found.value())

    def _scalar(self, name: str, kinds: frozenset[ValueType], what: str) -> float | None:
        found = self.model.entries.get(f"{self.arch}.{name}")
        if found is None:
            return None
        if found.type not in kinds:
            raise self.fail(f"{self.arch}.{name} must be {what}, not {found.type.name.lower()}")
        value = found.value()
        assert isinstance(value, bool | int | float)  # what `kinds` leaves
        return value

    def integer(self, name: str) -> int | None:
        value = self._scalar(name, INTEGERS, "an integer")
        return None if value is None else int(value)

    def number(self, name: str) -> float | None:
        value = self._scalar(name, INTEGERS | {ValueType.FLOAT32, ValueType.FLOAT64}, "a number")
        if value is not None and not math.isfinite(value):
            raise self.fail(f"{self.arch}.{name} is {value}")
        return None if value is None else float(value)

    def boolean(self, name: str) -> bool | None:
        value = self._scalar(name, frozenset({ValueType.BOOL}), "a boolean")
        return None if value is None else bool(value)

    def array(self, name: str) -> tuple[int, ...] | None:
        """An array of integers or booleans; None where the key is absent or a scalar."""
        found = self.model.entries.get(f"{self.arch}.{name}")
        if found is None or found.type is not ValueType.ARRAY:
            return None
        value = found.value()
        if found.item_type not in INTEGERS | {ValueType.BOOL} or not isinstance(value, np.ndarray):
            raise self.fail(f"{self.arch}.{name} must hold integers")
        return tuple(int(item) for item in value)

    def per_layer(self, name: str) -> tuple[int, ...]:
        return self.array(name) or tuple(filter(None, [self.integer(name)]))

    def positive(self, name: str) -> int:
        value = self.integer(name)
        if value is None or value <= 0:
            raise self.fail(
                f"{self.arch}.{name} is {'missing' if value is None else value}, a positive number is needed"
            )
        return value


def read_facts(model: Model) -> Facts:
    """What the file says of itself; refuses other kinds of GGUF and numbers that no model can have."""
    _check_kind(model)
    keys = _Keys(model)
    if keys.arch not in GRAPHS:
        raise keys.fail(f"architecture {keys.arch!r} is not one of the {len(GRAPHS)} we know", "unknown_arch")
    _check_tokenizer(keys)
    heads = keys.per_layer("attention.head_count")
    if GRAPHS[keys.arch].rope is not RopeKind.NONE and not any(heads):
        raise keys.fail(f"{keys.arch}.attention.head_count is missing or 0, a positive number is needed")
    width = keys.positive("embedding_length")
    pattern, truths = keys.array(PATTERN), keys.array("attention.rope_pattern")
    return Facts(
        arch=keys.arch,
        name=keys.text("general.name") or model.path.stem,
        context_length=keys.positive(CONTEXT),
        layers=keys.positive("block_count"),
        head_dim=keys.integer("attention.key_length") or width // max(heads[0] if heads else 1, 1),
        head_count=heads,
        head_count_kv=keys.per_layer("attention.head_count_kv"),
        type=keys.text(f"{keys.arch}.{TYPE}"),
        factor=keys.number(FACTOR) if f"{keys.arch}.{FACTOR}" in model.entries else keys.number(OLD_FACTOR_KEY),
        attn_factor=keys.number(ATTN_FACTOR),
        original_context=keys.integer(ORIGINAL),
        finetuned=keys.boolean(FINETUNED),
        ext_factor=keys.number(EXT_FACTOR),
        dead_attn_factor=keys.number(DEAD_ATTN_FACTOR),
        beta_fast=keys.number(BETA_FAST),
        beta_slow=keys.number(BETA_SLOW),
        log_multiplier=keys.number(LOG_MULTIPLIER),
        truncate=keys.boolean(TRUNCATE),
        alpha=keys.number(ALPHA),
        base=keys.number(BASE),
        base_swa=keys.number(BASE_SWA),
        dimensions=keys.integer("rope.dimension_count"),
        dimensions_swa=keys.integer("rope.dimension_count_swa"),
        sections=keys.array("rope.dimension_sections"),
        window=(keys.array(WINDOW) or (0,))[0] if keys.array(WINDOW) else keys.integer(WINDOW),
        pattern=tuple(map(bool, pattern)) if pattern is not None else keys.integer(PATTERN),
        rope_pattern=None if truths is None else tuple(map(bool, truths)),
    )


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


def _check_tokenizer(keys: _Keys) -> None:
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
