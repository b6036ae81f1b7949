"""What the author of a GGUF meant by its RoPE keys, whether or not any runtime reads them.

Upstream's converter copies a checkpoint's settings into keys that most graphs never look at. Read here as the
settings that they were, they are what `inspect` holds the effective RoPE against, and what `extend` starts from.
"""

from __future__ import annotations

from yarn_gguf.effective import (
    LayerClass,
    Runtime,
    Tensors,
    file_base,
    file_dimensions,
    file_type,
    full_scaling,
    magnitudes,
)
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.graphs import DEFAULT_BETA_SLOW, GRAPHS, SCALING_TYPES, Magnitude, RopeFreqs
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import LONG_FACTORS, ROPE_FREQS, TYPE, Facts, read_vector
from yarn_gguf.rope import FrequencyFactors, Linear, LongRope, Rope, Scaling, Unscaled, Yarn


def read_tensors(model: Model) -> Tensors:
    """The vectors that change RoPE, where the file has them."""
    return Tensors(read_vector(model, ROPE_FREQS), *(read_vector(model, name) for name in LONG_FACTORS))


def own_intent(model: Model, facts: Facts, tensors: Tensors) -> Intent:
    """The settings that the keys and tensors stand for."""
    if file_type(facts) not in SCALING_TYPES:
        text = f"{facts.arch}.{TYPE} is {facts.type!r}; llama.cpp knows {', '.join(SCALING_TYPES)} and aborts"
        raise InputError(text, file=model.path, code="unknown_scaling")
    try:
        scaling, under = _scaling(facts, tensors), _under(facts, tensors)
        rope = Rope(file_dimensions(facts, LayerClass.FULL), file_base(facts), scaling, under)
    except ValueError as error:
        raise InputError(f"its RoPE keys make no RoPE: {error}", file=model.path, code="bad_rope") from error
    dynamic = facts.dynamic is True and isinstance(scaling, Yarn)
    return Intent(rope, _original(facts, scaling), _context(facts, scaling), dynamic)


def _under(facts: Facts, tensors: Tensors) -> Scaling | None:
    factors = tensors.rope_freqs
    if factors is None or GRAPHS[facts.arch].rope_freqs is not RopeFreqs.USED or set(factors) == {1.0}:
        return None
    return FrequencyFactors(factors)


def _scaling(facts: Facts, tensors: Tensors) -> Scaling:
    factor, kind = facts.factor or 1.0, file_type(facts)
    magnitude = 1.0 if facts.attn_factor is None else facts.attn_factor
    original = facts.original_context or facts.context_length
    if tensors.long_factors is not None and tensors.short_factors is not None:
        reach = facts.factor or facts.context_length / original  # the published files say no factor
        return LongRope(tensors.short_factors, tensors.long_factors, original, max(reach, 1.0), magnitude)
    if GRAPHS[facts.arch].magnitude is Magnitude.GROK:  # whatever its keys say is what is computed
        return full_scaling(facts, Runtime.STOCK, magnitudes(facts)[0])
    if kind == "yarn" and GRAPHS[facts.arch].yarn:
        return _yarn(facts, factor, original)
    if kind != "none" and factor != 1:
        return Linear(factor)
    if magnitude != 1:
        return FrequencyFactors((1.0,) * (file_dimensions(facts, LayerClass.FULL) // 2), magnitude)
    return Unscaled()


def _yarn(facts: Facts, factor: float, original: int) -> Yarn:
    graph = GRAPHS[facts.arch]
    pair: tuple[float | None, float | None] = (None, None)
    if graph.log_multiplier is not None and facts.log_multiplier:
        m_all = graph.log_multiplier * facts.log_multiplier
        pair = (m_all if graph.magnitude is Magnitude.DEEPSEEK2 else 1.0, m_all)
    return Yarn(
        factor,
        original,
        graph.beta_fast if facts.beta_fast is None else facts.beta_fast,
        DEFAULT_BETA_SLOW if facts.beta_slow is None else facts.beta_slow,
        facts.truncate is not False,
        _attention(facts),
        *pair,
    )


def _attention(facts: Facts) -> float | None:
    """An explicit M: as upstream's converter copies it from a checkpoint, else what `attn_factor` makes of the default.

    `yarn_attn_factor` holds transformers' absolute `attention_factor` where the checkpoint had one; llama.cpp reads
    it on no architecture but grok.
    """
    if facts.dead_attn_factor is not None and GRAPHS[facts.arch].magnitude is not Magnitude.GROK:
        return facts.dead_attn_factor
    if facts.attn_factor is not None and facts.attn_factor != 1:
        return magnitudes(facts)[0]
    return None


def _original(facts: Facts, scaling: Scaling) -> int | None:
    """The context before scaling; a linear file that does not record it may have written either."""
    if facts.original_context is not None or isinstance(scaling, Unscaled | Yarn):
        return facts.original_context or facts.context_length
    return None


def _context(facts: Facts, scaling: Scaling) -> int:
    """What the scaling reaches to, if the file says less."""
    factor = float(getattr(scaling, "factor", 1.0))
    return max(facts.context_length, round(factor * (facts.original_context or 0)))
