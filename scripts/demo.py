"""A minute with yarn-gguf: makes a small GGUF whose YaRN settings stock llama.cpp ignores, then finds and mends that.

The model is a random one, as upstream's converter would write it: what is shown is metadata, not language. Everything
lies in the folder `demo-out` afterwards. Runs the real command line; knows nothing of its insides.
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

FOLDER = Path("demo-out")
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


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*arguments: str | Path) -> None:
    """Shows a command and its output; the demo ends where it fails."""
    print(f"$ yarn-gguf {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "yarn_gguf", *map(str, arguments)], check=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model, longer, back = FOLDER / "model.gguf", FOLDER / "model-yarn4x.gguf", FOLDER / "model-restored.gguf"
    say("1. A model as today's converters write it. What will llama.cpp make of it?")
    make_model(model)
    run("inspect", model)
    say("2. The same settings, written so that stock llama.cpp computes them. Tensor bytes are not touched.")
    run("extend", model, "-o", longer, "--force")
    say("3. What will llama.cpp make of that?")
    run("inspect", longer, "--plot", FOLDER / "rope.svg")
    say("4. And back again, byte for byte.")
    run("extend", longer, "--restore", "-o", back, "--force")
    if not filecmp.cmp(model, back, shallow=False):
        sys.exit(f"error: {back} differs from {model}")
    print(f"{back} and {model} are the same, byte for byte")
    say(f"Everything is in {FOLDER}/; {FOLDER}/rope.svg shows what YaRN does to each pair of dimensions.")


if __name__ == "__main__":
    main()
