"""Logits of a GGUF at every position, as stock or patched llama.cpp computes them.

Each call is a child process (this file, run as a script): llama.cpp ends the whole process when something is amiss, and
a process can load only one build of it. Nothing of `yarn_gguf` is imported: this is what its results are held against.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
REFUSED = 3  # the child's exit status when llama.cpp says no to the file
EXACT = {"type_k": 0, "type_v": 0, "flash_attn_type": 0}  # GGML_TYPE_F32 twice, LLAMA_FLASH_ATTN_TYPE_DISABLED
BATCHES = {"n_batch": 512, "n_ubatch": 256, "n_threads": 1, "n_threads_batch": 1}


class LlamaFailed(Exception):
    """The child process died or llama.cpp refused; the message ends with the tail of its stderr."""

    def __init__(self, gguf: Path, status: int, stderr: str) -> None:
        super().__init__(f"{gguf}: llama.cpp ended with {status}:\n{stderr[-3000:]}")
        self.status = status
        self.stderr = stderr


def llama_logits(
    gguf: Path, tokens: Tokens, n_ctx: int | None = None, runtime: Path | None = None, **ctx_params: float
) -> npt.NDArray[np.float32]:
    """[tokens, vocabulary]: row i holds the logits after tokens 0..i.

    The key/value cache is float32, flash attention is off, all settings of RoPE come from the file, unless
    `ctx_params`, fields of `llama_context_params` by name, say otherwise. `runtime` is a folder of llama.cpp libraries;
    without it those of llama-cpp-python are loaded. Raises `LlamaFailed`.
    """
    params = {**BATCHES, **EXACT, "n_ctx": n_ctx or len(tokens), **ctx_params}
    with tempfile.TemporaryDirectory() as folder:
        tokens_file, logits_file = Path(folder, "tokens.npy"), Path(folder, "logits.npy")
        np.save(tokens_file, np.asarray(tokens, dtype=np.int32))
        _child(gguf, runtime, str(tokens_file), str(logits_file), json.dumps(params))
        logits: npt.NDArray[np.float32] = np.load(logits_file)
    return logits


def load_ok(gguf: Path, runtime: Path | None = None) -> bool:
    """Whether llama.cpp loads the file. A crash is not an answer: it raises `LlamaFailed`."""
    try:
        _child(gguf, runtime)
    except LlamaFailed as failure:
        if failure.status == REFUSED:
            return False
        raise
    return True


def kl(reference: npt.ArrayLike, other: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """KL(reference‖other) in nats at each position, from logits [positions, vocabulary]."""
    p, q = _log_softmax(reference), _log_softmax(other)
    divergence: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def _log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    x = np.asarray(logits, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    shifted: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return shifted


def _child(gguf: Path, runtime: Path | None, *arguments: str) -> None:
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    environment.pop("LLAMA_CPP_LIB_PATH", None)
    if runtime is not None:
        environment["LLAMA_CPP_LIB_PATH"] = str(runtime)
    # -P: the folder of the tests stays off the child's path, so that none of its modules hides an installed one.
    command = [sys.executable, "-P", __file__, str(gguf), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise LlamaFailed(gguf, done.returncode, done.stderr)


# ---- from here on: the child process


@contextmanager
def _model(path: str) -> Iterator[Any]:
    from llama_cpp import llama_cpp as lib  # only here: a parent that imports it has chosen its build for good

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise SystemExit(REFUSED)
    yield model
    lib.llama_model_free(model)


@contextmanager
def _context(model: Any, settings: dict[str, float]) -> Iterator[Any]:
    """Default parameters are those of llama.cpp itself: −1 for all of YaRN's, which means "what the file says".

    (Those of llama-cpp-python's `Llama` class are not: they override the file.)
    """
    from llama_cpp import llama_cpp as lib

    params = lib.llama_context_default_params()
    for name, value in settings.items():
        getattr(params, name)  # ctypes would take any name
        setattr(params, name, value)
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(REFUSED)
    yield context
    lib.llama_free(context)


def _decode(context: Any, tokens: Tokens, start: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Logits of these tokens at positions start, start + 1, …"""
    from llama_cpp import llama_cpp as lib

    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), start + i, 1, 0
        batch.logits[i] = True
    status = lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)
    if status:
        raise SystemExit(f"llama_decode: {status}")
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(len(tokens), n_vocab))
    return logits.copy()  # the next batch overwrites it


def _logits(model: Any, tokens: Tokens, settings: dict[str, float]) -> npt.NDArray[np.float32]:
    from llama_cpp import llama_cpp as lib

    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    if not 0 <= tokens.min() <= tokens.max() < n_vocab:
        raise SystemExit(f"tokens {tokens.min()} to {tokens.max()}, but the vocabulary has {n_vocab}")
    with _context(model, settings) as context:
        starts = range(0, len(tokens), int(settings["n_batch"]))
        parts = [_decode(context, tokens[i : i + starts.step], i, n_vocab) for i in starts]
    return np.concatenate(parts)


def main(gguf: str, tokens: str = "", out: str = "", settings: str = "{}") -> None:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    with _model(gguf) as model:
        if tokens:
            np.save(out, _logits(model, np.load(tokens), json.loads(settings)))
    lib.llama_backend_free()


if __name__ == "__main__":
    main(*sys.argv[1:])
