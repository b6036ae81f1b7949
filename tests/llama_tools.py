"""llama.cpp's own command-line tools, built from the pinned sdist: oracles for quantized bytes and for KL figures.

Built once per machine (four to six minutes on two cores), for the CPU, into the user's cache folder next to the source;
a lock makes other workers wait for the first. Knows nothing of `yarn_gguf`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from filelock import FileLock

from .upstream import SHA256, VERSION, UpstreamFailed, cache_folder, llama_cpp_source

TOOLS = ("llama-perplexity", "llama-quantize")
OFF = ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "BUILD_UI", "USE_PREBUILT_UI", "CURL", "OPENSSL")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *(f"-DLLAMA_{name}=OFF" for name in OFF))


@cache
def tool(name: str) -> Path:
    """The executable, built if it is not there yet."""
    if name not in TOOLS:
        raise ValueError(f"{name} is none of {TOOLS}")
    folder = cache_folder() / f"llama.cpp-{VERSION}-tools-{SHA256[:8]}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _build(folder)
    return folder / name


def _build(folder: Path) -> None:
    """Leaves all tools in `folder`, or raises and leaves nothing there; what was compiled is kept for the next try."""
    build = folder.with_name(f"{folder.name}-build")
    jobs = str(os.cpu_count() or 1)
    _run(["cmake", "-S", str(llama_cpp_source()), "-B", str(build), *OPTIONS])
    _run(["cmake", "--build", str(build), "-j", jobs, "--target", *TOOLS])
    made = folder.with_name(f"{folder.name}-made")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for name in TOOLS:
        shutil.copy2(build / "bin" / name, made / name)
    shutil.rmtree(build)
    made.rename(folder)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UpstreamFailed(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
