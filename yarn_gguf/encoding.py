"""An intent -> the keys, and perhaps the one tensor, that make llama.cpp compute it; with the proof that they do.

Two encodings. *keys*: the standard ones. *baked*: the stretch of every pair as `rope_freqs.weight`, scaling type none,
the magnitude as `attn_factor`. Which of them is exact is not a rule written here: both are tried on the model's own
metadata, and `effective` says what stock llama.cpp would make of each. Knows no file layout.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from yarn_gguf.effective import (
    Difference,
    LayerClass,
    LayerRope,
    Runtime,
    Tensors,
    compare,
    file_base,
    layer_classes,
    layer_ropes,
    meant_ropes,
    sliding_base,
)
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.graphs import GRAPHS, Graph, Magnitude, RopeFreqs, Sliding, SlidingBase
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import (
    ATTN_FACTOR,
    BASE,
    BASE_SWA,
    BETA_FAST,
    BETA_SLOW,
    CONTEXT,
    DYNAMIC,
    FACTOR,
    LOG_MULTIPLIER,
    ORIGINAL,
    SCALING_KEYS,
    TRUNCATE,
    TYPE,
    Changes,
    Facts,
    read_facts,
)
from yarn_gguf.rope import Yarn, ntk_base, yarn_magnitude

Encoding = Literal["auto", "keys", "baked"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("auto", "keys", "baked")
Values = dict[str, bool | int | float | str]

MAX_CONTEXT: Final = (1 << 31) - 1
MIN_NUMBER: Final = float(np.finfo(np.float32).tiny)
MAX_NUMBER: Final = float(np.finfo(np.float32).max)
PATCH_REMEDY: Final = "--encoding keys writes it for the patched llama.cpp of `yarn-gguf build`, which is exact"


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoding with how far stock and patched llama.cpp are from the intent under it."""

    encoding: Literal["keys", "baked"]
    changes: Changes
    stock: Difference
    patched: Difference
    dynamic: bool = False  # the patched library follows the context; what differs is said for the full one

    @property
    def exact(self) -> bool:
        """Whether stock llama.cpp computes the intent at every context that is opened."""
        return self.stock.exact and not self.dynamic


def dynamic_on_stock(arch: str, factor: float) -> Finding:
    """What becomes of a dynamic file without our patches."""
    text = (
        f"stock llama.cpp does not read {arch}.{DYNAMIC}: it scales by {factor:g} whatever the context; the patched "
        "one by what the context needs, down to no scaling at all"
    )
    return warning("dynamic", text)


def check_range(intent: Intent) -> None:
    """A GGUF holds these numbers as float32, and llama.cpp counts tokens in 31 bits."""
    if intent.context > MAX_CONTEXT:
        text = f"a context of {intent.context:.15g} tokens is more than llama.cpp can count ({MAX_CONTEXT})"
        raise UsageError(text, code="bad_rope")
    numbers = {"factor": intent.factor, "attention factor": intent.rope.magnitude()}
    if intent.yarn is not None:
        numbers |= {"beta_fast": intent.yarn.beta_fast, "beta_slow": intent.yarn.beta_slow}
    for name, value in numbers.items():
        if value != 0 and not MIN_NUMBER <= value <= MAX_NUMBER:
            text = f"{name} {value:g} is beyond what a GGUF can hold, {MIN_NUMBER:.2g} to {MAX_NUMBER:.2g}"
            raise UsageError(text, code="bad_rope")


def encode(model: Model, facts: Facts, tensors: Tensors, intent: Intent, choice: Encoding, *, typed: bool) -> Encoded:
    """The encoding asked for; under auto an exact one. `typed`: refuse what stock llama.cpp would not honour."""
    _check_architecture(model, facts, intent)
    if intent.method not in _METHOD_KEYS:
        text = f"is scaled with {intent.method}, and nothing else can be written in its place; leave it as it is"
        raise InputError(text, file=model.path, code="no_basis")
    try:
        tried = {name: make(model, facts, tensors, intent) for name, make in _candidates(facts, intent, choice).items()}
    except (OverflowError, ZeroDivisionError, struct.error) as error:
        text = f"these settings lead to numbers that no key can hold: {error}"
        raise InputError(text, file=model.path, code="bad_rope") from error
    if choice == "baked" and intent.dynamic:
        raise UsageError("a baked file has one factor; --dynamic needs --encoding keys", code="no_dynamic")
    if choice == "baked" and "baked" not in tried:
        raise UsageError(
            f"llama.cpp's {facts.arch} graph takes no rope_freqs tensor; use --encoding keys", code="no_bake"
        )
    exact = next((found for found in tried.values() if found.stock.exact), None)
    if exact is not None:
        return exact
    asked = tried.get("keys") or tried["baked"]
    if choice == "auto" and typed:
        raise InputError(_refusal(asked), file=model.path, code="not_exact")
    return asked


