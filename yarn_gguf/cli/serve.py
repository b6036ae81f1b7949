"""`yarn-gguf run --serve`: start a server, say where it is, and wait for the signal that ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.render import findings_json, print_json, print_rows, result
from yarn_gguf.cli.runs import say_findings, scaling_document, scaling_text
from yarn_gguf.opened import padded
from yarn_gguf.running.server_words import Address
from yarn_gguf.running.serving import Served, find_server, serving
from yarn_gguf.running.wanted import Wanted


def serve(model: Path, wanted: Wanted, runtime: str, address: Address, *, as_json: bool) -> None:
    """Until it is stopped, or the server ends by itself, which is an error."""
    with serving(model, wanted, find_server(runtime), address) as served:
        say_findings(served.findings, hidden=as_json)
        with result():
            print_json(document(model, served)) if as_json else _print(model, served)
        served.service.wait()


def document(model: Path, served: Served) -> dict[str, Any]:
    return {
        "path": str(model),
        "url": served.address.url,
        "server": served.server.name,
        "runtime": served.server.runtime.value,
        "command": list(served.command),
        "process": served.service.process.pid,
        "context": padded(served.scaling.context),
        "scaling": scaling_document(served.scaling),
        "seconds": served.seconds,
        "findings": findings_json(served.findings),
    }


def _print(model: Path, served: Served) -> None:
    rows = [
        ("address", f"{served.address.url}/v1"),
        ("rope", scaling_text(served.scaling, padded(served.scaling.context))),
        ("server", f"{served.server.name} ({served.server.runtime.value} llama.cpp), up in {served.seconds:.1f} s"),
    ]
    print_rows(f"serving {model.name}", rows)
    click.echo("  Ctrl-C stops it")
