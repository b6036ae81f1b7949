"""The audit of configs, held against transformers and llama.cpp one field at a time.

benchmarks/config_fields.py moves every field of every toy's config class, converts each, and measures. Here it is asked
whether the audit said the same: what llama.cpp gets wrong must be an error that names the field, and what it gets right
must be none. Where transformers itself refuses, nothing is asked.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from yarn_gguf.config.audit import audit, extra_keys, rules_of
from yarn_gguf.config.audit_checks import CHECKS
from yarn_gguf.config.audit_keys import EXTRA
from yarn_gguf.config.audit_tables import ROWS, USUAL, Check, Harmless, Only, With
from yarn_gguf.config.hyperparameters import Hyperparameters, class_defaults
from yarn_gguf.config.leftovers import BY_CLASS, EVERYWHERE
from yarn_gguf.config.model_config import read_config
from yarn_gguf.findings import Finding, Level

from .conversions import convert_folder
from .toys import TOYS, save_checkpoint

EXACT = 1e-8  # mean KL; the largest that was right: 9e-11
GELU = 5e-7  # where ggml's table of GELU sets the floor; the largest that was right: 2.9e-7, with 62 layers
CORE = ("llama", "mistral", "qwen2", "gemma2", "olmo3", "gptoss", "deepseek2", "cohere2", "exaonemoe", "falcon")
# Refused, though as measured here (eager attention, short text, all tokens in one batch) both sides agree.
KEPT = {
    "is_causal": "a graph told to look ahead is right for one batch and wrong as soon as there are two",
    "use_bidirectional_attention": "transformers' eager masks ignore it where its other kinds of attention do not",
}
Measure = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def moves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    """toy → the results of all its moves, from a process that imports everything once."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "benchmarks.config_fields", "--serve"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1"}
    folder = tmp_path_factory.mktemp("moves")
    with (
        (folder / "stderr").open("w") as said,
        subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def measure(toy: str) -> list[dict[str, Any]]:
            assert process.stdin is not None and process.stdout is not None
            print(toy, folder / toy, file=process.stdin, flush=True)
            assert any(line == "done\n" for line in process.stdout), (folder / "stderr").read_text()[-3000:]
            results: list[dict[str, Any]] = json.loads((folder / toy).read_text())
            return results

        yield measure
        process.stdin.close()


@pytest.mark.parametrize("toy", [pytest.param(toy, marks=[pytest.mark.slow] * (toy not in CORE)) for toy in TOYS])
def test_the_audit_says_of_every_field_what_llama_cpp_does_with_it(toy: str, moves: Measure) -> None:
    results = moves(toy)
    assert results[0]["changes"] == {}
    limit = GELU if TOYS[toy].gelu else EXACT
    wrong = [f"{each['changes']}: {problem}" for each in results if (problem := disagreement(each, limit))]
    assert not wrong, "\n" + "\n".join(wrong)


def disagreement(result: dict[str, Any], limit: float) -> str | None:
    """How the audit and the measurement of one move contradict each other."""
    if result["stage"] == "transformers":
        return None
    right, errors = result.get("kl", 1.0) <= limit, result["errors"]
    if right:
        return f"right, but refused: {errors}" if errors and not result["changes"].keys() & KEPT.keys() else None
    if result.get("unreadable") or any(field in text for text in errors for field in result["changes"]):
        return None
    measured = result.get("kl") or result.get("error") or "ended"
    return f"{result['stage']}, {measured}, moved {result.get('moved')}, keys {result['keys']}, but only {errors}"


@pytest.mark.parametrize("model_type", ROWS)
def test_every_field_of_every_config_class_has_a_rule(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    fields = {each.name for each in dataclasses.fields(config)} | set(config.to_dict())
    assert fields <= rules_of(model_type).keys() | USUAL.keys()
    unused = ROWS[model_type].keys() - fields - read_beside(model_type)
    assert not unused, "rows speak of fields that this class has, or that only converters read"


@pytest.mark.parametrize("model_type", ROWS)
def test_what_a_class_takes_out_of_the_rest_of_the_file_is_known(model_type: str, tmp_path: Path) -> None:
    """Names that are no fields of the class, and that it looks for by hand all the same."""
    from transformers import AutoConfig

    source = inspect.getsource(type(AutoConfig.for_model(model_type)))
    taken = set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', source))
    other_names = Hyperparameters(read_config(write(tmp_path, model_type=model_type, head_dim=128))).other_names()
    assert taken <= rules_of(model_type).keys() | USUAL.keys() | other_names


def test_no_leftover_is_a_field_of_its_class() -> None:
    assert BY_CLASS.keys() <= ROWS.keys()
    for model_type in ROWS:
        fields = class_defaults()[model_type].keys() & (BY_CLASS.get(model_type, {}).keys() | EVERYWHERE.keys())
        assert all(field in rules_of(model_type) for field in fields), model_type
    assert not USUAL.keys() & EVERYWHERE.keys()
    assert not any(rules_of(name).keys() & own.keys() for name, own in BY_CLASS.items())


def read_beside(model_type: str) -> set[str]:
    """What the class does not have as a field: transformers reads it from any config, or upstream's converter does."""
    only = {name for name, rule in ROWS[model_type].items() if isinstance(rule, Only) and None in rule.values}
    return only | {"head_dim", "rotary_pct", "sliding_window_pattern", "_sliding_window_pattern"}


@pytest.mark.parametrize("model_type", ROWS)
def test_the_rules_hold_together(model_type: str) -> None:
    rules = rules_of(model_type)
    assert all(rule.reason for rule in rules.values() if isinstance(rule, Harmless))
    assert all(rule.values and rule.instead for rule in rules.values() if isinstance(rule, Only))
    assert {rule.name for rule in rules.values() if isinstance(rule, Check)} <= CHECKS.keys()
    with_others = {rule.field for rule in rules.values() if isinstance(rule, With)}
    assert all(isinstance(rules.get(field), Check) or field == "sliding_window" for field in with_others)


def test_no_check_and_no_row_of_keys_is_left_over() -> None:
    named = {rule.name for name in ROWS for rule in rules_of(name).values() if isinstance(rule, Check)}
    assert named == CHECKS.keys()
    assert EXTRA.keys() <= ROWS.keys()


def write(folder: Path, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def errors(findings: tuple[Finding, ...]) -> list[str]:
    return [each.text for each in findings if each.level is Level.ERROR]


MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}


def test_a_window_that_the_file_leaves_to_the_class_is_refused_by_name(tmp_path: Path) -> None:
    found = errors(audit(read_config(write(tmp_path, **MISTRAL)), "MistralForCausalLM"))
    assert len(found) == 1
    assert found[0].startswith("sliding_window is 4096 (not in the file: the class's default), but llama.cpp's graph")
    assert "exact up to 4096 tokens; beyond that every layer would see all 131072 (32 of 32 layers slide)" in found[0]
    found = errors(audit(read_config(write(tmp_path, **MISTRAL, sliding_window=4096)), "MistralForCausalLM"))
    assert found[0].startswith("sliding_window is 4096, but")


def test_a_window_as_wide_as_the_context_is_none(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **MISTRAL, max_position_embeddings=4096))
    assert not errors(audit(config, "MistralForCausalLM"))
    assert errors(audit(config, "MistralForCausalLM", context=32768))


def test_fields_that_nobody_reads_are_one_note(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **MISTRAL, sliding_window=None, temperature=0.6, zebra=1, aardvark={"a": 1}))
    (found,) = audit(config, "MistralForCausalLM")
    assert (found.level, found.code) == (Level.NOTE, "unknown_field")
    assert found.text.startswith("aardvark, zebra: ")


