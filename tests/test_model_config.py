"""config.json as we read it, against transformers: its config classes, its rotary embeddings, its layers.

The oracle is what a model of transformers 5.23 really holds: the buffers of the module that makes cos and sin, built
from the config that transformers itself loads from the same file.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from yarn_gguf.config.families import DEFAULTS
from yarn_gguf.config.model_config import ModelConfig, read_config
from yarn_gguf.errors import InputError
from yarn_gguf.intent import Intent
from yarn_gguf.rope import LongRope, Unscaled, Yarn

# Of θ. transformers works in float32: the worst of the thousand ropes here is off by 3.8e-7, magnitudes by nothing.
FREQUENCY = 1e-6
NO_ROPE = ("gpt2", "bloom", "mpt")
FAMILIES = sorted(DEFAULTS.keys() - set(NO_ROPE))
NESTED = ("gemma3_text", "olmo3", "laguna", "mellum")
OWN_TYPES = ("phi3", "phimoe")  # take longrope or nothing
HEAD = 32
UNFIT = {"glm4_moe": {"head_dim": 128}}  # by its defaults half a head is 21 dimensions
SIZES = {
    "vocab_size": 320,
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
LATENT = ("deepseek_v2", "deepseek_v3", "mistral4", "minicpm3")
LATENT_SIZES = {"qk_rope_head_dim": HEAD, "qk_nope_head_dim": 48}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
LONG = {"short_factor": [1.0 + i / 16 for i in range(HEAD // 2)], "long_factor": [2.0 + i for i in range(HEAD // 2)]}
HUNYUAN = {"beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": YARN,
    "llama3": LLAMA3,
    "longrope": {**LONG, "original_max_position_embeddings": 1024},
}


def write(folder: Path, model_type: str, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **fields}))
    return folder


def small(model_type: str, **fields: Any) -> dict[str, Any]:
    if model_type == "falcon":  # refuses a head_dim
        return {**SIZES, **fields}
    return {**SIZES, **(LATENT_SIZES if model_type in LATENT else {"head_dim": HEAD}), **fields}


def transformers_config(folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return config.get_text_config()


def rotary_class(config: Any) -> Any:
    name = type(config).__module__.replace("configuration_", "modeling_")
    name = name.replace("internlm3", "llama")  # transformers runs it as a Llama
    module = importlib.import_module(name)
    found = [each for key, each in vars(module).items() if key.endswith("RotaryEmbedding") and each.__module__ == name]
    assert len(found) == 1, found
    return found[0]


def oracle(config: Any, layer_type: str, theta: float | None = None) -> tuple[npt.NDArray[np.float64], float]:
    """Inverse frequencies and magnitude of the layers of this type."""
    config = copy.deepcopy(config)
    if theta is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
    rotary = rotary_class(config)(config)
    prefix = "" if hasattr(rotary, "inv_freq") else f"{layer_type}_"
    frequencies = getattr(rotary, f"{prefix}inv_freq").double().numpy()
    return frequencies, float(getattr(rotary, f"{prefix}attention_scaling"))


def same_rope(intent: Intent, expected: tuple[npt.NDArray[np.float64], float], length: int | None = None) -> None:
    frequencies, magnitude = expected
    ours = intent.rope.inverse_frequencies(length)
    assert ours.shape == frequencies.shape
    assert np.all(np.abs(ours - frequencies) <= FREQUENCY * intent.rope.plain_frequencies)
    assert intent.rope.magnitude(length) == pytest.approx(magnitude, abs=1e-6)


def agree(folder: Path) -> ModelConfig:
    """Both read the file; every kind of layer that rotates gets the same RoPE. What we read is returned."""
    ours, theirs = read_config(folder), transformers_config(folder)
    kinds = {"full": "full_attention", "sliding": "sliding_attention"}
    assert ours.ropes
    for kind, intent in ours.ropes.items():
        same_rope(intent, oracle(theirs, kinds[kind]))
    assert ours.rope is not None
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    return ours


def scaled(model_type: str, scaling: str) -> dict[str, Any]:
    """The scaling's settings; the lists of longrope are for heads that turn as a whole."""
    whole = {"partial_rotary_factor": 1.0} if scaling == "longrope" else {}
    part = {"partial_rotary_factor": HEAD / (HEAD + 48)} if model_type == "mistral4" else {}
    return {**SCALINGS[scaling], **whole, **part}


