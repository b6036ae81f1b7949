"""The mathematics of rotary position embedding and of the methods that stretch it.

What it knows: a rope of `dim` rotated dimensions turns pair i by position × θᵢ, where θᵢ = base^(−2i/dim); a scaling
method divides every θᵢ by a stretch of its own, and multiplies cos and sin by a magnitude. All of it is float64.
What it does not know: files, Hugging Face names, GGUF keys, tensors, or what any runtime does with the values.

The methods are those of the YaRN paper (Peng, Quesnelle, Fan, Shippole: arXiv 2309.00071): position interpolation
(section 2.3), NTK-aware (3.1), NTK-by-parts (3.2), dynamic (3.3) and YaRN (3.4). LongRoPE is arXiv 2402.13753.
llama3 is NTK-by-parts as the paper writes it, its ramp over the turns a pair makes; in everyone's code, the paper's
authors' included, YaRN's ramp runs over the index of the pair instead. So it does here.

A value that makes no sense is a ValueError of one line, raised when the value is made.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Floats: TypeAlias = npt.NDArray[np.float64]

LARGEST = sys.float_info.max
SINGULAR = 0.001  # the width a ramp gets when both of its ends fall on one pair
SAME = 1e-6  # stretches this close are equal: those read back from a GGUF have been through float32

# The least that each number may be, and whether it may be that.
BOUNDS = {"base": (1, False), "factor": (1, True), "max_factor": (1, True), "extrapolation_factor": (0, True)}
BOUNDS |= dict.fromkeys(("original_context", "max_context"), (2, True))  # longrope divides by the logarithm
BOUNDS |= dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"), (0, True))
BOUNDS |= dict.fromkeys(("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"), (0, False))
BOUNDS |= dict.fromkeys(("factors", "short_factors", "long_factors"), (0, False))  # each number in the list


class PairClass(StrEnum):
    """What the scaling does to one pair."""

    KEPT = "kept"
    BLENDED = "blended"
    INTERPOLATED = "interpolated"


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """What a method does to one rope at one length: θ′ = θ / stretch, and magnitude multiplies cos and sin."""

    stretch: Floats
    full: float  # the stretch of a pair that is interpolated as far as the method goes
    magnitude: float = 1.0
    correction_range: tuple[float, float] | None = None
    is_static: bool = True  # the same at every length


class Scaling(Protocol):
    """A method with its parameters. It is applied to `theta`, which need not be the plain frequencies of `base`."""

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect: ...


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """g(s, m) = 0.1·m·ln s + 1, and 1 where nothing is stretched: √(1/t) of the YaRN paper."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def ntk_base(base: float, dim: int, factor: float) -> float:
    """The base whose plain frequencies are the NTK-aware ones. A single pair has θ = 1 under any base."""
    return base if dim == 2 else float(base * factor ** (dim / (dim - 2)))


def correction_dim(rotations: float, dim: int, base: float, original_context: float) -> float:
    """The (fractional) pair that makes this many full turns over the original context."""
    return dim * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))


def correction_range(
    dim: int, base: float, original_context: float, beta_fast: float, beta_slow: float, truncate: bool
) -> tuple[float, float]:
    """Pairs up to the first number are kept, pairs from the second on are interpolated.

    A reversed range is refused: past pair 0, transformers then keeps what ggml interpolates, or the other way round.
    """
    low = correction_dim(beta_fast, dim, base, original_context)
    high = correction_dim(beta_slow, dim, base, original_context)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(0.0, low), min(dim - 1.0, high)
    if low > high:
        turns = f"between {beta_slow:g} (beta_slow) and {beta_fast:g} (beta_fast) turns over {original_context} tokens"
        raise ValueError(f"no pair makes {turns}, the original context: the ramp from {low:g} to {high:g} is reversed")
    return (low, high + SINGULAR) if low == high else (low, high)


def _ramp(pairs: int, low: float, high: float) -> Floats:
    """0 where a pair is kept, 1 where it is interpolated."""
    return np.clip((np.arange(pairs, dtype=np.float64) - low) / (high - low), 0.0, 1.0)


def _blend(keep: Floats, factor: float) -> Floats:
    """The stretch of θ′ = θ·keep + (θ/factor)·(1 − keep): exactly 1 where keep is 1."""
    return 1.0 / (keep + (1.0 - keep) / factor)


