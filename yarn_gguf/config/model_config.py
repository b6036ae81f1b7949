"""`config.json` of a Hugging Face checkpoint: its sizes, its kinds of layers, and the RoPE each is meant to have.

What it knows: where a file keeps its RoPE settings, old (transformers 4) and new (5), and which transformers 5.23 reads
for which layers. What it does not know: GGUF keys, tensors, formulas (`rope` has those), and transformers itself: it is
never imported. The classes' own ways are `families`, a dictionary's meaning is `ropes`.

transformers is followed also where it surprises; what it passes over, or computed otherwise before version 5, becomes
one of the notes. A rope key that nobody knows is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from yarn_gguf.config.families import (
    CONV,
    DEFAULTS,
    FULL,
    LAYER_BASES,
    LOCAL_BASE,
    RULES,
    SLIDING,
    WINDOW,
    Rules,
    layers,
    per_layer,
)
from yarn_gguf.config.fields import HEADS, KV_HEADS, LENGTH, PARTIAL, Fields, Json, shown
from yarn_gguf.config.ropes import BUILDERS, Entry, build, rope_type
from yarn_gguf.errors import InputError
from yarn_gguf.intent import Intent
from yarn_gguf.json_file import json_object, read_bounded

Kind: TypeAlias = Literal["full", "sliding"]
Kinds: TypeAlias = tuple[Kind | None, ...]

BAD: Final = "bad_config"
WANTED: Final = "the folder of a checkpoint"
LARGEST_FILE: Final = 16 << 20
LARGEST_DIMENSION: Final = 1 << 20
KINDS: Final[Mapping[str, Kind]] = {FULL: "full", SLIDING: "sliding"}
OLD_LAYER_TYPES: Final = {"attention": FULL}
TEXT_TYPES: Final = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # of a text_config that does not say


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything is as transformers 5.23 resolves it; `raw` is the language model's part of the file as it stands."""

    path: Path
    architectures: tuple[str, ...]
    model_type: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int  # 0 where nothing bounds the positions (ALiBi)
    layer_types: tuple[str, ...]
    layer_ropes: Kinds  # which of `ropes` each layer has; None: it does not rotate
    sliding_window: int | None  # None where no layer slides
    ropes: Mapping[Kind, Intent]
    ropes_differ: bool  # whether the class says the RoPE of each kind of layer for itself
    no_rope: str | None  # why `ropes` is empty
    takes_yarn: bool  # False where the class makes longrope of it
    notes: tuple[str, ...]
    quantization: Mapping[str, Any] | None  # quantization_config, of the whole file
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def rope(self) -> Intent | None:
        """The RoPE that scales, where kinds of layers differ: that of the full ones, if they rotate."""
        return self.ropes.get("full") or self.ropes.get("sliding")


def read_config(folder: Path) -> ModelConfig:
    """The checkpoint's config.json; a file that is none, or makes no sense, is an InputError that names the field."""
    path = folder / "config.json"
    whole, notes = json_object(read_bounded(path, LARGEST_FILE, WANTED, BAD), path, BAD), list[str]()
    nested = isinstance(whole.get("text_config"), dict)
    raw: Json = whole["text_config"] if nested else whole
    model_type = raw.get("model_type") or TEXT_TYPES.get(str(whole.get("model_type")))
    if not isinstance(model_type, str) or model_type not in DEFAULTS:
        text = f"model_type is {shown(model_type)}, which this version does not know"
        raise InputError(text, file=path, code="unknown_model")
    rules = RULES.get(model_type, Rules())
    model = _completed(rules, DEFAULTS[model_type], Fields(raw, path, notes, "text_config." if nested else ""))
    types = _layer_types(rules, model)
    no_rope = "ALiBi" if "alibi" in rules.more and model.get("alibi") else rules.no_rope
    rotates = [False] * len(types) if no_rope else rules.rotation(model, types)
    kinds = tuple(KINDS.get(each) if turns else None for each, turns in zip(types, rotates, strict=True))
    ropes = {kind: _intent(rules, model, rope) for kind, rope in _settings(rules, model, kinds).items()}
    heads = model.count(HEADS)
    return ModelConfig(
        path=path,
        architectures=_architectures(Fields(raw if raw.get("architectures") else whole, path, notes)),
        model_type=model_type,
        layers=len(types),
        hidden_size=model.count("hidden_size"),
        heads=heads,
        kv_heads=heads if model.get(KV_HEADS) is None else model.count(KV_HEADS),
        head_dim=_head_dim(rules, model),
        vocab_size=model.count("vocab_size"),
        max_position_embeddings=model.count(LENGTH, least=0),
        layer_types=tuple(types),
        layer_ropes=kinds,
        sliding_window=model.count(WINDOW) if SLIDING in types else None,
        ropes=MappingProxyType(ropes),
        ropes_differ=rules.dicts != "one",
        takes_yarn=rules.builders.get("yarn") is BUILDERS["yarn"],
        no_rope=no_rope or (None if ropes else "no layer of it rotates"),
        notes=tuple(dict.fromkeys(notes)),
        quantization=_quantization(Fields(whole, path, notes), raw),
        raw=MappingProxyType(raw),
    )


