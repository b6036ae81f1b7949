"""Small models with a vocabulary, sharp enough that a word can be right or wrong, for the tests of `verify`.

Rows of 256, so that every quantization is the real one; the last norm is scaled, so that words differ, and none is so
improbable that llama-perplexity cuts it off. Made by transformers and by the command line; the files of a session are
shared, and not to be written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .command import run
from .make_checkpoints import WEIGHTS, load, store, tokenizer
from .toys import HEAD, ROPE, Toy, save_checkpoint

WORDS = 1024
ORIGINAL = 128
FACTOR = 8
SHARPER = {"llama": 1.5, "qwen3": 1.5}
SIZES: Mapping[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "max_position_embeddings": ORIGINAL,
    "rope_parameters": ROPE,
}
TOYS = {
    "llama": Toy("verify-llama", "LlamaConfig", {**SIZES, "head_dim": 64}),
    "qwen3": Toy("verify-qwen3", "Qwen3Config", {**SIZES, "head_dim": 2 * HEAD}),
}


@dataclass(frozen=True)
class Models:
    """A checkpoint, and what the command line makes of it with YaRN: `files[TYPE]`."""

    checkpoint: Path
    files: Mapping[str, Path]


def make_models(name: str, folder: Path, types: tuple[str, ...] = ("Q8_0", "Q4_K_M", "Q2_K")) -> Models:
    checkpoint = save_checkpoint(TOYS[name], folder / name)
    weights = load(checkpoint / WEIGHTS)
    norm = weights["model.norm.weight"]
    scaled = replace(norm, data=(norm.array * np.float32(SHARPER[name])).tobytes())
    store(checkpoint / WEIGHTS, {**weights, "model.norm.weight": scaled})
    for file, content in tokenizer("llama-bpe", WORDS).items():
        (checkpoint / file).write_bytes(content)
    exact = folder / f"{name}-F32.gguf"
    succeed("convert", checkpoint, "--outtype", "f32", "--factor", FACTOR, "-o", exact)
    files = {"F32": exact}
    for kind in types:
        files[kind] = folder / f"{name}-{kind}.gguf"
        succeed("quantize", exact, kind, "-o", files[kind])
    return Models(checkpoint, files)


def succeed(*arguments: object) -> None:
    done = run(*map(str, arguments))
    assert done.code == 0, done
