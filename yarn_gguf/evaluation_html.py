"""Evaluations -> one HTML page that needs nothing else, in the dress of the verification's page.

Renders what it is given: a coloured grid of length × depth for each model, and one chart of all of them.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from yarn_gguf.charts import Series, line_chart, linear_axis, log_axis, position_axis
from yarn_gguf.errors import printable
from yarn_gguf.evaluate import Cell
from yarn_gguf.evaluation import Evaluated, Job
from yarn_gguf.evaluation_lines import AXES, TITLES, lines
from yarn_gguf.report_html import whole_page


def page(job: Job, found: Sequence[Evaluated], command: str) -> str:
    again = f"<h2>Again</h2><pre>{_text(command)}</pre>"
    return whole_page(TITLES[job.task], [f"<h1>{_text(TITLES[job.task])}</h1>", *sections(job, found), again])


def sections(job: Job, found: Sequence[Evaluated]) -> Iterator[str]:
    """What the page says below its title."""
    if job.depths:
        what = "Right answers in percent: length down, depth of what is to be found across."
        yield f'<p class="soft">{what} {job.samples} texts for each figure, seed {job.seed}.</p>'
        yield '<div class="cards">'
        for each in found:
            yield f'<div class="card scroll"><h3>{_text(each.path.name)}</h3>{_grid(job, each)}</div>'
        yield "</div>"
    yield from _chart(job, found)


def _grid(job: Job, each: Evaluated) -> str:
    """A row per length; the colour runs from red (none right) to green (all)."""
    cells = [cell for cell in each.results if isinstance(cell, Cell)]
    head = "".join(f"<th>{depth:.0%}</th>" for depth in job.depths)
    rows = [f"<tr><th>tokens</th>{head}</tr>"]
    for length, group in groupby(cells, key=lambda cell: cell.length):
        shades = "".join(f'<td style="{_shade(cell.score)}">{100 * cell.score:.0f}</td>' for cell in group)
        beyond = " ⟶" if each.original is not None and length > each.original else ""
        rows.append(f"<tr><td>{length}{beyond}</td>{shades}</tr>")
    note = "" if each.original is None else f'<p class="soft">⟶ beyond its original context of {each.original}</p>'
    return f"<table>{''.join(rows)}</table>{note}"


def _shade(score: float) -> str:
    return f"background: hsl({120 * score:.0f} 65% 45% / 0.55)"


def _chart(job: Job, found: Sequence[Evaluated]) -> Iterator[str]:
    series = [
        Series(each.path.name + label, tuple(zip(across, up, strict=True)))
        for each in found
        for label, across, up in lines(each)
    ]
    points = [point for each in series for point in each.points]
    across, up = AXES[job.task]
    values = [y for _, y in points]
    axis = log_axis(values, up) if job.task in ("ppl", "sensitivity") else linear_axis(values, up, ceiling=1.0)
    x = replace(position_axis(sorted({int(x) for x, _ in points})), label=across)
    items = "".join(f'<li><i class="s{n % 8}"></i>{_text(each.name)}</li>' for n, each in enumerate(series))
    yield f"<h2>By {_text(across)}</h2>"
    yield f'<ul class="legend">{items}</ul>'
    yield f'<div class="card" style="max-width: 600px">{line_chart(TITLES[job.task], series, x=x, y=axis)}</div>'


def _text(text: str) -> str:
    return html.escape(printable(text))
