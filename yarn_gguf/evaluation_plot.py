"""Pictures of evaluations: a heat map of length × depth for each model, or one curve per model. SVG or PNG by the name.

Draws values it is given; computes nothing but means over depths. Imports matplotlib only when asked to draw.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import printable
from yarn_gguf.evaluate import Cell
from yarn_gguf.evaluation import Evaluated, Job
from yarn_gguf.evaluation_lines import AXES, lines
from yarn_gguf.gguf_file.fill import Held
from yarn_gguf.gguf_file.writer import staged

_COLUMNS = 3  # heat maps side by side
_SCALES: dict[str, dict[str, Any]] = {"sensitivity": {"value": "symlog", "linthresh": 1e-6}, "ppl": {"value": "log"}}


def plot_evaluation(job: Job, found: Sequence[Evaluated], path: Path) -> None:
    """Puts the picture in place, whole, or leaves what is there as it is."""
    drawn = drawing(job, found, path.suffix.lower().removeprefix("."))
    with staged(overwrite=True) as stage:
        stage.write(path, len(drawn), [Held(drawn, 0)])


def drawing(job: Job, found: Sequence[Evaluated], kind: str) -> bytes:
    """`kind`: svg or png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = job.task in ("passkey", "copy") and len(job.depths) > 1
    rows = -(-len(found) // _COLUMNS) if grid else 1
    columns = min(len(found), _COLUMNS) if grid else 1
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows) if grid else (7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    if grid:
        _heat_maps(figure, axes, job, found)
    else:
        _curves(axes[0], job, found)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _heat_maps(figure: Any, axes: Any, job: Job, found: Sequence[Evaluated]) -> None:
    image = None
    for axis, each in zip(axes, found, strict=False):
        scores = {(cell.length, cell.depth): cell.score for cell in each.results if isinstance(cell, Cell)}
        values = np.array([[scores[length, depth] for length in job.lengths] for depth in job.depths])
        image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axis.set_xticks(range(len(job.lengths)), [str(length) for length in job.lengths], fontsize=8)
        axis.set_yticks(range(len(job.depths)), [f"{depth:.0%}" for depth in job.depths], fontsize=8)
        axis.set_title(printable(each.path.name), fontsize=9, parse_math=False)
        axis.set_xlabel("tokens", fontsize=8)
        axis.set_ylabel("depth", fontsize=8)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=list(axes), label=f"{job.task}: right", shrink=0.8)


def _curves(axis: Any, job: Job, found: Sequence[Evaluated]) -> None:
    for each in found:
        for label, across, up in lines(each):
            axis.plot(across, up, marker="o", ms=3.5, lw=1.5, label=printable(each.path.name + label))
    across_name, up_name = AXES[job.task]
    axis.set_xscale("log", base=2)
    axis.set_yscale(**_SCALES.get(job.task, {"value": "linear"}))
    axis.set_xlabel(across_name)
    axis.set_ylabel(up_name)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