def new_style(model_type: str, scaling: str) -> dict[str, Any]:
    full = {"rope_type": scaling, "rope_theta": 30000.0, **scaled(model_type, scaling)}
    plain = {"rope_type": "default", "rope_theta": 20000.0}
    nested = {"full_attention": full, "sliding_attention": plain}
    return small(model_type, rope_parameters=nested if model_type in NESTED else full)


def old_style(model_type: str, scaling: str) -> dict[str, Any]:
    """gemma3 and olmo3 take the old rope_scaling, but not the old name of the type in it."""
    name = "rope_type" if model_type in NESTED else "type"
    settings = None if scaling == "default" else {name: scaling, **scaled(model_type, scaling)}
    theta = "rotary_emb_base" if model_type == "gpt_neox" else "rope_theta"
    return small(model_type, rope_scaling=settings, **{theta: 30000.0})


def test_every_architecture_of_the_exactness_table_is_known() -> None:
    measured = """llama mistral mixtral qwen2 qwen3 qwen3_moe olmo2 granite stablelm qwen2_moe phi3 gemma2
    gemma3_text olmo3 smollm3 glm4 starcoder2 gpt_oss deepseek_v2 deepseek_v3 ministral3 cohere2 exaone4
    seed_oss minicpm3 granitemoe ernie4_5 hunyuan_v1_dense phi gpt_neox falcon nemotron gemma glm glm4_moe
    olmo olmoe cohere granitemoeshared granite_swa dots1 exaone_moe arcee apertus afmoe laguna mellum phimoe
    minimax_m2 jais2 ernie4_5_moe internlm3 mistral4 hy_v3 lfm2"""
    assert set(FAMILIES) == set(measured.split())


@pytest.mark.parametrize("model_type", sorted(DEFAULTS))
def test_an_empty_config_has_the_sizes_of_the_class(tmp_path: Path, model_type: str) -> None:
    folder = write(tmp_path, model_type, **UNFIT.get(model_type, {}))
    ours, theirs = read_config(folder), transformers_config(folder)
    assert ours.layers == theirs.num_hidden_layers
    assert ours.hidden_size == theirs.hidden_size
    assert ours.heads == theirs.num_attention_heads
    assert ours.vocab_size == theirs.vocab_size
    assert ours.max_position_embeddings == getattr(theirs, "max_position_embeddings", getattr(theirs, "max_seq_len", 0))
    kv_heads = 1 if model_type == "falcon" else getattr(theirs, "num_key_value_heads", None)  # one for all, on the 7B
    assert ours.kv_heads == (kv_heads or theirs.num_attention_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    if getattr(theirs, "layer_types", None) is not None:
        assert list(ours.layer_types) == theirs.layer_types
    slides = "sliding_attention" in ours.layer_types
    assert ours.sliding_window == (theirs.sliding_window if slides else None)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_has_the_rope_of_the_class(tmp_path: Path, model_type: str) -> None:
    agree(write(tmp_path, model_type, **UNFIT.get(model_type, {})))


SCALABLE = [
    (name, scaling)
    for name in FAMILIES
    for scaling in SCALINGS
    if (name not in OWN_TYPES or scaling == "default" or (name == "phi3" and scaling == "longrope"))
    and (name, scaling) != ("mistral4", "default")  # transformers then turns more than the head has
]


@pytest.mark.parametrize(("model_type", "scaling"), SCALABLE)
def test_the_new_spelling_gives_the_rope_that_transformers_computes(
    tmp_path: Path, model_type: str, scaling: str
) -> None:
    agree(write(tmp_path, model_type, **new_style(model_type, scaling)))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    # laguna and mellum came with the new spelling
    [(model_type, scaling) for model_type, scaling in SCALABLE if model_type not in ("laguna", "mellum")],
)
def test_the_old_spelling_gives_the_rope_that_transformers_computes(
    tmp_path: Path, model_type: str, scaling: str
) -> None:
    agree(write(tmp_path, model_type, **old_style(model_type, scaling)))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [
        (name, scaling)
        for name in FAMILIES
        for scaling in ("default", "yarn")
        if name not in (*LATENT, "laguna", "mellum", "phimoe") and (name, scaling) != ("phi3", "yarn")
    ],
)
def test_a_partial_rotary_factor_counts_where_transformers_lets_it(
    tmp_path: Path, model_type: str, scaling: str
) -> None:
    for fields in (new_style(model_type, scaling), old_style(model_type, scaling)):
        agree(write(tmp_path, model_type, **fields, partial_rotary_factor=0.5))


