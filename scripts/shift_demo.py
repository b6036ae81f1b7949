"""What a context shift does to a model's cache: `python scripts/shift_demo.py MODEL [SHIFTS] [K TYPE]`.

Moves all of the cache up and down again, so many times, which should change nothing, and prints how far the next
words' distributions have gone from those without the moves: the mean KL divergence in nats. Uses the llama.cpp that
llama-cpp-python loads; LLAMA_CPP_LIB_PATH names another. Needs nothing of yarn-gguf.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

TOKENS, NEXT, STEP = 200, 16, 8


def next_logits(llama: Any, model: Any, shifts: int, kind: str) -> np.ndarray[Any, Any]:
    """[NEXT, vocabulary]: log-probabilities of what follows TOKENS tokens and `shifts` moves up and down."""
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    params.type_k = getattr(llama, f"GGML_TYPE_{kind.upper()}")
    params.type_v, params.flash_attn_type = llama.GGML_TYPE_F32, 0
    context = llama.llama_init_from_model(model, params)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ids = np.random.default_rng(1).integers(3, vocabulary, TOKENS + NEXT).tolist()
    memory = llama.llama_get_memory(context)
    logits = _decode(llama, context, ids[:TOKENS], 0)
    end = TOKENS
    for step in (STEP, -STEP) * shifts:
        llama.llama_memory_seq_add(memory, 0, 0, -1, step)
        end += step
        logits = _decode(llama, context, ids[TOKENS:], end)  # the keys are moved before this
        llama.llama_memory_seq_rm(memory, 0, end, -1)
    if not shifts:
        logits = _decode(llama, context, ids[TOKENS:], end)
    llama.llama_free(context)
    return logits


def _decode(llama: Any, context: Any, ids: list[int], start: int) -> np.ndarray[Any, Any]:
    """Log-probabilities after each of these tokens."""
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
        batch.logits[i] = True
    if llama.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    llama.llama_batch_free(batch)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(llama.llama_get_model(context)))
    found = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(len(ids), vocabulary)).astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    return found - np.log(np.exp(found).sum(axis=1, keepdims=True))


def main(path: str, shifts: str = "1", kind: str = "f32") -> None:
    from llama_cpp import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda *_: None)  # must outlive all calls
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(os.fsencode(path), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"{path}: llama.cpp does not load it")
    still, moved = (next_logits(llama, model, count, kind) for count in (0, int(shifts)))
    print(f"{shifts} up and down: mean KL {(np.exp(still) * (still - moved)).sum(axis=1).mean():.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
