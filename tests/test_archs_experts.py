"""Rows of architectures with experts and latent attention, against files of upstream's own converter.

Every toy, and every other shape in which such a checkpoint comes: experts stacked or apart, layers beyond the model,
no shared experts, MXFP4. Names, shapes, types, bytes and keys must be the same; where they are not, the table says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.shards import read_model

from . import upstream
from .plan_eval import differences, key_differences, planned, tensor_differences
from .toys import TOYS, YARN, save_checkpoint

Tensors = dict[str, npt.NDArray[Any]]
Change = Callable[[Tensors], Tensors]

NAMES = ["mixtral", "qwen2moe", "qwen3moe", "gptoss", "olmoe", "granitemoe", "granitemoeshared", "glm4moe", "dots1"]
NAMES += ["deepseek2", "deepseek3", "mistral4", "exaonemoe", "afmoe", "laguna", "mellum", "minimaxm2", "hyv3"]
NAMES += ["ernie45moe"]
HIDDEN, LAYERS, VOCABULARY = 128, 3, 320
RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("name", NAMES)
def test_a_toy_becomes_what_upstream_makes_of_it(toy_folder: Callable[[str], Path], name: str) -> None:
    folder = toy_folder(name)
    assert differences(folder, folder / "f32.gguf") == []


def drawn(*shape: int) -> npt.NDArray[np.float32]:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def stacked(tensors: Tensors, ending: str = "") -> Tensors:
    """Experts of a layer as transformers has them in memory: gate and up in one, all experts in one."""
    found = {name: array for name, array in tensors.items() if ".mlp.experts." not in name or "bias" in name}
    apart = {name: array for name, array in tensors.items() if name not in found}
    for stem in {name.split(".experts.")[0] for name in apart}:
        count = sum(name.startswith(f"{stem}.experts.") for name in apart) // 3
        of = {
            kind: np.stack([apart[f"{stem}.experts.{n}.{kind}_proj.weight"] for n in range(count)])
            for kind in ("gate", "up", "down")
        }
        found[f"{stem}.experts.gate_up_proj{ending}"] = np.concatenate((of["gate"], of["up"]), axis=1)
        found[f"{stem}.experts.down_proj{ending}"] = of["down"]
    return found


def stacked_weight(tensors: Tensors) -> Tensors:
    return stacked(tensors, ".weight")


def further(count: int = 1, *ends: str) -> Change:
    """Layers beyond the model: its last one again, and what such a layer has of its own."""

    def change(tensors: Tensors) -> Tensors:
        last = f"model.layers.{LAYERS - 1}."
        found = dict(tensors)
        for beyond in (f"model.layers.{LAYERS + k}." for k in range(count)):
            found |= {beyond + name.removeprefix(last): -t for name, t in tensors.items() if name.startswith(last)}
            found |= {f"{beyond}enorm.weight": drawn(HIDDEN), f"{beyond}hnorm.weight": drawn(HIDDEN)}
            found |= {f"{beyond}eh_proj.weight": drawn(HIDDEN, 2 * HIDDEN)}
            vectors = {end: drawn(HIDDEN) for end in ends if "norm" in end}
            matrices = {end: drawn(VOCABULARY, HIDDEN) for end in ends if "norm" not in end}
            found |= {f"{beyond}{end}.weight": array for end, array in {**vectors, **matrices}.items()}
        return found

    return change


def exaone_further(tensors: Tensors) -> Tensors:
    """EXAONE's are dense, and have their projection and norms in common."""
    dense = {name.split(".0.", 1)[1]: array for name, array in tensors.items() if name.startswith("model.layers.0.")}
    layers = {f"mtp.layers.{k}.{name}": array + k for k in range(2) for name, array in dense.items()}
    norms = {f"mtp.{name}.weight": drawn(HIDDEN) for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}
    return {**tensors, **layers, **norms, "mtp.fc.weight": drawn(HIDDEN, 2 * HIDDEN)}


def ernie_further(tensors: Tensors) -> Tensors:
    norms = {f"model.mtp_{name}_norm.0.weight": drawn(HIDDEN) for name in ("emb", "hidden")}
    block = {"model.mtp_block.0.mlp.up_proj.weight": drawn(128, HIDDEN)}
    return {**tensors, **norms, **block, "model.mtp_linear_proj.0.weight": drawn(HIDDEN, 2 * HIDDEN)}


