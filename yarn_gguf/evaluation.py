"""Many models, one task: opens each in turn, measures it, and keeps what came of it as frozen values.

    found = evaluate(paths, how, Job("passkey", lengths, …))

`evaluate` knows how a thing is measured, `models` how a model is opened; here is only what goes with what, which
lengths are asked for where nobody says, and how many tokens it will take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from yarn_gguf.checkpoint_ropes import meant_ropes
from yarn_gguf.config.model_config import read_config
from yarn_gguf.errors import UsageError, about
from yarn_gguf.evaluate import (
    Cell,
    Change,
    Entropy,
    Grid,
    Perplexity,
    Progress,
    Sliding,
    attention_entropy,
    distances,
    perplexity,
    running_text,
    score_grid,
    sensitivity,
    silent,
)
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.logits import Session
from yarn_gguf.metadata import read_facts
from yarn_gguf.models import Opening, is_checkpoint, open_model
from yarn_gguf.runtime import LlamaSettings, check_servers
from yarn_gguf.tasks.prompts import TASKS

Result: TypeAlias = Cell | Perplexity | Change | Entropy
SPARE: Final = 8  # tokens of context beyond the text


@dataclass(frozen=True)
class Job:
    """What is measured. Empty `lengths`: powers of two from the original context to the longest."""

    task: str
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    samples: int = 4
    seed: int = 0
    text: str | None = None  # of perplexity; None: one of our own
    count: int = 2048  # tokens that perplexity foretells
    stride: int | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.lengths, self.depths, self.samples, self.seed)


@dataclass(frozen=True)
class Evaluated:
    """One model's figures. `runtime`: what computed them."""

    path: Path
    runtime: str
    original: int | None
    context: int
    results: tuple[Result, ...]
    seconds: float


@dataclass(frozen=True)
class Reach:
    """From where to where a model's context is scaled."""

    original: int | None
    context: int


def reach(path: Path, how: Opening) -> Reach:
    if is_checkpoint(path):
        intent = meant_ropes(read_config(path), how.rope).intent
        return Reach(intent.original, intent.context)
    model = read_model(path)
    facts = read_facts(model)
    intent = own_intent(model, facts, read_tensors(model))
    return Reach(intent.original, facts.context_length)


def default_lengths(reaches: Sequence[Reach]) -> tuple[int, ...]:
    """From the least original context by doubling to the greatest context."""
    first = min(each.original or each.context for each in reaches)
    last, found = max(each.context for each in reaches), []
    while first < last:
        found.append(first)
        first *= 2
    return (*found, last)


def cost(job: Job) -> int:
    """Tokens that one model decodes, about."""
    match job.task:
        case "ppl":
            return sum(_sliding(job).cost(length) for length in job.lengths)
        case "sensitivity":
            return sum(length * (len(distances(length)) + 1) for length in job.lengths) * job.samples
        case "entropy":
            return sum(job.lengths) * job.samples
    return job.grid.tokens


def evaluate(
    paths: Sequence[Path], how: Opening, job: Job, progress: Progress = silent
) -> tuple[Job, tuple[Evaluated, ...]]:
    """The job with its lengths, and every model's figures."""
    check_servers(paths[0], LlamaSettings(library=how.library, rpc=how.rpc))
    if job.task == "entropy":
        _check_checkpoints(paths)
    reaches = [reach(path, how) for path in paths]
    job = replace(job, lengths=job.lengths or default_lengths(reaches))
    how = replace(how, context=max(job.lengths) + SPARE)
    return job, tuple(_evaluated(path, how, job, span, progress) for path, span in zip(paths, reaches, strict=True))


def _check_checkpoints(paths: Sequence[Path]) -> None:
    for path in paths:
        if not is_checkpoint(path):
            text = "llama.cpp does not show its attention; give the Hugging Face folder that the file was made from"
            raise UsageError(text, file=path, code="no_attention")


def _evaluated(path: Path, how: Opening, job: Job, span: Reach, progress: Progress) -> Evaluated:
    began = time.monotonic()
    with open_model(path, how) as session, about(path):
        results = _MEASURES.get(job.task, _scored)(session, job, progress)
        runtime = "transformers" if is_checkpoint(path) else "llama.cpp"
    return Evaluated(path, runtime, span.original, span.context, results, time.monotonic() - began)


def _scored(session: Session, job: Job, progress: Progress) -> tuple[Result, ...]:
    return score_grid(session, TASKS[job.task], job.grid, progress)


def _sliding(job: Job) -> Sliding:
    return Sliding(max(job.lengths), job.count, job.stride)


def _perplexities(session: Session, job: Job, progress: Progress) -> tuple[Result, ...]:
    sliding = _sliding(job)
    if job.text is None:
        text = running_text(session, sliding.first + sliding.count, job.seed)
    else:
        text = session.tokenize(job.text, add_special=False)
    return tuple(perplexity(session, text, length, sliding, progress) for length in job.lengths)


def _changes(session: Session, job: Job, progress: Progress) -> tuple[Result, ...]:
    short = [length for length in job.lengths if length < 4]
    if short:
        raise UsageError(f"a text of {short[0]} tokens is too short to change one far away", code="usage")
    return tuple(
        change
        for length in job.lengths
        for change in sensitivity(
            session, length, distances(length), samples=job.samples, seed=job.seed, progress=progress
        )
    )


def _entropies(session: Session, job: Job, progress: Progress) -> tuple[Result, ...]:
    return tuple(
        entropy
        for length in job.lengths
        for entropy in attention_entropy(session, length, samples=job.samples, seed=job.seed, progress=progress)
    )


_MEASURES: Final[dict[str, Callable[[Session, Job, Progress], tuple[Result, ...]]]] = {
    "ppl": _perplexities,
    "sensitivity": _changes,
    "entropy": _entropies,
}
