"""The least that a program must be given so that a file gets the RoPE that is meant: tried, not ruled.

Every way is held against the intent by `start`'s account of llama.cpp, in an order from nothing at all to an override
for every key; the first that is exact and reaches the context is taken, else the one that comes nearest. Where none is
exact, what would be is looked for as well: the patched library, or a file that `extend` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from yarn_gguf.effective import Difference, LayerClass, Runtime, compare
from yarn_gguf.encoding import encode
from yarn_gguf.errors import YarnGgufError
from yarn_gguf.flags.start import (
    Parameters,
    Start,
    Value,
    facts_at_start,
    ropes_at_start,
    trained_context,
)
from yarn_gguf.flags.wanted import Wanted
from yarn_gguf.gguf_file.header import entry
from yarn_gguf.graphs import GRAPHS, OLD_FACTOR_KEY
from yarn_gguf.metadata import (
    ATTN_FACTOR,
    BETA_FAST,
    BETA_SLOW,
    CONTEXT,
    DEAD_ATTN_FACTOR,
    DYNAMIC,
    EXT_FACTOR,
    FACTOR,
    LOG_MULTIPLIER,
    ORIGINAL,
    TRUNCATE,
    TYPE,
    WRITTEN_TYPES,
)
from yarn_gguf.rope import ntk_base

# an override cannot remove a key; these values make it as good as removed
_NEUTRAL: Final[dict[str, Value]] = {
    TYPE: "none",
    FACTOR: 1.0,
    ATTN_FACTOR: 1.0,
    EXT_FACTOR: -1.0,
    DEAD_ATTN_FACTOR: 1.0,
    BETA_SLOW: 1.0,
    LOG_MULTIPLIER: 0.0,
    TRUNCATE: True,
    DYNAMIC: False,
}


@dataclass(frozen=True, slots=True)
class Means:
    """What a program can be given: parameters of the context, overrides of keys; and what it does with the context."""

    parameters: bool = True
    overrides: bool = True
    caps: bool = True  # a context at n_ctx_train


@dataclass(frozen=True)
class Chosen:
    """A way to start, and how far what comes of it is from what is meant."""

    start: Start
    difference: Difference
    trained: int  # n_ctx_train, once the context has been made
    reaches: bool

    @property
    def exact(self) -> bool:
        return self.difference.exact

    @property
    def good(self) -> bool:
        return self.exact and self.reaches


def choose(wanted: Wanted, means: Means, runtime: Runtime) -> Chosen:
    """The first way that is exact and reaches the context, else the nearest."""
    tried = []
    for start in _ways(wanted, means, runtime):
        found = judged(wanted, _reaching(wanted, start, means), means, runtime)
        if found.good:
            return found
        tried.append(found)
    return min(tried, key=lambda each: (_badness(each.difference), not each.reaches))


def _badness(difference: Difference) -> float:
    return max(difference.frequency, difference.magnitude, difference.score)


def judged(wanted: Wanted, start: Start, means: Means, runtime: Runtime) -> Chosen:
    """What one way comes to."""
    read = facts_at_start(wanted.before.model, wanted.facts, start)
    got = ropes_at_start(read, wanted.tensors, runtime, start.parameters, wanted.context)
    trained = trained_context(read, start.parameters)
    reaches = not means.caps or trained >= wanted.context
    return Chosen(start, compare(wanted.meant, got, wanted.context), trained, reaches)


def _reaching(wanted: Wanted, start: Start, means: Means) -> Start:
    """With the context length overridden, where a program would cap the context at the file's."""
    read = facts_at_start(wanted.before.model, wanted.facts, start)
    if not (means.caps and means.overrides) or trained_context(read, start.parameters) >= wanted.context:
        return start
    more: dict[str, Value] = {CONTEXT: wanted.context}
    if read.original_context is None:
        more[ORIGINAL] = read.context_length  # which it defaults to
    return replace(start, overrides={**start.overrides, **more})


def _ways(wanted: Wanted, means: Means, runtime: Runtime) -> Iterator[Start]:
    yield Start()
    if means.parameters:
        yield from (Start(parameters) for parameters in _parameters(wanted, runtime))
    overrides = _overrides(wanted) if means.overrides else None
    if overrides is not None:
        yield Start(overrides=overrides)
        if means.parameters:
            yield Start(_betas(wanted), overrides)


def _betas(wanted: Wanted) -> Parameters:
    yarn = wanted.asked.yarn
    return Parameters() if yarn is None else Parameters(beta_fast=yarn.beta_fast, beta_slow=yarn.beta_slow)


def _parameters(wanted: Wanted, runtime: Runtime) -> Iterator[Parameters]:
    """From little to much; NTK-aware only where no layer slides, since those keep the file's base."""
    asked, betas = wanted.asked, _betas(wanted)
    if asked.method in ("yarn", "ntk-by-parts"):
        extent = Parameters("yarn", asked.factor, asked.original)
        both = replace(extent, beta_fast=betas.beta_fast, beta_slow=betas.beta_slow)
        yield from (betas, extent, both)
        if runtime is Runtime.PATCHED:
            multiplier = _multiplier(wanted, both)
            yield from (replace(each, attn_factor=multiplier) for each in (Parameters(), betas, extent, both))
    elif asked.method == "linear":
        yield Parameters("linear", asked.factor)
    elif asked.method == "none":
        yield Parameters("none")
    elif asked.method == "ntk" and GRAPHS[wanted.facts.arch].windows is None:
        yield Parameters("none", base=ntk_base(asked.rope.base, asked.rope.dim, asked.factor))


def _multiplier(wanted: Wanted, parameters: Parameters) -> float:
    """The attention factor that is missing once the parameters are given."""
    got = ropes_at_start(wanted.facts, wanted.tensors, Runtime.PATCHED, parameters, wanted.context)
    pairs = [(m, g) for m, g in zip(wanted.meant, got, strict=True) if m.kind is LayerClass.FULL and g.magnitude]
    return pairs[0][0].magnitude / pairs[0][1].magnitude if pairs else 1.0


def _overrides(wanted: Wanted) -> dict[str, Value] | None:
    """The keys that `extend` would write, as far as the file has not got them; None where it would write none."""
    before, facts = wanted.before, wanted.before.facts
    try:
        changes = encode(before.undone, facts, before.tensors, wanted.asked, "keys", typed=False).changes
    except YarnGgufError:
        return None
    entries, arch = before.model.entries, facts.arch
    values: dict[str, Value] = dict(changes.values)
    neutral = {**_NEUTRAL, BETA_FAST: GRAPHS[arch].beta_fast}
    for name in changes.removed:
        if name == OLD_FACTOR_KEY and f"{arch}.{FACTOR}" in entries:
            continue
        key = FACTOR if name == OLD_FACTOR_KEY else name
        if f"{arch}.{name}" in entries and key in neutral and key not in values:
            values[key] = neutral[key]
    return {name: value for name, value in values.items() if not _there(wanted, name, value)}


def _there(wanted: Wanted, name: str, value: Value) -> bool:
    key = f"{wanted.facts.arch}.{name}"
    old = wanted.before.model.entries.get(key)
    return old is not None and old.raw == entry(key, WRITTEN_TYPES[name], value).raw


def file_that_is_exact(wanted: Wanted) -> bool:
    """Whether `extend` would write a file that stock llama.cpp computes as it is meant, at every context."""
    before = wanted.before
    try:
        return encode(before.undone, before.facts, before.tensors, wanted.intent, "auto", typed=False).exact
    except YarnGgufError:
        return False
