"""A llama.cpp tree → libraries in the user's cache folder: unpack, patch, configure, compile, and only then a name.

Everything happens in a temporary folder beside the final one, under a lock; what is stopped leaves nothing but its log.
A second build of the same thing finds the first. Knows the order of the steps; `recipes` knows the flags.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from filelock import FileLock, Timeout

from yarn_gguf.cache import cache_folder
from yarn_gguf.children.command import fate, program, run
from yarn_gguf.errors import ChildError, InputError, ResourceError, about
from yarn_gguf.llamacpp import series as patch_series
from yarn_gguf.llamacpp.libraries import RECORD, Library, builds_folder, library_file
from yarn_gguf.llamacpp.recipes import NEEDS, Recipe, compile_, configure
from yarn_gguf.llamacpp.sources import Source, unpacked

_STEP: Final = re.compile(r"^\[ *(\d+)(?:/(\d+)|%)\]")
_ERROR: Final = re.compile(r"\berror\b\s*:|fatal error|CMake Error|undefined reference|ld returned|ptxas fatal", re.I)
_SHOWN: Final = 3  # lines of the first error
Steps = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built."""

    recipe: Recipe
    source: Source
    patched: bool = True
    jobs: int = 0

    @property
    def digest(self) -> str:
        """Of the patches that will be put in; they are chosen by the source, so all variants count."""
        if not self.patched:
            return "stock"
        known = {series.variant: series.digest for series in patch_series.all_series()}
        return known.get(self.source.version) or known[_variant(self.source.version)]

    @property
    def name(self) -> str:
        """Of the folder: a build with the same name is the same build."""
        mine = [] if self.source.verified else [self.source.identity[-12:]]
        return "-".join([self.source.version, self.digest, *mine, self.recipe.name])


@dataclass(frozen=True, slots=True)
class Built:
    library: Library
    log: Path | None
    seconds: float
    new: bool


def _variant(version: str) -> str:
    """The series for a release: of the nearest older variant that is not older than it, else the pinned one."""
    wanted = tuple(int(part) for part in re.findall(r"\d+", version))
    names = [series.variant for series in patch_series.all_series() if series.variant]
    fitting = [name for name in names if tuple(map(int, name.split("."))) >= wanted]
    return min(fitting, key=lambda name: tuple(map(int, name.split("."))), default="")


def commands(order: Order, tree: str, build: str) -> tuple[tuple[str, ...], ...]:
    """What is run, in order."""
    return (
        configure(order.recipe, tree, build, ninja=program("ninja") is not None),
        compile_(order.recipe, build, order.jobs or os.cpu_count() or 1),
    )


