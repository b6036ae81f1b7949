"""llama.cpp's `llama-quantize`, and importance matrices for it: the oracle for quantized files.

The tool is compiled once, in half a minute, from the pinned source tree, against the installed llama.cpp libraries, and
kept in the user's cache folder: so it quantizes with the very library that the command line uses. Needs a C++ compiler.
Imports nothing of `yarn_gguf`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from .upstream import VERSION, cache_folder, llama_cpp_source

Importances = Mapping[str, npt.NDArray[np.float32]]  # of each tensor: a row of sums for each matrix

SOURCES: Final = (
    "tools/quantize/quantize.cpp",
    "tools/quantize/main.cpp",
    "common/imatrix-loader.cpp",
    "common/common.cpp",
    "common/log.cpp",
    "common/json.cpp",
)
INCLUDED: Final = ("common", "include", "ggml/include", "vendor", "src")
LIBRARIES: Final = ("llama", "ggml", "ggml-base", "ggml-cpu")
NO_BUILD: Final = "build-info.cpp"  # of what is generated, with nothing in it
# what nothing of the tool calls is dropped, and with it most of `common`
OPTIONS: Final = ("-std=c++17", "-O1", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-pthread")
LAYER_CALLS: Final = 7  # of a made importance matrix


def libraries() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "lib")


@cache
def llama_quantize() -> Path:
    """The tool."""
    folder, lib = cache_folder(), libraries()
    key = hashlib.sha256(f"{VERSION} {lib} {SOURCES} {OPTIONS}".encode()).hexdigest()[:8]
    tool = folder / f"llama-quantize-{key}"
    with FileLock(folder / "llama-quantize.lock"):
        if not tool.exists():
            _compile(tool, llama_cpp_source(), lib)
    return tool


def _compile(tool: Path, tree: Path, lib: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tool.parent) as temporary:
        info, made = Path(temporary, NO_BUILD), Path(temporary, "tool")
        info.write_text(re.sub(r"@\w+@", "0", (tree / "common/build-info.cpp.in").read_text()))
        command: list[str | Path] = ["c++", *OPTIONS, *(f"-I{tree / name}" for name in INCLUDED)]
        command += [*(tree / name for name in SOURCES), info, "-o", made, f"-L{lib}", f"-Wl,-rpath,{lib}"]
        done = subprocess.run(
            [*command, *(f"-l{name}" for name in LIBRARIES)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        made.replace(tool)


def quantized(source: Path, out: Path, name: str, *options: str | Path) -> str:
    """Makes `out`; returns the end of what was said where the tool refuses, else nothing."""
    command: list[str | Path] = [llama_quantize(), *options, source, out, name, "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr)[-2000:] if done.returncode else ""


# ---- importance matrices


def importances(matrices: Mapping[str, tuple[int, int]], seed: int = 11) -> Importances:
    """Sums of squares for tensors of so many matrices and columns; of each tensor of several, one has seen no token."""
    found = {}
    for number, (name, (count, columns)) in enumerate(sorted(matrices.items())):
        random = np.random.default_rng([seed, number])
        found[name] = np.square(random.standard_normal((count, columns))).astype(np.float32) * 30
        if count > 1:
            found[name][number % count] = 0
    return found


def write_gguf_imatrix(path: Path, matrix: Importances, **keys: Any) -> Path:
    """As `llama-imatrix` writes it."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    for key, value in {"datasets": ["calibration.txt"], "chunk_count": 3, "chunk_size": 512, **keys}.items():
        if value is not None:
            (writer.add_array if isinstance(value, list) else writer.add_uint32)(f"imatrix.{key}", value)
    for name, sums in matrix.items():
        counts = np.where(sums.any(axis=1), np.float32(LAYER_CALLS), np.float32(0))
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy_imatrix(path: Path, matrix: Importances, calls: int = LAYER_CALLS) -> Path:
    """As `llama-imatrix` wrote it before."""
    data = struct.pack("<i", len(matrix))
    for name, sums in matrix.items():
        raw = name.encode()
        data += struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, sums.size) + sums.astype("<f4").tobytes()
    raw = b"calibration.txt"
    path.write_bytes(data + struct.pack("<ii", 3, len(raw)) + raw)
    return path
