"""Which RoPE, over which context, a model is to be started with: the file's own, or what is asked for on top of it.

A context beyond what the file reaches asks for YaRN that reaches it, over the settings that the file has. Nothing is
written; what is asked for here is a matter of how a program is started. Knows no program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from yarn_gguf.before import Before, read_before
from yarn_gguf.effective import LayerRope, Tensors, meant_ropes
from yarn_gguf.encoding import check_range, encode
from yarn_gguf.errors import about
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.intent import Intent, RopeOptions, resolve
from yarn_gguf.metadata import Facts, read_facts
from yarn_gguf.opened import opened
from yarn_gguf.provenance import PREFIX, besides_folded, folded_magnitude


@dataclass(frozen=True)
class Wanted:
    """A model, what is meant by it, and the context that is opened."""

    before: Before
    facts: Facts  # as the file stands
    tensors: Tensors
    intent: Intent  # what the file, or who asked, means over all contexts
    source: str  # where that comes from
    context: int
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.before.model.path

    @property
    def asked(self) -> Intent:
        """What is meant in the context that is opened: dynamic YaRN has another factor in each."""
        return opened(self.intent, self.context)

    @property
    def meant(self) -> tuple[LayerRope, ...]:
        return meant_ropes(self.before.facts, self.asked)

    @property
    def inside(self) -> bool:
        """Whether the file itself asks for it."""
        return self.source in (f"{PREFIX}* keys", "its keys")


def read_wanted(path: Path, options: RopeOptions, context: int | None) -> Wanted:
    """Reads a file, and resolves what is asked for; raises where that makes no sense."""
    return wanted_of(read_before(path), options, context)


def wanted_of(before: Before, options: RopeOptions, context: int | None) -> Wanted:
    """The same of a file that has been read."""
    with about(before.model.path):
        facts, tensors = read_facts(before.model), read_tensors(before.model)
        current = before.recorded or own_intent(before.model, facts, tensors)
        source = "its keys" if before.recorded is None else f"{PREFIX}* keys"
        intent = current
        notes: tuple[str, ...] = ()
        if options.given:
            intent, notes = _on_top(before, _extended(options, context, before.own))
            source = "the options given"
        elif context is not None and context > current.context:
            intent, notes = _on_top(before, RopeOptions(ctx=context), current)
            source = f"--ctx {context}"
        check_range(intent)
        if source not in ("its keys", f"{PREFIX}* keys"):
            # refuses what no encoding could say: no RoPE, a scaling that YaRN cannot stand on
            encode(before.undone, before.facts, before.tensors, intent, "keys", typed=False)
    return Wanted(before, facts, tensors, intent, source, context or intent.context, notes)


def _extended(options: RopeOptions, context: int | None, own: Intent) -> RopeOptions:
    """`--ctx` is the context that is opened; without a factor it is also what the scaling has to reach."""
    extent = options.factor is not None or options.method == "none"
    beyond = context is not None and context > (own.original or 0)
    return replace(options, ctx=context) if beyond and not extent else options


def _on_top(before: Before, options: RopeOptions, on: Intent | None = None) -> tuple[Intent, tuple[str, ...]]:
    """Options over the original's settings, or over others; what the weights hold already is left out."""
    if on is not None and folded_magnitude(before.model) != 1:
        yarn = on.yarn
        if yarn is not None:
            options = replace(options, beta_fast=yarn.beta_fast, beta_slow=yarn.beta_slow, truncate=yarn.truncate)
        on = before.own
    found = resolve(on or before.own, options)
    return besides_folded(found.intent, before.model), found.notes
