"""Rows of figures -> what a report prints: mean and quantiles, by position where that is asked for.

    summary = summarize(rows)

Knows `metrics`' rows and nothing of what they were computed from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.metrics import TOP, Rows


@dataclass(frozen=True, slots=True)
class Kld:
    mean: float
    stderr: float
    median: float
    p90: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True, slots=True)
class DeltaP:
    """The change of the following token's probability, 0 to 1."""

    mean: float
    rms: float
    stderr: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of some positions; NaN where there are none. A `stderr` takes positions for independent."""

    tokens: int
    kld: Kld
    top1: float
    top5: float
    ppl: float
    ppl_reference: float
    ppl_ratio: float
    ppl_ratio_stderr: float
    correlation: float  # of the following tokens' log-probabilities
    delta_p: DeltaP
    drift: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """The figures of the positions from `first` up to, not including, `end`."""

    first: int
    end: int
    summary: Summary


def summarize(rows: Rows) -> Summary:
    known = rows[~np.isnan(rows["reference"])]
    p, q = known["reference"], known["candidate"]
    delta = np.exp(q) - np.exp(p)
    ratio = float(np.exp(_mean(p - q)))
    words = min(TOP, max(int(rows["top5"].max(initial=0)), 1)) if len(rows) else TOP
    return Summary(
        tokens=len(rows),
        kld=_kld(rows["kld"]),
        top1=_mean(rows["top1"]),
        top5=_mean(rows["top5"]) / (TOP if words == TOP else words),
        ppl=_exp(-_mean(q)),
        ppl_reference=_exp(-_mean(p)),
        ppl_ratio=ratio,
        ppl_ratio_stderr=ratio * _stderr(p - q),
        correlation=_correlation(p, q),
        delta_p=DeltaP(_mean(delta), math.sqrt(_mean(delta * delta)), _stderr(delta)),
        drift=float(rows["drift"].max()) if len(rows) else math.nan,
    )


def buckets(rows: Rows, edges: Sequence[int]) -> list[Bucket]:
    """The figures between each edge and the next, where any position lies there."""
    order = np.argsort(rows["position"], kind="stable")
    ordered = rows[order]
    cuts = np.searchsorted(ordered["position"], edges)
    found = []
    for first, end, start, stop in zip(edges, edges[1:], cuts, cuts[1:], strict=False):
        if stop > start:
            found.append(Bucket(first, end, summarize(ordered[start:stop])))
    return found


def log_edges(context: int, original: int | None, first: int = 64) -> list[int]:
    """0, 64, 128, 256, … up to the context; the original context is an edge, so that no bucket straddles it."""
    edges = {0, context}
    edge = first
    while edge < context:
        edges.add(edge)
        edge *= 2
    if original is not None and 0 < original < context:
        edges.add(original)
    return sorted(edges)


def _kld(values: NDArray[np.float64]) -> Kld:
    if not len(values):
        return Kld(*(math.nan,) * 7)
    median, p90, p99, p999 = (float(each) for each in np.quantile(values, [0.5, 0.9, 0.99, 0.999]))
    return Kld(_mean(values), _stderr(values), median, p90, p99, p999, float(values.max()))


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan


def _stderr(values: NDArray[Any]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _correlation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    if len(p) < 2:
        return math.nan
    p, q = p - p.mean(), q - q.mean()
    scale = math.sqrt(float((p * p).sum()) * float((q * q).sum()))
    return float((p * q).sum()) / scale if scale else math.nan
