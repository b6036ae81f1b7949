"""Rows of dense architectures against llama.cpp's own converter: names, shapes, types, bytes and keys of every tensor.

The toys are compared as they are, and with the settings that change which tensors there are. Where the two differ the
difference is written down here, with ours and theirs: nothing else may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from yarn_gguf.archs import ARCHITECTURES
from yarn_gguf.archs.key_tables import entries
from yarn_gguf.archs.tensor_plan import plan_tensors
from yarn_gguf.archs.tensors import Planned
from yarn_gguf.archs.transforms import as_numbers
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.weights import open_weights
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.config.model_config import read_config
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.header import Entry
from yarn_gguf.gguf_file.shards import read_model

from . import upstream
from .toys import TOYS, Settings, save_checkpoint

F32 = 0
MISSING = None  # of a key or tensor that one of the two does not have
Differences = dict[str, tuple[Any, Any]]  # name -> ours, theirs


@dataclass(frozen=True)
class Variant:
    """A toy with other settings; `json` is laid over its config.json, `expected` are ours and theirs."""

    name: str
    toy: str
    settings: Settings = field(default_factory=dict)
    rope: Settings = field(default_factory=dict)
    json: Settings = field(default_factory=dict)
    expected: Differences = field(default_factory=dict)


def _made(planned: Planned) -> np.ndarray[Any, Any]:
    """The plan carried out in one go."""
    results = []
    for part in planned.parts:
        arrays = [as_numbers(weight, 0, weight.shape[0]) for weight in part.weights]
        results.append((part.transform.make(*arrays) if part.transform else arrays[0]).reshape(-1))
    return np.concatenate(results)


def _theirs(gguf: Path) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    model = read_model(gguf)
    content = gguf.read_bytes()
    start = model.first.data_offset
    return {
        name: (tensor.dims[::-1], tensor.type, content[start + tensor.offset : start + tensor.offset + tensor.size])
        for name, (_, tensor) in model.tensors.items()
    }


def _tensor_differences(plan: tuple[Planned, ...], gguf: Path) -> Iterator[tuple[str, tuple[Any, Any]]]:
    theirs = {name: each for name, each in _theirs(gguf).items() if not name.startswith("rope_freqs")}
    ours = {each.name: each for each in plan}
    assert len(ours) == len(plan)
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            yield name, (name in ours, name in theirs)
            continue
        mine, (shape, kind, content) = ours[name], theirs[name]
        if (mine.shape, mine.type) != (shape, kind):
            yield name, ((mine.shape, mine.type), (shape, kind))
        elif _made(mine).astype("<f4").tobytes() != content:
            yield name, ("bytes", "bytes")


def _key_differences(
    found: Mapping[str, Entry], gguf: Path, h: Hyperparameters
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Without the keys of RoPE scaling, and the number of tokens that the driver writes for a missing vocabulary."""
    model = read_model(gguf)
    arch = model.first.get("general.architecture")
    theirs = {k: e for k, e in model.entries.items() if k.startswith((f"{arch}.", "xielu."))}
    for key in sorted({*found, *theirs}):
        name = key.removeprefix(f"{arch}.")
        if key not in found and (name.startswith("rope.scaling.") or name == "vocab_size"):
            continue
        mine, other = found.get(key), theirs.get(key)
        if mine is None or other is None or mine.raw != other.raw:
            yield name, (_plain(mine), _plain(other))


def _plain(entry: Entry | None) -> Any:
    value: Any = MISSING if entry is None else entry.value()
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value.tolist() if hasattr(value, "tolist") else value


def differences(folder: Path, gguf: Path) -> Differences:
    config = read_config(folder)
    row, h = ARCHITECTURES[config.architectures[0]], Hyperparameters(config)
    assert row.arch == read_model(gguf).first.get("general.architecture")
    with open_weights(read_checkpoint(folder), None) as weights:
        plan = plan_tensors(row, h, weights, F32)
        found = {entry.key: entry for entry in entries(row.arch, row.keys, h, weights)}
        return dict([*_tensor_differences(plan, gguf), *_key_differences(found, gguf, h)])


# ---- the toys as they are

_NAMES = (
    "llama mistral ministral3 qwen2 qwen3 phi3 phi3-partial gemma gemma2 gemma3 olmo olmo2 olmo3 granite graniteswa "
    "smollm3 glm glm4 starcoder2 stablelm cohere cohere2 exaone4 seedoss hunyuan phi falcon nemotron ernie45 arcee "
    "apertus jais2 lfm2 minicpm3"
)
DENSE_TOYS = _NAMES.split()
AS_THEY_ARE: dict[str, Differences] = {"falcon": {"context_length": (128, 2048)}}  # upstream's is a constant


