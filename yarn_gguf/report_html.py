"""A verification's `Report` -> one HTML page that needs nothing else: no network, no scripts, light or dark.

Verdicts first, then plots by position, figures, the RoPE of every model, and how to make the same page again. Renders
what it is given; `report` has the words that the terminal shows too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from yarn_gguf.charts import Series, histogram, line_chart, linear_axis, log_axis, position_axis, ratio_axis
from yarn_gguf.errors import printable
from yarn_gguf.gguf_file.writer import check_target
from yarn_gguf.report import heading, number, percent, rope_line
from yarn_gguf.sizes import size_text
from yarn_gguf.summary import Bucket, Summary
from yarn_gguf.verification.results import CandidateReport, ModelInfo, Report

_STYLE: Final = """
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --ink: #1d2125; --soft: #5b646d; --line: #dfe3e6;
  --good: #18794e; --bad: #c62a2f; --s0: #2563eb; --s1: #d9480f; --s2: #0f8a6d; --s3: #9333ea; --s4: #b7791f;
  --s5: #db2777; --s6: #0e7490; --s7: #65741a; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #9aa4ad;
  --line: #32383e; --good: #4cc38a; --bad: #ff7b7f; --s0: #6ea8fe; --s1: #ff9d66; --s2: #4fd1b0; --s3: #c79bff;
  --s4: #e6bd5c; --s5: #ff8cc0; --s6: #5fd0e6; --s7: #c3d36a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 20px 16px 48px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.1rem; margin: 32px 0 10px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.plots { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; min-width: 0; }
.card h3 { font-size: 1rem; margin: 0 0 6px; }
.pass { border-left: 5px solid var(--good); } .fail { border-left: 5px solid var(--bad); }
.badge { float: right; font-weight: 700; margin-left: 8px; } .pass .badge { color: var(--good); }
.fail .badge, .why { color: var(--bad); } .warn { color: var(--s4); }
dl.big { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px 10px; margin: 8px 0 0; }
dl.big dt { color: var(--soft); font-size: .8rem; } dl.big dd { margin: 0; font-size: 1.05rem; font-weight: 600;
  font-variant-numeric: tabular-nums; } dl.big div { display: flex; flex-direction: column; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; overflow-wrap: normal; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; } th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 15em; }
tr.part td:first-child { padding-left: 24px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 0 0 10px; list-style: none;
  font-size: .88rem; }
