"""`yarn-gguf plan`: parse, one library call, render."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from yarn_gguf.cli.options import GGUF_PATH, json_option, reference_rope_options, size, tokens
from yarn_gguf.cli.plans import document, print_plan
from yarn_gguf.cli.quantizations import outtypes
from yarn_gguf.cli.render import (
    print_json,
    result,
    step_bars,
)
from yarn_gguf.intent import RopeOptions
from yarn_gguf.memory.measuring import prices_of
from yarn_gguf.memory.needs import RESERVE, UBATCH
from yarn_gguf.plan import OUTPUTS, Progress, Wanted, plan, usual_caches

LEAST: Final = 1 << 20  # bytes of a memory; less was meant as something else


def _sizes(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A size, or 0 for none."""
    if text is None or text.strip() == "0":
        return None if text is None else 0
    found = size(text)
    if found < LEAST:
        raise click.BadParameter(f"{text!r} is {found} bytes; is a unit missing? 8GiB, 500MiB; 0 for none")
    return found


def _outputs(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """A number, or None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise click.BadParameter(f"{text!r} is neither a number of tokens nor all")
    return int(text)


def _types(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    return () if text is None else outtypes(text)


def _caches(_: click.Context, __: click.Parameter, text: str | None) -> tuple[tuple[str, str], ...]:
    """`f16,q8_0,q8_0/q4_0`: one type, or those of keys and of values."""
    if text is None:
        return ()
    pairs = [part.strip().lower().split("/") for part in text.split(",")]
    if any(len(pair) > 2 or not all(pair) for pair in pairs):
        raise click.BadParameter(f"{text!r} is no list of types such as f16,q8_0 or q8_0/q4_0")
    return tuple(dict.fromkeys((pair[0], pair[-1]) for pair in pairs))


@click.command("plan", short_help="Say which context fits this computer, with which weights and cache.")
@click.argument("model", type=GGUF_PATH)
@click.option(
    "--vram", callback=_sizes, metavar="SIZE", help="Memory of the GPU (8GiB); 0: none.  [default: what is free]"
)
@click.option("--ram", callback=_sizes, metavar="SIZE", help="Memory of the computer (16GiB).  [default: what is free]")
@click.option(
    "--reserve",
    callback=_sizes,
    metavar="SIZE",
    help=f"Of the GPU's memory, what the driver and others have.  [default: {RESERVE >> 20}MiB]",
)
@click.option(
    "--unified/--separate", default=None, help="Whether GPU and processor share their memory.  [default: on a Mac]"
)
@click.option(
    "--type", "types", callback=_types, metavar="TYPE[,TYPE…]", help="Of the weights: q8_0, Q4_K_M, auto (its own), …"
)
@click.option(
    "--kv",
    "caches",
    callback=_caches,
    metavar="TYPE[,TYPE…]",
    help="Of the cache; K/V: q8_0/q4_0.  [default: f16,q8_0,q4_0]",
)
@click.option("--flash-attention/--no-flash-attention", "flash", default=True, help="Of llama.cpp.  [default: on]")
@click.option(
    "-ngl",
    "--gpu-layers",
    type=click.IntRange(0),
    metavar="N",
    help="Layers on the GPU, as llama.cpp counts.  [default: what fits]",
)
@click.option(
    "--ubatch",
    type=click.IntRange(1, 1 << 20),
    default=UBATCH,
    show_default=True,
    help="Tokens that are computed at a time.",
)
@click.option(
    "--outputs",
    callback=_outputs,
    default=str(OUTPUTS),
    show_default=True,
    metavar="N",
    help="Tokens of a batch whose logits are kept, or all: 1 in llama-server and llama-cli, all in a bare context.",
)
@click.option("--swa-full", is_flag=True, help="A full cache for sliding layers too, as llama.cpp's flag of that name.")
@click.option(
    "--quality",
    "reports",
    type=GGUF_PATH,
    multiple=True,
    metavar="FILE",
    help="A report of verify --json, for what types cost.",
)
@click.option(
    "--ctx",
    type=tokens,
    metavar="N",
    help="The context that has to fit (32k, 128K, 131072).  [default: the model's own, or what --factor reaches]",
)
@reference_rope_options
@json_option
def plan_command(
    model: Path,
    ctx: int | None,
    rope: RopeOptions,
    reports: tuple[Path, ...],
    reserve: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which context of MODEL fits this computer, with which weights, cache and layers on the GPU.

    MODEL is a GGUF, a part of a split set, or a checkpoint that is not converted yet. Headers alone are read, unless
    a .yref is given, against which a GGUF is run with each cache. Exits with 1 when the context does not
    fit in any way.

    \b
    yarn-gguf plan qwen3-8b-Q4_K_M.gguf --vram 8GiB --ctx 128k
    yarn-gguf plan Qwen3-8B --vram 12GiB --ram 32GiB --type Q8_0,Q4_K_M --kv f16,q8_0
    """
    with step_bars(hidden=as_json) as steps:
        caches = options["caches"] or usual_caches(flash=options["flash"])
        prices = prices_of(reports, model, caches, steps)
    wanted = Wanted(
        rope=replace(rope, ctx=ctx), prices=prices, reserve=RESERVE if reserve is None else reserve, **options
    )
    with _progress(hidden=as_json) as progress:
        found = plan(model, wanted, progress)
    with result():
        if as_json:
            print_json(document(found))
        else:
            print_plan(found)
    if not found.fits:
        click.get_current_context().exit(1)


@contextmanager
def _progress(*, hidden: bool) -> Iterator[Progress]:
    """A bar, once the number of steps is known."""
    with step_bars(hidden=hidden) as steps, ExitStack() as stack:
        bars: list[Callable[[int], None]] = []

        def tell(number: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(steps("ways to run it", total)))
            bars[0](1)

        yield tell