@pytest.mark.parametrize("name", DENSE_TOYS)
def test_a_toy_gets_the_tensors_and_keys_that_upstream_gives_it(name: str, toy_folder: Callable[[str], Path]) -> None:
    folder = toy_folder(name)
    assert differences(folder, folder / "f32.gguf") == AS_THEY_ARE.get(name, {})


# ---- with other settings

TIED = {"tie_word_embeddings": True}
BIASED = {"attention_bias": True, "mlp_bias": True}
THETA = {"rope_theta": 5000.0}
BASE = {"rope.freq_base": (5000.0, MISSING)}  # upstream drops it, and llama.cpp then takes 10000
HEAD = {"output.weight": (True, False)}  # llama.cpp's loader of these wants one, tied or not
INTERN = {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "qkv_bias": True, "bias": True}
NEOX = {"model_type": "gpt_neox"}
SEVEN_B = {"new_decoder_architecture": False, "num_kv_heads": None, "ffn_hidden_size": None}
GLM_WRONG = {
    "context_length": (256, 128),  # upstream takes the hidden size for it
    "attention.layer_norm_rms_epsilon": (1e-06, 1e-05),  # and a constant
    "rope.freq_base": (5000.0, 10000.0),
}
VARIANTS = (
    Variant("llama-biases", "llama", {**BIASED, **TIED, "head_dim": 48}),
    Variant("granite-biases", "granite", {**BIASED, **TIED}),
    Variant("qwen2-tied", "qwen2", TIED),
    Variant("phi3-window", "phi3", {**TIED, "sliding_window": 64}),
    Variant("gemma-base", "gemma", rope=THETA, expected=BASE),
    Variant("olmo-clipped", "olmo", {**TIED, "clip_qkv": 0.5}),
    Variant("olmo2-tied", "olmo2", TIED, expected=HEAD),
    Variant(
        "glm",
        "glm",
        {"max_position_embeddings": 256, "rms_norm_eps": 1e-6, "attention_bias": False},
        THETA,
        expected=GLM_WRONG,
    ),
    Variant("stablelm-parallel", "stablelm", {"use_parallel_residual": True, "use_qkv_bias": False}),
    Variant("cohere-qk-norm", "cohere", {"use_qk_norm": True}, json={"model_max_length": 4096}),
    Variant(
        "exaone4-slides",
        "exaone4",
        {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    Variant(
        "falcon-7b", "falcon", {**SEVEN_B, **TIED}, json={"num_kv_heads": 1}, expected={"context_length": (128, 2048)}
    ),
    Variant("nemotron-biases", "nemotron", {**BIASED, **TIED}, expected=HEAD),
    Variant("apertus-biases", "apertus", {"attention_bias": True, **TIED}, expected=HEAD),
    Variant("internlm3", "llama", {**BIASED, "head_dim": 48}, json=INTERN),
    Variant("lfm2-exact", "lfm2", {"block_auto_adjust_ff_dim": False, **TIED}),
)
MORE = (
    Variant(
        "falcon-11b", "falcon", {"num_ln_in_parallel_attn": 1}, THETA, expected={**BASE, "context_length": (128, 2048)}
    ),
    Variant("gemma2-base", "gemma2", rope=THETA, expected=BASE),
    Variant("phi-base", "phi", rope=THETA, expected=BASE),
    Variant("minicpm3-base", "minicpm3", TIED, THETA, expected=BASE),
    Variant("stablelm-base", "stablelm", TIED, THETA, expected={**BASE, **HEAD}),
    Variant("smollm3-tied", "smollm3", TIED),
    Variant("glm4-no-bias", "glm4", {"attention_bias": False, **TIED}),
    Variant("starcoder2-untied", "starcoder2", {"tie_word_embeddings": False}),
    Variant("seedoss-no-bias", "seedoss", {"attention_bias": False, **TIED}),
    Variant("ernie45-tied", "ernie45", TIED),
    Variant("arcee-head", "arcee", {"head_dim": 48, **TIED}),
    Variant("jais2-tied", "jais2", TIED),
    Variant("hunyuan-tied", "hunyuan", TIED, THETA),
    Variant("cohere2-base", "cohere2", rope=THETA),
    Variant("qwen3-tied", "qwen3", TIED, THETA),
    Variant(
        "graniteswa-nope",
        "graniteswa",
        {**BIASED, **TIED, "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0]},
        expected={"attention.rope_pattern": ([True, True, True, False], MISSING)},  # upstream looks elsewhere
    ),
    Variant(
        "nemotron-head",
        "nemotron",
        {"head_dim": 48},
        expected={"rope.dimension_count": (24, 16)},  # upstream takes the head to be hidden / heads
    ),
)
QUICK = [pytest.param(variant, id=variant.name) for variant in VARIANTS]
SLOW = [pytest.param(variant, id=variant.name, marks=pytest.mark.slow) for variant in MORE]


def _patched(folder: Path, changes: Settings) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _checkpoint(variant: Variant, folder: Path) -> Path:
    toy = TOYS[variant.toy]
    made = save_checkpoint(toy, folder / "made", toy.scaled(**variant.rope), **variant.settings)
    return _patched(made, variant.json)


@pytest.mark.parametrize("variant", [*QUICK, *SLOW])
def test_a_toy_with_other_settings_gets_what_upstream_gives_it(variant: Variant, tmp_path: Path) -> None:
    folder = _checkpoint(variant, tmp_path)
    gguf = upstream.convert(folder, tmp_path / "upstream.gguf")
    assert differences(folder, gguf) == variant.expected


def test_gpt_neox_gets_what_upstream_gives_it(toy_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The toy's model type is one that upstream wants, and transformers does not know."""
    theirs = toy_folder("gptneox")
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "model.safetensors").symlink_to(theirs / "model.safetensors")
    (ours / "config.json").write_text((theirs / "config.json").read_text())
    assert differences(_patched(ours, NEOX), theirs / "f32.gguf") == {}


def test_stablelm_gets_the_norms_of_its_heads_stacked(tmp_path: Path) -> None:
    """Upstream's converter stops here: it stacks them in a generator that nobody runs."""
    folder = _checkpoint(Variant("stablelm-2", "stablelm", {"qk_layernorm": True}), tmp_path)
    config, stored = read_config(folder), load_file(folder / "model.safetensors")
    with open_weights(read_checkpoint(folder), None) as weights:
        plan = plan_tensors(ARCHITECTURES["StableLmForCausalLM"], Hyperparameters(config), weights, F32)
        made = {each.name: (each.shape, _made(each)) for each in plan}
    for letter in "qk":
        heads = [stored[f"model.layers.2.self_attn.{letter}_layernorm.norms.{head}.weight"] for head in range(2)]
        shape, norms = made[f"blk.2.attn_{letter}_norm.weight"]
        assert np.array_equal(norms.reshape(shape), np.stack(heads))


# ---- inside a model that sees


def _wrapped(folder: Path, out: Path, rename: Callable[[str], str], config: Settings) -> Path:
    """The checkpoint as the text tower of another class, beside a tensor of a vision tower."""
    out.mkdir()
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["vision_tower.patch_embed.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, out / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    whole = {"vocab_size": text["vocab_size"], "vision_config": {}, "text_config": text, **config}
    (out / "config.json").write_text(json.dumps(whole))
    return out


def _old_name(name: str) -> str:
    return f"language_model.{name}"


def _new_name(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


GEMMA3 = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
MISTRAL3 = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
TOWERS = [
    pytest.param("gemma3", GEMMA3, _old_name, id="gemma3"),
    pytest.param("ministral3", MISTRAL3, _new_name, id="ministral3"),
    pytest.param("mistral", MISTRAL3, _old_name, id="mistral", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "config", "rename"), TOWERS)
def test_a_text_tower_gets_what_upstream_gives_it(
    name: str, config: Settings, rename: Callable[[str], str], toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _wrapped(toy_folder(name), tmp_path / "whole", rename, config)
    gguf = upstream.convert(folder, tmp_path / "upstream.gguf")
    assert differences(folder, gguf) == {}


# ---- what no graph has a place for

REFUSED = [
    pytest.param("gemma", {"tie_word_embeddings": False}, "lm_head.weight", id="gemma-head"),
    pytest.param("qwen3", {"attention_bias": True}, "self_attn.q_proj.bias", id="qwen3-bias"),
    pytest.param("falcon", {"bias": True}, "query_key_value.bias", id="falcon-bias"),
    pytest.param("starcoder2", {"use_bias": False}, "self_attn.q_proj.bias", id="starcoder2-no-bias"),
    pytest.param("cohere2", {"attention_bias": True}, "self_attn.q_proj.bias", id="cohere2-bias"),
]


@pytest.mark.parametrize(("name", "settings", "tensor"), REFUSED)
def test_a_tensor_that_llama_cpp_has_no_place_for_or_misses_is_named(
    name: str, settings: Settings, tensor: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(TOYS[name], tmp_path / "made", dict(TOYS[name].rope), **settings)
    config = read_config(folder)
    with open_weights(read_checkpoint(folder), None) as weights, pytest.raises(InputError) as caught:
        plan_tensors(ARCHITECTURES[config.architectures[0]], Hyperparameters(config), weights, F32)
    assert caught.value.code == "tensors_mismatch"
    assert tensor in str(caught.value)


def test_a_number_that_is_missing_from_the_tensors_is_named(toy_folder: Callable[[str], Path]) -> None:
    config = read_config(toy_folder("apertus"))
    row = ARCHITECTURES["ApertusForCausalLM"]
    with pytest.raises(InputError, match=r"xielu\.alpha_n.*model\.layers\.0\.mlp\.act_fn\.alpha_n is missing"):
        entries(row.arch, row.keys, Hyperparameters(config), {})
