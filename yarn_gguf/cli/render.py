"""Library values -> what a person reads, and what a program reads. The only module besides the commands that prints.

For a person, control characters from a file are spelled out; for a program everything is exact.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from yarn_gguf.errors import ResourceError, printable
from yarn_gguf.findings import Finding, Level
from yarn_gguf.gguf_file.fill import Progress
from yarn_gguf.rope_words import rope_json, rope_text
from yarn_gguf.steps import Steps, silent

__all__ = ["rope_json", "rope_text"]  # what a command prints, wherever it is made

SCHEMA = 1
_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "blue"}


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"level": f.level.value, "code": f.code, "text": f.whole} for f in findings]


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **_finite(document)}, ensure_ascii=True, allow_nan=False))


def _finite(value: Any) -> Any:
    """Non-finite numbers become null, as JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def result(*written: object) -> Iterator[None]:
    """A block that prints a result: should stdout not take it, that is said, and that `written` is there anyway."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        if written:
            text += f"; {', '.join(map(str, written))} {'were' if written[1:] else 'was'} written all the same"
        raise ResourceError(text, file="<stdout>", code="stdout_failed") from error


def print_rows(title: str, rows: Iterable[tuple[str, str]], *, err: bool = False) -> None:
    """A title and lines of `name  text`, wrapped to the terminal."""
    click.echo(click.style(printable(title), bold=True), err=err)
    for name, text in rows:
        _print_wrapped(f"  {name:<9} ", text, err=err)


def print_findings(findings: Iterable[Finding], *, err: bool = False) -> None:
    for found in findings:
        label = click.style(f"{found.level.value}:", fg=_COLOURS[found.level])
        _print_wrapped(f"  {label} ", found.text + (":" if found.command else ""), indent=4, err=err)
        if found.command:
            click.echo(f"    {found.command}", err=err)


def print_verdict(text: str, *, sound: bool, err: bool = False) -> None:
    lines = textwrap.wrap(f"{'✓' if sound else '✗'} {printable(text)}", _width(), subsequent_indent="  ")
    click.echo(click.style("\n".join(lines), fg="green" if sound else "red", bold=True), err=err)


def shortened(text: str, width: int) -> str:
    """At most `width` characters, the middle left out."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else ""


def line_width() -> int | None:
    """How long a line of a table may be; None for what is no terminal, and has all."""
    return _width() if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def _width() -> int:
    return max(shutil.get_terminal_size((100, 24)).columns, 40)


def _print_wrapped(head: str, text: str, indent: int = 12, *, err: bool = False) -> None:
    """`head text`, with what does not fit on lines below, indented."""
    used = len(click.unstyle(head))
    first, rest = " " * used, " " * indent
    shape = textwrap.TextWrapper(_width(), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    lines = shape.wrap(printable(text))
    click.echo("\n".join([head + lines[0][used:], *lines[1:]]) if lines else head, err=err)


@contextmanager
def progress_bar(total: int, *, hidden: bool) -> Iterator[Progress]:
    """A bar with bytes, rate and time left on a terminal; nothing elsewhere, and nothing for what is quick."""
    if hidden or not sys.stderr.isatty() or total < 64 << 20:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)


@contextmanager
def step_bars(*, hidden: bool) -> Iterator[Steps]:
    """Bars for steps of so many tokens, each with the time left, on a terminal."""
    if hidden or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:

        @contextmanager
        def step(name: str, total: int) -> Iterator[Progress]:
            task = bar.add_task(shortened(printable(name), 40), total=total)
            yield lambda count: bar.update(task, advance=count)
            bar.remove_task(task)

        yield step
