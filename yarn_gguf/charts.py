"""Plots as SVG that a page takes its colours from: lines over positions, bars of a histogram. Numbers in, text out.

Everything that has a colour has a class (`s0`, `s1`, … for the series), so that one page looks right in light and dark.
Knows no models.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from yarn_gguf.errors import printable

WIDTH: Final = 440
HEIGHT: Final = 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
SERIES: Final = 8  # colours


@dataclass(frozen=True, slots=True)
class Series:
    """A name and points; `notes[i]` is shown for the i-th."""

    name: str
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    low: float
    high: float
    log: bool = False
    label: str = ""
    ticks: tuple[float, ...] = field(default=())

    def at(self, value: float) -> float:
        """0 to 1."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def log_axis(values: Sequence[float], label: str) -> Axis:
    """Whole decades around the values."""
    good = [each for each in values if each > 0 and math.isfinite(each)]
    low = math.floor(math.log10(min(good))) if good else -1
    high = math.ceil(math.log10(max(good))) if good else 0
    high = max(high, low + 1)
    step = max(1, math.ceil((high - low) / 6))
    ticks = tuple(10.0**each for each in range(low, high + 1, step))
    return Axis(10.0**low, 10.0**high, True, label, ticks)


def ratio_axis(values: Sequence[float], label: str) -> Axis:
    """Decades where the values span several, else round numbers around them."""
    good = [each for each in values if each > 0 and math.isfinite(each)]
    wide = bool(good) and max(good) > 30 * min(good)
    return log_axis(values, label) if wide else linear_axis(good, label)


def linear_axis(values: Sequence[float], label: str, *, ceiling: float | None = None) -> Axis:
    """Round numbers around the values; `ceiling`: as high as it goes."""
    good = [each for each in values if math.isfinite(each)] or [0.0]
    low, high = min(good), max(good) if ceiling is None else ceiling
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = (low - 0.05, high) if ceiling is not None else (low - 0.5, high + 0.5)
    step = _round_step((high - low) / 4)
    low = math.floor(low / step) * step
    high = high if ceiling is not None else math.ceil(high / step - 1e-9) * step
    count = int((high - low) / step + 1e-6)
    return Axis(low, high, False, label, tuple(low + step * each for each in range(count + 1)))


def position_axis(edges: Sequence[int]) -> Axis:
    """Powers of two, as many as there is room for."""
    low, high = max(edges[0], 32), max(edges[-1], 64)
    ticks = [low]
    while ticks[-1] * 2 < high:
        ticks.append(ticks[-1] * 2)
    ticks.append(high)
    step = max(1, math.ceil(len(ticks) / 7))
    return Axis(low, high, True, "position in the text", tuple(float(each) for each in ticks[::-1][::step][::-1]))


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(each * size for each in (1, 2, 2.5, 5, 10) if each * size >= rough * 0.999)


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, mark: float | None = None, mark_text: str = ""
) -> str:
    """`mark`: an x that a dashed line stands at."""
    parts = [_frame(title, x, y)]
    if mark is not None and x.low < mark < x.high:
        at = _x(x, mark)
        parts.append(f'<line class="mark" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        anchor, shift = ("end", -4) if x.at(mark) > 0.6 else ("start", 4)
        text = _text(mark_text)
        parts.append(
            f'<text class="small" x="{at + shift:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="{anchor}">{text}</text>'
        )
    for number, each in enumerate(series):
        parts += _line(each, x, y, f"s{number % SERIES}")
    return _svg(title, parts)


def _line(series: Series, x: Axis, y: Axis, kind: str) -> Iterator[str]:
    places = [(_x(x, px), _y(y, py), index) for index, (px, py) in enumerate(series.points) if math.isfinite(py)]
    if len(places) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)
        yield f'<polyline class="line {kind}" points="{path}"/>'
    for px, py, index in places:
        note = f"{series.name}: {series.notes[index]}" if series.notes else series.name
        text = f"<title>{_text(note)}</title>"
        yield f'<circle class="dot {kind}" cx="{px:.1f}" cy="{py:.1f}" r="3">{text}</circle>'


def histogram(title: str, label: str, edges: Sequence[float], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Shares between the edges, one outline per series."""
    highest = max((value for _, values in series for value in values), default=1.0)
    x = linear_axis([edges[0], edges[-1]], label)
    x = Axis(edges[0], edges[-1], False, label, tuple(t for t in x.ticks if edges[0] <= t <= edges[-1]))
    y = log_axis([max(highest, 1e-3), 1e-4], "share of tokens")
    parts = [_frame(title, x, y)]
    for number, (name, values) in enumerate(series):
        corners = []
        for index, value in enumerate(values):
            at = _y(y, max(value, y.low))
            corners += [f"{_x(x, edges[index]):.1f},{at:.1f}", f"{_x(x, edges[index + 1]):.1f},{at:.1f}"]
        text = _text(name)
        parts.append(
            f'<polyline class="line s{number % SERIES}" points="{" ".join(corners)}"><title>{text}</title></polyline>'
        )
    return _svg(title, parts)


def _text(text: str) -> str:
    """Safe within an element and an attribute, whatever characters a name has."""
    return html.escape(printable(text), quote=True)


def _frame(title: str, x: Axis, y: Axis) -> str:
    bottom, parts = HEIGHT - BOTTOM, list[str]()
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_tick(tick, y.log)}</text>'
        )
    for tick in x.ticks:
        at = _x(x, tick)
        text = _count(tick) if x.log else _tick(tick, log=False)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="small" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{_text(x.label)}</text>')
    high = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 12 {high})"'
    parts.append(f'<text class="small" x="12" y="{high}" text-anchor="middle" {turned}>{_text(y.label)}</text>')
    return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">'
    return f"{head}{''.join(parts)}</svg>"


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(min(max(value, axis.low), axis.high)) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(min(max(value, axis.low), axis.high)) * (HEIGHT - TOP - BOTTOM)


def _tick(value: float, log: bool) -> str:
    if log and (value < 1e-2 or value >= 1e4):
        return f"1e{round(math.log10(value))}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _count(value: float) -> str:
    whole = round(value)
    return f"{whole // 1024}k" if whole >= 1024 and whole % 1024 == 0 else str(whole)
