"""`yarn-gguf patch check|apply|reverse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.options import json_option
from yarn_gguf.cli.render import print_json, print_rows, print_verdict, result
from yarn_gguf.errors import CheckFailed
from yarn_gguf.llamacpp import series
from yarn_gguf.llamacpp.series import Patch, Standing
from yarn_gguf.llamacpp.sources import upstreams

TREE = click.Path(path_type=Path)
_WORDS = {
    "clean": "fits: none of the patches is in, all of them can be applied",
    "applied": "has all of the patches",
    "partly": "has some of the patches, and the others can be applied",
    "misfit": "the patches do not fit",
}


@click.group(short_help="Put our patches into a llama.cpp checkout, or take them out.")
def patch() -> None:
    """Put our patches into a llama.cpp checkout, or take them out; all of them, or none.

    \b
    yarn-gguf patch check llama.cpp
    yarn-gguf patch apply llama.cpp
    yarn-gguf patch reverse llama.cpp
    """


@patch.command(short_help="Say whether the patches fit, or are in already.")
@click.argument("tree", type=TREE)
@json_option
def check(tree: Path, as_json: bool) -> None:
    """Say whether the patches fit TREE, or are in already. Exit code 1 where they do neither."""
    found = series.standing(tree)
    _print(tree, found, found.state, as_json=as_json)
    if found.state == "misfit":
        raise CheckFailed(series.misfit_text(found), file=tree, code="patch_misfit")


@patch.command(short_help="Put all patches in.")
@click.argument("tree", type=TREE)
@json_option
def apply(tree: Path, as_json: bool) -> None:
    """Put all patches into TREE. Where they are in already nothing is done."""
    _print(tree, series.apply(tree), "applied", as_json=as_json)


@patch.command(short_help="Take all patches out.")
@click.argument("tree", type=TREE)
@json_option
def reverse(tree: Path, as_json: bool) -> None:
    """Take all patches out of TREE again. Where none is in nothing is done."""
    _print(tree, series.reverse(tree), "clean", as_json=as_json)


def _print(tree: Path, was: Standing, now: str, *, as_json: bool) -> None:
    release = was.series.variant or next(iter(upstreams()))
    count = {"applied": len(was.series.patches), "clean": 0}.get(now, was.applied)
    patches = [(item, number < count) for number, item in enumerate(was.series.patches)]
    with result():
        if as_json:
            print_json(_document(tree, was, now, release, patches))
            return
        rows = [(item.name[:4], f"{'in' if applied else '--'}  {item.subject}") for item, applied in patches]
        print_rows(f"{tree}  patches for llama-cpp-python {release}", rows)
        changed = {"applied": "the patches are in now", "clean": "the patches are out now"}
        print_verdict(_WORDS[now] if now == was.state else changed[now], sound=now != "misfit")


def _document(tree: Path, was: Standing, now: str, release: str, patches: list[tuple[Patch, bool]]) -> dict[str, Any]:
    return {
        "path": str(tree),
        "was": was.state,
        "state": now,
        "release": release,
        "patches": [{"name": item.name, "subject": item.subject, "applied": applied} for item, applied in patches],
        "misfits": [{"patch": name, "file": m.path, "line": m.line, "text": m.reason} for name, m in was.misfits],
    }