def _candidates(
    facts: Facts, intent: Intent, choice: Encoding
) -> Mapping[str, Callable[[Model, Facts, Tensors, Intent], Encoded]]:
    makers = {"keys": _keys, "baked": _baked}
    if GRAPHS[facts.arch].rope_freqs is not RopeFreqs.USED or intent.dynamic:
        del makers["baked"]
    return {name: make for name, make in makers.items() if choice in ("auto", name)}


def _check_architecture(model: Model, facts: Facts, intent: Intent) -> None:
    """Refuses a graph in which scaling has no effect."""
    graph = GRAPHS[facts.arch]
    scaled = set(layer_classes(facts)) - {LayerClass.NONE}
    if graph.sliding in (Sliding.UNSCALED, Sliding.PLAIN):
        scaled -= {LayerClass.SLIDING}
    if intent.method != "none" and not (graph.yarn and scaled):
        why = graph.note or "none of its layers takes a scaled RoPE"
        text = f"no RoPE here that could be scaled: architecture {facts.arch}. {why}"
        raise InputError(text, file=model.path, code="no_rope")


def _refusal(tried: Encoded) -> str:
    """Why settings that were typed are not written, and the ways out."""
    ways = ["leave betas, truncate and attention factor at their defaults"]
    ways.append(PATCH_REMEDY if tried.patched.exact else "--encoding keys writes it all the same")
    return f"stock llama.cpp would differ in {tried.stock.text}; {', or '.join(ways)}"


def _measured(
    encoding: Literal["keys", "baked"], model: Model, facts: Facts, tensors: Tensors, intent: Intent, changes: Changes
) -> Encoded:
    """The changes with what the two runtimes would compute from them, float32 rounding of the keys included."""
    meant = meant_ropes(facts, intent)
    found = {r: compare(meant, ropes_after(model, facts, tensors, changes, r), intent.context) for r in Runtime}
    return Encoded(encoding, changes, found[Runtime.STOCK], found[Runtime.PATCHED], intent.dynamic)


def ropes_after(
    model: Model, facts: Facts, tensors: Tensors, changes: Changes, runtime: Runtime
) -> tuple[LayerRope, ...]:
    """What a runtime computes from a model once the changes are made."""
    header = replace(model.first, entries=changes.apply(facts.arch, model.entries))
    changed = read_facts(Model((header, *model.parts[1:])))
    vectors = tensors if changes.rope_freqs is None else replace(tensors, rope_freqs=changes.rope_freqs)
    return layer_ropes(changed, vectors, runtime)


def _changes(facts: Facts, values: Values, rope_freqs: tuple[float, ...] | None = None) -> Changes:
    return Changes(values, frozenset(SCALING_KEYS) - values.keys(), rope_freqs)


def _keys(model: Model, facts: Facts, tensors: Tensors, intent: Intent) -> Encoded:
    values: Values = {CONTEXT: intent.context, **_METHOD_KEYS[intent.method](facts, intent)}
    return _measured("keys", model, facts, tensors, intent, _changes(facts, values))


def _baked(model: Model, facts: Facts, tensors: Tensors, intent: Intent) -> Encoded:
    """θ_plain / θ′ per pair; what lies under the scaling is multiplied in, and M is all that keys still say."""
    values: Values = {CONTEXT: intent.context, TYPE: "none", **_origin(facts, intent)}
    if (magnitude := intent.rope.magnitude()) != 1:
        values[ATTN_FACTOR] = magnitude
    factors = tuple(float(f) for f in intent.rope.frequency_factors())
    return _measured("baked", model, facts, tensors, intent, _changes(facts, values, factors))


def _none_keys(facts: Facts, intent: Intent) -> Values:
    """Nothing of a scaling is left, but what a foreign file says by its tensor and `attn_factor` alone."""
    magnitude = intent.rope.magnitude()
    return _origin(facts, intent) | ({} if magnitude == 1 else {TYPE: "none", ATTN_FACTOR: magnitude})


def _origin(facts: Facts, intent: Intent) -> Values:
    """The original context: mistral3 also scales q by its multiples, so it must not follow the context length."""
    if intent.original is None or (facts.original_context is None and intent.context == facts.context_length):
        return {}
    return {ORIGINAL: intent.original}


def _linear_keys(facts: Facts, intent: Intent) -> Values:
    values: Values = {TYPE: "linear", FACTOR: intent.factor, **_origin(facts, intent)}
    return {**values, **_score_keys(facts, intent.factor, 1.0, 1.0, yarn=False)}


