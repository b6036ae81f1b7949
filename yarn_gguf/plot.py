"""A picture of what a scaling does to every pair: frequencies before and after, and the ramp. SVG or PNG by the name.

Draws values it is given; computes nothing. Kept, blended and interpolated are what they are in the text: by the whole
stretch of a pair, what lies under the scaling included. The only importer of matplotlib, and only when asked to draw.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import UsageError, printable
from yarn_gguf.gguf_file.fill import Held
from yarn_gguf.gguf_file.writer import check_target, staged
from yarn_gguf.rope import Floats, FrequencyFactors, PairClass, Rope

FORMATS = (".svg", ".png")
_SHADES = {PairClass.KEPT: "#d7f0dd", PairClass.BLENDED: "#fff1c9", PairClass.INTERPOLATED: "#f7d9d5"}
_PLAIN, _BEFORE, _AFTER, _RAMP = "#7f8c8d", "#2f5d8a", "#c0392b", "#555555"
_TITLE_WIDTH, _TITLE_LINES = 90, 3


def check_plot_name(path: Path) -> None:
    """Refuses a name we could not draw to, before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot draws {' or '.join(FORMATS)}; name it so", file=path, code="plot_format")
    check_target(path, (), overwrite=True, option="--plot")


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn: a rope, the contexts it spans, and what a runtime makes of it where that is something else."""

    title: str
    rope: Rope
    original: int | None
    context: int
    runtime: tuple[str, Floats] | None = None


def plot_rope(picture: Picture, path: Path) -> None:
    """Puts the picture in place, whole, or leaves what is there as it is."""
    drawn = _drawn(picture, path.suffix.lower().removeprefix("."))
    with staged(overwrite=True) as stage:
        stage.write(path, len(drawn), [Held(drawn, 0)])


def total_rope(rope: Rope) -> Rope:
    """The same frequencies by one scaling: the whole stretch of every pair, wherever it comes from."""
    return Rope(rope.dim, rope.base, FrequencyFactors(tuple(rope.frequency_factors().tolist())))


def _drawn(picture: Picture, kind: str) -> bytes:
    """Frequency of every pair before and after, over the class of each pair; below it the ramp."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axis in (upper, lower):
        _shade(axis, total_rope(picture.rope).pair_classes())
        axis.set_xlim(-0.5, picture.rope.dim // 2 - 0.5)
    _draw_frequencies(upper, picture)
    _draw_ramp(lower, picture.rope)
    upper.set_title(_title(picture.title), fontsize=11, parse_math=False)
    lower.set_xlabel("pair of dimensions (green kept, yellow blended, red interpolated)")
    found = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(found, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return found.getvalue()


def _title(text: str) -> str:
    """Lines as wide as the picture; of a very long name not all of it."""
    lines = textwrap.wrap(printable(text), _TITLE_WIDTH, max_lines=_TITLE_LINES, placeholder=" …")
    return "\n".join(lines)


def _draw_frequencies(axis: Any, picture: Picture) -> None:
    rope, pairs = picture.rope, np.arange(picture.rope.dim // 2)
    for label, frequencies, colour in _lines(rope):
        axis.semilogy(pairs, frequencies, color=colour, label=label, lw=1.6)
    if picture.runtime is not None:
        name, frequencies = picture.runtime
        axis.semilogy(pairs, frequencies, color="black", label=f"what {name} computes", lw=1.2, ls="--")
    spans = {"original": picture.original, "extended": picture.context}
    for name, length in spans.items():
        if length is not None and (name == "original" or length != picture.original):
            axis.axhline(2 * np.pi / length, color="#888888", lw=0.8, ls=":")
            text = f"one turn in the {name} context, {length}"
            axis.annotate(text, (0, 2 * np.pi / length), fontsize=8, va="bottom", color="#555555", parse_math=False)
    axis.set_ylabel("frequency (radians per token)")
    right = axis.secondary_yaxis("right", functions=(_other_way, _other_way))
    right.set_ylabel("wavelength (tokens)")
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _lines(rope: Rope) -> list[tuple[str, Floats, str]]:
    """What the scaling makes of what; and where that was not plain (llama3, baked factors), the plain frequencies."""
    before = Rope(rope.dim, rope.base, rope.under) if rope.under is not None else None
    lines = [("before", rope.plain_frequencies, _BEFORE)]
    if before is not None:
        lines = [("plain", rope.plain_frequencies, _PLAIN), ("before", before.inverse_frequencies(), _BEFORE)]
    return [*lines, ("after", rope.inverse_frequencies(), _AFTER)]


def _other_way(values: Floats) -> Floats:
    """Frequency to wavelength, and wavelength to frequency; matplotlib asks for zero as well."""
    return 2 * np.pi / np.maximum(values, 1e-300)


def _draw_ramp(axis: Any, rope: Rope) -> None:
    """The interpolated share of each pair; its stretch where the method has no ramp, or where that is not all."""
    ramp = rope.ramp if rope.under is None else None
    axis.plot(np.arange(rope.dim // 2), rope.frequency_factors() if ramp is None else ramp, color=_RAMP, lw=1.4)
    axis.set_ylabel("stretch" if ramp is None else "ramp")
    axis.set_ylim(bottom=0)


def _shade(axis: Any, classes: tuple[PairClass, ...]) -> None:
    """Colours each run of pairs of one class."""
    start = 0
    for i in range(1, len(classes) + 1):
        if i == len(classes) or classes[i] is not classes[start]:
            axis.axvspan(start - 0.5, i - 0.5, color=_SHADES[classes[start]], lw=0)
            start = i
