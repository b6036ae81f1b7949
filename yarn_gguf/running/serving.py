"""A server of one model, OpenAI-compatible, that computes what `run` computes: found, started, and known to be ready.

    with serving(path, wanted, runtime, address) as served:
        served.address.url; served.service.wait()

llama.cpp's own where the library that is asked for has it beside itself (`build --tools`), else llama-cpp-python's, for
the stock library. Ended with the block, whatever ends that. Knows no HTTP but "are you well?".
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf import rpc
from yarn_gguf.before import read_before
from yarn_gguf.children.service import Service
from yarn_gguf.effective import Runtime
from yarn_gguf.errors import InputError, ResourceError, UsageError
from yarn_gguf.findings import Finding
from yarn_gguf.ggml import stock_folder
from yarn_gguf.llamacpp.libraries import abilities, built, library_folder
from yarn_gguf.quant_names import tensor_type_number
from yarn_gguf.running.offload import check_room, fitting_context, fitting_layers
from yarn_gguf.running.scaling import SERVER, Scaling, choose, reach
from yarn_gguf.running.server_words import (
    PYTHON_WANTED,
    UNWANTED,
    Address,
    Order,
    llama_server,
    python_server,
    python_settings,
)
from yarn_gguf.running.told import findings, without_effect
from yarn_gguf.running.wanted import Wanted
from yarn_gguf.runtime import LIBRARY

PROGRAM: Final = "llama-server.exe" if sys.platform == "win32" else "llama-server"
PYTHON: Final = "llama-cpp-python"
EXTRAS: Final = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
EVERY: Final = 0.1  # seconds between two questions
ANSWER: Final = 2.0  # seconds for an answer


@dataclass(frozen=True)
class Server:
    """What serves. `program` None: llama-cpp-python's."""

    name: str
    program: Path | None
    library: Path | None  # None: llama-cpp-python's own
    runtime: Runtime
    features: tuple[str, ...]
    gpu: bool


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    service: Service
    server: Server
    address: Address
    scaling: Scaling
    command: tuple[str, ...]
    seconds: float
    findings: tuple[Finding, ...]


def find_server(runtime: str) -> Server:
    """By what `--runtime` says. Raises where there is none, and says how to get one."""
    folder = library_folder(runtime)
    place = folder if folder is not None else _stock_tools()
    if place is not None and (place / PROGRAM).is_file():
        return _server("llama-server", place / PROGRAM, place)
    make = "yarn-gguf build --tools" + (" --no-patch" if runtime == "stock" else "")
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if stock_folder() is None or missing:
        text = (
            f"no server is here: `{make}` makes llama-server, and pip install 'llama-cpp-python[server]' its Python one"
        )
        raise InputError(text, code="no_server")
    return _server(PYTHON, None, folder)


def _stock_tools() -> Path | None:
    """A build without our patches that has programs."""
    for library in built():
        if not library.patched and (library.path / PROGRAM).is_file():
            return library.path
    return None


def _server(name: str, program: Path | None, library: Path | None) -> Server:
    folder = library or stock_folder()
    assert folder is not None
    able = abilities(folder)
    runtime = Runtime.PATCHED if able.features else Runtime.STOCK
    gpu = any(device["total"] and not str(device["name"]).startswith(("CPU", "BLAS")) for device in able.devices)
    return Server(name, program, library, runtime, able.features, gpu)


@contextmanager
def serving(path: Path, wanted: Wanted, server: Server, address: Address) -> Iterator[Served]:
    """From a file to a server that answers; raises ChildError where it ends before it does."""
    began = time.monotonic()
    before = read_before(path)
    path = before.model.path  # of a split set, the first part
    context = wanted.context or fitting_context(before.model, wanted, reach(before), gpu=server.gpu)
    scaling = choose(before, server.runtime, context, SERVER)
    spoil = wanted.allow_shift and scaling.spoils_shifts and "shift" not in server.features
    told = (
        *without_effect(wanted, gpu=server.gpu),
        *findings(scaling, server.runtime, shifts_spoil=spoil),
    )
    rpc.check(wanted.rpc)
    layers = fitting_layers(before.model, wanted, context, gpu=server.gpu, server=True)
    check_room(before.model, wanted, context, layers, server=True)
    order = Order(path, wanted, scaling, layers, _free(address))
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-") as folder:
        command = _command(server, order, Path(folder))
        with Service(
            command,
            what=server.name,
            about=path,
            environment=_environment(server),
            blame=lambda: rpc.gone(wanted.rpc),
        ) as service:
            _wait(service, server, order.address, wanted.deadline)
            seconds = time.monotonic() - began
            yield Served(service, server, order.address, scaling, tuple(command), seconds, told)


def _command(server: Server, order: Order, folder: Path) -> list[str]:
    if server.program is not None:
        template = None
        if order.wanted.template is not None:
            template = folder / "chat.jinja"
            template.write_text(order.wanted.template, encoding="utf-8")
        return llama_server(server.program, order, template)
    file = folder / "settings.json"
    file.write_text(json.dumps(python_settings(order, _type_number)), encoding="utf-8")
    return python_server(file)


def _type_number(name: str) -> int:
    found = tensor_type_number(name)
    assert found is not None
    return found


def _environment(server: Server) -> dict[str, str]:
    """Ours, without what would set a server up otherwise than it is told."""
    if server.program is not None:
        return {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(PYTHON_WANTED)}
    return kept if server.library is None else {**kept, LIBRARY: str(server.library)}


def _free(address: Address) -> Address:
    """The address, once it is known that nobody listens there; of port 0, one that nobody has."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # where this does not mean that two may listen
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            return Address(address.host, int(probe.getsockname()[1]))
    except socket.gaierror as error:
        raise UsageError(f"--host {address.host}: {error.strerror}", code="host") from error
    except OSError as error:
        text = f"cannot listen at {address.host}:{address.port}: {(error.strerror or str(error)).lower()}"
        raise ResourceError(f"{text}; give another --port, or 0 for any", code="port_in_use") from error


def _wait(service: Service, server: Server, address: Address, patience: float) -> None:
    """Until it answers; it may be silent for `patience` seconds at most."""
    path = "/v1/models" if server.program is None else "/health"
    while not _is_well(address, path):
        if service.ended:
            raise service.death()
        if time.monotonic() - service.heard > patience:
            raise service.hung(patience)
        time.sleep(EVERY)


def _is_well(address: Address, path: str) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    line = http.client.HTTPConnection(host, address.port, timeout=ANSWER)
    try:
        line.request("GET", path)
        return line.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        line.close()