def _architectures(whole: Fields) -> tuple[str, ...]:
    names = whole.entries("architectures") if whole.get("architectures") else []
    if not all(isinstance(name, str) for name in names):
        raise whole.fail("architectures", "is not a list of names")
    return tuple(names)


def _quantization(whole: Fields, raw: Json) -> Json | None:
    found = whole.get("quantization_config") or raw.get("quantization_config")
    if found is not None and not isinstance(found, dict):
        raise whole.fail("quantization_config", "is not an object")
    return found


def _completed(rules: Rules, sizes: Mapping[str, Any], file: Fields) -> Fields:
    """The fields under their usual names, and the class's values of those that are left out."""
    for name in rules.unread:
        if file.values.get(name) is not None:
            file.note(name, "is not read by this model's class")
    given = {name: value for name, value in file.values.items() if name not in rules.unread}
    renamed = {usual: file.values[own] for own, usual in rules.spelled.items() if own in file.values}
    model = Fields({**sizes, **rules.more, **given, **renamed}, file.path, file.notes, file.where, file)
    model.values.update(rules.adjust(model))
    return model


def _head_dim(rules: Rules, model: Fields) -> int:
    if rules.latent:
        return sum(model.count(name, most=LARGEST_DIMENSION) for name in rules.latent)
    if model.get("head_dim") is None:
        return model.count("hidden_size", most=LARGEST_DIMENSION) // model.count(HEADS)
    return model.count("head_dim", most=LARGEST_DIMENSION)


def _layer_types(rules: Rules, model: Fields) -> list[str]:
    given = model.get("layer_types")
    if given is not None and not rules.knows_kinds:
        model.note("layer_types", "is not read by this model's class")
    if given is None or not rules.knows_kinds:
        return rules.layout(model)
    types = [OLD_LAYER_TYPES.get(str(each), str(each)) for each in model.entries("layer_types")]
    if len(types) != len(layers(model)):
        raise model.fail("layer_types", f"has {len(types)} entries for {len(layers(model))} layers")
    if unknown := sorted(set(types) - {*KINDS, CONV}):
        raise model.fail("layer_types", f"holds {shown(unknown[0])}, which is not supported")
    return types


def _settings(rules: Rules, model: Fields, kinds: Kinds) -> dict[Kind, Fields]:
    """The RoPE settings of every kind of layer that rotates."""
    old, new = model.settings("rope_scaling"), model.settings("rope_parameters")
    name = "rope_scaling" if old and rules.dicts != "merged" else "rope_parameters"
    where = f"{model.where}{name}."
    if rules.dicts == "merged":
        settings = _merged(rules, model, old or {}, new or {})
    else:
        settings = dict(old or (rules.rope if new is None else new) or {})
        if old and new:
            model.note(name, "replaces rope_parameters as a whole")
    if rules.dicts == "one":
        if not settings.keys().isdisjoint(KINDS):
            raise model.fail(name, "differs by kind of layer, but this model's class has one RoPE for all layers")
        bases = _bases(model, kinds) if LAYER_BASES in rules.more else {}
        one = {kind: {**settings, **bases.get(kind, {})} for kind in KINDS.values() if kind in kinds}
        return {kind: Fields(values, model.path, model.notes, where) for kind, values in one.items()}
    if stray := sorted(settings.keys() - {*KINDS, "truncate"}):
        text = f"has {shown(stray[0])} beside the kinds of layers, where this model's class ignores it"
        raise model.fail(name, text)
    outer = Fields(settings, model.path, model.notes, where)
    return {kind: _of_kind(outer, layer) for layer, kind in KINDS.items() if kind in kinds}


