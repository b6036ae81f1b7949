"""Whether llama.cpp takes the state that one context has saved into another of another size.

A child process (this module, run by its name), like `llama_logits`, whose helpers it uses. Nothing of `yarn_gguf`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .llama_logits import BATCHES, EXACT, _context, _decode, _model

ROOT = Path(__file__).parents[1]


def state_moves(gguf: Path, sizes: tuple[int, int], runtime: Path) -> tuple[bool, bool]:
    """Whether a context of the second size takes the state of one of the first: as a whole, and of one sequence."""
    command = [sys.executable, "-m", "tests.llama_state", str(gguf.absolute()), *map(str, sizes)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "LLAMA_CPP_LIB_PATH": str(runtime)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{gguf}: llama.cpp ended with {done.returncode}:\n{done.stderr[-3000:]}")
    whole, sequence = json.loads(done.stdout.splitlines()[-1])
    return whole, sequence


# ---- from here on: the child process


def _moves(model: Any, sizes: tuple[int, int]) -> tuple[bool, bool]:
    import numpy as np
    from llama_cpp import llama_cpp as lib

    params = {**BATCHES, **EXACT}
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    with _context(model, {**params, "n_ctx": sizes[0]}) as context:
        _decode(context, np.arange(1, 33, dtype=np.int32), 0, n_vocab)
        size = lib.llama_state_get_size(context)
        whole = (ctypes.c_uint8 * size)()
        assert lib.llama_state_get_data(context, whole, size) == size
        part = lib.llama_state_seq_get_size(context, 0)
        sequence = (ctypes.c_uint8 * part)()
        assert lib.llama_state_seq_get_data(context, sequence, part, 0) == part
    with _context(model, {**params, "n_ctx": sizes[1]}) as context:
        taken = lib.llama_state_set_data(context, whole, size)
    with _context(model, {**params, "n_ctx": sizes[1]}) as context:
        return taken == size, lib.llama_state_seq_set_data(context, sequence, part, 0) == part


def main(gguf: str, first: str, second: str) -> None:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    with _model(gguf) as model:
        print(json.dumps(_moves(model, (int(first), int(second)))))  # noqa: T201 - the answer
    lib.llama_backend_free()


if __name__ == "__main__":
    main(*sys.argv[1:])
