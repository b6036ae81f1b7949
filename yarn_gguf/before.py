"""A GGUF as it was before we ever extended it, whatever has been done to it since.

Everything that looks at a file starts here: `extend` so that a second run starts from the original values, `inspect` so
that it can tell intent from effect. Reads headers and the RoPE tensor; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from yarn_gguf.effective import LayerClass, Tensors, file_dimensions
from yarn_gguf.errors import InputError, about
from yarn_gguf.findings import Finding, error, warning
from yarn_gguf.gguf_file.shards import Model, read_model
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.graphs import GRAPHS, RopeFreqs
from yarn_gguf.graphs import Rope as RopeKind
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import BASE, ROPE_FREQS, Facts, read_facts
from yarn_gguf.provenance import RESTORE, Original, check_parts, original_of, recorded_intent

DIMENSIONS: Final = "rope.dimension_count"


@dataclass(frozen=True)
class Before:
    """A model as it was before any extension of ours, with what its own keys ask for."""

    model: Model  # as it is on disk
    original: Original
    undone: Model  # with the original's entries; tensors as they are on disk
    facts: Facts
    tensors: Tensors
    own: Intent  # what the original's own keys ask for
    recorded: Intent | None  # what an extension of ours asked for, and recorded
    findings: tuple[Finding, ...]  # faults that have nothing to do with what anybody asks for

    @property
    def current(self) -> Intent:
        """What the file asks for as it is."""
        return self.recorded or self.own


def read_before(path: str | Path, *, strict: bool = False) -> Before:
    """Reads a model and undoes, in memory, what an earlier run did to it."""
    model = read_model(path, strict=strict)
    original = original_of(model)
    parts = check_parts(model, original)
    first = replace(model.first, entries=original.entries)
    undone = Model((first, *model.parts[1:]))
    facts = read_facts(undone)
    tensors = _original_tensors(model, original)
    _check_rope(model, facts, tensors)
    with about(model.path):
        own = own_intent(undone, facts, tensors)
        recorded = recorded_intent(model, own) if original.extended else None
    findings = (*parts, *_tensor_faults(facts, tensors))
    return Before(model, original, undone, facts, tensors, own, recorded, findings)


def _tensor_faults(facts: Facts, tensors: Tensors) -> Iterator[Finding]:
    use = GRAPHS[facts.arch].rope_freqs
    if tensors.rope_freqs is not None and use is RopeFreqs.REFUSED:
        text = f"{ROPE_FREQS} is in the file, but llama.cpp's {facts.arch} does not take it and refuses to load"
        yield error("rope_freqs_refused", text)
    if tensors.rope_freqs is not None and use is RopeFreqs.IGNORED:
        yield warning("rope_freqs_ignored", f"{ROPE_FREQS} is loaded for {facts.arch}, and not used")


def _check_rope(model: Model, facts: Facts, tensors: Tensors) -> None:
    """Refuses numbers with which llama.cpp would not load the model, or divide by zero."""
    graph = GRAPHS[facts.arch]
    if graph.rope is RopeKind.NONE:
        return
    for name, value in ((DIMENSIONS, facts.dimensions), (BASE, facts.base)):
        if value == 0:
            text = f"{facts.arch}.{name} is 0, a positive number is needed"
            raise InputError(text, file=model.path, code="bad_metadata")
    pairs = file_dimensions(facts, LayerClass.FULL) // 2
    if tensors.rope_freqs is not None and graph.rope_freqs is RopeFreqs.USED and len(tensors.rope_freqs) != pairs:
        text = f"{ROPE_FREQS} has {len(tensors.rope_freqs)} factors, the model turns {pairs} pairs"
        raise InputError(text, file=model.path, code="bad_tensor")


def _original_tensors(model: Model, original: Original) -> Tensors:
    tensors = read_tensors(model)
    if original.added:
        return replace(tensors, rope_freqs=None)
    if original.replaced is not None:
        if tensors.rope_freqs is None or len(original.replaced) != 4 * len(tensors.rope_freqs):
            text = f"{RESTORE} is damaged: the {ROPE_FREQS} that it holds is not the size of the file's"
            raise InputError(text, file=model.path, code="bad_restore")
        return replace(tensors, rope_freqs=tuple(float(v) for v in np.frombuffer(original.replaced, "<f4")))
    return tensors
