"""Logits after context shifts by llama.cpp: the oldest tokens leave the cache, the others move down.

A child process (this module, run by its name), like `llama_logits`, whose helpers it uses. Nothing of `yarn_gguf`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .llama_logits import BATCHES, EXACT, Tokens, _context, _decode, _model

ROOT = Path(__file__).parents[1]


def survivors(tokens: Tokens, window: int, dropped: int, shifts: int) -> Tokens:
    """The tokens in the cache at the end of `shifted_logits`: those that were never dropped."""
    return tokens[shifts * dropped : window + shifts * dropped]


def shifted_logits(
    gguf: Path,
    tokens: Tokens,
    window: int,
    dropped: int,
    shifts: int,
    runtime: Path | None = None,
    **ctx_params: float,
) -> npt.NDArray[np.float32]:
    """[dropped, vocabulary]: logits of the last tokens decoded, after `shifts` context shifts.

    The first `window` tokens are decoded; then, each time, the oldest `dropped` are taken from the cache, the others
    moved to the positions from 0 on, and as many new ones decoded behind them.
    """
    settings = {"window": window, "dropped": dropped, "shifts": shifts, "ctx": ctx_params}
    with tempfile.TemporaryDirectory() as folder:
        tokens_file, logits_file = Path(folder, "tokens.npy"), Path(folder, "logits.npy")
        np.save(tokens_file, np.asarray(tokens, dtype=np.int32))
        files = [str(gguf.absolute()), str(tokens_file), str(logits_file)]
        command = [sys.executable, "-m", "tests.llama_shift", *files, json.dumps(settings)]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        environment.pop("LLAMA_CPP_LIB_PATH", None)
        if runtime is not None:
            environment["LLAMA_CPP_LIB_PATH"] = str(runtime)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise RuntimeError(f"{gguf}: llama.cpp ended with {done.returncode}:\n{done.stderr[-3000:]}")
        logits: npt.NDArray[np.float32] = np.load(logits_file)
    return logits


# ---- from here on: the child process


def _shifted(model: Any, tokens: Tokens, settings: dict[str, Any]) -> npt.NDArray[np.float32]:
    from llama_cpp import llama_cpp as lib

    window, dropped = settings["window"], settings["dropped"]
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    params = {**BATCHES, **EXACT, "n_ctx": window, "n_batch": window, **settings["ctx"]}
    with _context(model, params) as context:
        logits = _decode(context, tokens[:window], 0, n_vocab)
        memory = lib.llama_get_memory(context)
        for shift in range(settings["shifts"]):
            if not lib.llama_memory_can_shift(memory) or not lib.llama_memory_seq_rm(memory, 0, 0, dropped):
                raise SystemExit("llama.cpp cannot shift here")
            lib.llama_memory_seq_add(memory, 0, dropped, window, -dropped)
            start = window + shift * dropped
            logits = _decode(context, tokens[start : start + dropped], window - dropped, n_vocab)
    return logits[-dropped:]


def main(gguf: str, tokens: str, out: str, settings: str) -> None:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    with _model(gguf) as model:
        np.save(out, _shifted(model, np.load(tokens), json.loads(settings)))
    lib.llama_backend_free()


if __name__ == "__main__":
    main(*sys.argv[1:])
