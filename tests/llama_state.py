"""Whether llama.cpp takes the state that one context has saved into another of another size.

A child process (this module, run by its name), like `llama_logits`, whose helpers it uses. Nothing of `yarn_gguf`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .llama_logits import BATCHES, EXACT, _context, _decode, _model

ROOT = Path(__file__).parents[1]


def state_moves(gguf: Path, sizes: tuple[int, int], runtimes: tuple[Path, Path]) -> tuple[bool, bool]:
    """Whether a context of the second size takes the state of one of the first: as a whole, and of one sequence.

    Each is of its own library.
    """
    with tempfile.TemporaryDirectory() as folder:
        _child(gguf, sizes[0], runtimes[0], "save", folder)
        whole, sequence = json.loads(_child(gguf, sizes[1], runtimes[1], "load", folder))
    return whole, sequence


def _child(gguf: Path, size: int, runtime: Path, what: str, folder: str) -> str:
    command = [sys.executable, "-m", "tests.llama_state", str(gguf.absolute()), str(size), what, folder]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "LLAMA_CPP_LIB_PATH": str(runtime)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{gguf}: llama.cpp ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1]


# ---- from here on: the child process


def _save(model: Any, size: int, folder: Path) -> bool:
    import numpy as np
    from llama_cpp import llama_cpp as lib

    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    with _context(model, {**BATCHES, **EXACT, "n_ctx": size}) as context:
        _decode(context, np.arange(1, 33, dtype=np.int32), 0, n_vocab)
        whole = (ctypes.c_uint8 * lib.llama_state_get_size(context))()
        assert lib.llama_state_get_data(context, whole, len(whole)) == len(whole)
        sequence = (ctypes.c_uint8 * lib.llama_state_seq_get_size(context, 0))()
        assert lib.llama_state_seq_get_data(context, sequence, len(sequence), 0) == len(sequence)
    (folder / "whole").write_bytes(whole)
    (folder / "sequence").write_bytes(sequence)
    return True


def _load(model: Any, size: int, folder: Path) -> tuple[bool, bool]:
    from llama_cpp import llama_cpp as lib

    whole, sequence = (folder / "whole").read_bytes(), (folder / "sequence").read_bytes()
    params: dict[str, float] = {**BATCHES, **EXACT, "n_ctx": size}
    with _context(model, params) as context:
        taken = lib.llama_state_set_data(context, (ctypes.c_uint8 * len(whole)).from_buffer_copy(whole), len(whole))
    with _context(model, params) as context:
        data = (ctypes.c_uint8 * len(sequence)).from_buffer_copy(sequence)
        return taken == len(whole), lib.llama_state_seq_set_data(context, data, len(sequence), 0) == len(sequence)


def main(gguf: str, size: str, what: str, folder: str) -> None:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    with _model(gguf) as model:
        answer = {"save": _save, "load": _load}[what](model, int(size), Path(folder))
        print(json.dumps(answer))  # noqa: T201 - the answer
    lib.llama_backend_free()


if __name__ == "__main__":
    main(*sys.argv[1:])