def _ntk_stretch(pairs: int, factor: float) -> Floats:
    """θᵢ of `ntk_base` is θᵢ·s^(−2i/(d−2)): the first pair is kept and the last one is divided by s."""
    return np.float64(factor) ** (np.arange(pairs, dtype=np.float64) / max(pairs - 1, 1))


def _check_number(name: str, number: float) -> None:
    """NaN, infinity and integers beyond float64 are refused as well: no comparison here holds for them."""
    bound, itself = BOUNDS[name.partition("[")[0]]
    if not bound <= number <= LARGEST or (number == bound and not itself):
        raise ValueError(
            f"{name} is {number}, but must be a finite number {'of at least' if itself else 'above'} {bound}"
        )


def _check(method: DataclassInstance) -> None:
    """Every number within its bound, a ramp with its ends in order, lists of one length."""
    given = {f.name: getattr(method, f.name) for f in fields(method)}
    lists = {name: value for name, value in given.items() if isinstance(value, tuple)}
    numbers = {f"{name}[{i}]": number for name, value in lists.items() for i, number in enumerate(value)}
    numbers |= {name: value for name, value in given.items() if name in BOUNDS.keys() - lists and value is not None}
    for name, number in numbers.items():
        _check_number(name, number)
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        if low in given and given[low] >= given[high]:
            raise ValueError(f"{high} is {given[high]}, but must be above {low}, which is {given[low]}")
    if len({len(value) for value in lists.values()}) > 1:
        raise ValueError(", but ".join(f"{len(value)} {name}" for name, value in lists.items()))


@dataclass(frozen=True, slots=True)
class Unscaled:
    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        return Effect(np.ones_like(theta), 1.0)


@dataclass(frozen=True, slots=True)
class Linear:
    """Position interpolation: every pair alike."""

    factor: float

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        return Effect(np.full_like(theta, self.factor), self.factor)


@dataclass(frozen=True, slots=True)
class NtkAware:
    """A larger base, chosen so that the slowest pair is stretched by the factor and the fastest not at all."""

    factor: float

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        return Effect(_ntk_stretch(theta.size, self.factor), self.factor)


@dataclass(frozen=True, slots=True)
class Yarn:
    """Fast pairs are kept, slow ones interpolated, a ramp between them; and attention is sharpened.

    The magnitude is `attention_factor` where given (0 counts as given); else g(s, mscale) / g(s, mscale_all_dim) where
    both are given and not 0; else g(s, 1). With `extrapolation_factor` e, the kept share of each pair is multiplied
    by e: 0 is plain interpolation, and then (as in llama.cpp) the magnitude is 1 unless `attention_factor` is given.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    extrapolation_factor: float = 1.0

    def __post_init__(self) -> None:
        _check(self)
        if self.extrapolation_factor > 1:
            raise ValueError(f"extrapolation_factor is {self.extrapolation_factor}, but must be at most 1")

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        betas = (self.beta_fast, self.beta_slow)
        span = correction_range(2 * theta.size, base, self.original_context, *betas, self.truncate)
        keep = (1.0 - _ramp(theta.size, *span)) * self.extrapolation_factor
        return Effect(_blend(keep, self.factor), self.factor, self._magnitude(), span)

    def _magnitude(self) -> float:
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.extrapolation_factor == 0:
            return 1.0
        if self.mscale and self.mscale_all_dim:
            return yarn_magnitude(self.factor, self.mscale) / yarn_magnitude(self.factor, self.mscale_all_dim)
        return yarn_magnitude(self.factor)


@dataclass(frozen=True, slots=True)
class NtkByParts:
    """YaRN's frequencies without its magnitude."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        yarn = Yarn(self.factor, self.original_context, self.beta_fast, self.beta_slow, self.truncate, 1.0)
        return yarn.effect(theta, base, length)


@dataclass(frozen=True, slots=True)
class DynamicNtk:
    """NTK-aware with a factor that grows with the sequence; nothing changes up to `max_context`."""

    factor: float
    max_context: int

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        grown = self.factor * max(length or 0, self.max_context) / self.max_context - (self.factor - 1)
        return Effect(_ntk_stretch(theta.size, grown), grown, is_static=False)


@dataclass(frozen=True, slots=True)
class DynamicYarn:
    """YaRN whose factor is what the sequence needs: length / original context, within 1 and `max_factor`."""

    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    max_factor: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def at(self, length: int | None) -> Yarn:
        """The YaRN that a sequence of this length gets."""
        factor = min(max(1.0, (length or 0) / self.original_context), self.max_factor or LARGEST)
        betas = (self.beta_fast, self.beta_slow, self.truncate)
        return Yarn(factor, self.original_context, *betas, self.attention_factor, self.mscale, self.mscale_all_dim)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        return replace(self.at(length).effect(theta, base, length), is_static=False)


