"""`yarn-gguf record`: parse, one library call, render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.model_options import model_options, text_options, wanted_from
from yarn_gguf.cli.options import GGUF_PATH, OUTPUT_PATH, json_option, reference_rope_options
from yarn_gguf.cli.render import print_json, print_rows, result, step_bars
from yarn_gguf.intent import RopeOptions
from yarn_gguf.report import number
from yarn_gguf.sizes import size_text
from yarn_gguf.verification.about import recorded_noise
from yarn_gguf.verification.recording import SUFFIX, Record
from yarn_gguf.verification.running import TOP
from yarn_gguf.verify import record_reference


@click.command(short_help="Keep a model's distributions in a small file, to verify against later.")
@click.argument("model", type=GGUF_PATH)
@click.option("-o", "--output", type=OUTPUT_PATH, help=f"Where to write.  [default: MODEL{SUFFIX}]")
@click.option(
    "--top", type=click.IntRange(1), default=TOP, show_default=True, help="Words kept of a position, on average."
)
@text_options
@reference_rope_options
@model_options
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@json_option
def record(
    model: Path, output: Path | None, top: int, rope: RopeOptions, force: bool, as_json: bool, **options: Any
) -> None:
    """Run a text through MODEL (a Hugging Face folder or a GGUF) once, and keep what `verify` needs of it.

    The most probable words of every position, with what all others have together: tens of MB where the logits would be
    tens of GB. Against it `verify` gives perplexity, Δp and top-1 exactly, and a KL that the true one is not below.

    \b
    yarn-gguf record Qwen3-8B --ctx 32k -o qwen3-8b.yref
    yarn-gguf verify qwen3-8b.yref qwen3-8b-Q4_K_M.gguf
    """
    name = model.resolve().name
    final = output or model.with_name(f"{name.removesuffix('.gguf')}{SUFFIX}")
    wanted = wanted_from(options, rope=rope)
    with step_bars(hidden=as_json) as steps:
        found = record_reference(model, final, wanted, top, steps, force=force)
    with result(final):
        if as_json:
            print_json(document(found))
        else:
            _print(found)


def document(found: Record) -> dict[str, Any]:
    size, noise = found.path.stat().st_size, recorded_noise(found)
    return {
        "outputs": [
            {
                "path": str(found.path),
                "files": [{"path": str(found.path), "bytes": size, "how": "written"}],
                "bytes": size,
                "type": "yref",
            }
        ],
        "context": found.windows.context,
        "windows": found.windows.count,
        "tokens": found.windows.scored,
        "top": found.top,
        "noise_floor": None if noise is None else noise.summary.kld.mean,
        "provenance": dict(found.provenance),
    }


def _print(found: Record) -> None:
    facts, noise = found.provenance, recorded_noise(found)
    windows = f", {found.windows.count} windows" if found.windows.count > 1 else ""
    rows = [
        ("rope", f"{facts['rope']}  (by {facts['rope_source']})"),
        ("text", f"{facts['text']}, context {found.windows.context}{windows}; {found.windows.scored} positions"),
    ]
    if noise is not None:
        rows.append(("floor", f"mean KL {number(noise.summary.kld.mean)}: the model against itself in other batches"))
    rows.append(
        ("wrote", f"{found.path}, {size_text(found.path.stat().st_size)}, {found.top} words of a position on average")
    )
    print_rows(f"{facts['model']}  {facts['arch']}", rows)
