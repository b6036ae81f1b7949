"""Which llama.cpp libraries there are, what each of them can do, and which one `--runtime` means.

The stock library is llama-cpp-python's own; patched ones lie in the user's cache folder, one folder each, complete by
the time it has its name. What a library can do it is asked, in a child: one that cannot be loaded harms nobody.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from yarn_gguf.cache import cache_folder
from yarn_gguf.children.command import fate, last_words, run
from yarn_gguf.errors import ChildError, InputError
from yarn_gguf.llamacpp import recipes
from yarn_gguf.llamacpp.series import all_series
from yarn_gguf.llamacpp.sources import installed_version

RECORD: Final = "build.json"  # in the folder of each build: what it was made from
BUILD_HINT: Final = "yarn-gguf build --backend " + ("metal" if sys.platform == "darwin" else "cpu")
FEATURES: Final = ("shift", "betas", "attn_factor", "truncate", "dynamic")  # of a library that has the whole series
_LIBRARY: Final = {"win32": "llama.dll", "darwin": "libllama.dylib"}
_SECONDS: Final = 60.0  # that a library has to answer
_FASTEST: Final = ("cuda", "metal", "vulkan", "cpu")

Kind = Literal["stock", "patched"]


@dataclass(frozen=True, slots=True)
class Library:
    """A folder of libraries. `record` is what `build` wrote about it; empty for others."""

    path: Path
    record: dict[str, Any]

    @property
    def backend(self) -> str:
        return str(self.record.get("backend", ""))

    @property
    def patched(self) -> bool:
        return bool(self.record.get("patches"))


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a library says of itself."""

    features: tuple[str, ...]
    backends: tuple[str, ...]
    devices: tuple[dict[str, Any], ...]
    system_info: str

    @property
    def kind(self) -> Kind:
        return "patched" if self.features else "stock"


def builds_folder() -> Path:
    return cache_folder() / "llama.cpp"


def library_file(folder: Path) -> Path:
    return folder / _LIBRARY.get(sys.platform, "libllama.so")


def built() -> tuple[Library, ...]:
    """What `build` has made, the fastest backend first, and the newest of each."""
    found = []
    folder = builds_folder()
    for record in folder.glob(f"*/{RECORD}") if folder.is_dir() else ():
        try:
            document = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        known = isinstance(document, dict) and isinstance(document.get("built"), int | float)
        if known and library_file(record.parent / "bin").is_file():
            found.append(Library(record.parent / "bin", document))
    return tuple(sorted(found, key=_preference))


def _preference(library: Library) -> tuple[int, float]:
    speed = _FASTEST.index(library.backend) if library.backend in _FASTEST else len(_FASTEST)
    return speed, -float(library.record.get("built", 0))


def current(library: Library) -> bool:
    """Built from the very sources of the installed llama-cpp-python, with the patches that ship now.

    What came from other sources (`--source`) may have other structures: that is used by its path alone.
    """
    record, version = library.record, installed_version()
    digests = {series.digest for series in all_series()}
    return record.get("version") == version and record.get("patches") in digests and record.get("verified") is True


def library_folder(runtime: str) -> Path | None:
    """What `--runtime` means: None for "stock", the best build for "patched", else the folder that it names."""
    if runtime == "stock":
        return None
    if runtime == "patched":
        for library in built():
            if current(library):
                return library.path
        old = " (there is one for another version of llama-cpp-python or of the patches)" if built() else ""
        raise InputError(f"there is no patched llama.cpp{old}; `{BUILD_HINT}` makes one", code="no_patched_library")
    folder = Path(runtime)
    if folder.is_file():
        folder = folder.parent
    for place in (folder, folder / "bin"):
        if library_file(place).is_file():
            return place.resolve()
    text = f"holds no {library_file(folder).name}; give stock, patched, or a folder with llama.cpp's shared libraries"
    raise InputError(text, file=folder, code="no_library")


def abilities(folder: Path) -> Abilities:
    """What the library in a folder says of itself. Raises ChildError when it cannot be loaded."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("ask.py")), str(library_file(folder))]
    with tempfile.TemporaryFile() as said:
        try:
            status = run(command, said, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            text = f"cannot be loaded: it gave no answer within {_SECONDS:g} s"
            raise ChildError(text, file=folder, code="library_failed") from None
        said.seek(0)
        answers = [line for line in said.read().decode("utf-8", "replace").splitlines() if line.startswith("{")]
        try:
            document = json.loads(answers[-1] if not status else "")
        except (IndexError, ValueError):
            text = f"cannot be loaded: the child {fate(status)}: {last_words(said)}"
            raise ChildError(text, file=folder, code="library_failed") from None
    return Abilities(
        tuple(document["features"]), tuple(document["backends"]), tuple(document["devices"]), document["system_info"]
    )


def recipe_of(library: Library) -> str:
    """The name of the recipe that a build was made with."""
    record = library.record
    return recipes.Recipe(library.backend, bool(record.get("rpc")), bool(record.get("tools"))).name
