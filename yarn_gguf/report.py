"""A verification's `Report` -> a table for the terminal, a JSON document. (`report_html` makes the page.)

Renders what it is given and computes nothing; prints nothing either: the command does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from yarn_gguf.rope_words import rope_json, rope_text
from yarn_gguf.sizes import size_text
from yarn_gguf.summary import Bucket, Summary
from yarn_gguf.verification.results import CandidateReport, ModelInfo, Report

WIDTH: Final = 100
NAME: Final = 26
PER_TABLE: Final = 5  # candidates beside each other, by position


# ---- for a program


def document(report: Report) -> dict[str, Any]:
    """The stable document of docs/json.md."""
    noise = report.noise_floor
    return {
        "reference": model_json(report.reference),
        "tokens": report.tokens,
        "scored": report.scored,
        "context": report.context,
        "windows": report.windows,
        "original_context": report.original_context,
        "lower_bound": report.lower_bound,
        "top": report.top,
        "rest": report.rest,
        "noise_floor": None if noise is None else {"tokens": noise.tokens, **figures_json(noise.summary)},
        "candidates": [_candidate_json(each) for each in report.candidates],
        "verdict": "pass" if report.passed else "fail",
        "text": {"name": report.text, "sha256": report.text_sha256, "tokens_sha256": report.tokens_sha256},
        "settings": dict(report.settings),
        "versions": dict(report.versions),
        "seconds": report.seconds,
        "findings": [{"level": f.level.value, "code": f.code, "text": f.text} for f in report.findings],
    }


def model_json(model: ModelInfo) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "kind": model.kind,
        "type": model.type,
        "arch": model.arch,
        "bytes": model.bytes,
        "rope": None if model.rope is None else rope_json(model.rope, None),
        "rope_source": model.rope_source,
        "library": model.library,
    }


def figures_json(summary: Summary) -> dict[str, Any]:
    """The figures of some positions, as every command names them."""
    return {
        "kld": asdict(summary.kld),
        "top1": summary.top1,
        "top5": summary.top5,
        "ppl": summary.ppl,
        "ppl_reference": summary.ppl_reference,
        "ppl_ratio": {"mean": summary.ppl_ratio, "stderr": summary.ppl_ratio_stderr},
        "correlation": summary.correlation,
        "delta_p": asdict(summary.delta_p),
        "drift": summary.drift,
    }


def _candidate_json(candidate: CandidateReport) -> dict[str, Any]:
    return {
        **model_json(candidate.model),
        **figures_json(candidate.summary),
        "positions": [_bucket_json(each) for each in candidate.positions],
        "inside": None if candidate.inside is None else _part_json(candidate.inside),
        "beyond": None if candidate.beyond is None else _part_json(candidate.beyond),
        "growth": candidate.growth,
        "histogram": {"edges": list(candidate.delta_p.edges), "counts": list(candidate.delta_p.counts)},
        "limits": {
            "max_kld": candidate.limits.kld,
            "min_top1": candidate.limits.top1,
            "max_growth": candidate.limits.growth,
        },
        "verdict": candidate.verdict,
        "reasons": list(candidate.reasons),
    }


def _part_json(summary: Summary) -> dict[str, Any]:
    return {"tokens": summary.tokens, **figures_json(summary)}


def _bucket_json(bucket: Bucket) -> dict[str, Any]:
    found = bucket.summary
    return {
        "from": bucket.first,
        "to": bucket.end,
        "tokens": found.tokens,
        "kld": found.kld.mean,
        "kld_stderr": found.kld.stderr,
        "top1": found.top1,
        "ppl": found.ppl,
        "ppl_reference": found.ppl_reference,
    }


# ---- for a person


def heading(report: Report) -> list[tuple[str, str]]:
    """Rows of `name  text`; the first says which RoPE the reference has."""
    reference, noise = report.reference, report.noise_floor
    windows = (
        f" in {report.windows} windows of {report.context}" if report.windows > 1 else f", context {report.context}"
    )
    resumed = report.tokens - report.scored
    again = f", {resumed} of them by an earlier run" if resumed else ""
    rows = [
        ("rope", rope_line(reference)),
        ("text", f"{report.text}{windows}; {report.tokens} positions scored{again}"),
    ]
    if report.lower_bound:
        rest = f"; the others have {report.rest:.2%} of the probability" if report.rest is not None else ""
        rows.append(("bound", f"KL is at least this: the record has {report.top} words of a position on average{rest}"))
    if noise is not None:
        floor = f"mean KL {number(noise.summary.kld.mean)}, top-1 {percent(noise.summary.top1)}"
        rows.append(("floor", f"{floor}: the reference against itself in other batches, over {noise.tokens} tokens"))
    return rows


def rope_line(model: ModelInfo) -> str:
    rope = "" if model.rope is None else f"{rope_text(model.rope)}  "
    return f"{rope}(by {model.rope_source})" if rope else model.rope_source


def model_line(model: ModelInfo) -> str:
    return f"{model.path.name}  {model.arch}, {model.type}, {size_text(model.bytes)}"


def table(report: Report) -> Iterator[str]:
    """The figures of every candidate: over all, inside and beyond the original context."""
    names = ("KL mean", "±", "median", "99 %", "max", "top-1", "PPL", "ratio")
    yield _columns("candidate", names)
    for candidate in report.candidates:
        yield _columns(cut(candidate.model.path.name, NAME), _cells(candidate.summary))
        if candidate.inside is not None and candidate.beyond is not None:
            yield _columns(f"  inside {report.original_context}", _cells(candidate.inside))
            yield _columns("  beyond", _cells(candidate.beyond))


def _columns(name: str, cells: tuple[str, ...]) -> str:
    return f"  {name:<{NAME}}" + "".join(f"{cell:>9}" for cell in cells)


def _cells(summary: Summary) -> tuple[str, ...]:
    kld = summary.kld
    values = (kld.mean, kld.stderr, kld.median, kld.p99, kld.max)
    return (*map(number, values), percent(summary.top1), number(summary.ppl), f"{summary.ppl_ratio:.4f}")


def by_position(report: Report) -> Iterator[str]:
    """KL and top-1 agreement of every candidate between two positions."""
    for start in range(0, len(report.candidates), PER_TABLE):
        some = report.candidates[start : start + PER_TABLE]
        width = min(30, (WIDTH - 16) // len(some))
        yield f"  {'position':>13} " + "".join(f"{cut(each.model.path.stem, width - 2):>{width}}" for each in some)
        for row in zip(*(each.positions for each in some), strict=True):
            cells = (f"{number(each.summary.kld.mean)} {percent(each.summary.top1)}" for each in row)
            end = row[0].end
            mark = "*" if report.original_context is not None and row[0].first >= report.original_context else " "
            yield f"  {row[0].first:>6}-{end:<6}{mark} " + "".join(f"{cell:>{width}}" for cell in cells)
    if report.original_context is not None and report.original_context < report.context:
        yield "  KL and top-1 by position; * beyond the original context"
    else:
        yield "  KL and top-1 by position"


def verdicts(report: Report) -> Iterator[tuple[bool, str]]:
    for candidate in report.candidates:
        name, limits = candidate.model.path.name, candidate.limits
        if candidate.verdict == "pass":
            text = f"{name}: within mean KL {limits.kld:g} and top-1 {limits.top1:.1%}, for {candidate.model.type}"
            yield True, text
        else:
            yield False, f"{name}: {'; '.join(candidate.reasons)}"


def number(value: float) -> str:
    """At most eight characters."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "inf"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 100_000 or size < 1e-4:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 1 else f"{value:.5f}" if size >= 1e-2 else f"{value:.6f}"


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}%" if value < 1 else "100%"


def cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