def build(order: Order, *, steps: Steps = lambda done, total: None) -> Built:
    """The libraries that were asked for; from the cache when they are there."""
    started = time.monotonic()
    folder = builds_folder()
    final = folder / order.name
    if (found := _there(final, order)) is not None:
        return Built(found, None, time.monotonic() - started, new=False)
    _check_programs(order.recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be made: {error.strerror}", file=folder, code="write_failed") from error
    log = folder / "logs" / f"{order.name}.log"
    try:
        with FileLock(folder / "lock", timeout=0):
            _sweep(folder)
            _make(order, final, log, steps)
    except Timeout:
        text = "another build is running; wait for it, or end it"
        raise ResourceError(text, file=folder, code="locked") from None
    library = _there(final, order)
    assert library is not None
    return Built(library, log, time.monotonic() - started, new=True)


def _there(final: Path, order: Order) -> Library | None:
    """What an earlier build left at a name, if it was made with the flags that are asked for."""
    try:
        record: dict[str, Any] = json.loads((final / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = record.get("flags") == list(order.recipe.flags) and library_file(final / "bin").is_file()
    return Library(final / "bin", record) if same else None


def _sweep(folder: Path) -> None:
    """What a build that was killed has left; the lock says that none is running."""
    for left in folder.glob(".work-*"):
        shutil.rmtree(left, ignore_errors=True)


def _make(order: Order, final: Path, log: Path, steps: Steps) -> None:
    with unpacked(order.source, final.parent) as tree, log.open("wb", buffering=0) as said:
        if order.patched:
            with about(order.source.path):
                digest = _patched(tree)
        else:
            digest = ""
        made = tree.parent / "build"
        for command in commands(order, str(tree), str(made)):
            _step(command, said, log, steps)
        ready = tree.parent / "ready"
        _collect(made, ready / "bin")
        if not library_file(ready / "bin").is_file():
            text = f"the build ended well but made no {library_file(ready).name}; the log is {log}"
            raise ChildError(text, file="cmake", code="build_failed")
        (ready / RECORD).write_text(json.dumps(_record(order, digest), indent=1) + "\n", encoding="utf-8")
        try:
            if final.exists():
                shutil.rmtree(final)
            ready.rename(final)
        except OSError as error:
            raise ResourceError(f"cannot be put in place: {error.strerror}", file=final, code="write_failed") from error


def _patched(tree: Path) -> str:
    """Puts the patches in; the digest of the series that fitted."""
    found = patch_series.standing(tree)
    if found.state == "misfit":
        raise InputError(patch_series.misfit_text(found), code="patch_misfit")
    patch_series.apply(tree)
    return found.series.digest


def _record(order: Order, digest: str) -> dict[str, Any]:
    return {
        "version": order.source.version,
        "source": order.source.identity,
        "verified": order.source.verified,
        "patches": digest,
        "backend": order.recipe.backend,
        "rpc": order.recipe.rpc,
        "tools": order.recipe.tools,
        "flags": list(order.recipe.flags),
        "built": time.time(),
    }


def _step(command: Sequence[str], said: IO[bytes], log: Path, steps: Steps) -> None:
    """One command, its words in the log. Raises ChildError with the first error in them."""

    def line(text: str) -> None:
        if found := _STEP.match(text):
            steps(int(found[1]), int(found[2] or 100))

    said.write(f"$ {' '.join(command)}\n".encode())

    status = run([program(command[0]) or command[0], *command[1:]], said, line=line)

    if status:
        first = first_error(log.read_text(encoding="utf-8", errors="replace"))
        text = f"the build {fate(status)}: {first}; the whole log is {log}"
        raise ChildError(text, file=command[0], code="build_failed")


def first_error(log: str) -> str:
    """The first error that a build met, on one line; its last words where nothing looks like one."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        # a compiler's command line may hold the word; a diagnostic is no option
        if _ERROR.search(line) and " -o " not in line:
            return " | ".join(part.strip()[:200] for part in lines[number : number + _SHOWN])
    return " | ".join(part.strip()[:200] for part in lines[-_SHOWN:])


def _collect(made: Path, target: Path) -> None:
    """The libraries and programs of a build, links as links, in one folder: they find each other there."""
    places = [place for place in (made / "bin" / "Release", made / "bin") if place.is_dir()]
    if not places:
        raise ChildError("the build ended well but made nothing", file="cmake", code="build_failed")
    shutil.copytree(places[0], target, symlinks=True)


def _check_programs(recipe: Recipe) -> None:
    needed = (("cmake", "cmake of your system, or `pip install cmake ninja`"), *NEEDS[recipe.backend])
    for name, origin in needed:
        if program(name) is None:
            text = f"{name} is not on PATH, and --backend {recipe.backend} needs it: install {origin}"
            raise ResourceError(text, code="no_program")
    if recipe.backend == "metal" and sys.platform != "darwin":
        raise InputError("--backend metal can be built on macOS alone", code="no_backend")


def cuda_architectures() -> tuple[int, ...]:
    """Of the cards that are present, as CMake numbers them; empty where none can be asked."""
    path = program("nvidia-smi")
    if path is None:
        return ()
    command = [path, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d+)\s*$", said.stdout, re.M)}
    return tuple(sorted(found))


def known_architectures() -> tuple[int, ...]:
    """What the nvcc that is there can compile for; empty where it cannot be asked."""
    path = program("nvcc")
    if path is None:
        return ()
    try:
        said = subprocess.run([path, "--list-gpu-arch"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(sorted({int(number) for number in re.findall(r"compute_(\d+)\b", said.stdout)}))


def downloads_folder() -> Path:
    return cache_folder() / "sdists"