@pytest.mark.parametrize("model_type", ["laguna", "mellum"])
def test_a_partial_rotary_factor_beside_the_kinds_of_layers_is_refused(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(InputError, match=r"full_attention\.partial_rotary_factor is missing"):
        read_config(write(tmp_path, model_type, **new_style(model_type, "yarn"), partial_rotary_factor=0.5))


@pytest.mark.parametrize("model_type", ["llama", "granitemoe", "gemma3_text"])
def test_longrope_takes_the_long_list_beyond_the_original_context(tmp_path: Path, model_type: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = write(tmp_path, model_type, **new_style(model_type, "longrope"))
    layer_type = "full_attention" if model_type in NESTED else None
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["longrope"](
        transformers_config(folder), seq_len=1025, layer_type=layer_type
    )
    same_rope(read_config(folder).ropes["full"], (frequencies.double().numpy(), magnitude), 1025)


def test_dynamic_scaling_grows_with_the_length(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = write(tmp_path, "llama", **new_style("llama", "dynamic"))
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["dynamic"](transformers_config(folder), seq_len=10_000)
    same_rope(read_config(folder).ropes["full"], (frequencies.double().numpy(), magnitude), 10_000)


# What surprises in transformers: model, fields, and a part of the note that says so.
TRAPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "factor-null": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "factor": None}}, "factor is null: 4 is used"),
    "factor-not-the-ratio": (
        "qwen3",
        {
            "max_position_embeddings": 40960,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        "transformers 4 used 1.25 instead",
    ),
    "no-original": ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, ""),
    "models-own-original": (
        "llama",
        {"rope_scaling": {**YARN, "type": "yarn"}, "original_max_position_embeddings": 2048},
        "that of the model comes before it and is 2048",
    ),
    "betas-zero": (
        "llama",
        {"rope_scaling": {**YARN, "type": "yarn", "beta_fast": 0, "beta_slow": 0}},
        "beta_fast is 0",
    ),
    "betas-null": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "beta_fast": None, "beta_slow": None}}, ""),
    "betas": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "beta_fast": 16, "beta_slow": 2}}, ""),
    "not-truncated": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "truncate": False}}, ""),
    "truncate-null": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "truncate": None}}, ""),
    "mscale-alone": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "mscale": 0.7}}, "mscale without the other"),
    "mscale-all-dim-alone": (
        "deepseek_v3",
        {"rope_scaling": {**YARN, "type": "yarn", "mscale_all_dim": 0.7}},
        "without",
    ),
    "mscale-pair": (
        "deepseek_v3",
        {"rope_scaling": {**YARN, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.7}},
        "",
    ),
    "attention-factor": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "attention_factor": 0.0}}, ""),
    "attn-factor": (
        "llama",
        {"rope_scaling": {**YARN, "type": "yarn", "attn_factor": 2.0}},
        "attn_factor has no effect",
    ),
    "extrapolation-factor": (
        "llama",
        {"rope_scaling": {**YARN, "type": "yarn", "extrapolation_factor": 0.5}},
        "extrapolation_factor has no effect",
    ),
    "finetuned": ("llama", {"rope_scaling": {**YARN, "type": "yarn", "finetuned": True}}, ""),
    "two-types": ("llama", {"rope_scaling": {**YARN, "type": "linear", "rope_type": "yarn"}}, "rope_type comes before"),
    "both-dicts": (
        "llama",
        {"rope_scaling": {**YARN, "type": "yarn"}, "rope_parameters": {"rope_theta": 7e5}},
        "rope_scaling replaces rope_parameters",
    ),
    "empty-scaling": ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}}, ""),
    "two-thetas": (
        "llama",
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 7e5}},
        "700000 in rope_parameters comes before",
    ),
    "factor-without-type": ("llama", {"rope_scaling": {"factor": 8.0}}, "factor has no effect on default"),
    "gemma3-old-type": ("gemma3_text", {"rope_scaling": {"type": "yarn", "factor": 8.0}}, "rope_type comes before it"),
    "gemma3-local": ("gemma3_text", {"rope_theta": 7e5, "rope_local_base_freq": 3e4}, ""),
    "gemma3-linear": ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, ""),
    "olmo3-theta": ("olmo3", {"rope_theta": 1e6}, "sliding layers keep the base 500000"),
    "nested-truncate": (
        "olmo3",
        {"rope_parameters": {"full_attention": {**YARN, "rope_type": "yarn", "truncate": False}}},
        "full_attention: truncate has no effect on yarn",
    ),
    "truncate-beside": (
        "olmo3",
        {"rope_parameters": {"full_attention": {**YARN, "rope_type": "yarn"}, "truncate": False}},
        "",
    ),
    "gpt-oss-theta": ("gpt_oss", {"rope_theta": 2e5}, ""),
    "gpt-oss-empty": ("gpt_oss", {"rope_parameters": {}}, ""),
    "ministral3-theta": (
        "ministral3",
        {"rope_theta": 5e6, "rope_scaling": None},
        "1e+06 in rope_parameters comes before",
    ),
    "gpt-neox-theta": ("gpt_neox", {"rope_theta": 5e6, "rotary_pct": 0.5}, "rope_theta is not read"),
    "minimax-rotary-dim": ("minimax_m2", {"rotary_dim": 16}, ""),
    "hunyuan-alpha": (
        "hunyuan_v1_dense",
        {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0}},
        "factor has no effect",
    ),
    "hunyuan-published": (
        "hunyuan_v1_dense",
        {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, **HUNYUAN}},
        "beta_fast, beta_slow, factor, mscale, mscale_all_dim have no effect on dynamic RoPE",
    ),
    "hunyuan-no-alpha": ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 0}}, ""),
    "llama-alpha": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9.0}}, "alpha has no effect"),
    "phi3-yarn": (
        "phi3",
        {"rope_scaling": {**LONG, "type": "yarn"}, "original_max_position_embeddings": 1024},
        "takes yarn for longrope",
    ),
    "longrope-factor": ("llama", {"rope_scaling": {**LONG, "type": "longrope", "factor": 2.0}}, ""),
    "longrope-attention": ("llama", {"rope_scaling": {**LONG, "type": "longrope", "attention_factor": 1.5}}, ""),
    "sliding-only": ("cohere2", {"rope_scaling": {**YARN, "type": "yarn"}}, ""),
    "plain-partial": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor has no effect"),
    "latent-partial": ("deepseek_v3", {"partial_rotary_factor": 0.5}, "qk_rope_head_dim comes before it: 32"),
    "latent-partial-agrees": (
        "mistral4",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN, "partial_rotary_factor": 0.4}},
        "",
    ),
    "head-dim-null": ("glm", {"head_dim": None}, ""),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_stepped_into_as_transformers_does(tmp_path: Path, trap: str) -> None:
    model_type, fields, note = TRAPS[trap]
    ours = agree(write(tmp_path, model_type, **{**small(model_type), **fields}))
    assert any(note in each for each in ours.notes) if note else not ours.notes