def mxfp4(tensors: Tensors) -> Tensors:
    """gpt-oss' experts as it is published: any codes, scales around 1."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = found.pop(name).shape
        shape = (experts, rows, columns // 32)
        found[f"{name}_blocks"] = RANDOM.integers(0, 256, (*shape, 16), dtype=np.uint8)
        found[f"{name}_scales"] = RANDOM.integers(118, 129, shape, dtype=np.uint8)
    return found


def in_wrapper(tensors: Tensors) -> Tensors:
    towers = {"model.vision_tower.patch_conv.weight": drawn(8, 3, 2, 2)}
    moved = {name.replace("model.", "model.language_model.", 1): array for name, array in tensors.items()}
    return {**moved, **towers}


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Case:
    """A toy with other settings and other tensors; `file`: what is written into config.json besides."""

    toy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Change = as_they_are
    file: Mapping[str, Any] = field(default_factory=dict)
    outtype: str = "f32"
    differing: tuple[str, ...] = ()  # keys where we know better than upstream, by their endings


NEXT = {"num_nextn_predict_layers": 1}
TIED = {"tie_word_embeddings": True}
CASES = {
    "qwen2moe-stacked": Case("qwen2moe", change=stacked),
    "qwen2moe-no-biases": Case("qwen2moe", {"qkv_bias": False}, outtype="q8_0"),
    "qwen3moe-stacked-weight": Case("qwen3moe", TIED, stacked_weight, outtype="bf16"),
    "dots1-stacked": Case("dots1", {"n_shared_experts": 2}, stacked),
    "glm4moe-further": Case(
        "glm4moe",
        {**NEXT, "attention_bias": True, "use_qk_norm": True},
        further(1, "embed_tokens", "shared_head.head", "shared_head.norm"),
        outtype="f16",
    ),
    "glm4moe-further-tied": Case("glm4moe", {**NEXT, **TIED}, further(1, "shared_head.norm")),
    "deepseek2-plain-queries": Case("deepseek2", {"q_lora_rank": None, "first_k_dense_replace": 0}),
    "deepseek2-normed": Case(
        "deepseek2", {"norm_topk_prob": True, **TIED}, outtype="q8_0", differing=("expert_weights_norm",)
    ),
    "deepseek3-further": Case("deepseek3", {**NEXT, "norm_topk_prob": False}, further(1, "shared_head.norm")),
    "mistral4-wrapped": Case("mistral4", change=in_wrapper),
    "exaonemoe-further": Case("exaonemoe", {"num_hidden_layers": 3}, exaone_further, {"num_nextn_predict_layers": 2}),
    "hyv3-further": Case(
        "hyv3", {"num_shared_experts": 2}, further(2, "final_layernorm"), {"num_nextn_predict_layers": 2}
    ),
    "ernie45moe-further-unshared": Case("ernie45moe", {"moe_num_shared_experts": 0}, ernie_further),
    "laguna-uneven-heads": Case(
        "laguna",
        {"num_attention_heads_per_layer": [4, 2, 4, 6], "gating": "per-element", "num_key_value_heads": 2},
    ),
    "laguna-two-dense": Case("laguna", {"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}),
    "mellum-all-full": Case("mellum", {"layer_types": ["full_attention"] * 4}, differing=("rope.freq_base_swa",)),
    "granitemoe-biases": Case("granitemoe", {"attention_bias": True, **TIED}),
    "granitemoeshared-unshared": Case("granitemoeshared", {"shared_intermediate_size": 0}),
    "minimaxm2-half": Case("minimaxm2", {"rotary_dim": 16}),
    "gptoss-mxfp4": Case("gptoss", change=mxfp4, file={"quantization_config": {"quant_method": "mxfp4"}}),
    "gptoss-every-third": Case(
        "gptoss",
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]},
    ),
    "olmoe-epsilon": Case("olmoe", {"rms_norm_eps": 1e-6}, differing=("attention.layer_norm_rms_epsilon",)),
    "ernie45moe-two-shared": Case(
        "ernie45moe", {"moe_num_shared_experts": 2}, differing=("expert_shared_feed_forward_length",)
    ),
}


def made(case: Case, folder: Path) -> Path:
    save_checkpoint(TOYS[case.toy], folder, **case.settings)
    _edit(folder, case.change)
    _write(folder, case.file)
    return folder


def _edit(folder: Path, change: Change) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _write(folder: Path, fields: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_another_shape_of_checkpoint_becomes_what_upstream_makes_of_it(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    folder = made(case, tmp_path / "checkpoint")
    theirs = read_model(upstream.convert(folder, tmp_path / "upstream.gguf", case.outtype))
    row, h, plans = planned(folder, case.outtype)
    assert row.arch == theirs.first.get("general.architecture")
    assert tensor_differences(plans, theirs) == []
    keys = key_differences(row, h, theirs)
    unlike = [text for text in keys if not text.split(" is ")[0].endswith(case.differing or ("nothing",))]
    assert unlike == [] and len(keys) == len(case.differing), keys


@pytest.mark.parametrize(
    "name", ["glm4moe", "exaonemoe", "afmoe", "laguna", "hyv3", "deepseek3", "ernie45moe", "olmoe"]
)
def test_stacked_experts_that_upstream_does_not_know_become_the_same_file(
    toy_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """transformers keeps them so in memory; upstream's converter of these classes wants them apart."""
    folder = save_checkpoint(TOYS[name], tmp_path / "checkpoint")
    _edit(folder, stacked)
    assert differences(folder, toy_folder(name) / "f32.gguf") == []


