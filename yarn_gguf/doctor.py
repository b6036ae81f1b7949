"""What this machine has of what the commands use: versions, programs, libraries with what they can do; what is missing.

Asks; changes nothing. Libraries are asked in child processes. Every finding names the command that mends it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf import __version__
from yarn_gguf.children.command import program
from yarn_gguf.errors import ChildError
from yarn_gguf.findings import Finding, error, note, warning
from yarn_gguf.ggml import stock_folder
from yarn_gguf.llamacpp.libraries import (
    BUILD_HINT,
    FEATURES,
    Abilities,
    abilities,
    built,
    current,
    library_file,
    recipe_of,
)
from yarn_gguf.llamacpp.series import patches_folder
from yarn_gguf.llamacpp.sources import upstreams

PACKAGES: Final = ("llama-cpp-python", "gguf", "numpy", "torch", "transformers", "safetensors", "tokenizers", "click")
PROGRAMS: Final = ("cmake", "ninja", "c++", "nvcc", "glslc", "nvidia-smi")


@dataclass(frozen=True, slots=True)
class Examined:
    """A library and what it says; `abilities` is None where it cannot be loaded, and `trouble` says why."""

    path: Path
    origin: str
    abilities: Abilities | None
    trouble: str = ""
    current: bool = True


@dataclass(frozen=True, slots=True)
class Checkup:
    versions: dict[str, str | None]
    programs: dict[str, str | None]
    libraries: tuple[Examined, ...]
    patches: Path
    findings: tuple[Finding, ...]


def checkup() -> Checkup:
    versions = {"yarn-gguf": __version__, "python": platform.python_version()}
    found: dict[str, str | None] = {**versions, **{name: _version(name) for name in PACKAGES}}
    libraries = tuple(_libraries())
    programs = {name: program(name) for name in PROGRAMS}
    return Checkup(found, programs, libraries, patches_folder(), tuple(_findings(found, libraries)))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> list[Examined]:
    found = []
    stock = stock_folder()
    if stock is not None:
        found.append(_examined(stock, "llama-cpp-python"))
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):
        found.append(_examined(Path(chosen), "LLAMA_CPP_LIB_PATH"))
    for library in built():
        what = f"yarn-gguf build, {recipe_of(library)}" + ("" if library.patched else ", not patched")
        found.append(_examined(library.path, what, up_to_date=current(library) or not library.patched))
    return found


def _examined(folder: Path, origin: str, *, up_to_date: bool = True) -> Examined:
    if not library_file(folder).is_file():
        return Examined(folder, origin, None, f"holds no {library_file(folder).name}", up_to_date)
    try:
        return Examined(folder, origin, abilities(folder), current=up_to_date)
    except ChildError as failure:
        return Examined(folder, origin, None, failure.text, up_to_date)


def _findings(versions: dict[str, str | None], libraries: tuple[Examined, ...]) -> list[Finding]:
    found = []
    version = versions["llama-cpp-python"]
    if version is None:
        text = "llama-cpp-python is not installed; `pip install llama-cpp-python` gives the commands that run models it"
        found.append(error("no_llama_cpp_python", text))
    elif version not in upstreams():
        text = f"the patches are for llama-cpp-python {', '.join(upstreams())}, not for {version}"
        found.append(warning("unknown_version", f"{text}; install one of those to build them"))
    if versions["transformers"] is None:
        text = "transformers is not installed; `pip install transformers` for references that are checkpoints"
        found.append(note("no_transformers", text))
    for library in libraries:
        if library.abilities is None:
            text = f"{library.path} ({library.origin}) {library.trouble}; build or install it again"
            found.append(error("broken_library", text))
        elif not library.current and version is not None:
            text = f"{library.path} is of another version of llama-cpp-python or of the patches; delete it"
            found.append(note("old_library", text))
    patched = [one for one in libraries if one.current and one.abilities and one.abilities.kind == "patched"]
    if not patched:
        text = f"there is no patched llama.cpp: `{BUILD_HINT}` makes one (docs/llama-cpp.md says what for)"
        found.append(note("no_patched_library", text))
    for library in patched:
        assert library.abilities is not None
        if missing := [name for name in FEATURES if name not in library.abilities.features]:
            text = f"{library.path} lacks {', '.join(missing)}; build it again"
            found.append(warning("lacking_library", text))
    return found