def _ntk_keys(facts: Facts, intent: Intent) -> Values:
    """A larger base, of the sliding layers as well where they scale; type none keeps a factor from meaning linear."""
    graph = GRAPHS[facts.arch]
    dim, factor, own = intent.rope.dim, intent.factor, sliding_base(facts)
    values: Values = {TYPE: "none", BASE: ntk_base(file_base(facts), dim, factor), **_origin(facts, intent)}
    if graph.windows is not None and graph.windows.base is not SlidingBase.FULL:
        values[BASE_SWA] = ntk_base(own, dim, factor) if graph.sliding is Sliding.SCALED else own
    return values


def _yarn_keys(facts: Facts, intent: Intent) -> Values:
    yarn = intent.yarn
    assert yarn is not None and intent.original is not None  # what resolving these methods gives
    values: Values = {TYPE: "yarn", FACTOR: yarn.factor, ORIGINAL: yarn.original_context}
    graph = GRAPHS[facts.arch]
    if graph.beta_keys or (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0):
        values |= {BETA_FAST: yarn.beta_fast, BETA_SLOW: yarn.beta_slow}
    if not yarn.truncate:
        values[TRUNCATE] = False
    values |= _score_keys(facts, yarn.factor, intent.rope.magnitude(), intent.score_magnitude, yarn=True)
    if intent.dynamic:
        _check_dynamic(yarn, values)
        values[DYNAMIC] = True
    return values


def _check_dynamic(yarn: Yarn, values: Values) -> None:
    """Under dynamic scaling llama.cpp computes the magnitude for every factor: one that is set holds for one alone."""
    if yarn.attention_factor is None and values.get(ATTN_FACTOR, 1.0) == 1.0:
        return
    text = (
        f"--dynamic needs the attention factor that follows from the factor, but {yarn.attention_factor or 'another'} "
        "is set, which holds for one factor alone; leave --dynamic off"
    )
    raise UsageError(text, code="no_dynamic")


_METHOD_KEYS: Final[dict[str, Callable[[Facts, Intent], Values]]] = {
    "none": _none_keys,
    "factors": _none_keys,
    "linear": _linear_keys,
    "ntk": _ntk_keys,
    "ntk-by-parts": _yarn_keys,
    "yarn": _yarn_keys,
}


def _score_keys(facts: Facts, factor: float, magnitude: float, score: float, *, yarn: bool) -> Values:
    """R and L such that M comes out as `magnitude` and the softmax scale as `score`².

    Most graphs: M = G·R, G = g(s) under YaRN, else 1. DeepSeek's also multiply the softmax scale by (M·g(s, L))²,
    hence L = (score / M − 1) / (0.1 ln s); with L, deepseek2 has G = 1, and mistral4 G = g(s) / g(s, L).
    """
    graph, g = GRAPHS[facts.arch], yarn_magnitude(factor)
    if graph.magnitude in (Magnitude.DEEPSEEK2, Magnitude.MISTRAL4) and graph.log_multiplier and factor > 1:
        # under linear the graph multiplies by g(s) where YaRN has M
        shared = magnitude if yarn else g
        m_all = (score / shared - 1) / (0.1 * math.log(factor)) or graph.log_multiplier * 1e-9
        if not yarn:
            r = 1.0
        elif graph.magnitude is Magnitude.DEEPSEEK2:
            r = magnitude
        else:
            r = magnitude * yarn_magnitude(factor, m_all) / g
        values: Values = {LOG_MULTIPLIER: m_all / graph.log_multiplier}
        return values if r == 1 else {**values, ATTN_FACTOR: r}
    if graph.magnitude is Magnitude.MISTRAL3 and yarn:
        return _mistral3_keys(graph, facts, factor, magnitude, g)
    if graph.magnitude in (Magnitude.ONE, Magnitude.NORMED):
        return {}
    r = magnitude / (g if yarn else 1.0)
    return {} if math.isclose(r, 1.0, rel_tol=1e-12) else {ATTN_FACTOR: r}


def _mistral3_keys(graph: Graph, facts: Facts, factor: float, magnitude: float, g: float) -> Values:
    """The file's own multiplier is kept: G = g(s) / g(s, L)."""
    m_all = (graph.log_multiplier or 1.0) * (facts.log_multiplier or 0.0)
    values: Values = {LOG_MULTIPLIER: facts.log_multiplier} if facts.log_multiplier else {}
    r = magnitude * yarn_magnitude(factor, m_all) / g
    return values if math.isclose(r, 1.0, rel_tol=1e-6) else {**values, ATTN_FACTOR: r}
