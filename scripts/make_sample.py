"""Makes a small GGUF whose YaRN settings stock llama.cpp ignores, as upstream's converter would write it.

The model is a random one: what can be shown of it is metadata, not language. The README's examples are of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, WORDS = 256, 2, 4, 256


def make_model(path: Path) -> None:
    """A two-layer Llama with YaRN keys whose betas no llama graph reads, and its context length left unscaled."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Demo")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_beta_fast(16.0)
    writer.add_rope_scaling_yarn_beta_slow(2.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<0x{i:02X}>" for i in range(WORDS)])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([gguf.TokenType.BYTE] * WORDS)
    for name, shape in _shapes().items():
        values = np.random.default_rng(len(name)).normal(0, 0.05, shape).astype(np.float32)
        writer.add_tensor(name, np.ones(shape, np.float32) if "norm" in name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes() -> dict[str, tuple[int, ...]]:
    square, wide, norm = (WIDTH, WIDTH), (2 * WIDTH, WIDTH), (WIDTH,)
    block = {"attn_norm": norm, "attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    block |= {"ffn_norm": norm, "ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
    layers = {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    ends = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": norm, "output.weight": (WORDS, WIDTH)}
    return ends | layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    path = parser.parse_args().out
    path.parent.mkdir(parents=True, exist_ok=True)
    make_model(path)


if __name__ == "__main__":
    main()