@dataclass(frozen=True, slots=True)
class Llama3:
    """Pairs with more than `high_freq_factor` turns over the original context are kept, those with less than
    `low_freq_factor` are interpolated, and between them the ramp runs over the turns."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        turns = self.original_context * theta / (2 * math.pi)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return Effect(_blend(np.clip(keep, 0.0, 1.0), self.factor), self.factor)


@dataclass(frozen=True, slots=True)
class LongRope:
    """One searched stretch per pair: a short list up to the original context, a long one beyond it."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        factors = self.long_factors if (length or 0) > self.original_context else self.short_factors
        magnitude = self.attention_factor
        if magnitude is None:
            magnitude = math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))
        return Effect(np.array(factors, np.float64), max(factors, default=1.0), float(magnitude), is_static=False)


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """The stretch of every pair, given outright."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def effect(self, theta: Floats, base: float, length: int | None) -> Effect:
        return Effect(np.array(self.factors, np.float64), max(self.factors, default=1.0), float(self.attention_factor))


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding of one kind of layer.

    `under` is a static scaling that the frequencies have before `scaling` is applied to them: with llama3 under YaRN,
    the correction range comes from base and original context, the ramp then blends the llama3 frequencies.
    Their stretches multiply, and so do their magnitudes. A `length` of None stands for the original context; only
    the dynamic methods and longrope look at it.
    """

    dim: int  # dimensions that are rotated, two to a pair; the head may be wider
    base: float
    scaling: Scaling = field(default_factory=Unscaled)
    under: Scaling | None = None

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim is {self.dim}, but must be even and at least 2")
        _check_number("base", self.base)
        for scaling in filter(None, (self.under, self.scaling)):
            effect = scaling.effect(self.plain_frequencies, self.base, None)
            if 2 * effect.stretch.size != self.dim:
                raise ValueError(
                    f"{effect.stretch.size} factors given, but {self.dim} dimensions are {self.dim // 2} pairs"
                )
            if scaling is self.under and not effect.is_static:
                raise ValueError(
                    f"{type(scaling).__name__} depends on the length, so nothing can be applied on top of it"
                )

    @property
    def is_static(self) -> bool:
        """Whether frequencies and magnitude are the same at every length."""
        return self._effects(None)[1].is_static

    @property
    def plain_frequencies(self) -> Floats:
        return np.float64(self.base) ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)

    @property
    def correction_range(self) -> tuple[float, float] | None:
        """None for a method that has no ramp over the pairs."""
        return self._effects(None)[1].correction_range

    @property
    def ramp(self) -> Floats | None:
        """The interpolated share of every pair; None for a method that has no ramp over the pairs."""
        span = self.correction_range
        return None if span is None else _ramp(self.dim // 2, *span)

    def inverse_frequencies(self, length: int | None = None) -> Floats:
        """θ′, in radians per position."""
        return self.plain_frequencies / self.frequency_factors(length)

    def frequency_factors(self, length: int | None = None) -> Floats:
        """θ_plain / θ′, with what lies under the scaling multiplied in."""
        under, over = self._effects(length)
        return under.stretch * over.stretch

    def magnitude(self, length: int | None = None) -> float:
        """What multiplies cos and sin; attention scores are multiplied by its square."""
        under, over = self._effects(length)
        return under.magnitude * over.magnitude

    def pair_classes(self, length: int | None = None) -> tuple[PairClass, ...]:
        """What `scaling` alone does to every pair: a stretch of 1, the full one (the largest of a list), or another."""
        effect = self._effects(length)[1]
        kept, full = (np.isclose(effect.stretch, goal, rtol=SAME, atol=0.0) for goal in (1.0, effect.full))
        names = np.where(kept, PairClass.KEPT, np.where(full, PairClass.INTERPOLATED, PairClass.BLENDED))
        return tuple(PairClass(name) for name in names.tolist())

    def _effects(self, length: int | None) -> tuple[Effect, Effect]:
        """Of what lies under the scaling, and of the scaling itself."""
        if length is not None and length < 1:
            raise ValueError(f"length is {length}, but must be at least 1")
        plain = self.plain_frequencies
        under = (self.under or Unscaled()).effect(plain, self.base, None)
        return under, self.scaling.effect(plain / under.stretch, self.base, length)