def _of_kind(outer: Fields, layer: str) -> Fields:
    values = outer.settings(layer)
    if values is None:
        raise outer.fail(layer, "is missing, though the model has such layers")
    return Fields(values, outer.path, outer.notes, f"{outer.where}{layer}.", outer)


def _merged(rules: Rules, model: Fields, old: Json, new: Json) -> Json:
    """Plain RoPE where nothing is said; `rope_scaling` is laid over that of the full layers, and no other."""
    outer = Fields(new, model.path, model.notes, f"{model.where}rope_parameters.")
    full, sliding = (outer.settings(layer) or {"rope_type": "default"} for layer in KINDS)
    theta, local = model.need("rope_theta"), model.need(LOCAL_BASE)
    if "rope_theta" not in sliding and LOCAL_BASE in rules.unread and theta != local:
        model.notes.append(f"sliding layers keep the base {local:g}; transformers 4 gave them rope_theta, {theta:g}")
    return {**new, FULL: {**full, **old}, SLIDING: {"rope_theta": local, **sliding}}


def _bases(model: Fields, kinds: Kinds) -> dict[Kind, Json]:
    """What a base for every layer comes to, if it is one for every kind of layer."""
    if model.get(LAYER_BASES) is None:
        return {}
    pairs = {(kind, base) for kind, base in zip(kinds, per_layer(model, LAYER_BASES), strict=True) if kind}
    if len(pairs) > len({kind for kind, _ in pairs}):
        raise model.fail(LAYER_BASES, "differs among layers of one kind, which no GGUF can say")
    return {kind: {"rope_theta": base} for kind, base in pairs}


def _intent(rules: Rules, model: Fields, rope: Fields) -> Intent:
    name = rope_type(rope, rules.builders)
    base = _base(rules, model, rope)
    return build(Entry(rope, model, _rotated(rules, model, rope, name), base, name), rules.builders[name])


def _base(rules: Rules, model: Fields, rope: Fields) -> float:
    base = (rope if "rope_theta" in rope.values or rules.dicts == "each" else model).need("rope_theta")
    if rules.dicts == "one" and model.outer and "rope_theta" not in rules.unread:
        stated = model.outer.values.get("rope_theta")
        if stated not in (None, base):
            model.note("rope_theta", f"is {shown(stated)}, but {base:g} in {rope.where[:-1]} comes before it")
    return base


def _rotated(rules: Rules, model: Fields, rope: Fields, name: str) -> int:
    """How many dimensions of a head turn. transformers applies this factor to plain RoPE in some classes only."""
    source = rope if PARTIAL in rope.values else model
    if rules.latent:
        return _rotated_latent(model, source, _head_dim(rules, model))
    partial = source.values.get(PARTIAL)
    if source is model and rules.dicts == "each" and partial is not None:
        raise rope.fail(PARTIAL, "is missing: whom that of the whole model is for depends on the rest")
    if partial is None or (name == "default" and not rules.partial):
        if source is model and partial not in (None, 1):
            model.note(PARTIAL, "has no effect on default RoPE in this model's class")
        return _head_dim(rules, model)
    factor = source.need(PARTIAL)
    if not 0 < factor <= 1:
        raise source.fail(PARTIAL, f"is {partial}, but must be above 0 and at most 1")
    return int(_head_dim(rules, model) * factor)


def _rotated_latent(model: Fields, source: Fields, head_dim: int) -> int:
    """In transformers a factor that says something else breaks every RoPE but the plain one, which passes it over."""
    rotated, factor = model.count("qk_rope_head_dim", most=LARGEST_DIMENSION), source.number(PARTIAL)
    if factor is not None and not abs(factor * head_dim - rotated) < 1:
        source.note(PARTIAL, f"is {factor:g}, but qk_rope_head_dim comes before it: {rotated} dimensions turn")
    return rotated
