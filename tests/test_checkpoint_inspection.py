"""`inspect` on a Hugging Face folder: what transformers computes, and what is lost on the usual way to a GGUF.

Frequencies and softmax scales are held against transformers' own modules. What is lost is held against upstream's
converter: a warning is there exactly when the file that the converter makes is not exact, and the command that the
warning names makes it so. That our reading of a file is what llama.cpp computes is test_exactness.py's matter.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_gguf.before import read_before
from yarn_gguf.checkpoint_inspection import ARCHS, inspect_checkpoint
from yarn_gguf.config.families import DEFAULTS
from yarn_gguf.config.model_config import read_config
from yarn_gguf.effective import Difference, Runtime, compare, layer_ropes, meant_ropes
from yarn_gguf.gguf_intent import read_tensors
from yarn_gguf.graphs import GRAPHS
from yarn_gguf.intent import RopeOptions
from yarn_gguf.metadata import read_facts

from .command import Done, extended, run
from .test_model_config import HEAD, LATENT, LONG, SIZES, YARN, small, transformers_config, write
from .toys import TOYS, save_checkpoint
from .toys import YARN as TOY_YARN
from .upstream import convert

GPT_OSS = {
    "rope_theta": 150000,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}


def document(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run("inspect", folder, *arguments, "--json")
    assert (done.code, done.err) == (0, ""), done
    return done.json


def lost(folder: Path) -> list[str]:
    """The warnings about the way to a GGUF; never more than one."""
    found = document(folder)["findings"]
    texts = [each["text"] for each in found if each["code"] == "lost_in_gguf"]
    assert all(each["level"] == "warning" for each in found if each["code"] == "lost_in_gguf")
    assert len(texts) <= 1
    return texts


def yarn(folder: Path, model_type: str, more: dict[str, Any] | None = None, **fields: Any) -> Path:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, **YARN, **(more or {})}
    return write(folder, model_type, **small(model_type, rope_parameters=rope, **fields))


def flags(text: str) -> list[str]:
    """The options of the command line that a warning ends with."""
    return shlex.split(text.split("yarn-gguf extend model.gguf ", 1)[1])


# ---- what transformers computes


def test_longrope_is_shown_at_the_context_and_not_at_the_original_one(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"type": "longrope", **LONG}
    fields = small("phi3", rope_scaling=rope, original_max_position_embeddings=1024)
    folder = write(tmp_path, "phi3", **fields)
    config = transformers_config(folder)
    inverse, magnitude = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=config.max_position_embeddings)
    (layers,) = document(folder)["effective"]["transformers"]
    np.testing.assert_allclose(layers["inverse_frequencies"], inverse.double().numpy(), rtol=1e-6)
    assert layers["magnitude"] == pytest.approx(magnitude)
    words = run("inspect", folder).words
    assert f"{HEAD // 2} pairs" in words
    assert "kept" not in words  # every factor of the long list is 2 or more


def test_dynamic_is_shown_at_the_context(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = write(tmp_path, "llama", **small("llama", rope_scaling={"type": "dynamic", "factor": 4.0}))
    config = transformers_config(folder)
    inverse, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=config.max_position_embeddings)
    found = document(folder)
    (layers,) = found["effective"]["transformers"]
    np.testing.assert_allclose(layers["inverse_frequencies"], inverse.double().numpy(), rtol=1e-6)
    assert found["rope"]["method"] == "dynamic"
    assert "dynamic" in lost(folder)[0]


SCORES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "mscale_all_dim": 0.7},
    "yarn, the pair": {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, half a pair": {"rope_type": "yarn", **YARN, "mscale_all_dim": 0.7},
    "yarn, the other half": {"rope_type": "yarn", **YARN, "mscale": 0.7},
    "yarn, 0": {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 0.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "mscale_all_dim": 0.7},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "mscale_all_dim": 0.7},
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
TINY = {"kv_lora_rank": 32, "q_lora_rank": 32, "v_head_dim": HEAD, "moe_intermediate_size": 32, "intermediate_size": 64}


@pytest.mark.parametrize("case", SCORES)
@pytest.mark.parametrize("model_type", [*LATENT, "llama", "ministral3"])
def test_the_score_is_what_multiplies_transformers_softmax_scale(model_type: str, case: str, tmp_path: Path) -> None:
    import torch
    import transformers

    part = {"partial_rotary_factor": HEAD / (HEAD + 48)} if model_type == "mistral4" else {}
    latent = {**TINY, **EXPERTS, "num_key_value_heads": 4} if model_type in LATENT else {}
    rope = {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, **part, **SCORES[case]}
    if model_type not in ("ministral3", "mistral4"):
        del rope["llama_4_scaling_beta"]
    fields = small(model_type, rope_parameters=rope, **{**latent, "num_hidden_layers": 1})
    folder = write(tmp_path, model_type, **fields)
    config = transformers_config(folder)
    with torch.device("meta"):
        model = getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM"))(config)
    attention = model.model.layers[0].self_attn
    width = getattr(attention, "qk_head_dim", HEAD)
    (layers,) = document(folder)["effective"]["transformers"]
    assert layers["score"] == pytest.approx(attention.scaling * width**0.5, rel=1e-9)


def test_llama3_scaling_is_named(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 512}
    folder = write(tmp_path, "llama", **small("llama", rope_scaling=rope))
    found = document(folder)
    assert (found["rope"]["method"], found["rope"]["under"]) == ("none", "llama3")
    words = run("inspect", folder).words
    assert "llama3 scaling, context 4096" in words
    assert "unscaled" not in words
    assert lost(folder) == []  # rope_freqs.weight


def test_nothing_lies_under_a_plain_rope_or_yarn(tmp_path: Path) -> None:
    assert document(yarn(tmp_path, "llama"))["rope"]["under"] is None
    assert document(write(tmp_path, "llama", **small("llama")))["rope"]["under"] is None


def test_the_fields_of_a_file_are_there(tmp_path: Path) -> None:
    found = document(write(tmp_path, "llama", **small("llama")))
    assert (found["files"], found["bytes"], found["type"]) == (1, None, None)


def test_config_json_itself_stands_for_its_folder(tmp_path: Path) -> None:
    folder = yarn(tmp_path, "llama")
    by_file, by_folder = run("inspect", folder / "config.json"), run("inspect", folder)
    assert by_file == by_folder
    assert by_file.code == 0


def test_a_config_json_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "config.json")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "config.json" in done.err


# ---- what is lost

QUIET: dict[str, tuple[str, dict[str, Any]]] = {
    "default yarn": ("llama", {}),
    "the default attention factor": ("llama", {"attention_factor": 0.1 * np.log(4.0) + 1}),
    "default betas, said": ("qwen3", {"beta_fast": 32, "beta_slow": 1}),
    "half a pair": ("qwen2", {"mscale": 0.7}),
    "the equal pair of deepseek v3": ("deepseek_v3", {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "an equal pair of deepseek v2": ("deepseek_v2", {"mscale": 0.707, "mscale_all_dim": 0.707}),
    "the pair 1/1 of mistral4": ("mistral4", {"mscale": 1.0, "mscale_all_dim": 1.0, "partial_rotary_factor": 0.4}),
    "betas and pair of ministral3": (
        "ministral3",
        {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_arrives_is_not_called_lost(case: str, tmp_path: Path) -> None:
    model_type, more = QUIET[case]
    assert lost(yarn(tmp_path, model_type, more)) == []


def test_ministral3_by_its_own_defaults_loses_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, "ministral3", **{**SIZES, "max_position_embeddings": 262144, "head_dim": 128})
    scaling = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384, "rope_theta": 1e6}
    scaling |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": scaling}))
    assert lost(folder) == []


LOUD: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "betas on a graph that takes rope_freqs": (
        "llama",
        {"beta_fast": 16.0},
        ("betas 16/1",),
        "--factor 4 --original-ctx 1024 --beta-fast 16",
    ),
    "betas on one that does not": (
        "qwen3",
        {"beta_fast": 16.0, "beta_slow": 2.0},
        ("betas 16/2", "patched"),
        "--factor 4 --original-ctx 1024 --beta-fast 16 --beta-slow 2 --encoding keys",
    ),
    "truncate": ("llama", {"truncate": False}, ("truncate false",), "--factor 4 --original-ctx 1024 --no-truncate"),
    "an attention factor": (
        "qwen3",
        {"attention_factor": 1.0},
        ("magnitude",),
        "--factor 4 --original-ctx 1024 --attention-factor 1",
    ),
    "a pair on a graph without it": (
        "llama",
        {"mscale": 0.7, "mscale_all_dim": 1.0},
        ("magnitude",),
        "--factor 4 --original-ctx 1024 --mscale 0.7 --mscale-all-dim 1",
    ),
    "a pair that is not equal": (
        "deepseek_v2",
        {"mscale": 1.0, "mscale_all_dim": 0.707},
        ("magnitude",),
        "--factor 4 --original-ctx 1024 --mscale 1 --mscale-all-dim 0.707",
    ),
    "half a pair on deepseek": (
        "deepseek_v3",
        {"mscale_all_dim": 1.0},
        ("magnitude",),
        "--factor 4 --original-ctx 1024 --mscale-all-dim 1 --attention-factor",
    ),
    **{
        f"all of it: {name}": (name, {}, ("drops",), "--factor 4 --original-ctx 1024")
        for name in ("stablelm", "gemma", "gemma2", "phi", "gpt_neox", "falcon", "glm", "minicpm3")
    },
    **{
        f"its type: {name}": (name, {}, ("type none",), "--factor 4 --original-ctx 1024")
        for name in ("cohere", "cohere2", "exaone_moe")
    },
    "all but its factor": ("nemotron", {}, ("linear",), "--factor 4 --original-ctx 1024"),
}


@pytest.mark.parametrize("case", LOUD)
def test_what_is_lost_is_named_with_the_command_that_brings_it_back(case: str, tmp_path: Path) -> None:
    model_type, more, words, command = LOUD[case]
    (text,) = lost(yarn(tmp_path, model_type, more))
    for word in (*words, "upstream's converter", "rad at the full context" if "beta" in command else ""):
        assert word in text
    assert f"yarn-gguf extend model.gguf {command}" in text
    assert " ".join(flags(text)).startswith(command)


def test_a_base_that_is_dropped_is_named_even_without_scaling(tmp_path: Path) -> None:
    folder = write(tmp_path, "stablelm", **small("stablelm", rope_theta=500000.0))
    (text,) = lost(folder)
    assert "rope_theta" in text
    assert "--rope-freq-base 500000" in text
    assert lost(write(tmp_path, "stablelm", **small("stablelm", rope_theta=10000.0))) == []


def test_longrope_is_lost_where_the_converter_leaves_any_of_it_out(tmp_path: Path) -> None:
    def folder(model_type: str, **lists: list[float]) -> Path:
        rope = {"type": "longrope", **LONG, **lists, "original_max_position_embeddings": 4096, "factor": 1.0}
        more = {"original_max_position_embeddings": 4096} if model_type == "phi3" else {}
        return write(tmp_path, model_type, **small(model_type, rope_scaling=rope, **more))

    assert lost(folder("phi3")) == []
    assert lost(folder("minicpm3", short_factor=LONG["long_factor"])) == []
    assert "longrope" in lost(folder("minicpm3"))[0]
    assert "longrope" in lost(folder("llama"))[0]


def test_a_linear_model_of_unknown_origin_is_told_what_to_put_in(tmp_path: Path) -> None:
    (text,) = lost(write(tmp_path, "gemma", **small("gemma", rope_scaling={"type": "linear", "factor": 4.0})))
    assert "with the context before scaling for N" in text
    assert flags(text) == ["--method", "linear", "--factor", "4", "--original-ctx", "N"]


def test_llama3_scaling_is_lost_where_no_tensor_can_hold_it(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 512}
    assert "llama3 scaling" in lost(write(tmp_path, "qwen2", **small("qwen2", rope_scaling=rope)))[0]


def test_gpt_oss_as_it_is_published_warns_of_its_ramp_with_a_figure(tmp_path: Path) -> None:
    folder = write(tmp_path, "gpt_oss", **{**small("gpt_oss"), "head_dim": 64, **GPT_OSS})
    (text,) = lost(folder)
    intent = read_config(folder).ropes["full"]
    whole = inspect_checkpoint(folder, RopeOptions(truncate=True)).intent
    gap = np.abs(intent.rope.inverse_frequencies() - whole.rope.inverse_frequencies()).max() * 131071
    assert "truncate false" in text
    assert f"{gap:.3g} rad at the full context" in text
    assert gap > 1
    assert flags(text) == ["--factor", "32", "--original-ctx", "4096", "--no-truncate", "--encoding", "keys"]
    assert "lost" in document(folder)["verdict"]


def test_a_model_type_that_nobody_measured_is_judged_by_the_rule_and_the_words_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = yarn(tmp_path, "qwen3", {"beta_fast": 16.0})
    monkeypatch.delitem(ARCHS, "qwen3")
    (text,) = (f.text for f in inspect_checkpoint(folder, RopeOptions()).findings if f.code == "lost_in_gguf")
    assert "usually" in text
    assert "betas 16/1" in text


def test_the_table_is_of_model_types_and_architectures_that_exist() -> None:
    assert ARCHS.keys() <= DEFAULTS.keys()
    assert set(ARCHS.values()) <= GRAPHS.keys()


# ---- the same, against upstream's converter

CONVERTED: dict[str, tuple[str, dict[str, Any]]] = {
    "betas baked": ("llama", {"beta_fast": 6.0, "beta_slow": 2.0}),
    "betas for a patched one": ("qwen2", {"beta_fast": 6.0, "beta_slow": 2.0}),
    "truncate": ("gptoss", {"truncate": False}),
    "attention, leaking": ("gemma3", {"attention_factor": 1.1}),
    "normed": ("hunyuan", {"attention_factor": 1.1}),
    "dropped, betas": ("stablelm", {"beta_fast": 6.0}),
    "none": ("cohere2", {}),
    "linear": ("nemotron", {}),
    "equal pair": ("deepseek3", {"mscale": 0.7, "mscale_all_dim": 0.7}),
    "half a pair": ("deepseek2", {"mscale_all_dim": 0.7}),
    "mistral4": ("mistral4", {"mscale": 0.7, "mscale_all_dim": 0.7}),
    "ministral3 betas": ("ministral3", {"beta_fast": 6.0, "beta_slow": 2.0}),
    "ministral3 attention": ("ministral3", {"attention_factor": 1.1, "truncate": False}),
    "unscaled sliding": ("olmo3", {"beta_fast": 6.0}),
}


def differences(gguf: Path, folder: Path) -> dict[Runtime, Difference]:
    """How far each runtime is, with this file, from what the checkpoint asks for."""
    intent = inspect_checkpoint(folder, RopeOptions()).intent
    model = read_before(gguf).model
    facts, tensors = read_facts(model), read_tensors(model)
    meant = meant_ropes(facts, intent)
    return {r: compare(meant, layer_ropes(facts, tensors, r), intent.context) for r in Runtime}


@pytest.mark.slow
@pytest.mark.parametrize("case", CONVERTED)
def test_the_warning_tells_what_upstreams_converter_does_and_its_command_mends_it(case: str, tmp_path: Path) -> None:
    name, more = CONVERTED[case]
    toy = TOYS[name]
    folder = save_checkpoint(toy, tmp_path / "model", toy.scaled(**TOY_YARN, **more))
    gguf = convert(folder, tmp_path / "model.gguf")
    texts = lost(folder)
    found = differences(gguf, folder)[Runtime.STOCK]
    assert bool(texts) != found.exact
    if texts and "nothing mends" not in texts[0]:
        assert found.text in texts[0]
        out = tmp_path / "mended.gguf"
        done: Done = extended(gguf, *flags(texts[0]), "-o", out)
        mended = differences(out, folder)
        assert mended[Runtime.PATCHED if "patched" in texts[0] else Runtime.STOCK].exact, done
