"""What `eval` prints: for a person, and as JSON. Knows values; opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from yarn_gguf.cli.render import line_width, print_rows, shortened
from yarn_gguf.evaluate import Cell, Change, Entropy, Perplexity
from yarn_gguf.evaluation import Evaluated, Job
from yarn_gguf.evaluation_lines import TITLES

NAME: Final = 36  # characters of a model's name


def evaluation_document(job: Job, found: Sequence[Evaluated]) -> dict[str, Any]:
    return {
        "task": job.task,
        "seed": job.seed,
        "models": [
            {
                "path": str(each.path),
                "runtime": each.runtime,
                "original_context": each.original,
                "context": each.context,
                "results": [asdict(result) for result in each.results],
                "seconds": each.seconds,
            }
            for each in found
        ],
    }


def print_evaluation(job: Job, found: Sequence[Evaluated], written: Sequence[tuple[str, Path]]) -> None:
    """`written`: what else there is, by its name."""
    print_rows(f"{TITLES[job.task]}, seed {job.seed}", [(name, str(path)) for name, path in written])
    for name, lines in tables(job, found):
        if name:
            click.echo(f"  {name}")
        click.echo("\n".join(f"    {line}" for line in lines))


def tables(job: Job, found: Sequence[Evaluated]) -> list[tuple[str, list[str]]]:
    """Per model its name and a table; one table for all of them where a figure hangs on the length alone."""
    if job.task == "ppl":
        return [("", _perplexities(job, found))]
    lines: dict[str, Callable[[Evaluated], list[str]]] = {"sensitivity": _changes, "entropy": _entropies}
    return [(_name(each), lines[job.task](each) if job.task in lines else _grid(job, each)) for each in found]


def _name(each: Evaluated) -> str:
    width = line_width()
    return f"{shortened(each.path.name, NAME if width is None else max(width - 30, 12))} in {each.runtime}"


def _grid(job: Job, each: Evaluated) -> list[str]:
    """Lengths down, depths across; a percentage each, and the mean."""
    cells = {(cell.length, cell.depth): cell.score for cell in each.results if isinstance(cell, Cell)}
    head = f"{'tokens':>8}" + "".join(f"{f'{depth:.0%}':>7}" for depth in job.depths) + f"{'mean':>8}"
    lines = [head]
    for length in job.lengths:
        scores = [cells[length, depth] for depth in job.depths]
        texts = "".join(f"{100 * score:7.1f}" for score in scores)
        lines.append(f"{length:>8}{texts}{100 * sum(scores) / len(scores):8.1f}")
    return lines


def _perplexities(job: Job, found: Sequence[Evaluated]) -> list[str]:
    lines = [f"{'':<{NAME}}" + "".join(f"{length:>9}" for length in job.lengths)]
    for each in found:
        values = {result.length: result.ppl for result in each.results if isinstance(result, Perplexity)}
        figures = "".join(f"{values[length]:>9.4g}" for length in job.lengths)
        lines.append(f"{shortened(each.path.name, NAME - 1):<{NAME}}{figures}")
    return lines


def _changes(each: Evaluated) -> list[str]:
    changes = [result for result in each.results if isinstance(result, Change)]
    lines = [f"{'tokens':>8}{'distance':>10}{'change':>12}{'KL':>12}"]
    return lines + [f"{c.length:>8}{c.distance:>10}{c.change:>12.4g}{c.kld:>12.3g}" for c in changes]


def _entropies(each: Evaluated) -> list[str]:
    """Positions down, layers across."""
    found = [result for result in each.results if isinstance(result, Entropy)]
    values = {(e.length, e.first, e.end, e.layer): e.entropy for e in found}
    layers = sorted({e.layer for e in found})
    lines = [f"{'tokens':>8}{'positions':>14}" + "".join(f"{f'layer {layer}':>10}" for layer in layers)]
    for length, first, end in dict.fromkeys((e.length, e.first, e.end) for e in found):
        figures = "".join(f"{values[length, first, end, layer]:10.3f}" for layer in layers)
        lines.append(f"{length:>8}{f'{first}-{end - 1}':>14}{figures}")
    return lines
