"""What a model's RoPE is meant to be: as its author set it, and as a person asks for it on top.

An `Intent` is the same value whether it came from a GGUF or from a Hugging Face checkpoint: options are resolved
in one place. A factor is always relative to the original context, the one that the model was first trained at. Knows
neither files nor keys, and nothing of what a runtime will compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Final, Literal, TypeVar

from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.rope import (
    DynamicNtk,
    DynamicYarn,
    Linear,
    LongRope,
    NtkAware,
    NtkByParts,
    Rope,
    Scaling,
    Unscaled,
    Yarn,
    yarn_magnitude,
)

LONGEST: Final = 1 << 62
T = TypeVar("T")
Method = Literal["yarn", "linear", "ntk", "ntk-by-parts", "none"]
METHODS: Final[tuple[Method, ...]] = ("yarn", "linear", "ntk", "ntk-by-parts", "none")
_NAMES: Final[dict[type, str]] = {
    Unscaled: "none",
    Linear: "linear",
    NtkAware: "ntk",
    NtkByParts: "ntk-by-parts",
    Yarn: "yarn",
    DynamicNtk: "dynamic",
    DynamicYarn: "dynamic-yarn",
    LongRope: "longrope",
}
_NO_BASIS: Final = {
    LongRope: "its searched factors already hold up to the extended context, and YaRN is not defined on top of them",
    DynamicNtk: "its base changes with the length of the text, so no fixed frequencies can be scaled",
    DynamicYarn: "its factor changes with the length of the text; set a fixed one with --method and --factor",
}


def method_name(scaling: Scaling) -> str:
    """The name on the command line of a scaling method."""
    return _NAMES.get(type(scaling), "factors")


@dataclass(frozen=True, slots=True)
class Intent:
    """The RoPE of the layers that scale, the context it starts from and the one it is meant for."""

    rope: Rope
    original: int | None  # None: not known, since the file was scaled and does not say from where
    context: int
    dynamic: bool = False  # YaRN whose factor follows the context that is opened, up to the one here

    @property
    def method(self) -> str:
        return method_name(self.rope.scaling)

    @property
    def factor(self) -> float:
        return float(getattr(self.rope.scaling, "factor", 1.0))

    @property
    def short(self) -> str:
        """`yarn8x`, for file names."""
        return f"{self.method}{self.factor:.4g}x".replace("+", "")

    @property
    def yarn(self) -> Yarn | None:
        """The ramp's parameters, where the method has a ramp."""
        scaling = self.rope.scaling
        if isinstance(scaling, NtkByParts):
            betas = (scaling.beta_fast, scaling.beta_slow, scaling.truncate)
            return Yarn(scaling.factor, scaling.original_context, *betas, attention_factor=1.0)
        return scaling if isinstance(scaling, Yarn) else None

    @property
    def score_magnitude(self) -> float:
        """g(s, mscale_all_dim): the DeepSeek family's softmax scale takes its square."""
        scaling = self.rope.scaling
        if isinstance(scaling, Yarn) and scaling.mscale_all_dim:
            return yarn_magnitude(scaling.factor, scaling.mscale_all_dim)
        return 1.0


@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What was asked for; None for what was not."""

    factor: float | None = None
    ctx: int | None = None
    method: Method | None = None
    original_ctx: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    dynamic: bool | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what was typed."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True, slots=True)
class Resolved:
    """An intent, what the file's own was, and what a person should be told about the step between them."""

    intent: Intent
    notes: tuple[str, ...] = ()


def resolve(own: Intent, options: RopeOptions) -> Resolved:
    """The file's own intent changed by the options; with none of them, the file's own scaling is kept."""
    if not options.given:
        return Resolved(own)
    why = _NO_BASIS.get(type(own.rope.scaling))
    if why is not None:
        raise InputError(f"is scaled with {own.method}: {why}", code="no_basis")
    original = _original(own, options)
    method, factor = _method(own, options), _factor(own, options, original)
    context = options.ctx or _reach(factor, original)
    try:
        scaling, notes = _scaling(own, options, method, factor, original)
        rope = replace(own.rope, scaling=scaling)
    except ValueError as error:
        raise UsageError(f"these settings make no RoPE: {error}", code="bad_rope") from error
    if own.method not in ("none", "factors", method):
        notes += (f"the model was scaled with {own.method}, now with {method}; --method {own.method} would keep it",)
    if rope.under is not None and method != "none":
        notes += (
            f"the model's frequencies are already rescaled (llama3 or baked); {method} is applied on top of them",
        )
    if method != "none" and context < own.context:
        notes += (f"a context of {context} is shorter than the model's own of {own.context}; {_same(own)}",)
    dynamic = method == "yarn" and _given(options.dynamic, own.dynamic)
    return Resolved(Intent(rope, original, original if method == "none" else context, dynamic), notes)


