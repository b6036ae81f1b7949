"""A llama of toy size with a vocabulary of 152,064 words, by gguf-py: what `verify` costs, costs most here.

The output is drawn so wide that a word's entropy is 2 to 3 nats. Needs no tokenizer; nothing of `yarn_gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gguf
import numpy as np

WORDS: Final = 152_064
WIDTH: Final = 64
HEADS: Final = 2
LAYERS: Final = 1
FORWARD: Final = 128
SHARP: Final = 7.0


def make_wide(path: Path, context: int, noise: float = 0.0) -> Path:
    """`noise`: of the output's weights, so that two files differ."""
    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {"context_length": context, "embedding_length": WIDTH, "block_count": LAYERS, "vocab_size": WORDS}
    numbers |= {"feed_forward_length": FORWARD, "attention.head_count": HEADS, "rope.dimension_count": WIDTH // HEADS}
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("no_vocab")

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    writer.add_tensor("token_embd.weight", drawn(WORDS, WIDTH) * np.float32(8))
    output = drawn(WORDS, WIDTH) * np.float32(SHARP)
    if noise:
        output += drawn(WORDS, WIDTH) * np.float32(noise * SHARP)
    writer.add_tensor("output.weight", output.astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", drawn(WIDTH, WIDTH))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("blk.0.ffn_norm.weight", np.ones(WIDTH, np.float32))
    for name, shape in (("gate", (FORWARD, WIDTH)), ("up", (FORWARD, WIDTH)), ("down", (WIDTH, FORWARD))):
        writer.add_tensor(f"blk.0.ffn_{name}.weight", drawn(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
