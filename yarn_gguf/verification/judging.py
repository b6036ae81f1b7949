"""A candidate's rows -> its figures and the verdict, with every reason for it. Pure values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.metrics import Rows
from yarn_gguf.summary import Summary, buckets, log_edges, summarize
from yarn_gguf.thresholds import GROWS_FROM, Limits, default_limits, with_cache
from yarn_gguf.verification.about import candidate_info
from yarn_gguf.verification.results import CandidateReport, Histogram
from yarn_gguf.verification.sides import Side
from yarn_gguf.verification.wanted import Overrides

BINS: Final = 41
NARROWEST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Judged:
    """What a verdict depends on besides the figures."""

    overrides: Overrides
    kv: str
    reach: float  # of the histogram
    fault: str | None  # what its keys say already


def candidate_report(side: Side, rows: Rows, context: int, original: int | None, settings: Judged) -> CandidateReport:
    limits = settings.overrides.over(with_cache(default_limits(side.type), settings.kv))
    split = context if original is None else original
    near, far = rows[rows["position"] < split], rows[rows["position"] >= split]
    inside, beyond = (summarize(each) if len(each) else None for each in (near, far))
    growth = beyond.kld.mean / inside.kld.mean if inside and beyond and inside.kld.mean > 0 else None
    whole = summarize(rows)
    reasons = tuple(_reasons(rows, whole, inside, beyond, growth, limits))
    reasons += () if settings.fault is None else (settings.fault,)
    return CandidateReport(
        model=candidate_info(side),
        summary=whole,
        positions=tuple(buckets(rows, log_edges(context, original))),
        inside=inside,
        beyond=beyond,
        growth=growth,
        delta_p=histogram_of(rows, settings.reach),
        limits=limits,
        verdict="fail" if reasons else "pass",
        reasons=reasons,
    )


def _reasons(
    rows: Rows, whole: Summary, inside: Summary | None, beyond: Summary | None, growth: float | None, limits: Limits
) -> Iterator[str]:
    bad = ~np.isfinite(rows["kld"])
    if bad.any():
        first = int(rows["position"][np.argmax(bad)])
        yield f"its logits are not finite at position {first}, and at {int(bad.sum())} of {len(rows)} in all"
        return
    parts = (("inside", inside), ("beyond", beyond)) if inside and beyond else (("", whole),)
    over = [f"{each.kld.mean:.3g} {where}" for where, each in parts if each and each.kld.mean > limits.kld]
    if over:
        where = " the original context" if inside and beyond else ""
        yield f"mean KL {' and '.join(over).rstrip()}{where}, {limits.kld:g} is allowed"
    if whole.top1 < limits.top1:
        yield f"{whole.top1:.1%} agreement on the most probable word, {limits.top1:.1%} is needed"
    if growth is not None and beyond is not None and growth > limits.growth and beyond.kld.mean > GROWS_FROM:
        yield f"KL is {growth:.3g} times as large beyond the original context, {limits.growth:g} is allowed"


def histogram_reach(everyone: Sequence[Rows]) -> float:
    """What 99.8 % of the changes of the following token's probability stay within, whoever's they are."""
    return max((float(np.quantile(np.abs(each), 0.998)) for each in map(_delta, everyone) if len(each)), default=0.0)


def _delta(rows: Rows) -> NDArray[np.float64]:
    delta = np.exp(rows["candidate"]) - np.exp(rows["reference"])
    found: NDArray[np.float64] = delta[np.isfinite(delta)]
    return found


def histogram_of(rows: Rows, reach: float) -> Histogram:
    """What lies beyond the reach is counted at its ends."""
    reach, delta = max(reach, NARROWEST), _delta(rows)
    edges = np.linspace(-reach, reach, BINS + 1)
    counts, _ = np.histogram(np.clip(delta, -reach, reach), edges)
    return Histogram(tuple(float(each) for each in edges), tuple(int(each) for each in counts))