def _same(own: Intent) -> str:
    """What keeps the model's own context."""
    return f"--ctx {own.context} keeps it (a factor counts from the original context)"


def _reach(factor: float, original: int) -> int:
    if factor * original > LONGEST:
        text = f"a context of {factor * original:.3g} tokens is more than llama.cpp can count"
        raise UsageError(text, code="bad_rope")
    return round(factor * original)


def _original(own: Intent, options: RopeOptions) -> int:
    original = options.original_ctx or own.original
    if original is None:
        text = "the context it was first trained at is not recorded; give it with --original-ctx"
        raise UsageError(text, code="original_unknown")
    if original < 2:
        raise UsageError(f"an original context of {original} makes no sense", code="bad_rope")
    return original


def _method(own: Intent, options: RopeOptions) -> Method:
    """The method asked for; else the ramp that the model has; without a new extent, linear stays linear; else YaRN."""
    if options.method is not None:
        return options.method
    if isinstance(own.rope.scaling, NtkByParts):
        return "ntk-by-parts"
    if isinstance(own.rope.scaling, Linear) and options.factor is None and options.ctx is None:
        return "linear"
    return "yarn"


def _factor(own: Intent, options: RopeOptions, original: int) -> float:
    if options.factor is not None and options.ctx is not None:
        raise UsageError("--factor and --ctx say the same thing twice; give one of them", code="factor_and_ctx")
    if options.method == "none":
        if options.factor or options.ctx:
            raise UsageError("--method none has no factor", code="bad_rope")
        return 1.0
    if options.ctx is not None:
        if options.ctx < original:
            raise UsageError(f"--ctx {options.ctx} is below the original context of {original}", code="ctx_too_small")
        return options.ctx / original
    if options.factor is not None:
        if not math.isfinite(options.factor) or options.factor < 1:
            raise UsageError(f"--factor {options.factor:g}: it must be 1 or more", code="bad_factor")
        return options.factor
    if own.factor <= 1:
        raise UsageError("how far? give --factor or --ctx", code="no_factor")
    return own.factor


def _given(given: T | None, own: T) -> T:
    return own if given is None else given


def _scaling(
    own: Intent, options: RopeOptions, method: Method, factor: float, original: int
) -> tuple[Scaling, tuple[str, ...]]:
    if method in ("none", "linear", "ntk"):
        _refuse_unused(options, method)
        simple: dict[str, Scaling] = {"none": Unscaled(), "linear": Linear(factor), "ntk": NtkAware(factor)}
        return simple[method], ()
    old = own.yarn or Yarn(factor, original)
    ramp = NtkByParts(
        factor,
        original,
        _given(options.beta_fast, old.beta_fast),
        _given(options.beta_slow, old.beta_slow),
        _given(options.truncate, old.truncate),
    )
    if method == "ntk-by-parts":
        _refuse_unused(options, method, ("beta_fast", "beta_slow", "truncate"))
        return ramp, ()
    attention, notes = _attention(own, options, factor)
    if options.attention_factor is not None and (options.mscale, options.mscale_all_dim) != (None, None):
        notes += ("--attention-factor decides: --mscale and --mscale-all-dim do not change it, as in transformers",)
    elif (options.mscale is None) != (options.mscale_all_dim is None) and not (old.mscale and old.mscale_all_dim):
        notes += (
            "one of --mscale and --mscale-all-dim alone leaves the attention factor as it is, as in transformers",
        )
    yarn = Yarn(
        factor,
        original,
        ramp.beta_fast,
        ramp.beta_slow,
        ramp.truncate,
        attention,
        mscale=_given(options.mscale, old.mscale),
        mscale_all_dim=_given(options.mscale_all_dim, old.mscale_all_dim),
    )
    return yarn, notes


def _refuse_unused(options: RopeOptions, method: Method, used: tuple[str, ...] = ()) -> None:
    general = ("factor", "ctx", "method", "original_ctx", *used)
    unused = [name for name in options.given if name not in general]
    if unused:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise UsageError(f"--method {method} does not use {flags}", code="unused_option")


def _attention(own: Intent, options: RopeOptions, factor: float) -> tuple[float | None, tuple[str, ...]]:
    """An explicit factor that is the old default moves with the scaling; any other is kept, and said."""
    if options.attention_factor is not None:
        return options.attention_factor, ()
    old = own.rope.scaling if isinstance(own.rope.scaling, Yarn) else None
    if old is None or old.attention_factor is None:
        return None, ()
    default = Rope(own.rope.dim, own.rope.base, replace(old, attention_factor=None)).magnitude()
    if math.isclose(old.attention_factor, default, rel_tol=1e-6):
        return None, ()
    note = f"the model's own attention factor {old.attention_factor:g} is kept; --attention-factor sets another"
    return old.attention_factor, (note,) if old.factor != factor else ()
