"""`yarn-gguf extend`: what it changes and what it leaves, which options and which files it refuses, what it prints.

Real files, real processes; gguf-py, ggml's reader and llama.cpp judge what was written. What llama.cpp computes from it
is the logits tests' matter, faults of the system test_faults', the way back test_provenance's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest

from tests import gguf_bytes as g
from tests.command import Done, extended, run, run_fresh
from tests.llama_logits import load_ok
from tests.make_gguf import ROPE_FREQS, hashes, read_keys, read_tensors, rewritten, rope_freqs_of, small_model
from tests.oracle_gguf import Oracle

ToyGguf = Callable[[str], Path]
OURS: Final = "yarn_gguf."
YARN: Final = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 128}
BAKED: Final = {"rope.scaling.type": "none", "rope.scaling.original_context_length": 128}
M8: Final = 0.1 * float(np.log(8)) + 1


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as found:
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model.gguf")


def changes(before: Path, after: Path) -> dict[str, Any]:
    """Keys that are new or other than before, without the architecture and without our own; None for one that went."""
    old, new = read_keys(before), read_keys(after)
    names = [n for n in {**old, **new} if not n.startswith(OURS) and (n not in old or n not in new or old[n] != new[n])]
    arch = new["general.architecture"] + "."
    return {n.removeprefix(arch): _rounded(new.get(n)) for n in names}


def _rounded(value: Any) -> Any:
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


def refused(done: Done, code: int) -> str:
    """The one line of an error."""
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert done.err.startswith("error: ")
    return done.err


# ---- what is changed, and what is not

WRITTEN: Final[list[tuple[str, str, dict[str, Any]]]] = [
    ("llama", "--factor 8", {**YARN, "context_length": 1024}),
    ("qwen3", "--ctx 1k", {**YARN, "context_length": 1024}),
    ("gemma3", "--factor 8", {**YARN, "context_length": 1024}),
    ("llama", "--ctx 1000", {**YARN, "rope.scaling.factor": 7.8125, "context_length": 1000}),
    ("llama", "--factor 7.9", {**YARN, "rope.scaling.factor": 7.9, "context_length": 1011}),
    ("llama", "--factor 8 --method linear", {**YARN, "rope.scaling.type": "linear", "context_length": 1024}),
    ("llama-llama3", "--factor 8", {**YARN, "context_length": 1024}),
    (
        "llama",
        "--factor 8 --encoding baked",
        {**BAKED, "rope.scaling.attn_factor": M8, "context_length": 1024},
    ),
    ("llama", "--factor 8 --no-truncate", {**BAKED, "rope.scaling.attn_factor": M8, "context_length": 1024}),
    ("llama", "--factor 8 --attention-factor 1.0 --encoding baked", {**BAKED, "context_length": 1024}),
    (
        "qwen3",
        "--factor 8 --attention-factor 1.5",
        {**YARN, "rope.scaling.attn_factor": 1.5 / M8, "context_length": 1024},
    ),
    ("llama-llama3", "--factor 8 --encoding baked", {**BAKED, "rope.scaling.attn_factor": M8, "context_length": 1024}),
    ("qwen3", "--method none", {}),
]


@pytest.mark.parametrize(("name", "options", "expected"), WRITTEN, ids=[f"{row[0]} {row[1]}" for row in WRITTEN])
def test_exactly_the_keys_of_the_scaling_change_and_no_tensor_does(
    name: str, options: str, expected: dict[str, Any], toy_gguf: ToyGguf, tmp_path: Path, oracle: Oracle
) -> None:
    source, out = toy_gguf(name), tmp_path / "out.gguf"
    before = hashes(source.parent)
    document = extended(source, *options.split(), "-o", out, "--json").json
    found = changes(source, out)
    assert found == {key: _rounded(value) for key, value in expected.items()}
    old, new = read_tensors(source), read_tensors(out)
    assert document["tensors"] == len(new)
    assert list(new)[: len(old)] == list(old)
    assert set(new) - set(old) == ({ROPE_FREQS} if document["encoding"] == "baked" else set()) - set(old)
    assert {n: new[n] for n in old if n != ROPE_FREQS} == {n: old[n] for n in old if n != ROPE_FREQS}
    if ROPE_FREQS in old:
        assert (new[ROPE_FREQS] == old[ROPE_FREQS]) == (document["encoding"] == "keys")
    assert oracle.takes(out)
    assert load_ok(out)
    assert hashes(source.parent) == before


def test_every_tensor_type_is_carried_over_untouched(model: Path, tmp_path: Path, oracle: Oracle) -> None:
    for encoding in ("keys", "baked"):
        extended(model, "--factor", "4", "--encoding", encoding, "-o", tmp_path / "out.gguf", "--force")
        new = read_tensors(tmp_path / "out.gguf")
        new.pop(ROPE_FREQS, None)
        assert new == read_tensors(model)
        assert oracle.takes(tmp_path / "out.gguf")
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(model).tensors}
    assert kinds == {"Q8_0", "F16", "BF16", "Q4_0", "F32"}


def test_baked_factors_are_the_stretch_of_each_pair(model: Path, tmp_path: Path) -> None:
    """Linear by 4 stretches all alike; YaRN leaves the fastest pair and stretches the slowest in full."""
    extended(model, "--factor", "4", "--method", "linear", "--encoding", "baked", "-o", tmp_path / "linear.gguf")
    assert rope_freqs_of(tmp_path / "linear.gguf") == [4.0] * 16
    extended(model, "--factor", "4", "--encoding", "baked", "-o", tmp_path / "yarn.gguf")
    factors = rope_freqs_of(tmp_path / "yarn.gguf")
    assert (factors[0], factors[-1]) == (1.0, 4.0)
    assert factors == sorted(factors)


@pytest.mark.parametrize(
    ("arch", "value"), [("granite", True), ("granite", None), ("llama", True), ("llama", False), ("llama", None)]
)
def test_finetuned_is_never_added_and_never_changed(arch: str, value: bool | None, tmp_path: Path) -> None:
    """Granite reads it as "use RoPE"."""
    keys = {} if value is None else {"rope.scaling.finetuned": value}
    model = small_model(tmp_path / "model.gguf", arch, keys)
    for encoding in ("keys", "auto"):
        extended(model, "--factor", "4", "--encoding", encoding, "-o", tmp_path / "out.gguf", "--force")
        assert read_keys(tmp_path / "out.gguf").get(f"{arch}.rope.scaling.finetuned") is value


def test_keys_of_an_older_scaling_do_not_survive(tmp_path: Path) -> None:
    old = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 2.0,
        "rope.scaling.original_context_length": 128,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scale_linear": 2.0,
        "context_length": 256,
    }
    model = small_model(tmp_path / "model.gguf", keys=old)
    extended(model, "--factor", "8", "-o", tmp_path / "out.gguf")
    assert changes(model, tmp_path / "out.gguf") == {
        "context_length": 1024,
        "rope.scaling.factor": 8.0,
        "rope.scaling.yarn_ext_factor": None,
        "rope.scaling.yarn_beta_fast": None,
        "rope.scale_linear": None,
    }
    extended(model, "--factor", "8", "--encoding", "baked", "-o", tmp_path / "out.gguf", "--force")
    assert changes(model, tmp_path / "out.gguf")["rope.scaling.factor"] is None


def test_without_options_the_files_own_scaling_is_kept_and_its_context_is_written_scaled(tmp_path: Path) -> None:
    own = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    model = small_model(tmp_path / "model.gguf", keys=own)
    extended(model, "-o", tmp_path / "out.gguf")
    assert changes(model, tmp_path / "out.gguf") == {"context_length": 512}


@pytest.mark.parametrize("encoding", ["keys", "baked"])
def test_the_same_input_gives_the_same_bytes_however_it_is_written(
    encoding: str, toy_gguf: ToyGguf, tmp_path: Path
) -> None:
    source, step = toy_gguf("llama-llama3"), ("--factor", "8", "--encoding", encoding)
    for name, arguments in {"a": ("--jobs", "1"), "b": ("--jobs", "2"), "c": ("--jobs", "16")}.items():
        extended(source, *step, *arguments, "-o", tmp_path / name)
    done = run_fresh("extend", source, *step, "-o", tmp_path / "d", YARN_GGUF_PLAIN_IO="1")
    assert done.code == 0
    assert len(set(hashes(tmp_path).values())) == 1


def test_the_default_name_says_what_was_done(model: Path, tmp_path: Path) -> None:
    for options in ("--factor 8", "--factor 2.5 --method linear", "--method none", "--ctx 1M"):
        extended(model, *options.split())
    extended(tmp_path / "model-yarn8x.gguf", "--restore")
    assert sorted(hashes(tmp_path)) == [
        "model-linear2.5x.gguf",
        "model-restored.gguf",
        "model-unscaled.gguf",
        "model-yarn8192x.gguf",
        "model-yarn8x.gguf",
        "model.gguf",
    ]
    assert (tmp_path / "model-restored.gguf").read_bytes() == model.read_bytes()


def test_a_dry_run_says_the_same_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = hashes(tmp_path)
    dry = extended(model, "--factor", "8", "--dry-run", "--json").json
    assert hashes(tmp_path) == before
    wet = extended(model, "--factor", "8", "--json").json
    assert dry.pop("dry_run") is True
    assert wet.pop("dry_run") is False
    del dry["seconds"], wet["seconds"]
    assert dry == wet
    again = extended(model, "--factor", "8", "--dry-run", "--json").json
    assert [f["code"] for f in again["findings"]] == ["output_exists"]  # it would have to be forced


def test_an_extension_stays_where_nothing_else_is_asked_for(model: Path, tmp_path: Path) -> None:
    """The settings are kept and may be encoded anew; they are never taken back without --method none."""
    extended(model, "--factor", "8", "-o", tmp_path / "keys.gguf")
    again = extended(tmp_path / "keys.gguf", "--encoding", "baked", "-o", tmp_path / "baked.gguf", "--json").json
    assert (again["rope"]["method"], again["rope"]["factor"], again["encoding"]) == ("yarn", 8, "baked")
    assert run("inspect", tmp_path / "baked.gguf", "--json").json["exact"]["stock"]
    extended(tmp_path / "baked.gguf", "--restore", "-o", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == model.read_bytes()


def test_part_of_the_settings_of_an_extended_file_is_refused_with_what_it_was_extended_by(
    model: Path, tmp_path: Path
) -> None:
    extended(model, "--factor", "8", "-o", tmp_path / "long.gguf")
    error = refused(run("extend", tmp_path / "long.gguf", "--beta-fast", "16"), 2)
    assert "was extended by 8" in error


def test_an_unscaled_file_has_nothing_to_keep(model: Path) -> None:
    assert "give --factor or --ctx" in refused(run("extend", model), 2)


def test_linear_stays_linear_unless_more_is_asked_for(tmp_path: Path) -> None:
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    model = small_model(tmp_path / "linear.gguf", keys=keys)
    kept = extended(model, "--original-ctx", "64", "-o", tmp_path / "a.gguf", "--json").json
    assert (kept["rope"]["method"], kept["rope"]["original_context"]) == ("linear", 64)
    other = extended(model, "--original-ctx", "64", "--factor", "4", "-o", tmp_path / "b.gguf", "--json").json
    assert other["rope"]["method"] == "yarn"
    assert "was scaled with linear" in other["findings"][0]["text"]


def test_half_of_the_mscale_pair_is_told_to_do_nothing(model: Path) -> None:
    found = extended(model, "--factor", "4", "--mscale", "0.7", "--json").json["findings"]
    assert "alone leaves the attention factor" in found[0]["text"]


def test_hard_links_that_keep_the_old_content_are_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").hardlink_to(model)
    found = extended(model, "--factor", "4", "--in-place", "--json").json
    assert "hard_links" in [f["code"] for f in found["findings"]]


# ---- JSON

FIELDS: Final = {"schema", "outputs", "seconds", "rope", "encoding", "tensors", "findings"}
ROPE_FIELDS: Final = {
    "method",
    "factor",
    "original_context",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "truncate",
    "encoding",
}


def test_json_is_one_document_with_the_documented_fields(model: Path, tmp_path: Path) -> None:
    document = extended(model, "--factor", "8", "--json").json
    out = tmp_path / "model-yarn8x.gguf"
    assert set(document) >= FIELDS
    assert set(document["rope"]) >= ROPE_FIELDS
    assert (document["encoding"], document["tensors"], document["findings"]) == ("keys", 7, [])
    output = document["outputs"][0]
    assert (output["path"], output["bytes"], output["type"]) == (str(out), out.stat().st_size, "F16")
    assert [file["path"] for file in output["files"]] == [str(out)]
    rope = document["rope"]
    assert (rope["method"], rope["factor"], rope["original_context"], rope["truncate"]) == ("yarn", 8.0, 128, True)
    assert rope["attention_factor"] == pytest.approx(M8)
    restored = extended(out, "--restore", "--json").json
    assert set(restored) >= FIELDS
    assert restored["identical"] is True


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing.gguf", "--factor", "2"], 3),
        (["model.gguf", "--factor", "0.5"], 2),
        (["model.gguf", "--factor", "x"], 2),
        (["model.gguf", "--no-such-option"], 2),
        ([], 2),
        (["model.gguf", "--factor", "2", "-o", "nowhere/out.gguf"], 2),
        (["model.gguf", "--restore"], 3),
    ],
)
def test_json_on_failure_is_one_document_too(arguments: list[str], code: int, model: Path) -> None:
    place = [str(model.parent / a) if a.endswith(".gguf") else a for a in arguments]
    done = run("extend", *place, "--json")
    assert done.code == code
    document = done.json
    assert set(document) == {"schema", "error"}
    assert set(document["error"]) == {"code", "exit", "file", "text"}
    assert document["error"]["exit"] == code
    assert document["error"]["code"]
    assert done.err.count("\n") == 1
    assert document["error"]["text"] in done.err


def test_a_name_that_is_not_utf8_is_written_and_told(model: Path, tmp_path: Path) -> None:
    """Linux allows any bytes."""
    strange = tmp_path / os.fsdecode(b"m\xff\xfe.gguf")
    try:
        model.rename(strange)
    except OSError:
        pytest.skip("this filesystem takes no such name")
    for options in (("--factor", "8", "--json"), ("--factor", "4"), ("--factor", "0"), ("--restore",)):
        done = run_fresh("extend", strange, *options)
        assert done.code in (0, 2, 3)
        assert "Traceback" not in done.err
    assert len(hashes(tmp_path)) == 3


# ---- options (row 40)

USAGE: Final[dict[str, str]] = {
    "--factor 0": "--factor 0",
    "--factor -1": "--factor -1",
    "--factor 0.5": "must be 1 or more",
    "--factor nan": "--factor nan",
    "--factor inf": "--factor inf",
    "--factor 1e9": "a context of 128000000000",
    "--factor 1e300": "a context of 1.28e+302",
    "--factor 33554432": "a context of 4294967296",
    "--factor 16777216": "a context of 2147483648",
    "--factor 4 --ctx 512": "say the same thing twice",
    "--ctx 64": "below the original context of 128",
    "--ctx 127": "below the original context of 128",
    "--ctx 0": "whole number of tokens",
    "--ctx -4k": "whole number of tokens",
    "--ctx 1.5": "whole number of tokens",
    "--ctx nan": "tokens",
    "--ctx inf": "tokens",
    "--ctx 5000M": "whole number of tokens",
    "--ctx 3000M": "a context of 3145728000",
    "--ctx many": "not a number of tokens",
    "--factor 4 --beta-fast 1": "beta_fast is 1",
    "--factor 4 --beta-fast 1 --beta-slow 32": "beta_fast is 1",
    "--factor 4 --beta-slow 32": "beta_fast",
    "--factor 4 --beta-slow -1": "beta_slow",
    "--factor 4 --beta-fast nan": "beta_fast",
    "--factor 4 --beta-fast inf": "beta_fast",
    "--factor 4 --beta-fast 1e39": "beyond what",
    "--factor 4 --beta-fast 1e-50 --beta-slow 1e-60": "beta",
    "--factor 4 --attention-factor nan": "attention_factor",
    "--factor 4 --attention-factor inf": "attention_factor",
    "--factor 4 --attention-factor -1": "attention_factor",
    "--factor 4 --attention-factor 1e39": "beyond what",
    "--factor 4 --attention-factor 1e-60": "beyond what",
    "--factor 4 --mscale nan --mscale-all-dim 1": "mscale",
    "--factor 4 --mscale 1e300 --mscale-all-dim 1": "beyond what",
    "--factor 4 --original-ctx 1": "original context of 1",
    "--factor 4 --beta-slow 1e-40": "beyond what",
    "--factor 1.0001 --method yarn --beta-fast": "requires an argument",
    "--factor 4 --method linear --beta-fast 16": "--method linear does not use --beta-fast",
    "--factor 4 --method ntk-by-parts --attention-factor 1": "does not use --attention-factor",
    "--method none --factor 4": "--method none has no factor",
    "--beta-fast 16": "how far?",
    "--method yarn": "how far?",
    "--method dynamic --factor 4": "'dynamic' is not one of",
    "--factor 4 --encoding json": "'json' is not one of",
    "--restore --factor 4": "--restore takes neither rope options nor --encoding",
    "--factor 4 --in-place -o x.gguf": "exclude each other",
    "--factor 4 --jobs 0": "0 is not in the range",
    "--factor 4 extra.gguf": "unexpected extra argument",
}


@pytest.mark.parametrize("options", USAGE)
def test_settings_that_make_no_sense_are_refused_with_the_reason(options: str, model: Path, tmp_path: Path) -> None:
    before = hashes(tmp_path)
    error = refused(run("extend", model, *options.split()), 2)
    assert USAGE[options] in error
    assert hashes(tmp_path) == before


def test_bigger_settings_than_any_sane_ones_still_come_out_right(model: Path, tmp_path: Path) -> None:
    extended(model, "--factor", "8000000", "--encoding", "keys", "-o", tmp_path / "out.gguf")
    assert read_keys(tmp_path / "out.gguf")["llama.context_length"] == 1_024_000_000
    extended(model, "--factor", "1", "-o", tmp_path / "one.gguf")
    assert changes(model, tmp_path / "one.gguf").get("context_length") is None


def test_a_linear_file_that_does_not_say_where_it_started_is_asked_for_it(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "context_length": 512}
    model = small_model(tmp_path / "model.gguf", keys=linear)
    error = refused(run("extend", model, "--factor", "8"), 2)
    assert "give it with --original-ctx" in error
    extended(model, "--factor", "8", "--original-ctx", "128", "-o", tmp_path / "out.gguf")
    assert read_keys(tmp_path / "out.gguf")["llama.context_length"] == 1024


# ---- files (rows 17, 20, 41, 42)

F32Array = gguf.GGUFValueType
NO_MODEL: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "ALiBi": ("bloom", {}, "no RoPE here"),
    "ALiBi too": ("mpt", {}, "no RoPE here"),
    "a position table": ("gpt2", {}, "no RoPE here"),
    "no attention": ("mamba", {}, "no RoPE here"),
    "a projector": ("clip", {}, "mmproj"),
    "a projector by its type": ("llama", {"general.type": "mmproj"}, "mmproj"),
    "a LoRA adapter": ("llama", {"general.type": "adapter", "adapter.type": "lora"}, "LoRA"),
    "an adapter without its type": ("llama", {"adapter.type": "lora"}, "adapter"),
    "an importance matrix": ("llama", {"general.type": "imatrix"}, "importance matrix"),
    "an unknown architecture": ("llama9", {}, "architecture 'llama9' is not one of"),
    "an unknown scaling": ("llama", {"rope.scaling.type": "su"}, "llama.cpp knows none, linear, yarn, longrope"),
    "a scaling that is a number": ("llama", {"rope.scaling.type": 3}, "rope.scaling.type must be a string"),
    "no context": ("llama", {"context_length": 0}, "context_length is 0, a positive number is needed"),
    "no context at all": ("llama", {"context_length": None}, "context_length is missing"),
    "a context of text": ("llama", {"context_length": "128"}, "context_length must be an integer, not string"),
    "no layers": ("llama", {"block_count": 0}, "block_count is 0"),
    "no width": ("llama", {"embedding_length": 0}, "embedding_length is 0"),
    "no heads": ("llama", {"attention.head_count": 0}, "head_count is missing or 0"),
    "heads that are not there": ("llama", {"attention.head_count": None}, "head_count is missing or 0"),
    "a head of nothing": ("llama", {"rope.dimension_count": 0}, "rope.dimension_count is 0"),
    "an odd head": ("llama", {"rope.dimension_count": 31}, "dimension_count is 31"),
    "a base of zero": ("llama", {"rope.freq_base": 0.0}, "rope.freq_base is 0"),
    "a base that is negative": ("llama", {"rope.freq_base": -1.0}, "base"),
    "a base that is no number": ("llama", {"rope.freq_base": float("nan")}, "freq_base is nan"),
    "a base that is infinite": ("llama", {"rope.freq_base": float("inf")}, "freq_base is inf"),
    "a negative factor": ("llama", {"rope.scaling.factor": -2.0, "rope.scaling.type": "yarn"}, "factor"),
    "a factor that is no number": ("llama", {"rope.scaling.factor": float("nan")}, "factor is nan"),
    "betas the wrong way round": (
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 0.5},
        "beta",
    ),
    "tokens that are numbers": ("llama", {"tokenizer.ggml.tokens": [1, 2]}, "tokens must be an array of strings"),
    "tokens that are one text": ("llama", {"tokenizer.ggml.tokens": "abc"}, "tokens must be an array of strings"),
    "merges that are numbers": ("llama", {"tokenizer.ggml.merges": [1, 2]}, "merges must be an array of strings"),
    "types that are texts": ("llama", {"tokenizer.ggml.token_type": ["a"] * 40}, "must be an array of int32"),
    "fewer types than tokens": ("llama", {"tokenizer.ggml.token_type": [1] * 39}, "has 39 items"),
    "more types than tokens": ("llama", {"tokenizer.ggml.token_type": [1] * 41}, "has 41 items"),
    "fewer scores than tokens": ("llama", {"tokenizer.ggml.scores": [1.0] * 3}, "scores has 3 items"),
    "scores that are whole": ("llama", {"tokenizer.ggml.scores": [1] * 40}, "must be an array of float32"),
    "a context per layer": ("llama", {"context_length": [128]}, "context_length must be an integer"),
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_a_file_that_is_no_model_with_rope_is_refused_by_name(name: str, tmp_path: Path) -> None:
    arch, keys, says = NO_MODEL[name]
    prefixed = {
        key if key.split(".")[0] in ("general", "adapter", "tokenizer") else f"{arch}.{key}": v
        for key, v in keys.items()
    }
    dropped = [key for key, value in prefixed.items() if value is None]
    model = rewritten(
        small_model(tmp_path / "m.gguf", arch),
        tmp_path / "model.gguf",
        {k: v for k, v in prefixed.items() if v is not None},
        drop=dropped,
    )[0]
    before = hashes(tmp_path)
    for arguments in (["--factor", "4"], ["--factor", "4", "--encoding", "keys", "--in-place"]):
        assert says in refused(run("extend", model, *arguments), 3)
    assert hashes(tmp_path) == before


def test_a_vocabulary_without_tensors_is_named(tmp_path: Path) -> None:
    tokens = g.pair(b"tokenizer.ggml.tokens", g.ARRAY, g.array(g.STRING, 2, g.strings(b"a", b"b")))
    (tmp_path / "vocab.gguf").write_bytes(g.gguf([g.text(b"general.architecture", b"llama"), tokens]))
    assert "is a vocabulary, not a model" in refused(run("extend", tmp_path / "vocab.gguf", "--factor", "4"), 3)


def test_a_file_without_tensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(g.gguf([g.text(b"general.architecture", b"llama")]))
    assert "holds no tensors" in refused(run("extend", tmp_path / "empty.gguf", "--factor", "4"), 3)


def test_longrope_is_refused_as_a_basis(tmp_path: Path) -> None:
    factors = {
        name: np.linspace(1, 4, 16, dtype=np.float32)
        for name in ("rope_factors_long.weight", "rope_factors_short.weight")
    }
    keys = {"phi3.rope.scaling.type": "longrope", "phi3.rope.scaling.original_context_length": 32}
    model = rewritten(small_model(tmp_path / "m.gguf", "phi3"), tmp_path / "model.gguf", keys, tensors=factors)[0]
    assert "is scaled with longrope" in refused(run("extend", model, "--factor", "4"), 3)
    assert "is scaled with longrope" in refused(run("extend", model), 3)


BAD_FACTORS: Final[dict[str, Any]] = {
    "zeros": np.zeros(16, np.float32),
    "a negative one": np.array([1.0] * 15 + [-1.0], np.float32),
    "not a number": np.array([1.0] * 15 + [np.nan], np.float32),
    "too few": np.full(15, 2, np.float32),
    "too few, all ones": np.ones(15, np.float32),
    "too many": np.full(17, 2, np.float32),
    "two dimensions": np.ones((2, 8), np.float32),
}


@pytest.mark.parametrize("name", BAD_FACTORS)
def test_rope_freqs_that_no_rope_can_have_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    bad = rewritten(model, tmp_path / "bad.gguf", tensors={ROPE_FREQS: BAD_FACTORS[name]})[0]
    refused(run("extend", bad, "--factor", "4"), 3)
    refused(run("extend", bad, "--factor", "4", "--encoding", "baked"), 3)


def test_a_pipe_a_folder_and_a_device_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name in ("pipe", "folder", "/dev/zero", "/dev/null"):
        assert "is not a regular file" in refused(run("extend", tmp_path / name, "--factor", "4"), 3)
    assert "no such file" in refused(run("extend", tmp_path / "file" / "below", "--factor", "4"), 3)
    assert "the file is empty" in refused(run("extend", tmp_path / "file", "--factor", "4"), 3)


def test_what_stock_cannot_do_exactly_is_refused_when_typed_and_told_when_insisted_on(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf", "qwen3")
    error = refused(run("extend", model, "--factor", "4", "--no-truncate"), 3)
    assert "--encoding keys writes it for the patched llama.cpp of `yarn-gguf build`" in error
    assert "takes no rope_freqs tensor" in refused(run("extend", model, "--factor", "4", "--encoding", "baked"), 2)
    document = extended(model, "--factor", "4", "--no-truncate", "--encoding", "keys", "--json").json
    assert [found["code"] for found in document["findings"]] == ["not_exact_on_stock"]
    assert document["exact"] == {"stock": False, "patched": True}


def test_bytes_behind_the_last_tensor_are_a_warning_and_under_strict_an_error(model: Path, tmp_path: Path) -> None:
    with model.open("ab") as file:
        file.write(b"behind")
    before = hashes(tmp_path)
    assert "6 bytes behind the last tensor" in refused(run("extend", model, "--factor", "4", "--strict"), 3)
    assert hashes(tmp_path) == before
    assert "6 bytes behind the last tensor are kept" in extended(model, "--factor", "4").words


def test_help_and_the_version_need_no_file() -> None:
    for arguments in (["--help"], ["--version"], ["extend", "--help"], ["extend", "-h"]):
        done = run_fresh(*arguments)
        assert (done.code, done.err) == (0, "")
        assert done.out


def test_the_documents_of_several_runs_are_json_lines(model: Path) -> None:
    lines: Sequence[str] = [extended(model, "--factor", "4", "--dry-run", "--json").out for _ in range(2)]
    assert all(line.count("\n") == 1 and json.loads(line) for line in lines)
