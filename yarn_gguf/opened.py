"""What llama.cpp opens where a context of so many tokens is asked for: its length, and the factor of dynamic YaRN."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from yarn_gguf.intent import Intent
from yarn_gguf.rope import Unscaled, Yarn

STEP: Final = 256  # every context is rounded up to a multiple of it


def padded(context: int) -> int:
    return -(-context // STEP) * STEP


def opened(intent: Intent, context: int) -> Intent:
    """What dynamic YaRN comes to in a context of so many tokens; any other intent as it is."""
    scaling = intent.rope.scaling
    if not intent.dynamic or not isinstance(scaling, Yarn):
        return intent
    factor = min(padded(context) / scaling.original_context, scaling.factor)
    followed = replace(scaling, factor=factor, attention_factor=None) if factor > 1 else Unscaled()
    return replace(intent, rope=replace(intent.rope, scaling=followed), dynamic=False, context=context)
