"""The logits that a program of llama.cpp gets, written down inside of it: `record_logits.c`, compiled and preloaded.

For programs that print none. Knows nothing of `yarn_gguf`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .upstream import cache_folder, llama_cpp_source

SOURCE = Path(__file__).with_name("record_logits.c")


@dataclass(frozen=True)
class Recording:
    """What the program decoded: ids by position, and the logits at some of the positions."""

    features: str  # of the library
    ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


@cache
def recorder() -> Path:
    """The library to preload."""
    source = llama_cpp_source()
    out = cache_folder() / f"record_logits-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not out.is_file():
        made = out.with_suffix(f".{os.getpid()}")
        includes = [f"-I{source / folder / 'include'}" for folder in ("", "ggml")]
        command = ["cc", "-O2", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(made), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        made.replace(out)
    return out


def read_recording(file: Path) -> Recording:
    raw = file.read_bytes()
    length = int(np.frombuffer(raw, np.uint32, 1)[0])
    features, at = raw[4 : 4 + length].decode(), 4 + length
    ids: dict[int, int] = {}
    positions, logits = [], []
    while at < len(raw):
        position, vocabulary, count = np.frombuffer(raw, np.int32, 3, at).tolist()
        at += 12
        decoded = np.frombuffer(raw, np.int32, 2 * count, at).reshape(count, 2)
        ids |= {int(position): int(token) for position, token in decoded}
        at += 8 * count
        positions.append(position)
        logits.append(np.frombuffer(raw, np.float32, vocabulary, at))
        at += 4 * vocabulary
    order = [ids[position] for position in range(max(ids) + 1)]
    return Recording(features, np.array(order, np.int32), np.array(positions), np.stack(logits))
