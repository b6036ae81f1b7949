"""`inspect`: what it says of a file is what transformers and llama.cpp would say, and each finding is found.

Frequencies and magnitudes are held against transformers' own; that the same table predicts what llama.cpp computes is
test_exactness.py's matter.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_gguf.graphs import GRAPHS

from .command import extended, run, run_fresh
from .make_gguf import rewritten, small_model
from .test_logits import YARN_KEYS
from .toys import CONTEXT, FACTOR, LENGTH, TOYS, YARN, save_checkpoint, yarn_frequencies
from .upstream import write_with_keys

Files = Callable[[str], Path]
YARN4 = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 256,
    "context_length": 1024,
}


def document(*arguments: str | Path) -> dict[str, Any]:
    done = run("inspect", *arguments, "--json")
    assert done.code == 0, done
    return done.json


def codes(found: dict[str, Any], level: str | None = None) -> set[str]:
    return {f["code"] for f in found["findings"] if level in (None, f["level"])}


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "qwen3", "granite"])
def test_what_stock_computes_of_an_extended_file_is_what_transformers_computes(
    name: str, toy_gguf: Files, tmp_path: Path
) -> None:
    extended(toy_gguf(name), "--factor", "8", "-o", tmp_path / "long.gguf")
    found = document(tmp_path / "long.gguf")
    toy = TOYS[name]
    inverse, magnitude = yarn_frequencies(toy, **YARN)
    (layers,) = found["effective"]["stock"]
    assert layers["class"] == "full"
    np.testing.assert_allclose(layers["inverse_frequencies"], np.array(inverse, float), rtol=1e-6)
    assert layers["magnitude"] == pytest.approx(magnitude, rel=1e-6)
    assert layers["exact"]
    assert found["context_length"] == LENGTH
    assert found["exact"] == {"stock": True, "patched": True}
    assert "exactly" in found["verdict"]


def test_settings_that_stock_ignores_are_an_error_with_its_size_and_a_verdict(toy_gguf: Files, tmp_path: Path) -> None:
    """What upstream's converter writes for other betas: the effective frequencies are those of betas 32/1."""
    keys = {**YARN_KEYS, "rope.scaling.yarn_beta_fast": 6.0, "rope.scaling.yarn_beta_slow": 2.0}
    file = write_with_keys(toy_gguf("qwen2"), tmp_path / "dead.gguf", keys)
    found = document(file)
    stock, patched = (found["effective"][runtime][0]["inverse_frequencies"] for runtime in ("stock", "patched"))
    defaults = yarn_frequencies(TOYS["qwen2"], **YARN)[0]
    np.testing.assert_allclose(stock, np.array(defaults, float), rtol=1e-6)
    meant = yarn_frequencies(TOYS["qwen2"], **YARN, beta_fast=6.0, beta_slow=2.0)[0]
    np.testing.assert_allclose(patched, np.array(meant, float), rtol=1e-6)
    assert found["exact"] == {"stock": False, "patched": True}
    assert "not_exact_on_stock" in codes(found, "error")
    assert "dead_key" in codes(found, "warning")
    assert "something else" in found["verdict"]


def test_options_are_held_against_the_file(toy_gguf: Files, tmp_path: Path) -> None:
    extended(toy_gguf("llama"), "--factor", "8", "-o", tmp_path / "long.gguf")
    assert document(tmp_path / "long.gguf", "--factor", "8")["exact"]["stock"]
    assert not document(tmp_path / "long.gguf", "--factor", "4")["exact"]["stock"]
    assert not document(tmp_path / "long.gguf", "--factor", "8", "--beta-fast", "6")["exact"]["stock"]