def test_a_field_that_only_converters_read_must_say_what_transformers_does(tmp_path: Path) -> None:
    file = {"model_type": "dots1", "sliding_window": None, "n_shared_experts": 2}
    config = read_config(write(tmp_path, **file))
    assert not errors(audit(config, "Dots1ForCausalLM"))
    assert extra_keys(config, "Dots1ForCausalLM") == {"expert_gating_func": 2}
    (found,) = errors(audit(read_config(write(tmp_path, **file, scoring_func="softmax")), "Dots1ForCausalLM"))
    assert found.startswith("scoring_func is 'softmax'")


def test_a_published_config_needs_no_keys(tmp_path: Path) -> None:
    """Those of the classes themselves, where these are what was published: the pattern of the loader is theirs."""
    for model_type in ("gemma2", "gemma3_text", "gpt_oss", "cohere2", "olmo3", "llama", "qwen3"):
        config = read_config(write(tmp_path, model_type=model_type))
        assert extra_keys(config, model_type) == {}, model_type


def test_a_model_type_without_a_row_is_not_waved_through(tmp_path: Path) -> None:
    (found,) = audit(read_config(write(tmp_path, model_type="gpt2")), "GPT2LMHeadModel")
    assert (found.level, found.code) == (Level.ERROR, "not_audited")


