"""Options of the commands that run models: how they are opened, where, and over which text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from yarn_gguf import rpc
from yarn_gguf.cli.options import GGUF_PATH, tokens
from yarn_gguf.effective import Runtime
from yarn_gguf.llamacpp.libraries import abilities, library_folder
from yarn_gguf.runtime import KV_TYPES, MOST_THREADS
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verification.windows import parse_ranges

F = TypeVar("F", bound=Callable[..., Any])

_TEXT_OPTIONS = (
    click.option(
        "--ctx", type=tokens, metavar="N", help="Tokens of text (32k).  [default: the models' context, at most 32k]"
    ),
    click.option("--text", type=GGUF_PATH, metavar="FILE", help="UTF-8 text.  [default: a built-in one]"),
    click.option("--tokens", type=GGUF_PATH, metavar="FILE", help="Token ids instead: numbers, or a .npy."),
    click.option(
        "--windows",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="How many texts of --ctx tokens, each from an empty cache.",
    ),
    click.option(
        "--stride", type=click.IntRange(1), default=1, show_default=True, help="Score every so many positions."
    ),
    click.option("--positions", metavar="A-B,…", help="Score only these positions: 0-512,4096-8192."),
)


def _endpoints(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    return rpc.endpoints(texts)


def _shares(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...]:
    """`3,1`: proportions, of which one at least is above 0."""
    try:
        found = () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if text is not None and (not all(math.isfinite(share) and share >= 0 for share in found) or not any(found)):
        raise click.BadParameter(f"{text!r} is no list of proportions such as 3,1")
    return found


_RPC_OPTIONS = (
    click.option(
        "--rpc",
        multiple=True,
        metavar="HOST:PORT,...",
        callback=_endpoints,
        help="Machines that run llama.cpp's ggml-rpc-server, over which the model is spread.",
    ),
    click.option(
        "-ts",
        "--tensor-split",
        metavar="N,N,...",
        callback=_shares,
        help="What each device gets of it, RPC servers first: 3,1.  [default: by free memory]",
    ),
)


def rpc_options(command: F) -> F:
    """Other machines."""
    return _with(_RPC_OPTIONS, command)


_MODEL_OPTIONS = (
    click.option(
        "--kv",
        type=click.Choice(KV_TYPES),
        metavar="TYPE",
        help=f"KV cache of the candidates: {', '.join(KV_TYPES)}.  [default: f32 for F32 files, else f16]",
    ),
    click.option(
        "--flash-attention",
        type=click.Choice(("auto", "on", "off")),
        default="auto",
        show_default=True,
        help="Of llama.cpp; auto is off with an f32 cache.",
    ),
    click.option("--runtime", default="stock", show_default=True, help="stock, patched, or a folder of libraries."),
    click.option(
        "--threads", type=click.IntRange(1, MOST_THREADS), help="For computing.  [default: the number of cores]"
    ),
    click.option(
        "-ngl", "--gpu-layers", type=click.IntRange(-1), help="Layers on a GPU; -1: all.  [default: 0; with --rpc all]"
    ),
    *_RPC_OPTIONS,
    click.option("--batch", type=click.IntRange(1), help="Tokens at a time.  [default: 16 to 512, by vocabulary]"),
    click.option(
        "--dtype",
        type=click.Choice(("f32", "bf16", "f16")),
        default="f32",
        show_default=True,
        help="Arithmetic of a Hugging Face reference.",
    ),
    click.option(
        "--noise",
        type=click.IntRange(0),
        default=1024,
        show_default=True,
        metavar="N",
        help="Tokens over which the reference is held against itself; 0: not at all.",
    ),
    click.option(
        "--deadline",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Without a sign of life, after which a model is given up.",
    ),
)


def text_options(command: F) -> F:
    """Which text, and which of its positions."""
    return _with(_TEXT_OPTIONS, command)


def model_options(command: F) -> F:
    """How models are opened."""
    return _with(_MODEL_OPTIONS, command)


def _with(options: tuple[Any, ...], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def wanted_from(options: dict[str, Any], **more: Any) -> Wanted:
    """What text_options and model_options gathered."""
    runtime, library = runtime_library(options.pop("runtime"))
    flash = {"auto": None, "on": True, "off": False}[options.pop("flash_attention")]
    positions = options.pop("positions")
    ranges = () if positions is None else parse_ranges(positions)
    context = options.pop("ctx")
    return Wanted(
        context=context,
        ranges=ranges,
        flash_attention=flash,
        runtime=runtime,
        library=library,
        **options,
        **more,
    )


def runtime_library(name: str) -> tuple[Runtime, Path | None]:
    """`--runtime`: what it computes, and the folder of its libraries; None: llama-cpp-python's own.

    A library of somebody's own is asked what it can do.
    """
    folder = library_folder(name)
    if name in (Runtime.STOCK.value, Runtime.PATCHED.value) or folder is None:
        return Runtime(name), folder
    return Runtime(abilities(folder).kind), folder
