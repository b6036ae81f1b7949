"""Libraries and programs that `yarn-gguf build` made of the pinned sdist: patched, and as it is with the same flags.

Each is built once on a machine, by the command itself, and kept in the tests' cache folder under a name that follows
from the patches and the flags. The first call takes some minutes.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from filelock import FileLock

from .command import COMMAND, environment
from .upstream import cache_folder, sdist

WHOLE: Final = ("--rpc", "--tools")  # one build for all tests


def builds_cache() -> Path:
    """What $YARN_GGUF_CACHE is while the tests build."""
    return cache_folder() / "builds"


@cache
def built(*flags: str) -> Path:
    """The folder of the libraries that `build FLAGS` makes for the CPU."""
    command = [*COMMAND, "build", "--backend", "cpu", "--source", str(sdist()), "--json", *flags]
    with FileLock(cache_folder() / "builds.lock"):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(YARN_GGUF_CACHE=str(builds_cache()))
        )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return Path(json.loads(done.stdout)["path"])


def patched() -> Path:
    """The patched libraries, with RPC, and all programs of `--tools` beside them."""
    return built(*WHOLE)


def tools() -> Path:
    """The folder of llama.cpp's programs; run from there, they use the patched libraries."""
    return patched()


def stock() -> Path:
    return built("--no-patch")


def stock_tool(name: str) -> tuple[str, ...]:
    """The start of a command: a program of llama.cpp on libraries that have no patches.

    The patches leave the programs as they are, and the functions and structures that programs know.
    """
    return ("env", f"LD_LIBRARY_PATH={stock()}", str(tools() / name))
