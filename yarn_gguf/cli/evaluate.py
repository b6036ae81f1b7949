"""`yarn-gguf eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from yarn_gguf.cli.evaluations import evaluation_document, print_evaluation
from yarn_gguf.cli.model_options import rpc_options, runtime_library
from yarn_gguf.cli.options import GGUF_PATH, OUTPUT_PATH, command_line, json_option, reference_rope_options, tokens
from yarn_gguf.cli.render import print_json, result, step_bars
from yarn_gguf.errors import UsageError
from yarn_gguf.evaluation import Job, cost, default_lengths, evaluate, reach
from yarn_gguf.evaluation_plot import plot_evaluation
from yarn_gguf.intent import RopeOptions
from yarn_gguf.models import Opening, is_checkpoint
from yarn_gguf.plot import check_plot_name
from yarn_gguf.runtime import KV_TYPES, MOST_THREADS

F = TypeVar("F", bound=Callable[..., Any])
DEPTHS: Final = 5
LONGEST_TEXT: Final = 1 << 30


def _lengths(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(dict.fromkeys(tokens(part) for part in text.split(",")))


def _depths(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    """`5`: so many, from 0 to 1; or the depths themselves: `0,0.5,1`, `0.3`."""
    try:
        if "," not in text and "." not in text and int(text) > 1:
            return tuple(i / (int(text) - 1) for i in range(int(text)))
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number of depths nor a list of them, such as 0,0.5,1"
        ) from None
    if not all(0 <= depth <= 1 for depth in found):
        raise click.BadParameter(f"{text!r}: a depth is from 0 (the beginning) to 1 (the end)")
    return found


_COMMON: Final = (
    click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=GGUF_PATH),
    click.option(
        "--ctx",
        "lengths",
        metavar="N,N,...",
        callback=_lengths,
        help="Lengths of the texts (256,1k,32k).  [default: from the original context by doubling to the longest]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Which texts."),
    click.option(
        "--kv",
        type=click.Choice(KV_TYPES),
        metavar="TYPE",
        help="llama.cpp's KV cache.  [default: f32 for F32 files, else f16]",
    ),
    click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="[default: the number of cores]"),
    click.option(
        "-ngl",
        "--gpu-layers",
        type=click.IntRange(-1),
        help="Layers on the GPU; -1: all.  [default: 0; with --rpc all]",
    ),
    click.option(
        "--runtime", default="stock", show_default=True, help="stock, patched, or a folder of llama.cpp libraries."
    ),
    click.option("--plot", type=GGUF_PATH, metavar="FILE", help="Draw the figures (.svg or .png)."),
    click.option("--html", type=OUTPUT_PATH, metavar="FILE", help="Write a page with the figures, needing no network."),
    json_option,
)


def _common(command: F) -> F:
    for option in reversed(_COMMON):
        command = option(command)
    return reference_rope_options(rpc_options(command))


_SAMPLES = click.option(
    "--samples", type=click.IntRange(1), default=4, show_default=True, help="Texts for each figure."
)
_DEPTHS = click.option(
    "--depths",
    default=str(DEPTHS),
    callback=_depths,
    metavar="K|D,D,...",
    show_default=True,
    help="How many places from beginning (0) to end (1), or which.",
)


@click.group("eval", short_help="Measure what models can still do at a length.")
def evaluation() -> None:
    """Measure what models can still do at a length: GGUFs in llama.cpp, Hugging Face folders in transformers.

    Texts are made from --seed, so models with one tokenizer get the same ones. With rope options a checkpoint is
    scaled as they say; a GGUF always gets what is in its keys.
    """


@evaluation.command(short_help="Find a key hidden in a text.")
@_SAMPLES
@_DEPTHS
@_common
def passkey(**given: Any) -> None:
    """Hide a five-digit key in sentences that say nothing, and ask for it at the end: length by depth.

    A text counts when every digit is the model's most probable one. No chat template: base models do as well.

    \b
    yarn-gguf eval passkey model-yarn4x.gguf --ctx 8k,32k,128k --samples 10 --plot grid.png
    """
    _run("passkey", **given)


@evaluation.command(short_help="Repeat a list of words from far back.")
@_SAMPLES
@_DEPTHS
@_common
def copy(**given: Any) -> None:
    """Repeat a list of 16 words that stood far back: the share of its tokens that the model knows, by distance.

    \b
    yarn-gguf eval copy before.gguf after.gguf --depths 0
    """
    _run("copy", **given)


@evaluation.command(short_help="Perplexity by context length.")
@click.option("--text", "file", type=GGUF_PATH, metavar="FILE", help="[default: a text made from --seed]")
@click.option(
    "--tokens", "count", type=tokens, default="2048", metavar="N", show_default=True, help="How many are foretold."
)
@click.option("--stride", type=tokens, metavar="N", help="Tokens foretold per window.  [default: a quarter of it]")
@_common
def ppl(file: Path | None, count: int, stride: int | None, **given: Any) -> None:
    """Perplexity of the same tokens, foretold from windows of every length that slide over the text."""
    _run("ppl", text=None if file is None else _read(file), count=count, stride=stride, **given)


@evaluation.command(short_help="How far back a model sees.")
@_SAMPLES
@_common
def sensitivity(**given: Any) -> None:
    """Change one token at a distance, and tell how much the last logits move: nothing, where a model cannot see it."""
    _run("sensitivity", **given)


@evaluation.command(short_help="How widely attention looks, by layer and position.")
@_SAMPLES
@_common
def entropy(**given: Any) -> None:
    """Entropy of the attention of every layer, by position, of Hugging Face folders: ln n is an even look at n tokens.

    \b
    yarn-gguf eval entropy checkpoint checkpoint-finetuned --ctx 2k
    """
    _run("entropy", **given)


def _read(file: Path) -> str:
    if file.stat().st_size > LONGEST_TEXT:
        raise UsageError(f"is larger than {LONGEST_TEXT >> 30} GiB", file=file, code="text_too_long")
    return file.read_text(encoding="utf-8", errors="replace")


def _run(
    task: str,
    *,
    models: tuple[Path, ...],
    lengths: tuple[int, ...],
    rope: RopeOptions,
    kv: str,
    threads: int | None,
    gpu_layers: int | None,
    rpc: tuple[str, ...],
    tensor_split: tuple[float, ...],
    runtime: str,
    plot: Path | None,
    html: Path | None,
    as_json: bool,
    **job: Any,
) -> None:
    if plot is not None:
        check_plot_name(plot)
    if rope.given and not any(is_checkpoint(path) for path in models):
        text = "rope options are for Hugging Face folders; a GGUF gets what its keys say, and extend changes those"
        raise UsageError(text, code="unused_option")
    how = Opening(
        1,
        threads=threads,
        gpu_layers=gpu_layers,
        rpc=rpc,
        tensor_split=tensor_split,
        library=runtime_library(runtime)[1],
        kv=kv,
        rope=rope,
    )
    wanted = Job(task, lengths or default_lengths([reach(path, how) for path in models]), **job)
    with step_bars(hidden=as_json) as steps, steps(task, cost(wanted) * len(models)) as progress:
        done, found = evaluate(models, how, wanted, progress)
    written = [(name, path) for name, path in (("plot", plot), ("page", html)) if path is not None]
    if plot is not None:
        plot_evaluation(done, found, plot)
    if html is not None:
        from yarn_gguf.evaluation_html import page
        from yarn_gguf.report_html import write_html

        write_html(page(done, found, command_line()), html)
    with result(*(path for _, path in written)):
        if as_json:
            print_json(evaluation_document(done, found))
        else:
            print_evaluation(done, found, written)
