"""How a conversion's RoPE is written, and whether what llama.cpp makes of it is what transformers computes.

The encoding is `encoding`'s choice. What is added here is the other witness: transformers' RoPE of every layer, by
`checkpoint_ropes`, is held against llama.cpp's, by `effective`, layer by layer, whatever classes each side sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from yarn_gguf.archs.tensors import Planned
from yarn_gguf.checkpoint_ropes import MeantRopes
from yarn_gguf.conversion.file import vector
from yarn_gguf.effective import Difference, LayerRope, Runtime, Tensors, compare, layer_ropes
from yarn_gguf.encoding import Encoded, Encoding, dynamic_on_stock, encode, ropes_after
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Finding, error, note, warning
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.graphs import GRAPHS, Magnitude, RopeFreqs
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import ATTN_FACTOR, LONG_FACTORS, ORIGINAL, TYPE, Facts
from yarn_gguf.rope import Llama3, LongRope, Unscaled

TAKES_ALWAYS: Final = ("phi3", "phimoe", "minicpm3")  # longrope's lists, whatever the type says
# what the unscaled file says already, or cannot say
KEPT: Final = ("none", "factors", "longrope", "dynamic", "dynamic-yarn")


@dataclass(frozen=True)
class Written:
    """`encoded` is None where the file needs no key beyond those of the unscaled model."""

    intent: Intent
    encoded: Encoded | None
    findings: tuple[Finding, ...]
    exact: bool  # on stock llama.cpp


def write_rope(
    base: Model, facts: Facts, tensors: Tensors, meant: MeantRopes, choice: Encoding, *, typed: bool, force: bool
) -> Written:
    """The encoding, or a refusal; `force` turns what is wrong into a warning."""
    intent = meant.intent
    findings = [warning("resolved", text) for text in meant.notes] + _unclear(meant)
    if intent.method in KEPT:
        found, encoded = layer_ropes(facts, tensors, Runtime.STOCK), None
    else:
        encoded = encode(base, facts, tensors, intent, choice, typed=typed)
        found = ropes_after(base, facts, tensors, encoded.changes, Runtime.STOCK)
    findings += _dynamic(facts.arch, intent)
    difference = layerwise(_normed(meant.layers, facts), found, intent.context, _attending(facts))
    if difference.exact:
        return Written(intent, encoded, tuple(findings), exact=not intent.dynamic)
    findings.append(_judged(difference, encoded, base, force=force))
    return Written(intent, encoded, tuple(findings), exact=False)


def _unclear(meant: MeantRopes) -> list[Finding]:
    """Linear scaling alone does not say whether the positions of config.json are counted before or after it."""
    own = meant.own
    if meant.intent is not own or own.method != "linear" or own.original is not None:
        return []
    text = f"linear ×{own.factor:g} reaches the {own.context} tokens of max_position_embeddings; if those are counted"
    again = f"--method linear --factor {own.factor:g} --original-ctx {own.context}"
    return [note("linear_context", f"{text} before scaling, {again} reaches {round(own.factor * own.context)}")]


def _attending(facts: Facts) -> set[int]:
    """Layers with keys: where the file counts them layer by layer, those without any are no attention layers."""
    heads = facts.head_count_kv
    return {i for i in range(facts.layers) if len(heads) != facts.layers or heads[i]}


def _normed(layers: Sequence[LayerRope], facts: Facts) -> Sequence[LayerRope]:
    """A magnitude that the norms behind RoPE cancel is none."""
    cancels = GRAPHS[facts.arch].magnitude is Magnitude.NORMED
    return [replace(each, magnitude=1.0) for each in layers] if cancels else layers


def _dynamic(arch: str, intent: Intent) -> list[Finding]:
    if intent.dynamic:
        return [dynamic_on_stock(arch, intent.factor)]
    if not intent.method.startswith("dynamic"):
        return []
    text = f"llama.cpp has no dynamic scaling: the file is exact up to {intent.context} tokens, and unscaled beyond"
    return [warning("dynamic", text)]


def _judged(difference: Difference, encoded: Encoded | None, base: Model, *, force: bool) -> Finding:
    """A checkpoint's own YaRN is written for a runtime that honours it; what no runtime would honour is refused."""
    if encoded is not None and not encoded.stock.exact:
        remedy = (
            "the patched one of `yarn-gguf build` is exact" if encoded.patched.exact else "our patches do not mend it"
        )
        return warning("not_exact_on_stock", f"stock llama.cpp differs in {difference.text}; {remedy}")
    text = f"llama.cpp would differ from transformers in {difference.text}"
    if not force:
        text = f"{text}, and no key can say it; --force converts all the same"
        raise InputError(text, file=base.path, code="rope_not_honoured")
    return error("rope_not_honoured", text)


def layerwise(meant: Sequence[LayerRope], got: Sequence[LayerRope], context: int, layers: set[int]) -> Difference:
    """The worst of these layers; the two sides may see other classes of layers."""
    worst = Difference()
    for want in meant:
        for have in got:
            if layers & set(want.layers) & set(have.layers):
                worst = max(worst, _difference(want, have, context), key=_badness)
    return worst


def _difference(want: LayerRope, have: LayerRope, context: int) -> Difference:
    if (want.rope is None) != (have.rope is None):
        return Difference(frequency=float("inf"), phase=float("inf"), kind=want.kind)
    return compare((want,), (have,), context)


def _badness(difference: Difference) -> float:
    return max(difference.frequency, difference.magnitude, difference.score)


@dataclass(frozen=True)
class RopeParts:
    """What of a model's own RoPE the unscaled file holds besides the base: vectors, and the keys that go with them."""

    rope_freqs: tuple[float, ...] | None = None
    lists: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None)  # long, short
    keys: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def vectors(self) -> tuple[Planned, ...]:
        pairs = zip(LONG_FACTORS, self.lists, strict=True)
        return tuple(vector(name, values) for name, values in pairs if values is not None)


def rope_parts(arch: str, meant: MeantRopes) -> RopeParts:
    """Of llama3 the factors, of longrope both lists; where the graph takes them."""
    rope, graph = meant.own.rope, GRAPHS[arch]
    if isinstance(rope.scaling, LongRope) and graph.long_factors:
        lists = (rope.scaling.long_factors, rope.scaling.short_factors)
        magnitude = rope.magnitude(meant.own.context)
        keys: dict[str, str | int | float] = {} if magnitude == 1 else {ATTN_FACTOR: magnitude}
        keys[ORIGINAL] = rope.scaling.original_context
        return RopeParts(None, lists, keys if arch in TAKES_ALWAYS else {TYPE: "longrope", **keys})
    if isinstance(rope.under, Llama3) and graph.rope_freqs is RopeFreqs.USED:
        plain = replace(rope, scaling=Unscaled())
        return RopeParts(tuple(float(f) for f in plain.frequency_factors()))
    return RopeParts()