def test_layers_are_told_apart_by_what_they_get(toy_gguf: Files, tmp_path: Path) -> None:
    extended(toy_gguf("gemma3"), "--factor", "8", "-o", tmp_path / "long.gguf")
    by_class = {item["class"]: item for item in document(tmp_path / "long.gguf")["effective"]["stock"]}
    assert by_class["full"]["layers"] == [5]
    assert by_class["sliding"]["layers"] == [0, 1, 2, 3, 4]
    assert by_class["full"]["magnitude"] == pytest.approx(0.1 * np.log(8) + 1)
    assert by_class["sliding"]["magnitude"] == 1
    plain = 3000.0 ** (-np.arange(0, 32, 2) / 32)
    np.testing.assert_allclose(by_class["sliding"]["inverse_frequencies"], plain, rtol=1e-6)


def test_layers_without_rope_are_named(toy_gguf: Files) -> None:
    assert {item["class"]: item["layers"] for item in document(toy_gguf("smollm3"))["effective"]["stock"]} == {
        "full": [0, 1, 2],
        "none": [3],
    }
    assert "layer 3: no RoPE" in run("inspect", toy_gguf("smollm3")).words


FINDINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a context length below what the scaling reaches": (
        {**YARN4, "context_length": 256},
        "warning",
        "context_unscaled",
    ),
    "an attention factor that nobody reads": ({**YARN4, "rope.scaling.yarn_attn_factor": 1.0}, "warning", "dead_key"),
    "betas that nobody reads but that are the default": (
        {**YARN4, "rope.scaling.yarn_beta_fast": 32.0},
        "note",
        "dead_key",
    ),
    "a factor that is dead under type none": ({**YARN4, "rope.scaling.type": "none"}, "warning", "dead_key"),
    "a magnitude that a context shift multiplies": (YARN4, "warning", "context_shift"),
    "a token id that is out of range": ({"tokenizer.ggml.eos_token_id": 99}, "error", "token_id"),
    "no pre-tokenizer": ({}, "warning", "no_pre_tokenizer"),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_it_finds(case: str, tmp_path: Path) -> None:
    keys, level, code = FINDINGS[case]
    assert code in codes(document(small_model(tmp_path / "model.gguf", keys=keys)), level)


