"""What each type of cache costs a model, measured against a record: the one part of a plan that opens the model.

Only where a `.yref` was given. Runs `verify`; knows no figure itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from yarn_gguf.errors import UsageError
from yarn_gguf.memory.quality import Measured, Prices, read_prices
from yarn_gguf.steps import Steps, silent
from yarn_gguf.verification.recording import is_record
from yarn_gguf.verification.results import CandidateReport
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verify import verify


def prices_of(files: Sequence[Path], model: Path, caches: Sequence[tuple[str, str]], steps: Steps = silent) -> Prices:
    """Out of reports of `verify --json`, and of records, against which the model is verified here."""
    return Prices(tuple(each for file in files for each in _found(file, model, caches, steps)))


def _found(file: Path, model: Path, caches: Sequence[tuple[str, str]], steps: Steps) -> Iterator[Measured]:
    if not is_record(file):
        yield from read_prices(file).measured
        return
    if model.is_dir():
        text = "is a record, and a checkpoint that is not converted cannot be run against it; convert it first"
        raise UsageError(text, file=file, code="record_needs_gguf")
    for key, value in caches:
        if key == value:  # verify has one type for both
            report = verify(file, [model], Wanted(kv=key, noise=0), steps)
            yield from (_measured(each, key) for each in report.candidates)


def _measured(candidate: CandidateReport, kv: str) -> Measured:
    found, rope = candidate.model, candidate.model.rope
    inside = None if candidate.inside is None else candidate.inside.kld.mean
    return Measured(found.type, kv, 1.0 if rope is None else rope.factor, candidate.summary.kld.mean, inside)