# What the makers of these models published, without sizes: fields that transformers' classes do not read.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    "gpt_oss": {"experts_per_token": 4, "initial_context_length": 4096},
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1, "ep_size": 1},
    "gemma": {"hidden_act": "gelu", "hidden_activation": None},
    "gemma2": {"sliding_window": 4096, "sliding_window_size": 4096, "cache_implementation": "hybrid"},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "sliding_window": 262144},
    "qwen2": {"use_mrope": False},
    "starcoder2": {
        "activation_function": "gelu",
        "attention_softmax_in_fp32": True,
        "layer_norm_epsilon": 1e-05,
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
    },
    "lfm2": {
        "hidden_size": 2048,
        "block_dim": 2048,
        "block_ff_dim": 12288,
        "block_mlp_init_scale": 1.0,
        "block_norm_eps": 1e-05,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "conv_dim": 2048,
        "conv_dim_out": 2048,
        "conv_use_xavier_init": True,
        "num_heads": 32,
        "rope_theta": 1000000.0,
        "theta": 1000000.0,
        "tie_embedding": True,
        "use_pos_enc": True,
    },
    "hunyuan_v1_dense": {
        "add_classification_head": False,
        "head_dim": 128,
        "attention_head_dim": 128,
        "cla_share_factor": 2,
        "class_num": 0,
        "dense_list": [4096, 0],
        "im_end_id": 5,
        "norm_type": "rms",
        "num_experts": 1,
        "org_vocab_size": 128167,
        "pad_id": 127961,
        "pool_type": "last",
        "use_cla": False,
        "use_qk_norm": True,
        "use_rotary_pos_emb": True,
    },
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_what_published_configs_carry_along_is_no_news(model_type: str, tmp_path: Path) -> None:
    config = read_config(write(tmp_path, model_type=model_type, **PUBLISHED[model_type]))
    assert not [each.text for each in audit(config, model_type) if each.code == "unknown_field"]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"rope_interleaved": True}),
        ("gpt_oss", {"experts_per_token": 2}),
        ("phi3", {"lm_head_bias": True}),
        ("lfm2", {"conv_dim": 1024}),
        ("starcoder2", {"norm_type": "rms"}),
        ("minimax_m2", {"attn_type_list": [1, 0]}),
        ("deepseek_v3", {"topk_method": "greedy"}),
        ("llama", {"full_attn_mod": 1}),
    ],
)
def test_a_leftover_that_asks_for_something_else_is_named(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    config = read_config(write(tmp_path, model_type=model_type, **fields))
    (found,) = (each.text for each in audit(config, model_type) if each.code == "unknown_field")
    assert found.startswith(next(iter(fields)))


@pytest.mark.parametrize("tied", [True, False])
def test_lfm2_by_the_names_that_its_class_takes_too(tied: bool, tmp_path: Path) -> None:
    """As transformers has it: these names come before the usual ones."""
    from transformers import AutoConfig

    fields = {"tie_embedding": tied, "tie_word_embeddings": not tied, "block_ff_dim": 640, "intermediate_size": 320}
    folder = write(tmp_path, model_type="lfm2", **fields)
    ours, theirs = Hyperparameters(read_config(folder)), AutoConfig.from_pretrained(folder)
    assert ours.tied == theirs.tie_word_embeddings == tied
    assert ours.size("intermediate_size") == theirs.intermediate_size == 640
    assert ours.states("intermediate_size")


def test_attention_that_neither_side_computes_is_a_warning(tmp_path: Path) -> None:
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    config = read_config(write(tmp_path, model_type="qwen2", dual_chunk_attention_config=chunks))
    (found,) = audit(config, "Qwen2ForCausalLM")
    assert (found.level, found.code) == (Level.WARNING, "not_computed")
    assert found.text.startswith("dual_chunk_attention_config asks for dual chunk attention")


@pytest.mark.parametrize("method", ["noaux_tc", None])
def test_a_way_to_choose_experts_at_which_transformers_breaks_off_is_refused(
    method: str | None, tmp_path: Path
) -> None:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    fields = {"n_routed_experts": 8, "num_experts_per_tok": 2, "hidden_size": 32, "num_attention_heads": 1}
    router = DeepseekV2TopkRouter(DeepseekV2Config(**fields, topk_method=method))
    with pytest.raises(UnboundLocalError):
        router(router.weight[None])
    file = {"model_type": "deepseek_v2", "n_shared_experts": 2, "num_hidden_layers": 27, "q_lora_rank": None}
    for given, refused in ((method, True), ("greedy", False), ("group_limited_greedy", False)):
        config = read_config(write(tmp_path, **file, topk_method=given))
        assert any("topk_method" in each for each in errors(audit(config, "DeepseekV2ForCausalLM"))) is refused


def test_layers_that_differ_from_each_other_are_refused(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, model_type="llama", per_layer_config={"0": {"intermediate_size": 64}}))
    (found,) = errors(audit(config, "LlamaForCausalLM"))
    assert found.startswith("per_layer_config is a JSON dict")


def test_an_untied_lfm2_by_its_own_names_converts_as_by_the_usual_ones(tmp_path: Path) -> None:
    folder = save_checkpoint(TOYS["lfm2"], tmp_path / "lfm2")
    convert_folder(folder, tmp_path / "usual.gguf")
    config = json.loads((folder / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    own = {"tie_embedding": config.pop("tie_word_embeddings"), "block_ff_dim": config.pop("intermediate_size")}
    write(folder, **config, **own)
    convert_folder(folder, tmp_path / "own.gguf")
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "usual.gguf").read_bytes()
