"""`yarn-gguf doctor`."""

from __future__ import annotations

from typing import Any

import click

from yarn_gguf.cli.options import json_option
from yarn_gguf.cli.render import findings_json, print_findings, print_json, print_rows, print_verdict, result
from yarn_gguf.doctor import Checkup, Examined, checkup
from yarn_gguf.findings import Level
from yarn_gguf.sizes import size_text


@click.command(short_help="Say what is installed, what each library can do, and what is missing.")
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what each llama.cpp library can do, and what is missing."""
    found = checkup()
    with result():
        if as_json:
            print_json(_document(found))
        else:
            _print(found)


def _print(found: Checkup) -> None:
    print_rows("versions", [(name, version or "not installed") for name, version in found.versions.items()])
    for library in found.libraries:
        print_rows(f"library  {library.origin}", _library_rows(library))
    print_rows("programs", [(name, path or "not on PATH") for name, path in found.programs.items()])
    print_rows("patches", [("folder", str(found.patches))])
    print_findings(found.findings)
    bad = [finding for finding in found.findings if finding.level is Level.ERROR]
    print_verdict("something is broken" if bad else "all that is needed is here", sound=not bad)


def _library_rows(library: Examined) -> list[tuple[str, str]]:
    rows = [("path", str(library.path))]
    if library.abilities is None:
        return [*rows, ("broken", library.trouble)]
    able = library.abilities
    rows.append(("kind", f"{able.kind}" + (f": {', '.join(able.features)}" if able.features else "")))
    rows.append(("backends", ", ".join(able.backends)))
    for device in able.devices:
        memory = f"{size_text(device['free'])} of {size_text(device['total'])} free" if device["total"] else ""
        rows.append(("device", ", ".join(filter(None, (f"{device['name']}: {device['description']}", memory)))))
    return rows


def _document(found: Checkup) -> dict[str, Any]:
    return {
        "versions": found.versions,
        "programs": found.programs,
        "patches": str(found.patches),
        "libraries": [
            {
                "kind": None if one.abilities is None else one.abilities.kind,
                "path": str(one.path),
                "origin": one.origin,
                "current": one.current,
                "features": [] if one.abilities is None else list(one.abilities.features),
                "backends": [] if one.abilities is None else list(one.abilities.backends),
                "devices": [] if one.abilities is None else list(one.abilities.devices),
                "trouble": one.trouble or None,
            }
            for one in found.libraries
        ],
        "findings": findings_json(found.findings),
    }
