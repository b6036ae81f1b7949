"""What llama.cpp computes from a file, against what transformers computes from the config: at every position.

The files are made by upstream's converter from toys of `toys.py`. Bounds are on the mean over all positions of
KL(transformers‖llama.cpp), in nats. Measured when this was written: unscaled 8e-13 to 9.3e-11; default YaRN in the keys
1.1e-12 to 6.8e-10, which is float32 angles. So 1e-8 is fifteen times the worst; the nearest wrong setting gives 4e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .llama_logits import kl, llama_logits, load_ok
from .toys import (
    CONTEXT,
    FACTOR,
    LENGTH,
    TOYS,
    YARN,
    Frequencies,
    RopeParameters,
    Toy,
    reference_logits,
    tokens,
    yarn_frequencies,
)
from .upstream import write_with_keys

Files = Callable[[str], Path]

EXACT = 1e-8
EXACT_GELU = 3e-7  # ggml's CPU takes GELU from a float16 table: 5e-8 to 1.4e-7 without any scaling
WRONG = 1e-3
YARN_KEYS: dict[str, str | int | float | bool] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": FACTOR,
    "rope.scaling.original_context_length": CONTEXT,
    "context_length": LENGTH,
}


def divergence(
    toy: Toy,
    file: Path,
    rope_parameters: RopeParameters | None,
    frequencies: Frequencies | None = None,
    ctx_params: Mapping[str, Any] | None = None,
    runtime: Path | None = None,
) -> float:
    """Mean KL(transformers‖llama.cpp) over `LENGTH` positions, or as many as the context parameters say.

    transformers gets the rope parameters (none: unscaled) or, for what it has no name for, the frequencies. llama.cpp
    gets the file as it is, and these context parameters.
    """
    params = {"n_ctx": LENGTH, **dict(ctx_params or {})}
    read = tokens()[: params["n_ctx"]]
    config = {"max_position_embeddings": LENGTH} if rope_parameters else {}
    reference = reference_logits(toy, rope_parameters, read, frequencies, **config)
    return float(kl(reference, llama_logits(file, read, runtime=runtime, **params)).mean())


@cache
def unscaled_divergence(toy: Toy, file: Path) -> float:
    return divergence(toy, file, None)


def limit(toy: Toy, unscaled_file: Path) -> float:
    """What counts as exact: `EXACT`, and where a GELU table limits it, twice what that does to the unscaled file."""
    return min(EXACT_GELU, 2 * unscaled_divergence(toy, unscaled_file)) if toy.gelu else EXACT


def default_yarn(toy: Toy, **more: float) -> dict[str, Any]:
    """The reference's side of YaRN by `FACTOR`, as arguments of `divergence`."""
    if toy.yarn:
        return {"rope_parameters": toy.scaled(**YARN, **more)}
    return {"rope_parameters": None, "frequencies": yarn_frequencies(toy, **YARN, **more)}


@pytest.mark.parametrize("name", TOYS)
def test_an_unscaled_file_of_upstreams_converter_is_exact(name: str, toy_gguf: Files) -> None:
    toy = TOYS[name]
    assert unscaled_divergence(toy, toy_gguf(name)) <= (EXACT_GELU if toy.gelu else EXACT)


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.keys])
def test_default_yarn_in_the_keys_is_exact_and_told_from_other_betas(
    name: str, toy_gguf: Files, tmp_path: Path
) -> None:
    toy = TOYS[name]
    file = write_with_keys(toy_gguf(name), tmp_path / "keys.gguf", YARN_KEYS)
    assert divergence(toy, file, **default_yarn(toy)) <= limit(toy, toy_gguf(name))
    assert divergence(toy, file, **default_yarn(toy, beta_fast=6.0, beta_slow=2.0)) > WRONG


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if not toy.keys])
def test_latent_attention_needs_more_than_the_three_keys(name: str, toy_gguf: Files, tmp_path: Path) -> None:
    toy = TOYS[name]
    file = write_with_keys(toy_gguf(name), tmp_path / "keys.gguf", YARN_KEYS)
    assert divergence(toy, file, **default_yarn(toy)) > WRONG


def test_betas_as_context_parameters_override_the_file(toy_gguf: Files, tmp_path: Path) -> None:
    toy = TOYS["llama"]
    file = write_with_keys(toy_gguf("llama"), tmp_path / "keys.gguf", YARN_KEYS)
    betas = {"yarn_beta_fast": 6.0, "yarn_beta_slow": 2.0}
    assert divergence(toy, file, **default_yarn(toy, beta_fast=6.0, beta_slow=2.0), ctx_params=betas) <= EXACT


def test_a_torn_file_is_refused_by_llama_cpp_and_a_whole_one_loads(toy_gguf: Files, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(toy_gguf("llama").read_bytes()[:5000])
    assert load_ok(toy_gguf("llama"))
    assert not load_ok(torn)


def test_kl_is_zero_for_a_shift_of_all_logits_and_known_for_two_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7))
    assert np.abs(kl(logits, logits + 3)).max() < 1e-15
    half, tenth = np.log([[0.5, 0.5]]), np.log([[0.1, 0.9]])
    assert kl(half, tenth) == pytest.approx([0.5 * np.log(5) + 0.5 * np.log(5 / 9)])
