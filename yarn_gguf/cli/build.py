"""`yarn-gguf build`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.options import json_option
from yarn_gguf.cli.render import print_json, print_rows, result
from yarn_gguf.llamacpp import build as builds
from yarn_gguf.llamacpp.build import Built, Order, Steps
from yarn_gguf.llamacpp.libraries import abilities, builds_folder
from yarn_gguf.llamacpp.recipes import BACKENDS, CUDA_ARCHITECTURES, Recipe
from yarn_gguf.llamacpp.sources import fetched_source, given_source

_DEFAULT = "metal" if sys.platform == "darwin" else "cpu"


@click.command(short_help="Build a patched llama.cpp beside the stock one.")
@click.option(
    "--backend", type=click.Choice(list(BACKENDS)), help="What it computes with.  [default: cpu; metal on a Mac]"
)
@click.option("--rpc", is_flag=True, help="With the backend that spreads a model over several machines.")
@click.option("--tools", is_flag=True, help="llama-server, llama-cli, llama-quantize and others too.")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR|TARBALL",
    help="An sdist of llama-cpp-python, or a llama.cpp checkout, in place of what pip fetches.",
)
@click.option("--no-patch", is_flag=True, help="Build it as it is, with the same flags, to compare with.")
@click.option("--jobs", type=click.IntRange(1), help="Compilers at once.  [default: the number of cores]")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and run nothing.")
@json_option
def build(
    backend: str | None,
    rpc: bool,
    tools: bool,
    source: Path | None,
    no_patch: bool,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build llama.cpp, patched, from the sources of the installed llama-cpp-python.

    The libraries go to the user's cache folder, and `--runtime patched` finds them there; the stock ones stay as they
    are. A second run finds the first one's.

    \b
    yarn-gguf build --backend cuda
    yarn-gguf build --backend cpu --tools
    """
    recipe = _recipe(backend or _DEFAULT, rpc, tools)
    where = given_source(source) if source is not None else fetched_source(builds.downloads_folder())
    order = Order(recipe, where, patched=not no_patch, jobs=jobs or 0)
    if dry_run:
        _print_plan(order, as_json=as_json)
        return
    with _bar(hidden=as_json) as steps:
        built = builds.build(order, steps=steps)
    _print_built(order, built, as_json=as_json)


def _recipe(backend: str, rpc: bool, tools: bool) -> Recipe:
    """With the cards that are present, for CUDA; with all current ones that its compiler knows where there are none."""
    architectures: tuple[int, ...] = ()
    if backend == "cuda":
        known = builds.known_architectures()
        wanted = builds.cuda_architectures() or CUDA_ARCHITECTURES
        architectures = tuple(number for number in wanted if not known or number in known)
    return Recipe(backend, rpc, tools, sys.platform, architectures)


def _print_plan(order: Order, *, as_json: bool) -> None:
    run = builds.commands(order, "llama.cpp", "build")
    target = builds_folder() / order.name
    with result():
        if as_json:
            print_json({"dry_run": True, "path": str(target / "bin"), "commands": [list(command) for command in run]})
            return
        patched = "patched" if order.patched else "as it is"
        rows = [("source", f"{order.source.path}, {patched}"), ("would be", str(target / "bin"))]
        print_rows(f"llama.cpp of llama-cpp-python {order.source.version}  {order.recipe.name}", rows)
        for command in run:
            click.echo(f"  {shlex.join(command)}")


def _print_built(order: Order, built: Built, *, as_json: bool) -> None:
    found = abilities(built.library.path)
    with result(built.library.path):
        if as_json:
            print_json(_document(order, built, found.features, found.backends))
            return
        took = f"built in {built.seconds:.0f} s" if built.new else "was there already"
        rows = [
            ("library", f"{built.library.path}, {took}"),
            ("features", ", ".join(found.features) or "none: this is the stock library"),
            ("devices", ", ".join(f"{one['name']} ({one['description']})" for one in found.devices)),
        ]
        if built.log is not None:
            rows.append(("log", str(built.log)))
        if order.patched:
            rows.append(("use it", f"--runtime patched; programs of yours: LLAMA_CPP_LIB_PATH={built.library.path}"))
        print_rows(f"llama.cpp of llama-cpp-python {order.source.version}  {order.recipe.name}", rows)


def _document(order: Order, built: Built, features: tuple[str, ...], backends: tuple[str, ...]) -> dict[str, Any]:
    return {
        "path": str(built.library.path),
        "new": built.new,
        "seconds": built.seconds,
        "log": None if built.log is None else str(built.log),
        "version": order.source.version,
        "verified": order.source.verified,
        "backend": order.recipe.backend,
        "flags": list(order.recipe.flags),
        "features": list(features),
        "backends": list(backends),
        "dry_run": False,
    }


@contextmanager
def _bar(*, hidden: bool) -> Iterator[Steps]:
    """Compiled files, and the time that is left, on a terminal; nothing elsewhere."""
    if hidden or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
