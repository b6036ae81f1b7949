"""Whole files from the kinds of checkpoints that are no plain floats, or not scaled as others: against upstream's.

DeepSeek-V3 with fp8 blocks, Ministral-3 as Mistral publishes it in fp8, gpt-oss with MXFP4 experts, checkpoints in
bf16 and f16, Phi-3 with longrope: every tensor's bytes, in every type, and for longrope the logits besides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from yarn_gguf.gguf_file.shards import read_model

from .conftest import OUTTYPES
from .conversions import convert_folder
from .llama_logits import kl, llama_logits
from .test_archs_experts import CASES as EXPERT_CASES
from .test_archs_experts import made
from .test_convert_upstream import differing_keys, differing_tensors
from .test_logits import EXACT
from .test_weights import FP8, as_mistral_writes, in_blocks, quantized
from .toys import CONTEXT, HEAD, LENGTH, TOYS, reference_logits, save_checkpoint, tokens
from .upstream import convert, convert_to

SCALING: Final = ("rope.scaling.", "yarn_gguf.", "general.name", "context_length")
LONGROPE: Final[dict[str, Any]] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 40 for i in range(HEAD // 2)],
    "long_factor": [1.0 + i for i in range(HEAD // 2)],
    "original_max_position_embeddings": CONTEXT,
}


def plain(name: str, dtype: str) -> Callable[[Path], Path]:
    """A toy whose weights are stored in 16 bits."""

    def make(folder: Path) -> Path:
        import torch
        from safetensors.torch import load_file, save_file

        path = save_checkpoint(TOYS[name], folder) / "model.safetensors"
        cast = {key: value.to(getattr(torch, dtype)) for key, value in load_file(path).items()}
        save_file(cast, path, metadata={"format": "pt"})
        return folder

    return make


def eight_bits(name: str, settings: dict[str, Any], make: Any) -> Callable[[Path], Path]:
    return lambda folder: quantized(save_checkpoint(TOYS[name], folder.with_name("floats")), folder, settings, make)


KINDS: Final[dict[str, Callable[[Path], Path]]] = {
    "DeepSeek-V3, fp8 in blocks": eight_bits("deepseek3", {**FP8, "weight_block_size": [32, 32]}, in_blocks((32, 32))),
    "Ministral-3, fp8": eight_bits("ministral3", FP8, as_mistral_writes),
    "gpt-oss, MXFP4": lambda folder: made(EXPERT_CASES["gptoss-mxfp4"], folder),
    "llama, bf16": plain("llama", "bfloat16"),
    "gemma2, f16": plain("gemma2", "float16"),
    "granitemoe, bf16": plain("granitemoe", "bfloat16"),
    "Phi-3, longrope": lambda folder: save_checkpoint(TOYS["phi3"], folder, LONGROPE, max_position_embeddings=LENGTH),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_kind_has_the_bytes_of_upstreams_converter(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "checkpoint")
    if "MXFP4" in kind:  # upstream would name all of them by that type
        for outtype in OUTTYPES:
            convert(folder, tmp_path / f"{outtype}.gguf", outtype)
    else:
        convert_to(folder, tmp_path, OUTTYPES)
    for outtype in OUTTYPES:
        convert_folder(folder, tmp_path / "ours.gguf", outtype=outtype, force=True)
        ours, theirs = read_model(tmp_path / "ours.gguf"), read_model(tmp_path / f"{outtype}.gguf")
        assert differing_tensors(ours, theirs) == []
        keys = differing_keys(ours, theirs)
        assert {key: pair for key, pair in keys.items() if not any(part in key for part in SCALING)} == {}


def test_longrope_of_phi3_is_kept_and_exact(tmp_path: Path) -> None:
    """transformers takes the list by the length of the text, llama.cpp by the size of the context: both long here."""
    folder = KINDS["Phi-3, longrope"](tmp_path / "checkpoint")
    outcome = convert_folder(folder, tmp_path / "out.gguf", outtype="f32")
    assert outcome.conversion.written.exact
    reference = reference_logits(TOYS["phi3"], LONGROPE, tokens(), max_position_embeddings=LENGTH)
    assert float(kl(reference, llama_logits(tmp_path / "out.gguf", tokens(), LENGTH)).mean()) <= EXACT
