"""What a plan advises besides: the factor that a context needs, what factors change, and the commands that do it.

Knows intents and commands; no bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from yarn_gguf.errors import printable
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.intent import METHODS, Intent, RopeOptions, resolve
from yarn_gguf.memory.quality import Prices
from yarn_gguf.memory.sources import Source
from yarn_gguf.opened import opened
from yarn_gguf.rope import DynamicNtk, DynamicYarn, LongRope, PairClass

STEPS: Final = (2.0, 4.0, 8.0, 16.0, 32.0)  # factors that are shown on the way
PUBLISHED: Final = 32.0  # Llama 2 from 4096 to 131072 tokens, in the paper on YaRN
SAME: Final = 1e-6
_UNSCALABLE: Final = (LongRope, DynamicNtk, DynamicYarn)  # `resolve` refuses to put anything on top of them


@dataclass(frozen=True, slots=True)
class FactorCost:
    """What a factor changes at every length: pairs of dimensions, and the magnitude of cos and sin."""

    factor: float
    context: int
    pairs: int
    kept: int
    magnitude: float
    inside: float | None  # mean KL within the original context, where a report has it


def steps(source: Source, context: int, factor: float, original: int | None, rope: RopeOptions) -> Iterator[Finding]:
    """What is to be done so that the model is `source`, and reaches the context: its type, and its factor."""
    path, now, own = str(source.path), source.now, source.own
    scaled = now is not None and own is not None and context > now.context
    if source.quantized:
        text = f"{source.type} is not the file's type; this makes it"
        yield note("make_type", text, quoted(["yarn-gguf", "quantize", path, source.type]))
    elif source.checkpoint and not scaled:
        yield note("make_type", "it is a checkpoint; this makes the file", quoted(_start(source, rope)))
    if now is None or own is None:
        if context > source.shape.context_length:
            text = f"{source.shape.arch} has no RoPE to scale; it was made for {source.shape.context_length} tokens"
            yield warning("no_rope", text)
        return
    if factor > PUBLISHED * (1 + SAME):
        text = f"a factor of {factor:.4g} is beyond {PUBLISHED:g}, the largest that the YaRN paper measured"
        yield warning("factor_unheard_of", f"{text}; what the model makes of such a text nobody can foretell")
    if scaled:
        yield _needed(source, now, context, factor, original, rope)
    elif now.dynamic:
        held = opened(now, context).factor
        text = f"it is dynamic: patched llama.cpp scales it by {held:.4g} at {context} tokens"
        yield note("dynamic", f"{text}, stock llama.cpp by {now.factor:g} at every length")
    elif now.factor > factor * (1 + SAME) and now.method in METHODS and original is not None:
        text = f"it is scaled by {now.factor:g}, at every length; {context} tokens need {factor:.4g}"
        if factor <= 1 and source.folded != 1:
            text += "; its weights hold a magnitude that none would undo, so that takes converting the checkpoint again"
            yield note("factor_too_large", text)
            return
        remedy = ["--ctx", str(context)] if factor > 1 else ["--method", "none"]
        yield note("factor_too_large", text, quoted([*_start(source, rope), *remedy]))


def _needed(
    source: Source, now: Intent, context: int, factor: float, original: int | None, rope: RopeOptions
) -> Finding:
    """What gives the model the factor for a context beyond its own."""
    if source.own is not None and isinstance(source.own.rope.scaling, _UNSCALABLE):
        text = f"it reaches {now.context} tokens with {source.own.method}, on which YaRN cannot stand"
        return warning("not_scalable", f"{text}; {context} are beyond it")
    extent = ["--ctx", str(context)] if rope.factor is None else ["--factor", str(rope.factor).removesuffix(".0")]
    if original is None:
        text = f"{context} tokens need a factor over an original context that is not recorded; with it for N"
        return note("needs_factor", text, quoted([*_start(source, rope), "--original-ctx", "N", *extent]))
    text = f"{context} tokens need a factor of {factor:.4g}"
    return note("needs_factor", text, quoted([*_start(source, rope), *extent]))


def _start(source: Source, rope: RopeOptions) -> list[str]:
    """The start of what gives the model another factor; of a checkpoint, its type as well."""
    words = ["extend", str(made_file(source))]
    if source.checkpoint:
        words = ["convert", str(source.path), "--outtype", source.type, "-o", str(made_file(source))]
    return ["yarn-gguf", *words, *option_words(replace(rope, factor=None))]


def made_file(source: Source) -> Path:
    """The file that is started: the one that is there, or the one that the commands here make."""
    path = source.path
    if source.checkpoint:
        return Path(f"{path.name}-{source.type}.gguf")
    return path.with_name(f"{path.name.removesuffix('.gguf')}-{source.type}.gguf") if source.quantized else path


def option_words(rope: RopeOptions) -> tuple[str, ...]:
    """Options as they were typed, but for --ctx."""
    found: list[str] = []
    for name in rope.given:
        value, flag = getattr(rope, name), name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        elif name != "ctx":
            found += [f"--{flag}", str(value).removesuffix(".0")]
    return tuple(found)


def quoted(words: Iterable[str]) -> str:
    """A command on one line, as a POSIX shell takes it; control characters are spelled out, so that no terminal heeds
    them."""
    return " ".join(f"$'{_spelled(word)}'" if printable(word) != word else shlex.quote(word) for word in words)


def _spelled(word: str) -> str:
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "".join(f"\\u{ord(each):04x}" if printable(each) != each else each for each in plain)


def smallest_factor(context: int, original: int | None) -> float:
    """The smallest that covers a context."""
    return 1.0 if original is None else max(context / original, 1.0)


def factor_costs(source: Source, needed: float, rope: RopeOptions, prices: Prices) -> Iterator[FactorCost]:
    """The file's own factor, the one that is needed, and what lies between."""
    own, now = source.own, source.now
    if own is None or now is None or own.original is None or isinstance(own.rope.scaling, _UNSCALABLE):
        return
    most = max(needed, now.factor)
    for factor in sorted({1.0, needed, now.factor, *(each for each in STEPS if each < most)}):
        options = replace(rope, ctx=None, factor=factor, method=rope.method or "yarn")
        if factor == 1.0 and source.folded != 1:
            continue  # no key undoes what the weights hold without YaRN
        if factor == 1.0:
            options = RopeOptions(method="none", original_ctx=rope.original_ctx)
        intent = resolve(own, options).intent
        classes = intent.rope.pair_classes()
        kept = len(classes) if factor == 1.0 else sum(kind is PairClass.KEPT for kind in classes)
        magnitude = intent.rope.magnitude(intent.context) / source.folded
        reach = round(factor * (intent.original or 0))
        yield FactorCost(factor, reach, len(classes), kept, magnitude, prices.inside(factor))
