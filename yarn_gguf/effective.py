"""What llama.cpp will really compute from a file's keys: frequencies, magnitude, softmax scale, per class of layers.

The rules are `graphs`' table, one row per architecture; the arithmetic is `rope`'s. A model of llama.cpp, held to
llama.cpp itself by the logits tests. Knows no file and no intent; `compare` holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np

from yarn_gguf import graphs
from yarn_gguf.errors import InputError
from yarn_gguf.graphs import GRAPHS, Dimensions, Graph, Magnitude, Nope, RopeFreqs, Sliding, SlidingBase, Window
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import Facts
from yarn_gguf.rope import Floats, FrequencyFactors, Linear, PairClass, Rope, Scaling, Unscaled, Yarn, yarn_magnitude

TOLERANCE: Final = 1e-6  # relative; keys and factors are float32, whose rounding is 6e-8


class Runtime(StrEnum):
    STOCK = "stock"
    PATCHED = "patched"


class LayerClass(StrEnum):
    FULL = "full"
    SLIDING = "sliding"
    NONE = "none"  # no RoPE


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors that change RoPE, where the file has them."""

    rope_freqs: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    short_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class LayerRope:
    """What the layers of one class get. `score` multiplies the softmax scale on top of what cos and sin carry."""

    kind: LayerClass
    layers: tuple[int, ...]
    rope: Rope | None  # None for layers without RoPE
    magnitude: float = 1.0
    score: float = 1.0
    length: int | None = None  # at which a rope that depends on the length is meant

    @property
    def inverse_frequencies(self) -> Floats:
        return np.zeros(0) if self.rope is None else self.rope.inverse_frequencies(self.length)

    @property
    def tally(self) -> dict[PairClass, int]:
        """How many pairs are kept, blended and interpolated all in all, whatever the stretch comes from."""
        if self.rope is None:
            return {}
        stretch = self.rope.frequency_factors(self.length)
        total = replace(self.rope, scaling=FrequencyFactors(tuple(stretch.tolist())), under=None)
        classes = total.pair_classes()
        return {kind: classes.count(kind) for kind in PairClass if kind in classes}


@lru_cache(maxsize=8)
def layer_classes(facts: Facts) -> Mapping[LayerClass, tuple[int, ...]]:
    """Which layers are full, sliding and without RoPE; classes without a layer are left out."""
    graph = GRAPHS[facts.arch]
    slides = sliding_layers(facts)
    nope = _nope_layers(facts, graph, slides)
    found = {
        LayerClass.FULL: [i for i in range(facts.layers) if not slides[i] and not nope[i]],
        LayerClass.SLIDING: [i for i in range(facts.layers) if slides[i] and not nope[i]],
        LayerClass.NONE: [i for i in range(facts.layers) if nope[i]],
    }
    return MappingProxyType({kind: tuple(layers) for kind, layers in found.items() if layers})


_SLIDES: Final[dict[Window, Callable[[Facts], bool]]] = {
    Window.ALWAYS: lambda facts: True,
    Window.REQUIRED: lambda facts: True,
    Window.POSITIVE: lambda facts: (facts.window or 0) > 0,
    Window.NOT_ZERO: lambda facts: facts.window != 0,
    Window.LAYERS_64: lambda facts: facts.layers == 64,
}


@lru_cache(maxsize=8)
def sliding_layers(facts: Facts) -> tuple[bool, ...]:
    windows = GRAPHS[facts.arch].windows
    if windows is None or not _SLIDES[windows.when](facts):
        return (False,) * facts.layers
    pattern = None if windows.pattern is graphs.Pattern.UNREAD else facts.pattern
    if isinstance(pattern, tuple):
        return (*pattern[: facts.layers], *(False,) * (facts.layers - len(pattern)))
    every = pattern if pattern is not None else windows.every
    if every is None:
        return (False,) * facts.layers
    full_at = 0 if windows.full_first else every - 1
    return tuple(every == 0 or i % every != full_at for i in range(facts.layers))


def _nope_layers(facts: Facts, graph: Graph, slides: tuple[bool, ...]) -> list[bool]:
    every = graph.nope_every or 1
    rules: dict[Nope, Callable[[int], bool]] = {
        Nope.NONE: lambda i: graph.rope is graphs.Rope.NONE,
        Nope.FIRST: lambda i: i % every == 0,
        Nope.LAST: lambda i: i % every == every - 1,
        Nope.FULL: lambda i: any(slides) and not slides[i],
        Nope.FLAG: lambda i: facts.finetuned is False,
        Nope.KEY: lambda i: facts.rope_pattern is not None and facts.rope_pattern[i : i + 1] == (False,),
        Nope.UNLESS_32: lambda i: facts.layers != 32,
    }
    return [rules[graph.nope](i) for i in range(facts.layers)]


def file_type(facts: Facts) -> str:
    return facts.type or graphs.DEFAULT_SCALING_TYPE