.legend i { display: inline-block; width: 18px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-x: auto;
  white-space: pre-wrap; font-size: .85rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg .small { font-size: 12px; } svg .tick { font-size: 11px; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; } svg .line { fill: none; stroke-width: 2;
  stroke-linejoin: round; }
"""
_COLUMNS: Final = (
    *("", "KL mean", "±", "median", "90 %", "99 %", "99.9 %", "max", "top-1", "top-5"),
    *("PPL", "PPL ref.", "ratio", "corr.", "Δp mean", "Δp RMS", "drift"),
)
_COLOURS: Final = "\n".join(
    f"svg .line.s{n} {{ stroke: var(--s{n}); }} svg .dot.s{n}, i.s{n} {{ fill: var(--s{n}); background: var(--s{n}); }}"
    for n in range(8)
)


def write_page(report: Report, path: Path, command: str) -> None:
    """Writes the page; what stands at the path is replaced, whole."""
    write_html(page(report, command), path)


def write_html(text: str, path: Path) -> None:
    check_target(path, [], overwrite=True, option="--html")
    temporary = path.with_name(f".{path.name}.yarn-gguf-tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def page(report: Report, command: str) -> str:
    title = f"{report.reference.path.name}: {'pass' if report.passed else 'fail'}"
    return whole_page(
        title, [f"<h1>{_text(report.reference.path.name)} and what runs</h1>", *sections(report, command)]
    )


def sections(report: Report, command: str) -> Iterator[str]:
    """What the page says below its title."""
    yield from (f'<p class="soft">{_text(name)}: {_text(value)}</p>' for name, value in heading(report))
    for part in (_cards, _plots, _figures, _ropes):
        yield from part(report)
    yield from _again(report, command)


def whole_page(title: str, body: Iterable[str]) -> str:
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{_text(title)}</title><style>{_STYLE}{_COLOURS}</style></head>"
    lines = "\n".join(body)
    return f'<!doctype html>\n<html lang="en">{head}\n<body>\n{lines}\n</body></html>\n'


def _text(text: str) -> str:
    return html.escape(printable(text))


def _cards(report: Report) -> Iterator[str]:
    yield '<h2>Verdicts</h2><div class="cards">'
    for candidate in report.candidates:
        summary, limits = candidate.summary, candidate.limits
        yield f'<div class="card {candidate.verdict}"><span class="badge">{candidate.verdict.upper()}</span>'
        yield f"<h3>{_text(candidate.model.path.name)}</h3>"
        yield f'<p class="soft">{_text(candidate.model.type)}, {size_text(candidate.model.bytes)}</p>'
        bound = "≥ " if report.lower_bound else ""
        cells = [("mean KL", bound + number(summary.kld.mean)), ("top-1", percent(summary.top1))]
        cells += [("PPL ratio", f"{summary.ppl_ratio:.4f}")]
        yield '<dl class="big">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in cells) + "</dl>"
        allowed = f"allowed: mean KL {limits.kld:g}, top-1 {limits.top1:.1%}, growth {limits.growth:g}"
        yield "".join(f'<p class="why">{_text(reason)}</p>' for reason in candidate.reasons)
        yield f'<p class="soft">{allowed}</p></div>'
    yield "</div>"
    yield from (f'<p class="warn">{_text(each.level.value)}: {_text(each.text)}</p>' for each in report.findings)


def _plots(report: Report) -> Iterator[str]:
    yield "<h2>By position</h2>"
    yield _legend([each.model.path.name for each in report.candidates])
    yield '<div class="plots">'
    for title, chart in _charts(report):
        yield f'<div class="card"><h3>{title}</h3>{chart}</div>'
    yield "</div>"


def _legend(names: Sequence[str]) -> str:
    items = (f'<li><i class="s{n % 8}"></i>{_text(name)}</li>' for n, name in enumerate(names))
    return f'<ul class="legend">{"".join(items)}</ul>'


def _charts(report: Report) -> Iterator[tuple[str, str]]:
    everyone = report.candidates
    edges = sorted({edge for each in everyone for bucket in each.positions for edge in (bucket.first, bucket.end)})
    x, mark = position_axis(edges or [0, 64]), report.original_context
    draw = partial(line_chart, x=x, mark=None if mark is None else float(mark), mark_text="original context")
    kld = [_series(each, lambda found: found.kld.mean) for each in everyone]
    y = log_axis([value for each in kld for _, value in each.points], "mean KL, nats")
    yield "KL divergence", draw("KL divergence by position", kld, y=y)
    top1 = [_series(each, lambda found: 100 * found.top1) for each in everyone]
    y = linear_axis([value for each in top1 for _, value in each.points], "top-1 agreement, %", ceiling=100.0)
    yield "Same most probable word", draw("Top-1 agreement by position", top1, y=y)
    ppl = [_series(each, lambda found: found.ppl) for each in everyone]
    if everyone:
        ppl.append(_series(everyone[0], lambda found: found.ppl_reference, "the reference"))
    y = ratio_axis([value for each in ppl for _, value in each.points], "perplexity")
    yield "Perplexity", draw("Perplexity by position", ppl, y=y) + _legend_of(ppl)
    yield from _delta_p(everyone)


def _legend_of(series: Sequence[Series]) -> str:
    return f'<ul class="legend"><li><i class="s{(len(series) - 1) % 8}"></i>{_text(series[-1].name)}</li></ul>'


def _delta_p(everyone: Sequence[CandidateReport]) -> Iterator[tuple[str, str]]:
    known = [each for each in everyone if each.delta_p.counts]
    if not known:
        return
    widest = max(known, key=lambda each: each.delta_p.edges[-1])
    shares = [(each.model.path.name, _shares(each)) for each in known]
    if all(each.delta_p.edges == widest.delta_p.edges for each in known):
        yield (
            "Change of the next token's probability",
            histogram("Histogram of the change of probability", "Δp", widest.delta_p.edges, shares),
        )


def _shares(candidate: CandidateReport) -> list[float]:
    total = sum(candidate.delta_p.counts) or 1
    return [count / total for count in candidate.delta_p.counts]


def _series(candidate: CandidateReport, value: Callable[[Summary], float], name: str | None = None) -> Series:
    points, notes = [], []
    for bucket in candidate.positions:
        found = value(bucket.summary)
        points.append((_middle(bucket), found))
        notes.append(f"{number(found)} at {bucket.first} to {bucket.end}")
    return Series(name or candidate.model.path.name, tuple(points), tuple(notes))


def _middle(bucket: Bucket) -> float:
    return math.sqrt(max(bucket.first, bucket.end / 2, 1) * bucket.end)


def _figures(report: Report) -> Iterator[str]:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    yield '<h2>Figures</h2><div class="card scroll"><table><tr>' + head + "</tr>"
    for candidate in report.candidates:
        yield _row(candidate.model.path.name, candidate.summary)
        if candidate.inside is not None and candidate.beyond is not None:
            yield _row(f"inside {report.original_context}", candidate.inside, part=True)
            yield _row("beyond", candidate.beyond, part=True)
    if report.noise_floor is not None:
        yield _row("noise floor", report.noise_floor.summary)
    yield "</table></div>"


def _row(name: str, summary: Summary, *, part: bool = False) -> str:
    kld, delta = summary.kld, summary.delta_p
    values = [kld.mean, kld.stderr, kld.median, kld.p90, kld.p99, kld.p999, kld.max]
    cells = [*map(number, values), percent(summary.top1), percent(summary.top5)]
    cells += [number(summary.ppl), number(summary.ppl_reference), f"{summary.ppl_ratio:.5f}"]
    cells += [f"{summary.correlation:.6f}", number(delta.mean), number(delta.rms), number(summary.drift)]
    kind = ' class="part"' if part else ""
    return f"<tr{kind}><td>{_text(name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _ropes(report: Report) -> Iterator[str]:
    yield '<h2>RoPE</h2><div class="card scroll"><table><tr><th>model</th><th class="text">asks for</th></tr>'
    for model in (report.reference, *(each.model for each in report.candidates)):
        yield f'<tr><td>{_text(model.path.name)}</td><td class="text">{_text(rope_line(model))}</td></tr>'
    yield "</table></div>"


def _again(report: Report, command: str) -> Iterator[str]:
    yield f"<h2>Again</h2><pre>{_text(command)}</pre>"
    facts = {f"text: {report.text}": f"sha256 {report.text_sha256}", "token ids": f"sha256 {report.tokens_sha256}"}
    facts |= {name: str(value) for name, value in report.versions.items()}
    facts |= {model.path.name: model.library for model in _everyone(report) if model.library}
    facts |= {name.replace("_", " "): str(value) for name, value in report.settings.items() if value not in (None, [])}
    facts["seconds"] = f"{report.seconds:.1f}"
    rows = (f'<tr><td>{_text(k)}</td><td class="text">{_text(v)}</td></tr>' for k, v in facts.items())
    yield f'<div class="card scroll"><table>{"".join(rows)}</table></div>'


def _everyone(report: Report) -> list[ModelInfo]:
    return [report.reference, *(each.model for each in report.candidates)]
