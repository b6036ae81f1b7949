"""A picture of what a scaling does to every pair: frequencies before and after, and the ramp. SVG or PNG by the name.

Draws values it is given; computes nothing. The only importer of matplotlib, and only when it is asked to draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import ResourceError, UsageError
from yarn_gguf.rope import Floats, PairClass, Rope

FORMATS = (".svg", ".png")
_SHADES = {PairClass.KEPT: "#d7f0dd", PairClass.BLENDED: "#fff1c9", PairClass.INTERPOLATED: "#f7d9d5"}
_BEFORE, _AFTER, _RAMP = "#2f5d8a", "#c0392b", "#555555"


def check_plot_name(path: Path) -> None:
    """Refuses a name we could not draw to, before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot draws {' or '.join(FORMATS)}; name it so", file=path, code="plot_format")
    if not path.parent.is_dir():
        raise UsageError("its folder does not exist; create it first", file=path, code="no_folder")


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn: a rope, the contexts it spans, and what a runtime makes of it where that is something else."""

    title: str
    rope: Rope
    original: int | None
    context: int
    runtime: tuple[str, Floats] | None = None


def plot_rope(picture: Picture, path: Path) -> None:
    """Frequency of every pair before and after, over the class of each pair; below it the ramp."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for axis in (upper, lower):
        _shade(axis, picture.rope.pair_classes())
        axis.set_xlim(-0.5, picture.rope.dim // 2 - 0.5)
    _draw_frequencies(upper, picture)
    _draw_ramp(lower, picture.rope)
    upper.set_title(picture.title, fontsize=11)
    lower.set_xlabel("pair of dimensions (green kept, yellow blended, red interpolated)")
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise ResourceError(f"cannot be written: {error.strerror}", file=path, code="write_failed") from error


def _draw_frequencies(axis: Any, picture: Picture) -> None:
    rope, pairs = picture.rope, np.arange(picture.rope.dim // 2)
    axis.semilogy(pairs, rope.plain_frequencies, color=_BEFORE, label="before", lw=1.6)
    axis.semilogy(pairs, rope.inverse_frequencies(), color=_AFTER, label="after", lw=1.6)
    if picture.runtime is not None:
        name, frequencies = picture.runtime
        axis.semilogy(pairs, frequencies, color="black", label=f"what {name} computes", lw=1.2, ls="--")
    spans = {"original": picture.original, "extended": picture.context}
    for name, length in spans.items():
        if length is not None and (name == "original" or length != picture.original):
            axis.axhline(2 * np.pi / length, color="#888888", lw=0.8, ls=":")
            text = f"one turn in the {name} context, {length}"
            axis.annotate(text, (0, 2 * np.pi / length), fontsize=8, va="bottom", color="#555555")
    axis.set_ylabel("frequency (radians per token)")
    right = axis.secondary_yaxis("right", functions=(_other_way, _other_way))
    right.set_ylabel("wavelength (tokens)")
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _other_way(values: Floats) -> Floats:
    """Frequency to wavelength, and wavelength to frequency; matplotlib asks for zero as well."""
    return 2 * np.pi / np.maximum(values, 1e-300)


def _draw_ramp(axis: Any, rope: Rope) -> None:
    """The interpolated share of each pair; where the method has no ramp, its stretch."""
    ramp = rope.ramp
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
