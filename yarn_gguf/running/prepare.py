"""From a file and what is asked for to a model that is ready to go on with a text; everything is decided here, once.

    with prepared(path, wanted, prompt) as ready:
        ready.speaker.generate(ready.tokens, …)

The context: as asked for; else what the prompt and the reply need, at most what the file is meant for. Then its RoPE
(`scaling`), the layers on a GPU, and whether the context may be shifted when it is full. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from yarn_gguf.before import Before, read_before
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding
from yarn_gguf.opened import padded
from yarn_gguf.running.cores import usual_threads
from yarn_gguf.running.offload import check_room, fitting_layers, spares_gpu
from yarn_gguf.running.scaling import Scaling, choose, reach
from yarn_gguf.running.session import Speaker
from yarn_gguf.running.told import PATCHED_HINT, findings, spoiling, without_effect
from yarn_gguf.running.wanted import Wanted
from yarn_gguf.runtime import LlamaSettings

LEAST: Final = 4096  # tokens of context where nobody asks for some
REPLY: Final = 2048  # tokens that a reply may have then
Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Ready:
    """A model with a context, and the first prompt in tokens."""

    speaker: Speaker
    scaling: Scaling
    context: int  # as llama.cpp has opened it
    tokens: tuple[int, ...]  # of the prompt; () for none
    shift: bool  # whether the context may be shifted
    gpu_layers: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Prompt:
    """A text to go on with, or a conversation; with neither, what is said comes later."""

    text: str = ""
    messages: Messages = ()

    @property
    def empty(self) -> bool:
        return not self.text and not self.messages


@contextmanager
def prepared(path: Path, wanted: Wanted, prompt: Prompt) -> Iterator[Ready]:
    """Everything is ended with the block."""
    before = read_before(path)
    path = before.model.path  # of a split set, the first part
    settings = _settings(wanted)
    with Speaker(path, settings) as speaker:
        tokens = _first(speaker, wanted, prompt)
        context = wanted.context or _enough(before, len(tokens), wanted)
        scaling = choose(before, speaker.runtime, context)
        _check_length(path, tokens, context)
        layers = fitting_layers(before.model, wanted, context, gpu=speaker.gpu)
        check_room(before.model, wanted, context, layers)
        needed = wanted.predict is not None and len(tokens) + wanted.predict > padded(context) + 1
        safe = speaker.shifts_exactly or not scaling.spoils_shifts
        if needed:
            check_shift(path, scaling, wanted, safe=safe)
        opening = replace(settings, gpu_layers=layers, op_offload=not spares_gpu(wanted, layers))
        speaker.load(replace(opening, keys=scaling.keys, rope=scaling.parameters))
        made = speaker.set_up(context)
        shift = made.can_shift and (safe or wanted.allow_shift) and (needed or wanted.allow_shift or prompt.empty)
        if needed and not made.can_shift:
            text = f"{wanted.predict} tokens behind {len(tokens)} do not fit, and llama.cpp cannot shift this model"
            raise UsageError(text, file=path, code="no_shift")
        told = (
            *without_effect(wanted, gpu=speaker.gpu),
            *findings(scaling, speaker.runtime, shifts_spoil=wanted.allow_shift and not safe),
        )
        yield Ready(speaker, scaling, made.context, tokens, shift, layers, told)


def _settings(wanted: Wanted) -> LlamaSettings:
    return LlamaSettings(
        batch=wanted.batch,
        threads=wanted.threads or usual_threads(),
        gpu_layers=wanted.gpu_layers,
        flash_attention=wanted.flash_attention,
        kv_k=wanted.kv_k,
        kv_v=wanted.kv_v,
        rpc=wanted.rpc,
        tensor_split=wanted.tensor_split,
        library=wanted.library,
        deadline=wanted.deadline,
    )


def _first(speaker: Speaker, wanted: Wanted, prompt: Prompt) -> tuple[int, ...]:
    """The prompt in tokens, by the vocabulary alone: how many there are decides on the context."""
    speaker.load_words()
    speaker.chat_template = wanted.template
    if wanted.chat and not speaker.template and wanted.template is None:
        text = "has no chat template (tokenizer.chat_template); give one with --chat-template, or leave out --chat"
        raise InputError(text, file=speaker.path, code="no_template")
    if prompt.empty:
        return ()
    return tokens_of(speaker, prompt)


def tokens_of(speaker: Speaker, prompt: Prompt) -> tuple[int, ...]:
    """A text begins as the vocabulary wants it; of a template nothing is added to, as in transformers."""
    if prompt.messages:
        found = speaker.tokenize(speaker.chat(prompt.messages), add_special=False, parse_special=True)
    else:
        found = speaker.tokenize(prompt.text, add_special=True, parse_special=True)
    if not found:
        raise UsageError("the prompt makes no token", file=speaker.path, code="empty_prompt")
    return tuple(found)


def _enough(before: Before, prompt: int, wanted: Wanted) -> int:
    """A context for the prompt and its reply, as long as the file is meant for at most."""
    needed = prompt + (REPLY if wanted.predict is None else wanted.predict)
    return min(max(needed, LEAST), max(reach(before), 1))


def _check_length(path: Path, tokens: Sequence[int], context: int) -> None:
    if len(tokens) > padded(context):
        text = f"the prompt has {len(tokens)} tokens, the context {padded(context)}; give a larger --ctx"
        raise UsageError(text, file=path, code="context_full")


def check_shift(path: Path, scaling: Scaling, wanted: Wanted, *, safe: bool) -> None:
    """Raises where a shift is needed that would spoil the cache, unless that was allowed."""
    if safe or wanted.allow_shift:
        return
    text = f"the context is full before the reply ends, and {spoiling(scaling)}"
    ways = f"give a larger --ctx, a smaller -n, or --allow-shift; {PATCHED_HINT}"
    raise UsageError(f"{text}; {ways}", file=path, code="context_shift")
