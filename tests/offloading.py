"""Builds `offloading.cpp`, a device that ggml's scheduler treats as it treats CUDA's, for `llama_memory.breakdown`."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from .upstream import llama_cpp_source

SOURCE = Path(__file__).with_suffix(".cpp")


def offloading_device(folder: Path) -> Path:
    """The library, made in `folder` against the headers and the libraries of the installed llama.cpp."""
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    libraries = Path(spec.submodule_search_locations[0], "lib")
    headers = [f"-I{llama_cpp_source() / 'ggml' / part}" for part in ("include", "src")]
    made = folder / "liboffloading.so"
    compiler = os.environ.get("CXX", "c++")
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", *headers, f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    subprocess.run([compiler, *options, str(SOURCE), "-lggml-base", "-o", str(made)], check=True)
    return made
