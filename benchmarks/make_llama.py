"""Makes a checkpoint of a Llama of random weights, as large as a real one, for what measures speed.

    python -m benchmarks.make_llama FOLDER [--dtype bf16|f16|f32] [--shape tall|wide]

`tall` is TinyLlama's shape: 1.1 B parameters, 2.2 GB in bf16. `wide` has one layer and an embedding of 2 GB, for what
must not depend on how large a tensor is. The weights are the same at each run. The tokenizer is byte-level BPE with
Llama 3's pre-tokenizer, trained on a few pages of text; converters pad its vocabulary up to config.json's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parent.parent
POOL: Final = 1 << 24  # random numbers that are drawn; each tensor takes them from a place of its own
SIZES: Final = {"bf16": ("BF16", 2), "f16": ("F16", 2), "f32": ("F32", 4)}
TORCH_NAMES: Final = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SHAPES: Final[dict[str, dict[str, int]]] = {
    "tall": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
    "wide": {"vocab_size": 524288, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 1},
}
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def config_of(shape: str, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPES[shape],
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": shape == "wide",
        "torch_dtype": TORCH_NAMES[dtype],
    }


def tensors_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for number in range(config["num_hidden_layers"]):
        yield from ((f"model.layers.{number}.{name}", shape) for name, shape in layer.items())
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def pool_of(dtype: str) -> NDArray[Any]:
    """Weights as models have them: normal, 0.02 wide, in the given type; bf16 as its bits."""
    numbers = np.random.default_rng(3).standard_normal(POOL, np.float32) * np.float32(0.02)
    if dtype == "bf16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(np.float16) if dtype == "f16" else numbers


def write_weights(path: Path, config: dict[str, Any], dtype: str) -> None:
    """One safetensors file: length of the header, the header, and the tensors one behind the other."""
    kind, size = SIZES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    counts, end = [], 0
    for name, shape in tensors_of(config):
        counts.append(int(np.prod(shape)))
        begin, end = end, end + counts[-1] * size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = pool_of(dtype)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, count in enumerate(counts):
            write_numbers(file, pool, number * 1_000_003 % POOL, count)


def write_numbers(file: Any, pool: NDArray[Any], at: int, count: int) -> None:
    while count:
        piece = pool[at : at + count]
        file.write(piece.data)
        at, count = (at + piece.size) % POOL, count - piece.size


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path) for path in sorted(ROOT.glob("*.md"))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make(folder: Path, dtype: str = "bf16", shape: str = "tall") -> Path:
    """The checkpoint's folder, which must be empty or not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(shape, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    write_weights(folder / "model.safetensors", config, dtype)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=SIZES, default="bf16", help="what the weights are stored as [bf16]")
    parser.add_argument("--shape", choices=SHAPES, default="tall", help="many tensors, or one of 2 GB [tall]")
    options = parser.parse_args()
    print(make(options.folder, options.dtype, options.shape))


if __name__ == "__main__":
    main()