def test_su_is_longrope_with_the_models_own_original_context(tmp_path: Path) -> None:
    """transformers 5.23 no longer loads what Phi-3 was published with; longrope is what it stands for."""
    fields = small("phi3", original_max_position_embeddings=1024)
    ours = read_config(write(tmp_path, "phi3", **fields, rope_scaling={**LONG, "type": "su"}))
    agreed = agree(write(tmp_path, "phi3", **fields, rope_scaling={**LONG, "type": "longrope"}))
    assert ours.ropes == agreed.ropes


@pytest.mark.parametrize(
    ("scaling", "original", "context"),
    [
        ({}, 4096, 4096),
        ({"type": "yarn", **YARN}, 1024, 4096),
        ({"type": "yarn", "factor": 4.0}, 4096, 16384),
        ({"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 3000}, 3000, 7500),
        ({"type": "linear", "factor": 4.0}, None, 4096),
        ({"type": "linear", "factor": 4.0, "original_max_position_embeddings": 1024}, 1024, 4096),
        ({"type": "dynamic", "factor": 4.0}, 4096, 4096),
        ({"type": "llama3", **LLAMA3}, 4096, 4096),
        ({"type": "longrope", **SCALINGS["longrope"]}, 1024, 4096),
    ],
)
def test_the_contexts_before_and_after_scaling_are_known(
    tmp_path: Path, scaling: dict[str, Any], original: int | None, context: int
) -> None:
    intent = read_config(write(tmp_path, "llama", **small("llama", rope_scaling=scaling))).ropes["full"]
    assert (intent.original, intent.context) == (original, context)


def test_llama3_lies_under_whatever_is_applied_next(tmp_path: Path) -> None:
    intent = read_config(write(tmp_path, "llama", **new_style("llama", "llama3"))).ropes["full"]
    assert intent.rope.scaling == Unscaled()
    assert intent.rope.under is not None


def test_the_numbers_of_yarn_are_kept_as_they_are_given(tmp_path: Path) -> None:
    scaling = {**YARN, "rope_type": "yarn", "beta_fast": 16, "beta_slow": 2, "truncate": False, "attention_factor": 1.2}
    intent = read_config(write(tmp_path, "llama", rope_scaling=scaling)).ropes["full"]
    assert intent.rope.scaling == Yarn(4.0, 1024, 16.0, 2.0, False, 1.2)
    lists = read_config(write(tmp_path, "llama", **new_style("llama", "longrope"))).ropes["full"].rope.scaling
    assert lists == LongRope(tuple(LONG["short_factor"]), tuple(LONG["long_factor"]), 1024, 4.0)


LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral-window": ("mistral", {"sliding_window": 64}),
    "mistral-null": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}),
    "qwen2-off": ("qwen2", {"sliding_window": 64, "max_window_layers": 3}),
    "qwen2moe": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 5}),
    "dots1": ("dots1", {"sliding_window": 64, "max_window_layers": 5, "first_k_dense_replace": 9}),
    "gemma2": ("gemma2", {"sliding_window": 64}),
    "gemma3": ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 3}),
    "gpt-oss": ("gpt_oss", {"sliding_window": 64, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "given": ("olmo3", {"layer_types": ["full_attention", "sliding_attention"] * 4}),
    "old-name": ("olmo3", {"layer_types": ["attention", "sliding_attention"] * 4}),
    "smollm3": ("smollm3", {}),
    "smollm3-listed": ("smollm3", {"no_rope_layers": [1, 0, 0, 1, 1, 1, 1, 0]}),
    "smollm3-interval": ("smollm3", {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 64}),
    "cohere2": ("cohere2", {"sliding_window": 64}),
    "cohere2-pattern": ("cohere2", {"sliding_window": 64, "sliding_window_pattern": 3}),
    "exaone4": ("exaone4", {"sliding_window": 64}),
    "exaone4-null": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 8}),
    "exaonemoe": ("exaone_moe", {"sliding_window": 64, "first_k_dense_replace": 9, "sliding_window_pattern": 3}),
    "afmoe": ("afmoe", {"sliding_window": 64, "num_dense_layers": 9, "global_attn_every_n_layers": 3}),
    "granite-swa": ("granite_swa", {"sliding_window": 64}),
    "granite-swa-bases": ("granite_swa", {"layer_rope_theta": [0, 1e4, 1e4, 1e4] * 2}),
    "granite-swa-two": ("granite_swa", {"layer_rope_theta": [5e5, 1e4, 1e4, 1e4] * 2}),
    "lfm2": ("lfm2", {"full_attn_idxs": [2, 5]}),
    "lfm2-types": ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "laguna": ("laguna", {"layer_types": ["full_attention", "sliding_attention"] * 4, "sliding_window": 64}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_layers_that_rotate_are_those_that_rotate_in_transformers(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, fields = LAYERS[case]
    heads = {} if model_type == "falcon" else {"num_key_value_heads": 2}
    small_ones = {"intermediate_size": 32, "moe_intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1}
    small_ones |= {"eos_token_id": 2, "vocab_size": 64, **heads}
    folder = write(tmp_path, model_type, **{**small(model_type), **small_ones, **fields})
    ours, config = read_config(folder), transformers_config(folder)
    if getattr(config, "layer_types", None) is not None:
        assert list(ours.layer_types) == config.layer_types
    assert tuple(kind is not None for kind in ours.layer_ropes) == layers_that_rotate(config, monkeypatch)
    assert set(ours.ropes) == {kind for kind in ours.layer_ropes if kind}
    assert (ours.no_rope is None) == bool(ours.ropes)


def layers_that_rotate(config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, ...]:
    """Runs a tiny model, and notes in which layers its attention calls the rotation."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_config(config).eval()
    module = importlib.import_module(type(model).__module__)
    rotate, seen, current = vars(module)["apply_rotary_pos_emb"], set[int](), [0]

    def recorded(*arguments: Any, **named: Any) -> Any:
        seen.add(current[0])
        return rotate(*arguments, **named)

    def entered(layer: int) -> Any:
        return lambda *_: current.__setitem__(0, layer)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", recorded)
    layers = getattr(model, "layers", None) or model.h
    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(entered(i))
    with torch.no_grad():
        model(torch.arange(3, 13).unsqueeze(0), use_cache=False)
    return tuple(i in seen for i in range(len(layers)))


def test_a_base_for_every_layer_becomes_one_for_every_kind(tmp_path: Path) -> None:
    bases = {"full": 5e5, "sliding": 3e4}
    fields = small("granite_swa", layer_rope_theta=[5e5, 3e4, 3e4, 3e4] * 2, rope_scaling={**YARN, "type": "yarn"})
    folder = write(tmp_path, "granite_swa", **fields)
    for kind, intent in read_config(folder).ropes.items():
        same_rope(intent, oracle(transformers_config(folder), "", bases[kind]))
    fields["layer_rope_theta"] = [5e5, 3e4, 4e4, 3e4] * 2
    with pytest.raises(InputError, match="layer_rope_theta differs among layers of one kind"):
        read_config(write(tmp_path, "granite_swa", **fields))


def test_a_layer_that_does_not_attend_does_not_rotate_whatever_its_base(tmp_path: Path) -> None:
    types = ["conv", "full_attention"] * 4
    ours = read_config(
        write(tmp_path, "granite_swa", **small("granite_swa", layer_types=types, layer_rope_theta=[5e5] * 8))
    )
    assert ours.layer_ropes == (None, "full") * 4


@pytest.mark.parametrize(("outer", "inner"), [("gemma3", "gemma3_text"), ("mistral3", "mistral")])
def test_the_language_model_of_a_vision_model_is_found(tmp_path: Path, outer: str, inner: str) -> None:
    """As gemma-3-4b was published: most of its sizes are the class's."""
    text = {"num_hidden_layers": 12, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 1024}
    architecture = f"{outer.title()}ForConditionalGeneration"
    ours = agree(write(tmp_path, outer, architectures=[architecture], text_config=text))
    assert (ours.model_type, ours.architectures, ours.layers) == (inner, (architecture,), 12)
    assert dict(ours.raw) == text
    with pytest.raises(InputError, match=r"text_config\.rope_scaling\.'beta' is a RoPE setting"):
        read_config(write(tmp_path, outer, text_config={"model_type": "llama", "rope_scaling": {"beta": 1}}))
    with pytest.raises(InputError, match=r"config.json: text_config\.rope_parameters differs by kind"):
        nested = {"model_type": "llama", "rope_parameters": {"full_attention": {}}}
        read_config(write(tmp_path, outer, text_config=nested))


@pytest.mark.parametrize(("model_type", "why"), [("gpt2", "learned"), ("bloom", "ALiBi"), ("mpt", "ALiBi")])
def test_a_model_without_rope_says_why(tmp_path: Path, model_type: str, why: str) -> None:
    ours = read_config(write(tmp_path, model_type))
    assert ours.no_rope is not None
    assert why in ours.no_rope
    assert not ours.ropes
    assert ours.rope is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_type": "nonesuch"}, "model_type is 'nonesuch'"),
        ({"model_type": ["llama"]}, "model_type is a JSON list"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_scaling.factor is null"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor is '4' where a number must be"),
        ({"rope_scaling": {"type": "yarn", "factor": True}}, "rope_scaling.factor is True"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor is 0.5, but must be"),
        ({"rope_scaling": {"type": "yarn", "factor": float("nan")}}, "factor is nan"),
        ({"rope_scaling": {"type": "yarn", "factor": 10**400}}, "rope_scaling.factor is larger than"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}}, "beta_fast is 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1e-320, "beta_slow": 1e-321}}, "makes no RoPE"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "orignal_max": 1}}, "'orignal_max' is a RoPE setting that"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}}, "is 0, but must be"),
        ({"rope_scaling": {"type": "proportional"}}, "rope_type is 'proportional'; supported for this model are"),
        ({"rope_scaling": {"type": None, "rope_type": None}}, "rope_type is None"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type is a JSON list"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn' where an object must be"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "long_factor is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 factors given"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters differs by kind of layer"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta is null"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": 1}, "base is 1"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1e+12"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"head_dim": 10**10}, "head_dim is 1e+10"),
        ({"head_dim": 33}, "dim is 33"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is not a list"),
        ({"model_type": "olmo3", "layer_types": ["full_attention"]}, "layer_types has 1 entries for 32 layers"),
        ({"model_type": "lfm2", "num_hidden_layers": 1, "layer_types": ["mamba"]}, "layer_types holds 'mamba'"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 entries for 36 layers"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "yarn"}}, "has 'rope_type' beside"),
        ({"model_type": "laguna", "rope_parameters": {"rope_theta": 1e4}}, "has 'rope_theta' beside"),
        ({"model_type": "laguna", "rope_parameters": {"sliding_attention": {}}}, "full_attention is missing"),
        ({"model_type": "laguna", "rope_parameters": {"full_attention": {}}}, "full_attention.rope_theta is missing"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is 'linear'"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 2}},
            "makes longrope: it needs short_factor",
        ),
        ({"model_type": "phimoe", "rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'"),
        ({"model_type": "glm", "partial_rotary_factor": 3}, "partial_rotary_factor is 3"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_config(write(tmp_path, **{"model_type": "llama", **fields}))
    assert text in caught.value.text
    assert caught.value.file == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not JSON"),
        (b"[]", "holds a JSON list"),
        (b"{" * 10, "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b'{"model_type": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"model_type": "llama", "rope_scaling": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
        (b'{"a": "' + b" " * (16 << 20) + b'"}', "larger than 16 MiB"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_config(tmp_path)


def test_a_fifo_a_folder_and_nothing_are_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        read_config(tmp_path)
    if hasattr(os, "mkfifo"):
        (tmp_path / "config.json").rmdir()
        os.mkfifo(tmp_path / "config.json")
        with pytest.raises(InputError, match="not a regular file"):
            read_config(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_that_takes_the_place_of_the_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked like a regular file until it was opened."""
    os.mkfifo(tmp_path / "config.json")
    regular = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda path: regular)
    with pytest.raises(InputError, match="not a regular file"):
        read_config(tmp_path)


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    write(tmp_path, "llama")
    script = (
        "import sys, pathlib; from yarn_gguf.config.model_config import read_config;"
        "read_config(pathlib.Path(sys.argv[1]));"
        "raise SystemExit(sorted({'torch', 'transformers', 'gguf', 'llama_cpp'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
