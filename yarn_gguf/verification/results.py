"""What a verification found, as frozen values. Knows nothing of how it was computed, or of how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yarn_gguf.findings import Finding
from yarn_gguf.intent import Intent
from yarn_gguf.summary import Bucket, Summary
from yarn_gguf.thresholds import Limits

Verdict = Literal["pass", "fail"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One of the models."""

    path: Path
    kind: Literal["gguf", "checkpoint", "record"]
    type: str
    arch: str
    bytes: int
    rope: Intent | None
    rope_source: str
    library: str


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The reference against itself, computed with fewer tokens at a time."""

    tokens: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values lie from `edges[i]` to `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CandidateReport:
    model: ModelInfo
    summary: Summary
    positions: tuple[Bucket, ...]
    inside: Summary | None  # within the original context; None where nothing was scored there
    beyond: Summary | None  # past it
    growth: float | None  # KL beyond over KL inside
    delta_p: Histogram
    limits: Limits
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    reference: ModelInfo
    candidates: tuple[CandidateReport, ...]
    noise_floor: NoiseFloor | None
    lower_bound: bool  # the KL is at least what is given: the reference is a record
    top: int | None  # how many words the record has of a position, on average
    rest: float | None  # the probability that all its other words have, on average
    context: int
    windows: int
    original_context: int | None
    tokens: int  # scored positions
    scored: int  # of them, by this run; the others were there from one that was interrupted
    text: str  # what it is
    text_sha256: str
    tokens_sha256: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(each.verdict == "pass" for each in self.candidates)
