"""What llama.cpp computes when a file is opened with parameters and overrides: the caller's half of `effective`.

Two ways to change a file's RoPE without touching it. *Parameters* of the context (--rope-scaling, --rope-scale, …) are
read when a context is made; layers that slide keep the file's own factor and base, whatever they say. *Overrides* of
keys (--override-kv) are read in the place of the file's keys when it is loaded, so they do all that writing them into
the file would. Knows no program and no intent. Held to llama.cpp itself by tests that run what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from yarn_gguf.effective import LayerClass, LayerRope, Runtime, Tensors, file_type, layer_ropes
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.graphs import GRAPHS, Sliding
from yarn_gguf.metadata import Changes, Facts, read_facts
from yarn_gguf.opened import padded

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of llama_context_params, as far as RoPE goes; None is "as the file has it"."""

    scaling: str | None = None  # none, linear, yarn
    factor: float | None = None
    original: int | None = None
    base: float | None = None
    attn_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None


@dataclass(frozen=True)
class Start:
    """What a program is given besides the file."""

    parameters: Parameters = Parameters()
    overrides: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))  # without the arch's prefix

    @property
    def nothing(self) -> bool:
        return self.parameters == Parameters() and not self.overrides


def facts_at_start(model: Model, facts: Facts, start: Start) -> Facts:
    """What the loader reads, with the overrides in the place of the keys."""
    if not start.overrides:
        return facts
    entries = Changes(start.overrides).apply(facts.arch, model.entries)
    header = replace(model.first, entries=entries)
    return read_facts(Model((header, *model.parts[1:])))


def ropes_at_start(
    read: Facts, tensors: Tensors, runtime: Runtime, given: Parameters, context: int
) -> tuple[LayerRope, ...]:
    """What every class of layers gets in a context of so many tokens; `read` is what the loader has read.

    Said as facts that the patched library would read from a file, since it reads every key that stands for a parameter.
    """
    asked = _asked(read, runtime, given)
    follows = (
        runtime is Runtime.PATCHED and read.dynamic is True and file_type(asked) == "yarn" and given.factor is None
    )
    if follows:
        asked = _followed(asked, context)
    found = layer_ropes(asked, tensors, Runtime.PATCHED)
    if GRAPHS[read.arch].sliding is not Sliding.SCALED or follows:
        return found
    held = layer_ropes(replace(asked, factor=read.factor), tensors, Runtime.PATCHED)
    return tuple(h if h.kind is LayerClass.SLIDING else f for f, h in zip(found, held, strict=True))


def _asked(read: Facts, runtime: Runtime, given: Parameters) -> Facts:
    reads_betas = GRAPHS[read.arch].beta_keys or runtime is Runtime.PATCHED
    fast, slow = (read.beta_fast, read.beta_slow) if reads_betas else (None, None)
    kind = given.scaling or read.type
    yarn = (kind or "") == "yarn"
    multiplies = given.attn_factor is not None and (not yarn or runtime is Runtime.PATCHED)
    own = 1.0 if read.attn_factor is None else read.attn_factor
    return replace(
        read,
        type=kind,
        factor=read.factor if given.factor is None else given.factor,
        original_context=given.original or read.original_context,
        base=read.base if given.base is None else given.base,
        alpha=read.alpha if given.base is None else None,
        attn_factor=own * (given.attn_factor or 0.0) if multiplies else read.attn_factor,
        beta_fast=fast if given.beta_fast is None else given.beta_fast,
        beta_slow=slow if given.beta_slow is None else given.beta_slow,
        truncate=read.truncate if runtime is Runtime.PATCHED else None,
        dynamic=None,
    )


def _followed(asked: Facts, context: int) -> Facts:
    """Dynamic YaRN: as far as the context needs, at most as far as the file goes."""
    original = asked.original_context or asked.context_length
    factor = min(padded(context) / original, asked.factor or 1.0)
    return replace(asked, factor=factor) if factor > 1 else replace(asked, type="none", factor=1.0)


def trained_context(read: Facts, given: Parameters) -> int:
    """llama.cpp's n_ctx_train once a context has been made: what llama-server and llama-cli cap a context at.

    YaRN by another factor than the file's makes it anew, in float32.
    """
    own, asked = (np.float32(1) / np.float32(factor or 1.0) for factor in (read.factor, given.factor or read.factor))
    if (given.scaling or file_type(read)) != "yarn" or own == asked:
        return read.context_length
    original = given.original or read.original_context or read.context_length
    return int(np.float32(original) / asked)