def test_a_sound_file_has_none_of_these_findings(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf", keys={"tokenizer.ggml.pre": "gpt-2"})
    assert document(model)["findings"] == []


def test_it_finds_more_tokens_than_rows_and_says_the_verdict_with_it(tmp_path: Path) -> None:
    found = document(small_model(tmp_path / "model.gguf", tokens=41))
    assert "vocabulary_size" in codes(found, "error")
    assert "errors" in found["verdict"]


def test_it_finds_that_llama_cpp_python_overrides_betas_where_they_are_read(tmp_path: Path) -> None:
    betas = {**YARN4, "rope.scaling.yarn_beta_fast": 6.0, "rope.scaling.yarn_beta_slow": 2.0}
    read = small_model(tmp_path / "mistral3.gguf", "mistral3", betas)
    unread = small_model(tmp_path / "qwen2.gguf", "qwen2", betas)
    assert "llama_cpp_python_betas" in codes(document(read), "warning")
    assert "llama_cpp_python_betas" in codes(document(unread), "note")


def test_it_finds_a_rope_freqs_tensor_that_the_loader_refuses(tmp_path: Path) -> None:
    tensor = {"rope_freqs.weight": np.ones(16, np.float32)}
    refused = rewritten(small_model(tmp_path / "a.gguf", "qwen2"), tmp_path / "b.gguf", tensors=tensor)[0]
    ignored = rewritten(small_model(tmp_path / "c.gguf", "falcon-h1"), tmp_path / "d.gguf", tensors=tensor)[0]
    assert "rope_freqs_refused" in codes(document(refused), "error")
    assert "rope_freqs_ignored" in codes(document(ignored), "warning")


LONGROPE = {
    "context_length": 131072,
    "rope.scaling.original_context_length": 4096,
    "rope.scaling.attn_factor": 1.19,
}


def longrope_model(folder: Path) -> Path:
    lists = {f"rope_factors_{kind}.weight": np.linspace(1, end, 16, dtype=np.float32) for kind, end in LENGTHS}
    model = small_model(folder / "short.gguf", "phi3", LONGROPE)
    return rewritten(model, folder / "model.gguf", tensors=lists)[0]


LENGTHS = (("long", 60.0), ("short", 1.5))


def test_a_longrope_file_is_exact_and_shows_its_long_list(tmp_path: Path) -> None:
    found = document(longrope_model(tmp_path))
    assert found["exact"]["stock"]
    assert found["rope"]["method"] == "longrope"
    theta = 10000.0 ** (-np.arange(16) / 16) / np.linspace(1, 60.0, 16)
    np.testing.assert_allclose(found["effective"]["stock"][0]["inverse_frequencies"], theta, rtol=1e-6)


def test_a_longrope_file_is_left_alone_by_extend_with_the_reason(tmp_path: Path) -> None:
    model = longrope_model(tmp_path)
    for options in ([], ["--factor", "4"], ["--method", "none"]):
        done = run("extend", model, *options)
        assert (done.code, "longrope" in done.err) == (3, True), done


def test_it_finds_the_magnitude_that_is_computed_not_the_one_that_is_meant(tmp_path: Path) -> None:
    """M = 1 is meant, in a key that nobody reads; a context shift multiplies by what is computed."""
    model = small_model(tmp_path / "model.gguf", keys={**YARN4, "rope.scaling.yarn_attn_factor": 1.0})
    (shift,) = [f["text"] for f in document(model)["findings"] if f["code"] == "context_shift"]
    assert "1.139" in shift


def test_gpt_oss_without_a_word_on_truncation_is_warned_of(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf", "gpt-oss", {**YARN4, "attention.sliding_window": 128})
    assert "lost_before" in codes(document(model), "warning")
    extended(model, "--encoding", "keys", "-o", tmp_path / "ours.gguf")
    assert "lost_before" not in codes(document(tmp_path / "ours.gguf"))


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "a sliding base below 1": ("gemma3", {"rope.freq_base_swa": 0.5, "attention.sliding_window": 64}),
    "an extrapolation factor above 1": ("grok", {"rope.scaling.yarn_ext_factor": 2.0}),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("command", ["inspect", "extend"])
def test_keys_that_make_no_rope_are_refused_in_one_line(case: str, command: str, tmp_path: Path) -> None:
    arch, keys = BROKEN[case]
    model = small_model(tmp_path / "model.gguf", arch, keys)
    done = run("inspect", model) if command == "inspect" else run("extend", model, "--factor", "4")
    assert (done.code, done.err.count("\n")) == (3, 1), done
    assert "model.gguf" in done.err


def test_a_layer_that_the_rope_pattern_does_not_reach_has_rope(tmp_path: Path) -> None:
    """As llama.cpp fills the array up."""
    keys = {"block_count": 3, "attention.rope_pattern": [False]}
    model = small_model(tmp_path / "model.gguf", "granite_swa", keys)
    by_class = {item["class"]: item["layers"] for item in document(model)["effective"]["stock"]}
    assert by_class["none"] == [0]


IMMENSE: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a base that leaves float32": ("llama", {"rope.freq_base": 3e38}, ["--method", "ntk", "--factor", "8"]),
    "a magnitude of 0 where it divides": (
        "deepseek2",
        {**YARN4, "rope.scaling.yarn_attn_factor": 0.0},
        ["--factor", "4"],
    ),
}


@pytest.mark.parametrize("case", IMMENSE)
def test_settings_that_no_key_can_hold_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    arch, keys, options = IMMENSE[case]
    done = run("extend", small_model(tmp_path / "model.gguf", arch, keys), *options)
    assert (done.code in (2, 3), done.err.count("\n")) == (True, 1), done


def test_the_remedy_is_one_that_works(toy_gguf: Files, tmp_path: Path) -> None:
    keys = {**YARN_KEYS, "rope.scaling.yarn_beta_fast": 6.0, "rope.scaling.yarn_beta_slow": 2.0}
    texts = {}
    for name in ("llama", "qwen2"):
        file = write_with_keys(toy_gguf(name), tmp_path / f"{name}.gguf", keys)
        texts[name] = next(f["text"] for f in document(file)["findings"] if f["level"] == "error")
    assert "yarn-gguf extend mends it" in texts["llama"]
    assert "the patched one of `yarn-gguf build` is exact" in texts["qwen2"]
    extended(tmp_path / "llama.gguf", "-o", tmp_path / "mended.gguf")
    assert document(tmp_path / "mended.gguf")["exact"]["stock"]


def test_a_model_without_rope_gets_no_verdict_on_it(tmp_path: Path) -> None:
    assert "no RoPE here" in document(small_model(tmp_path / "model.gguf", "bloom"))["verdict"]


def test_an_unscaled_file_has_no_encoding(tmp_path: Path) -> None:
    assert document(small_model(tmp_path / "model.gguf"))["rope"]["encoding"] is None


def test_a_split_set_is_one_model_by_any_of_its_parts(tmp_path: Path) -> None:
    whole = small_model(tmp_path / "whole.gguf")
    parts = rewritten(whole, tmp_path / "set.gguf", split=3)
    assert len(parts) > 2
    found = [document(part) for part in parts]
    assert found[0] == found[1] == found[2]
    assert found[0]["files"] == len(parts)
    assert found[0]["effective"] == document(whole)["effective"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_plot_is_a_picture_of_the_kind_its_name_says(suffix: str, tmp_path: Path) -> None:
    model, plot = small_model(tmp_path / "model.gguf", keys=YARN4), tmp_path / f"rope{suffix}"
    assert run("inspect", model, "--plot", plot).code == 0
    if suffix == ".svg":
        assert ET.parse(plot).getroot().tag.endswith("svg")
    else:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "not there.gguf", "--plot", tmp_path / "rope.bmp")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert ".svg or .png" in done.err


def test_a_hugging_face_folder_shows_what_transformers_computes(tmp_path: Path) -> None:
    toy = TOYS["qwen2"]
    scaling = {**YARN, "beta_fast": 6.0}
    folder = save_checkpoint(toy, tmp_path / "model", toy.scaled(**scaling), max_position_embeddings=CONTEXT)
    found = document(folder)
    inverse, magnitude = yarn_frequencies(toy, **scaling)
    (layers,) = found["effective"]["transformers"]
    np.testing.assert_allclose(layers["inverse_frequencies"], np.array(inverse, float), rtol=1e-6)
    assert layers["magnitude"] == pytest.approx(magnitude)
    assert (found["rope"]["method"], found["rope"]["factor"], found["rope"]["context"]) == ("yarn", FACTOR, LENGTH)
    assert found["arch"] == "Qwen2ForCausalLM"
    assert "lost_in_gguf" in codes(found, "warning")
    assert found["effective"]["stock"] is None


def test_a_folder_without_a_config_is_refused_by_name(tmp_path: Path) -> None:
    done = run("inspect", tmp_path)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "config.json" in done.err


@pytest.mark.parametrize("columns", [80, 100])
def test_the_output_fits_the_terminal(columns: int, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf", keys={**YARN4, "rope.scaling.yarn_beta_fast": 6.0})
    done = run_fresh("inspect", model, COLUMNS=str(columns))
    assert max(map(len, done.out.splitlines())) <= columns


@pytest.mark.slow
def test_every_architecture_is_extended_and_inspected_or_refused_in_one_line(tmp_path: Path) -> None:
    """Whatever llama.cpp knows by name, we have an answer for."""
    out = str(tmp_path / "long.gguf")
    for arch in GRAPHS:
        model = small_model(tmp_path / "model.gguf", arch, {"attention.sliding_window": 128})
        for command, *arguments in (["inspect"], ["extend", "--factor", "4", "-o", out, "--force"]):
            done = run(command, model, *arguments)
            assert done.code in (0, 3), (arch, done)
            assert done.err.count("\n") == (done.code != 0), (arch, done)