def file_base(facts: Facts) -> float:
    """The base of full layers, with `alpha` applied where the loader reads it."""
    base = facts.base or graphs.DEFAULT_FREQ_BASE
    if GRAPHS[facts.arch].alpha_key and (facts.alpha or 0) > 0 and facts.head_dim > 2:
        return float(base * float(facts.alpha or 1) ** (facts.head_dim / (facts.head_dim - 2)))
    return base


def file_dimensions(facts: Facts, kind: LayerClass) -> int:
    """How many dimensions of a head the layers of a class rotate."""
    full = facts.dimensions or facts.head_dim
    sliding = facts.dimensions_swa or full
    graph = GRAPHS[facts.arch]
    if graph.dimensions is Dimensions.FIRST:
        return sliding if facts.layers and sliding_layers(facts)[0] else full
    if kind is LayerClass.SLIDING:
        return sliding
    return full // 2 if graph.dimensions is Dimensions.HALVED else full


def sliding_base(facts: Facts) -> float:
    windows = GRAPHS[facts.arch].windows
    where = SlidingBase.FULL if windows is None else windows.base
    if where is SlidingBase.FULL or (facts.base_swa is None and where is not SlidingBase.KEY_OR_10000):
        return file_base(facts)
    return facts.base_swa or graphs.DEFAULT_FREQ_BASE


def _extrapolation(facts: Facts, graph: Graph) -> float:
    """ggml's ext_factor: 1 under YaRN, 0 else; grok takes its key under any type."""
    if graph.magnitude is Magnitude.GROK and (facts.ext_factor or -1) >= 0:
        return float(facts.ext_factor or 0)
    return 1.0 if file_type(facts) == "yarn" else 0.0


def magnitudes(facts: Facts) -> tuple[float, float]:
    """(M, score) of the layers that scale; the letters are those of `graphs`."""
    graph = GRAPHS[facts.arch]
    s = 1.0 if file_type(facts) == "none" else max(facts.factor or 1.0, 1e-9)
    r = 1.0 if facts.attn_factor is None else facts.attn_factor
    multiplier = graph.log_multiplier
    m_all = 0.0 if multiplier is None else multiplier * (facts.log_multiplier or 0.0)
    kind, yarn = graph.magnitude, _extrapolation(facts, graph) != 0
    g = {
        Magnitude.MISTRAL3: yarn_magnitude(s) / yarn_magnitude(s, m_all),
        Magnitude.MISTRAL4: yarn_magnitude(s) / yarn_magnitude(s, m_all),
        Magnitude.DEEPSEEK2: 1.0 if m_all else yarn_magnitude(s),
    }.get(kind, yarn_magnitude(s))
    score = 1.0
    if kind in (Magnitude.MISTRAL4, Magnitude.DEEPSEEK2, Magnitude.GLM_DSA, Magnitude.OCR):
        score = ((g if yarn else yarn_magnitude(s)) * r * yarn_magnitude(s, m_all)) ** 2
    if kind in (Magnitude.ONE, Magnitude.OCR, Magnitude.NORMED):
        return 1.0, score
    if kind is Magnitude.GROK and not yarn:
        return r * (facts.dead_attn_factor or 1.0), score
    return (g * r if yarn else r), score


def full_scaling(facts: Facts, runtime: Runtime, magnitude: float) -> Scaling:
    """The scaling of full layers."""
    graph, kind = GRAPHS[facts.arch], file_type(facts)
    factor = 1.0 if kind == "none" else facts.factor or 1.0
    if not graph.yarn:
        return Unscaled()
    extrapolation = _extrapolation(facts, graph)
    if extrapolation == 0:
        return Linear(factor) if factor != 1 else Unscaled()
    reads = graph.beta_keys or runtime is Runtime.PATCHED
    return Yarn(
        factor,
        facts.original_context or facts.context_length,
        facts.beta_fast if reads and facts.beta_fast is not None else graph.beta_fast,
        facts.beta_slow if reads and facts.beta_slow is not None else graphs.DEFAULT_BETA_SLOW,
        facts.truncate is not False or runtime is Runtime.STOCK,
        attention_factor=magnitude,
        extrapolation_factor=extrapolation,
    )


def _under(facts: Facts, tensors: Tensors) -> Scaling | None:
    """The stretch that a tensor gives every pair before the keys' scaling."""
    graph = GRAPHS[facts.arch]
    if tensors.rope_freqs is not None and graph.rope_freqs is RopeFreqs.USED:
        return FrequencyFactors(tensors.rope_freqs)
    if tensors.long_factors is not None and graph.long_factors:
        return FrequencyFactors(tensors.long_factors)
    return None


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(
            f"its RoPE keys make no RoPE that llama.cpp could compute: {error}", code="bad_rope"
        ) from error


@_refused()
def layer_ropes(facts: Facts, tensors: Tensors, runtime: Runtime) -> tuple[LayerRope, ...]:
    """What the runtime computes, class by class."""
    graph = GRAPHS[facts.arch]
    magnitude, score = magnitudes(facts)
    full = Rope(
        file_dimensions(facts, LayerClass.FULL),
        file_base(facts),
        full_scaling(facts, runtime, magnitude),
        _under(facts, tensors),
    )
    found = []
    for kind, layers in layer_classes(facts).items():
        if kind is LayerClass.NONE:
            found.append(LayerRope(kind, layers, None))
        elif kind is LayerClass.FULL or graph.sliding is Sliding.SAME:
            found.append(LayerRope(kind, layers, full, magnitude, score))
        else:
            found.append(_sliding_rope(facts, full, layers, magnitude, score))
    return tuple(found)


