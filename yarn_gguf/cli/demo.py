"""`yarn-gguf demo`: the other commands, one after the other, on the model in the package."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from yarn_gguf.cli.evaluations import print_evaluation
from yarn_gguf.cli.options import OUTPUT_PATH
from yarn_gguf.cli.render import print_verdict, step_bars
from yarn_gguf.cli.verify import print_report
from yarn_gguf.evaluation import Evaluated, Job
from yarn_gguf.report_html import write_html
from yarn_gguf.verification.results import Report

SAMPLES = 2


@click.command(short_help="See it at work on a little model, in a minute.")
@click.option(
    "-o", "--output", type=OUTPUT_PATH, default=Path("demo-out"), show_default=True, help="Where its files go."
)
@click.option("--open", "opened", is_flag=True, help="Show the page in a browser.")
def demo(output: Path, opened: bool) -> None:
    """Give a little model eight times its context, quantize it, verify both, and find keys before and after.

    The model lies in the package (its card says how it was made); nothing is fetched. Everything that is made lies in
    one folder, with a page that shows it.
    """
    from yarn_gguf.demo import CONTEXT, page, prepare

    began = time.monotonic()
    places = prepare(output)
    steps = _Steps()
    _say("1. A model that was trained on texts of 256 tokens, as a GGUF; and what it became with YaRN ×8.")
    steps.run("convert", places.base, "-o", places.before, "--outtype", "f16", "--force")
    steps.run("convert", places.yarn8, "-o", places.after, "--outtype", "f16", "--force")
    _say("2. The same, in half of the bytes.")
    steps.run("quantize", places.after, "Q8_0", "-o", places.small, "--force")
    _say(f"3. Do both compute what the checkpoint does, at every position of {CONTEXT} tokens?")
    arguments = (places.yarn8, places.after, places.small, "--ctx", str(CONTEXT), "--text", places.text)
    steps.show("verify", *arguments)
    report = _verified(places.yarn8, (places.after, places.small), places.text)
    print_report(report)
    _say("4. A key is hidden in a text and asked for at its end. Before and after:")
    steps.show("eval", "passkey", places.before, places.small, "--samples", str(SAMPLES))
    job, found = _passkeys((places.before, places.small))
    print_evaluation(job, found, ())
    write_html(page(report, job, found, steps.commands), places.page)
    sound = report.passed
    seconds = time.monotonic() - began
    _say(f"All of it lies in {output}/ ({seconds:.0f} s). Open {places.page} to see it.")
    print_verdict("the GGUFs compute what the checkpoint does" if sound else "a GGUF differs; see above", sound=sound)
    if opened:
        click.launch(places.page.resolve().as_uri())
    if not sound:
        click.get_current_context().exit(1)


class _Steps:
    """Commands, shown as a person would type them."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def show(self, *arguments: str | Path) -> list[str]:
        words = [str(each) for each in arguments]
        self.commands.append(shlex.join(["yarn-gguf", *words]))
        click.echo(f"$ {self.commands[-1]}")
        return words

    def run(self, *arguments: str | Path) -> None:
        words = self.show(*arguments)
        context = click.get_current_context()
        group = context.find_root().command
        assert isinstance(group, click.Group)
        command = group.get_command(context, words[0])
        assert command is not None
        with command.make_context(words[0], words[1:], parent=context.find_root()) as inner:
            command.invoke(inner)


def _say(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True))


def _verified(reference: Path, candidates: tuple[Path, ...], text: Path) -> Report:
    from yarn_gguf.demo import CONTEXT
    from yarn_gguf.verification.wanted import Wanted
    from yarn_gguf.verify import verify

    with step_bars(hidden=False) as bars:
        return verify(reference, candidates, Wanted(context=CONTEXT, text=text), bars)


def _passkeys(models: tuple[Path, ...]) -> tuple[Job, tuple[Evaluated, ...]]:
    from yarn_gguf.demo import CONTEXT, DEPTHS, LENGTHS
    from yarn_gguf.evaluation import cost, evaluate
    from yarn_gguf.models import Opening

    job = Job("passkey", LENGTHS, DEPTHS, samples=SAMPLES)
    with step_bars(hidden=False) as bars, bars("passkey", cost(job) * len(models)) as progress:
        return evaluate(models, Opening(CONTEXT), job, progress)
