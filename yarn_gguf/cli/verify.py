"""`yarn-gguf verify`: parse, one library call, render."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.model_options import model_options, text_options, wanted_from
from yarn_gguf.cli.options import GGUF_PATH, OUTPUT_PATH, command_line, json_option, reference_rope_options
from yarn_gguf.cli.render import print_findings, print_json, print_rows, print_verdict, result, step_bars
from yarn_gguf.errors import printable
from yarn_gguf.intent import RopeOptions
from yarn_gguf.report import by_position, document, heading, model_line, table, verdicts
from yarn_gguf.verification.results import Report
from yarn_gguf.verification.wanted import Overrides
from yarn_gguf.verify import verify as run_verification


@click.command(short_help="Measure how far models are from a reference, by position.")
@click.argument("reference", type=GGUF_PATH)
@click.argument("candidates", type=GGUF_PATH, nargs=-1, required=True, metavar="CANDIDATE...")
@text_options
@reference_rope_options
@model_options
@click.option("--max-kld", type=float, metavar="X", help="Most mean KL, in nats.  [default: by type]")
@click.option(
    "--min-top1", type=float, metavar="Y", help="Least agreement on the first word, 0 to 1.  [default: by type]"
)
@click.option(
    "--max-growth", type=float, metavar="Z", help="KL beyond the original context over KL inside it.  [default: 4]"
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run of the same verification stopped.")
@click.option(
    "--lockstep/--reference-first", default=None, help="All models at once, or one by one.  [default: what fits]"
)
@click.option("--html", type=OUTPUT_PATH, metavar="FILE", help="Write a page with plots, readable without a network.")
@json_option
def verify(
    reference: Path,
    candidates: tuple[Path, ...],
    rope: RopeOptions,
    max_kld: float | None,
    min_top1: float | None,
    max_growth: float | None,
    resume: bool,
    lockstep: bool | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Hold GGUFs against a REFERENCE: a Hugging Face folder, a GGUF, or a .yref that `record` made.

    The same text goes through all of them, and their distributions are compared at every position. Exits with 1 when a
    candidate is further away than its type allows; what is allowed, and why, is in docs/verify.md.

    \b
    yarn-gguf verify Qwen3-8B qwen3-8b-Q4_K_M.gguf --ctx 32k
    yarn-gguf verify qwen3-8b-f16.gguf *-Q*.gguf --html report.html
    """
    overrides = Overrides(max_kld, min_top1, max_growth)
    wanted = wanted_from(options, rope=rope, overrides=overrides, resume=resume, lockstep=lockstep)
    with step_bars(hidden=as_json) as steps:
        report = run_verification(reference, candidates, wanted, steps)
    if html is not None:
        from yarn_gguf.report_html import write_page

        write_page(report, html, command_line())
    with result(*[] if html is None else [html]):
        if as_json:
            print_json(document(report))
        else:
            print_report(report)
            if html is not None:
                click.echo(f"  page      {html}")
    if not report.passed:
        click.get_current_context().exit(1)


def print_report(report: Report) -> None:
    print_rows(model_line(report.reference), heading(report))
    _blocks(report, (table, by_position))
    print_findings(report.findings)
    for sound, text in verdicts(report):
        print_verdict(text, sound=sound)


def _blocks(report: Report, parts: tuple[Callable[[Report], Any], ...]) -> None:
    for part in parts:
        click.echo("")
        for line in part(report):
            click.echo(printable(line))
    click.echo("")
