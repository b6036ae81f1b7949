"""One dictionary of RoPE settings, made the Intent that transformers makes of it: a builder for every rope type.

What it knows: the settings, old names and new, their defaults, and what transformers passes over, or computed otherwise
before version 5. What it does not know: model types, kinds of layers, where the dictionary came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from yarn_gguf.config.fields import LENGTH, ORIGINAL, PARTIAL, Fields, shown
from yarn_gguf.errors import InputError
from yarn_gguf.intent import Intent
from yarn_gguf.rope import DynamicNtk, Linear, Llama3, LongRope, Rope, Scaling, Unscaled, Yarn, ntk_base

TOGETHER: Final = ("mscale", "mscale_all_dim")
NO_PART_OF_ROPE: Final = frozenset(("finetuned", LENGTH, "llama_4_scaling_beta"))
ROPE_KEYS: Final = NO_PART_OF_ROPE.union(
    ("rope_theta", "rope_type", "type", PARTIAL, "factor", ORIGINAL, *TOGETHER, "alpha"),
    ("attention_factor", "attn_factor", "extrapolation_factor", "beta_fast", "beta_slow", "truncate"),
    ("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One dictionary of RoPE settings, and what it needs to know of the model."""

    rope: Fields
    model: Fields
    dim: int
    base: float
    type: str

    @property
    def length(self) -> int:
        return self.model.count(LENGTH)

    def original(self) -> int:
        """The model's own field comes before that of the dictionary; with neither, nothing was extended."""
        stated = self.rope.count(ORIGINAL, least=2) if ORIGINAL in self.rope.values else self.length
        if ORIGINAL not in self.model.values:
            return stated
        chosen = self.model.count(ORIGINAL, least=2)
        if ORIGINAL in self.rope.values and chosen != stated:
            self.note(f"{ORIGINAL} is {stated}, but that of the model comes before it and is {chosen}")
        return chosen

    def truncate(self) -> bool:
        """transformers looks for it beside the kinds of layers, where there are kinds."""
        fields = self.rope.outer or self.rope
        return bool(fields.get("truncate")) if "truncate" in fields.values else True

    def note(self, text: str) -> None:
        self.rope.notes.append(f"{self.rope.where.removesuffix('.')}: {text}")

    def intent(self, scaling: Scaling, original: int | None, context: int, under: Scaling | None = None) -> Intent:
        return Intent(Rope(self.dim, self.base, scaling, under), original, context)


def _default(entry: Entry) -> Intent:
    return entry.intent(Unscaled(), entry.length, entry.length)


def _linear(entry: Entry) -> Intent:
    """Whether the context in the file is that before or after scaling is not said."""
    stated = entry.rope.count(ORIGINAL, least=2) if entry.rope.values.get(ORIGINAL) is not None else None
    return entry.intent(Linear(entry.rope.need("factor")), stated, entry.length)


def _dynamic(entry: Entry) -> Intent:
    return entry.intent(DynamicNtk(entry.rope.need("factor"), entry.length), entry.length, entry.length)


def dynamic_alpha(entry: Entry) -> Intent:
    """HunYuan calls it dynamic, but a fixed alpha makes it a larger base, at every length; the factor is not used."""
    alpha = entry.rope.number("alpha")
    if not alpha:
        return _dynamic(entry)
    base = ntk_base(entry.base, entry.dim, alpha)
    return Intent(Rope(entry.dim, base), entry.length, entry.length)


def _yarn(entry: Entry) -> Intent:
    rope, original = entry.rope, entry.original()
    if "factor" not in rope.values:
        raise rope.fail("factor", "is missing, and yarn has no default for it")
    ratio, factor = entry.length / original, rope.number("factor")
    if factor is None:
        entry.note(f"factor is null: {ratio:g} is used, which is {LENGTH} / {ORIGINAL}")
    elif original != entry.length and ratio != factor:
        entry.note(f"factor is {factor:g}; transformers 4 used {ratio:g} instead, {LENGTH} / {ORIGINAL}")
    factor = ratio if factor is None else factor
    for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if rope.number(name) == 0:
            entry.note(f"{name} is 0, for which transformers takes the default {default:g}")
    given = [name for name in TOGETHER if rope.number(name)]
    if len(given) == 1:
        entry.note(f"{given[0]} without the other of {' and '.join(TOGETHER)} does not change the magnitude")
    betas = (rope.number("beta_fast") or 32.0, rope.number("beta_slow") or 1.0)
    pair = (rope.number("mscale"), rope.number("mscale_all_dim"))
    scaling = Yarn(factor, original, *betas, entry.truncate(), rope.number("attention_factor"), *pair)
    return entry.intent(scaling, original, max(entry.length, round(factor * original)))


def _longrope(entry: Entry) -> Intent:
    if entry.type != "longrope":
        entry.note(f"this model's class takes {entry.type} for longrope")
        if entry.rope.get("short_factor") is None or entry.rope.get("long_factor") is None:
            text = "of which transformers' class for this model makes longrope: it needs short_factor and long_factor"
            raise entry.rope.fail("rope_type", f"is {entry.type!r}, {text}")
    original, factor = entry.original(), entry.rope.number("factor")
    factor = max(1.0, entry.length / original if factor is None else factor)
    lists = (entry.rope.numbers("short_factor"), entry.rope.numbers("long_factor"))
    scaling = LongRope(*lists, original, factor, entry.rope.number("attention_factor"))
    return entry.intent(scaling, original, entry.length)


def _llama3(entry: Entry) -> Intent:
    """It is part of the model as trained: whatever scales it further goes on top."""
    factor, low, high = (entry.rope.need(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return entry.intent(Unscaled(), entry.length, entry.length, under=Llama3(factor, low, high, entry.original()))


Builder: TypeAlias = Callable[[Entry], Intent]
BUILDERS: Final[Mapping[str, Builder]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def rope_type(rope: Fields, builders: Mapping[str, Builder]) -> str:
    """A setting that nobody knows, or a type without a builder, is an error that names it."""
    if unknown := sorted(rope.values.keys() - ROPE_KEYS):
        raise rope.fail(shown(unknown[0]), "is a RoPE setting that this version does not know")
    old, name = rope.get("type"), rope.get("rope_type")
    if "rope_type" not in rope.values:
        name = "default" if old is None else old
    elif old not in (None, name):
        rope.note("type", f"is {shown(old)}, but rope_type comes before it and is {shown(name)}")
    if not isinstance(name, str) or name not in builders:
        raise rope.fail("rope_type", f"is {shown(name)}; supported for this model are {', '.join(builders)}")
    return name


def build(entry: Entry, builder: Builder) -> Intent:
    """What was given and not used is noted."""
    rope = entry.rope
    try:
        intent = builder(entry)
    except (ValueError, ArithmeticError) as error:
        text = f"{rope.where.removesuffix('.')} makes no RoPE: {error}"
        raise InputError(text, file=rope.path, code="bad_rope") from error
    unused = rope.values.keys() - rope.used - NO_PART_OF_ROPE
    if idle := sorted(key for key in unused if rope.values[key] is not None):
        have = "has" if len(idle) == 1 else "have"
        entry.note(f"{', '.join(idle)} {have} no effect on {entry.type} RoPE in this model's class")
    return intent
