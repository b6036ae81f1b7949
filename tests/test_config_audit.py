"""The audit of configs, held against transformers and llama.cpp one field at a time.

benchmarks/config_fields.py moves every field of every toy's config class, converts each, and measures. Here it is asked
whether the audit said the same: what llama.cpp gets wrong must be an error that names the field, and what it gets right
must be none. Where transformers itself refuses, nothing is asked.
"""

from __future__ import annotations

import dataclasses
import json
import os
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
from yarn_gguf.config.model_config import read_config
from yarn_gguf.findings import Finding, Level

from .toys import TOYS

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
    assert found[0].startswith("sliding_window is 4096, but llama.cpp's graph for MistralForCausalLM attends to all")


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