def _sliding_rope(facts: Facts, full: Rope, layers: tuple[int, ...], magnitude: float, score: float) -> LayerRope:
    graph = GRAPHS[facts.arch]
    dim = file_dimensions(facts, LayerClass.SLIDING)
    # a tensor is used on sliding layers too, unless they rotate another number of dimensions
    under = full.under if dim == full.dim and graph.dimensions is Dimensions.FIRST else None
    rope = replace(full, dim=dim, base=sliding_base(facts), under=under)
    if graph.sliding is Sliding.SCALED:
        factor = facts.factor or 1.0
        left_over = file_type(facts) == "none" and factor != 1  # the file's factor holds whatever the type says
        scaled = replace(rope, scaling=Linear(factor)) if left_over else rope
        return LayerRope(LayerClass.SLIDING, layers, scaled, magnitude, score)
    r = 1.0 if facts.attn_factor is None else facts.attn_factor
    plain = replace(rope, scaling=Unscaled())
    return LayerRope(LayerClass.SLIDING, layers, plain, r if graph.sliding is Sliding.UNSCALED else 1.0, score)


@_refused()
def meant_ropes(facts: Facts, intent: Intent) -> tuple[LayerRope, ...]:
    """What an intent asks of every class of layers: sliding ones scale where transformers scales them, else not."""
    graph = GRAPHS[facts.arch]
    deepseek = graph.magnitude in (Magnitude.MISTRAL4, Magnitude.DEEPSEEK2, Magnitude.GLM_DSA, Magnitude.OCR)
    score = intent.score_magnitude**2 if deepseek else 1.0
    length = intent.context
    magnitude = 1.0 if graph.magnitude is Magnitude.NORMED else intent.rope.magnitude(length)
    found = []
    for kind, layers in layer_classes(facts).items():
        if kind is LayerClass.NONE:
            found.append(LayerRope(kind, layers, None))
        elif kind is LayerClass.FULL or graph.sliding is Sliding.SAME:
            found.append(LayerRope(kind, layers, intent.rope, magnitude, score, length))
        else:
            scales = graph.sliding is Sliding.SCALED
            dim = file_dimensions(facts, kind)
            under = intent.rope.under if dim == intent.rope.dim and graph.dimensions is Dimensions.FIRST else None
            scaling = intent.rope.scaling if scales else Unscaled()
            rope = Rope(dim, sliding_base(facts), scaling, under)
            found.append(LayerRope(kind, layers, rope, magnitude if scales else 1.0, score, length))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far what is computed is from what is meant, on the class of layers where it is worst."""

    frequency: float = 0.0  # largest relative error of θ′
    phase: float = 0.0  # radians, at the end of the context
    magnitude: float = 0.0  # relative error of M
    score: float = 0.0  # relative error of the softmax scale
    kind: LayerClass = LayerClass.FULL

    @property
    def exact(self) -> bool:
        return max(self.frequency, self.magnitude, self.score) <= TOLERANCE

    @property
    def text(self) -> str:
        """What differs, in words."""
        found = []
        if self.frequency > TOLERANCE:
            found.append(f"frequencies by up to {_share(self.frequency)} ({self.phase:.3g} rad at the full context)")
        if self.magnitude > TOLERANCE:
            found.append(f"the magnitude of cos and sin by {_share(self.magnitude)}")
        if self.score > TOLERANCE:
            found.append(f"the softmax scale by {_share(self.score)}")
        return (" and ".join(found) + f" on {self.kind} layers") if found else "nothing"


def _share(difference: float) -> str:
    return f"{100 * difference:.2g} %" if difference < 1 else f"a factor of {1 + difference:.3g}"


def compare(meant: tuple[LayerRope, ...], got: tuple[LayerRope, ...], context: int) -> Difference:
    """The worst of all classes."""
    pairs = zip(meant, got, strict=True)
    return max((_difference(a, b, context) for a, b in pairs), key=_badness, default=Difference())


def _badness(difference: Difference) -> float:
    return max(difference.frequency, difference.magnitude, difference.score)


def _difference(meant: LayerRope, got: LayerRope, context: int) -> Difference:
    if meant.rope is None or got.rope is None:
        return Difference()
    want, have = meant.inverse_frequencies, got.inverse_frequencies
    if want.shape != have.shape:
        return Difference(frequency=math.inf, phase=math.inf, kind=meant.kind)
    return Difference(
        frequency=float(np.max(np.abs(have / want - 1))),
        phase=float(np.max(np.abs(have - want))) * max(context - 1, 0),
        magnitude=_relative(got.magnitude, meant.magnitude),
        score=_relative(got.score, meant.score),
        kind=meant.kind,
    )


def _relative(value: float, goal: float) -> float:
    return abs(value - goal) / max(abs(goal), 1e-12)