def test_scoring_is_sigmoid_where_transformers_knows_no_other(tmp_path: Path) -> None:
    """Upstream's converter takes the field that these classes do not write, and llama.cpp's loader then softmax."""
    for name in ("deepseek3", "dots1", "exaonemoe", "minimaxm2"):
        folder = save_checkpoint(TOYS[name], tmp_path / name)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("scoring_func", None)
        path.write_text(json.dumps(config))
        row, h, _ = planned(folder)
        assert _keys(row, h)[f"{row.arch}.expert_gating_func"] == 2


def _keys(row: Any, h: Any) -> dict[str, Any]:
    from yarn_gguf.archs.key_tables import entries

    return {entry.key: entry.value() for entry in entries(row.arch, row.keys, h)}


def test_mistral_4_keeps_how_late_tokens_score(tmp_path: Path) -> None:
    """Upstream's converter drops it, though the loader reads it."""
    rope = {**TOYS["mistral4"].rope, **YARN, "llama_4_scaling_beta": 0.25}
    row, h, _ = planned(save_checkpoint(TOYS["mistral4"], tmp_path / "checkpoint", rope))
    keys = _keys(row, h)
    assert keys["mistral4.attention.temperature_scale"] == 0.25
    assert keys["mistral4.attention.temperature_length"] == YARN["original_max_position_embeddings"]


def test_a_checkpoint_that_lost_its_further_layers_is_said_to_have_none(tmp_path: Path) -> None:
    row, h, _ = planned(save_checkpoint(TOYS["glm4moe"], tmp_path / "checkpoint", num_nextn_predict_layers=1))
    keys = _keys(row, h)
    assert (keys["glm4moe.block_count"], keys["glm4moe.nextn_predict_layers"]) == (LAYERS, 0)


def test_dense_layers_behind_sparse_ones_are_refused(tmp_path: Path) -> None:
    kinds = ["dense", "sparse", "dense", "sparse"]
    row, h, _ = planned(save_checkpoint(TOYS["laguna"], tmp_path / "checkpoint", mlp_layer_types=kinds))
    with pytest.raises(InputError, match="mlp_layer_types has dense layers behind sparse ones"):
        _keys(row, h)


def test_a_further_layer_without_its_projection_is_refused(tmp_path: Path) -> None:
    folder = made(CASES["glm4moe-further"], tmp_path / "checkpoint")

    def without_projection(tensors: Tensors) -> Tensors:
        return {name: array for name, array in tensors.items() if "eh_proj" not in name}

    _edit(folder, without_projection)
    with pytest.raises(InputError, match=r"1 missing: model\.layers\.3\.eh_proj\.weight"):
        planned(folder)
