"""Bad checkpoints, bad wishes and a system that says no: what `yarn-gguf convert` answers, and what it leaves behind.

The invariant, checked by hashing all that is in the folder: the checkpoint and any earlier output are what they were,
nothing new stands at a final name, no temporary is left, and what is said is one line. Faults of the system are real
where a test can make them, and else injected by strace between the program and the kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.command import COMMAND, Done, environment, run, run_fresh
from tests.llama_logits import load_ok
from tests.make_checkpoints import (
    INDEX,
    WEIGHTS,
    Raw,
    as_bf16,
    checkpoint,
    configure,
    load,
    sharded,
    store,
    tokenizer,
)
from tests.make_gguf import hashes, read_keys, read_tensors
from tests.test_convert import NAME, OWN_YARN, converted, refused
from tests.test_faults import LITTER, SIGNALS, _in_small_tmpfs, _wait, failed, namespaces, needs_strace

__all__ = ["namespaces"]  # a fixture

ToyFolder = Callable[[str], Path]
LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DOWN: Final = "model.layers.1.mlp.down_proj.weight"
ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture
def model(toy_folder: ToyFolder, tmp_path: Path) -> Path:
    """A llama with a tokenizer of its own."""
    return checkpoint(toy_folder("llama"), tmp_path / "model")


def fails(folder: Path, code: int, *arguments: str | Path) -> str:
    """What `convert` says when it fails; twice, the second time over an earlier output."""
    root = folder.parent
    out = root / "out.gguf"
    before = hashes(root)
    said = refused(run("convert", folder, "-o", out, *arguments), code)
    assert hashes(root) == before
    out.write_text("earlier output")
    before = hashes(root)
    assert refused(run("convert", folder, "-o", out, *arguments, "--force"), code).replace("; --force", "") == said
    assert hashes(root) == before
    return said


# ---- what is not there, or not what it should be (rows 20 to 25)

Spoil = Callable[[Path], object]


def lfs(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(LFS)


def fifo(name: str) -> Spoil:
    def made(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return made


def cut(name: str, size: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, size)


def linked(name: str, to: str) -> Spoil:
    def made(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return made


def indexed(change: Callable[[dict[str, str]], dict[str, str]]) -> Spoil:
    def made(folder: Path) -> None:
        sharded(folder, 2)
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": change(index["weight_map"])}))

    return made


def pickled(folder: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(raw.array.copy()) for name, raw in load(folder / WEIGHTS).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


FILES: Final[dict[str, tuple[Spoil, str]]] = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
    "config.json is a pipe": (fifo("config.json"), r"config\.json: is not a regular file"),
    "config.json is a folder": (linked("config.json", "."), r"config\.json: is not a regular file"),
    "config.json is a device": (linked("config.json", "/dev/zero"), r"config\.json: is not a regular file"),
    "config.json is no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: .*JSON"),
    "config.json is nested": (
        lambda folder: (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        r"config\.json: .*nested",
    ),
    "config.json is huge": (
        lambda folder: (folder / "config.json").write_bytes(b" " * (17 << 20)),
        r"config\.json: .*(larger|large)",
    ),
    "config.json is a list": (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: .*"),
    "a shard is a pipe": (fifo(WEIGHTS), r"model\.safetensors: is not a regular file"),
    "a shard is a git-LFS pointer": (lfs(WEIGHTS), r"git-LFS pointer.*git lfs pull"),
    "the index is a git-LFS pointer": (lfs(INDEX), r"git-LFS pointer.*git lfs pull"),
    "config.json is a git-LFS pointer": (lfs("config.json"), r"config\.json: .*(LFS|JSON)"),
    "tokenizer.json is a git-LFS pointer": (lfs("tokenizer.json"), r"tokenizer\.json: .*(LFS|JSON)"),
    "a shard is empty": (cut(WEIGHTS, 0), r"model\.safetensors: "),
    "a shard is cut short": (cut(WEIGHTS, 100_000), r"model\.safetensors: .*100000"),
    "a link that leads nowhere": (linked(WEIGHTS, "nowhere"), r"model\.safetensors: no such file"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights"),
    "an index that leads away": (
        indexed(lambda found: {**found, DOWN: "../model-00001-of-00002.safetensors"}),
        r"'\.\./model-00001-of-00002\.safetensors'",
    ),
    "an index with an absolute path": (indexed(lambda found: {**found, DOWN: "/etc/x.safetensors"}), "'/etc/x"),
    "an index that names a missing shard": (
        indexed(lambda found: {**found, "x": "model-9.safetensors"}),
        r"missing: model-9\.safetensors",
    ),
    "an index that forgets a tensor": (
        indexed(lambda found: {name: file for name, file in found.items() if name != DOWN}),
        rf"there but not listed: {re.escape(DOWN)}",
    ),
    "a shard that no index lists": (
        lambda folder: (sharded(folder, 2), shutil.copy(folder / "model-00001-of-00002.safetensors", folder / WEIGHTS)),
        r"does not list model\.safetensors",
    ),
    "pickled weights": (pickled, "--allow-pickle"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_what_it_should_be_is_named(case: str, model: Path) -> None:
    spoil, says = FILES[case]
    spoil(model)
    assert re.search(says, fails(model, 3)), fails(model, 3)


def test_what_is_no_checkpoint_at_all_is_bad_input(model: Path, tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", model / "config.json", tmp_path / "a\0b", NAME + "/more", ""):
        if "\0" not in str(source):
            assert run("convert", source).code in (2, 3)
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(run("convert", tmp_path / "empty"), 3)


def test_pickled_weights_convert_when_they_are_allowed(model: Path, tmp_path: Path) -> None:
    converted(model, "--no-vocab", "-o", tmp_path / "one.gguf")
    pickled(model)
    converted(model, "--no-vocab", "--allow-pickle", "-o", tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(model: Path, tmp_path: Path) -> None:
    import pickle

    class Nasty:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Nasty()}, protocol=2))
    done = run("convert", model, "--no-vocab", "--allow-pickle", "-o", tmp_path / "out.gguf")
    assert (done.code in (3, 5), done.err.count("\n")) == (True, 1), done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_checkpoints_own_code_is_never_run(model: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py", "__init__.py"):
        (model / name).write_text(code)
    configure(model, auto_map={"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"})
    converted(model, "-o", tmp_path / "out.gguf")
    assert load_ok(tmp_path / "out.gguf")
    configure(model, architectures=["OwnForCausalLM"], model_type="own")
    assert re.search("'own'.*--converter", refused(run("convert", model, "-o", tmp_path / "other.gguf"), 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf"]


# ---- what is not known (rows 41, 43)


def own(**rope: Any) -> dict[str, Any]:
    return {"rope_parameters": {**OWN_YARN, **rope}}


CONFIGS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "a class": ({"architectures": ["MadeUpForCausalLM"]}, r"MadeUpForCausalLM.*--converter"),
    "a class and type": (
        {"architectures": ["MadeUpForCausalLM"], "model_type": "made_up"},
        r"(made_up|MadeUpForCausalLM).*--converter",
    ),
    "a type": ({"model_type": "made_up"}, r"made_up.*--converter"),
    "no class": ({"architectures": None}, "architectures"),
    "a class without RoPE": ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, r"[Bb]loom"),
    "a quantization": ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
    "a quantization without a name": ({"quantization_config": {"bits": 4}}, "quant"),
    "a rope key": (own(beta_medium=3), "beta_medium"),
    "a rope type": (own(rope_type="spiral"), "spiral"),
    "a factor that is none": (own(factor="many"), "factor"),
    "a factor below 1": (own(factor=0.5), "factor"),
    "betas the wrong way": (own(beta_fast=1, beta_slow=32), "beta_fast"),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "a layer count that is not the weights'": ({"num_hidden_layers": 2}, "layers.2"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "heads of nothing": ({"num_attention_heads": 0}, "num_attention_heads"),
    "a width that is not the weights'": ({"hidden_size": 256, "head_dim": 32}, "shape|dimension|expected"),
    "a number that is text": ({"rms_norm_eps": "small"}, "rms_norm_eps.*'small'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_setting_that_is_not_known_is_named(case: str, model: Path) -> None:
    changes, says = CONFIGS[case]
    configure(model, **changes)
    said = fails(model, 3, "--no-vocab") if case != "an activation" else refused(run("convert", model), 3)
    assert re.search(says, said), said


ANYTHING: Final = (None, "x", -1, 1e308, [1], {"a": 1}, True, 1 << 70)


@pytest.mark.slow
@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_no_value_of_any_setting_ends_in_a_traceback(value: object, model: Path) -> None:
    path, out = model / "config.json", model.parent / "out.gguf"
    whole = json.loads(path.read_text())
    for name in whole:
        path.write_text(json.dumps({**whole, name: value}))
        done = run("convert", model, "--no-vocab", "-o", out, "--force", seconds=60)
        assert done.code in (0, 2, 3), (name, done)
        assert done.err.count("\n") == (done.code > 0), (name, done)


def test_a_setting_that_the_graph_does_not_have_is_refused_by_name_and_forced_with_a_warning(
    toy_folder: ToyFolder, tmp_path: Path
) -> None:
    folder, out = checkpoint(toy_folder("mistral"), tmp_path / "model"), tmp_path / "out.gguf"
    configure(folder, sliding_window=64)
    before = hashes(tmp_path)
    assert re.search("sliding_window.*--force", refused(run("convert", folder, "-o", out), 3))
    assert hashes(tmp_path) == before
    done = converted(folder, "-o", out, "--force", "--json").json
    assert [each["level"] for each in done["findings"] if "sliding_window" in each["text"]] == ["warning"]
    assert load_ok(out)


# ---- wishes that cannot be met (row 40)

WISHES: Final[dict[str, tuple[str, int, str]]] = {
    "a factor below 1": ("--factor 0.5", 2, "factor"),
    "a factor of 0": ("--factor 0", 2, "factor"),
    "a negative factor": ("--factor -4", 2, "factor"),
    "a factor that is no number": ("--factor nan", 2, "factor"),
    "an infinite factor": ("--factor inf", 2, "factor"),
    "a context below the original": ("--ctx 64", 2, "64"),
    "a factor and another context": ("--factor 4 --ctx 1k", 2, "factor"),
    "betas the wrong way": ("--factor 4 --beta-fast 1 --beta-slow 32", 2, "beta"),
    "a factor beyond what a GGUF can hold": ("--factor 1e300", 2, "more than"),
    "a context that llama.cpp cannot count": ("--factor 3e7", 2, "3840000000 tokens is more than"),
    "an attention factor of 0": ("--factor 4 --attention-factor -1", 2, "attention"),
    "a type that is not written": ("--outtype q4_k_xl", 2, "q4_k_xl"),
}


@pytest.mark.parametrize("case", WISHES)
def test_a_wish_that_makes_no_sense_is_a_usage_error(case: str, model: Path) -> None:
    options, code, says = WISHES[case]
    said = fails(model, code, "--no-vocab", *options.split())
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("qwen2", "--factor 4 --beta-fast 4", "stock llama.cpp"),
        ("phi3", "--factor 4", "yarn|longrope"),
    ],
)
def test_what_stock_llama_cpp_cannot_compute_is_refused_when_typed(
    name: str, options: str, says: str, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    folder = checkpoint(toy_folder(name), tmp_path / "model")
    if name == "phi3":
        factors = [1.0 + n / 8 for n in range(16)]
        rope = {**ROPE, "rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        configure(folder, rope_parameters=rope, original_max_position_embeddings=64)
    assert re.search(says, fails(folder, 3, "--no-vocab", *options.split()))


# ---- weights (rows 27 to 29)


def changed(change: Callable[[dict[str, Raw]], object]) -> Spoil:
    def made(folder: Path) -> None:
        tensors = load(folder / WEIGHTS)
        change(tensors)
        store(folder / WEIGHTS, tensors)

    return made


def test_everything_that_is_wrong_with_the_tensors_is_listed_at_once(model: Path) -> None:
    def spoil(tensors: dict[str, Raw]) -> None:
        del tensors["model.layers.0.self_attn.q_proj.weight"], tensors["model.layers.2.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.k_norm.weight"] = tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.v_proj.bias"] = tensors["model.norm.weight"]
        down = tensors[DOWN]
        tensors[DOWN] = replace(down, shape=down.shape[::-1])

    changed(spoil)(model)
    said = fails(model, 3, "--no-vocab")
    for name in (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.1.self_attn.k_norm.weight",
        "model.layers.1.self_attn.v_proj.bias",
        DOWN,
    ):
        assert name in said, (name, said)


def test_a_head_is_never_guessed(model: Path) -> None:
    head = load(model / WEIGHTS)["lm_head.weight"]
    changed(lambda tensors: tensors.pop("lm_head.weight"))(model)
    assert "lm_head.weight" in fails(model, 3, "--no-vocab")
    configure(model, tie_word_embeddings=True)
    changed(lambda tensors: tensors.update({"lm_head.weight": head}))(model)
    assert re.search(r"lm_head\.weight.*tie_word_embeddings", fails(model, 3, "--no-vocab"))


def test_a_tied_head_that_is_the_embedding_converts(model: Path, tmp_path: Path) -> None:
    changed(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))(model)
    configure(model, tie_word_embeddings=True)
    converted(model, "--no-vocab", "-o", tmp_path / "out.gguf")
    assert load_ok(tmp_path / "out.gguf")


BAD_NUMBERS: Final[dict[str, tuple[bool, float, str, str]]] = {
    # whether the weights are bfloat16, the number, the type asked for, and what is said of it
    "NaN": (False, np.nan, "f16", "nan at .* is no finite number"),
    "infinity": (False, np.inf, "q8_0", "inf at .* is no finite number"),
    "minus infinity, to bf16": (False, -np.inf, "bf16", "-inf at .* is no finite number"),
    "too large": (False, 70000.0, "f16", "70000 at .* is too large for F16; use --outtype bf16"),
    "too large in bf16": (True, 1e30, "f16", "9.95304e.29 at .* is too large for F16; use --outtype bf16"),
    "NaN, widened": (True, np.nan, "f32", "nan at .* is no finite number"),
}


@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_a_number_that_the_type_cannot_hold_is_named_with_its_place(case: str, model: Path) -> None:
    half, number, outtype, says = BAD_NUMBERS[case]

    def spoil(tensors: dict[str, Raw]) -> None:
        if half:
            tensors.update(as_bf16(tensors))
        bits = np.array(number, np.float32)
        tensors[DOWN] = tensors[DOWN].with_number(3 * 192 + 5, bits.view(np.uint32) >> 16 if half else bits)

    changed(spoil)(model)
    said = fails(model, 3, "--no-vocab", "--outtype", outtype)
    assert re.search(says, said), said
    assert f"blk.1.ffn_down.weight (from {DOWN})" in said
    assert "at [3, 5]" in said


def test_what_is_copied_as_it_is_is_looked_at_when_asked(model: Path, tmp_path: Path) -> None:
    changed(lambda tensors: tensors.update({DOWN: tensors[DOWN].with_number(77, np.array(np.nan))}))(model)
    said = fails(model, 3, "--no-vocab", "--outtype", "f32", "--check")
    assert re.search(r"blk\.1\.ffn_down\.weight .*nan at \[0, 77\]", said)
    (tmp_path / "out.gguf").unlink()
    converted(model, "--no-vocab", "--outtype", "f32", "-o", tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("config", "says"), [(None, "adapter"), ("{", "JSON"), ('{"peft_type": "VERA"}', "VERA"), ('{"r": 4}', "peft_type")]
)
def test_an_adapter_that_is_none_is_refused(config: str | None, says: str, model: Path) -> None:
    adapter = model.parent / "adapter"
    adapter.mkdir()
    if config is not None:
        (adapter / "adapter_config.json").write_text(config)
    assert says in fails(model, 3, "--no-vocab", "--lora", adapter)


# ---- tokenizers (row 26)


def test_more_tokens_than_rows_are_refused(toy_folder: ToyFolder, tmp_path: Path) -> None:
    folder = checkpoint(toy_folder("llama"), tmp_path / "model", tokens=330)
    assert re.search("329.*320", fails(folder, 3))


def test_a_structure_that_is_not_known_is_refused(model: Path) -> None:
    path = model / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|[^\p{L}]+?"
    path.write_text(json.dumps(whole))
    assert re.search("--pre", fails(model, 3))


def test_a_pre_tokenizer_that_is_not_this_ones_is_found_out(model: Path) -> None:
    assert re.search(r"token \d+ of a text .* differs.*--skip-tokenizer-check", fails(model, 3, "--pre", "gpt-2"))


def test_a_pre_tokenizer_that_llama_cpp_does_not_have_is_refused(model: Path) -> None:
    assert "made-up" in fails(model, 3, "--pre", "made-up")


def test_no_tokenizer_is_refused_unless_none_is_wanted(model: Path, tmp_path: Path) -> None:
    for name in tokenizer("llama-bpe"):
        (model / name).unlink()
    assert "tokenizer" in fails(model, 3)
    (tmp_path / "out.gguf").unlink()
    converted(model, "--no-vocab", "-o", tmp_path / "out.gguf")


NO_TOKENIZERS: Final = ("[]", "{", '{"model": {"type": "BPE", "vocab": [], "merges": {}}}', "", "null", "5")


@pytest.mark.parametrize("content", NO_TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(content: str, model: Path) -> None:
    (model / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in fails(model, 3)


# ---- the system says no (rows 31, 36)


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("more", [(), ("--split-max-size", "400K")])
def test_a_file_that_will_not_fit_is_refused_before_its_first_byte(more: tuple[str, ...], model: Path) -> None:
    command = [*COMMAND, "convert", str(model), "--no-vocab", "--outtype", "f32", *more, "-o", "/mnt/out.gguf"]
    done, left = _in_small_tmpfs(command, "1m")
    said = r"/mnt/out.*gguf: needs 1\.\d MiB \(18\d{5} bytes\), free .* \(10\d{5} bytes\) in its folder; make room"
    assert re.search(said, failed(done))
    assert left == []


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_a_limit_on_the_size_of_files_is_an_error_of_the_system(
    outtype: str, plain: str, model: Path, tmp_path: Path
) -> None:
    import resource

    before = hashes(tmp_path)
    arguments = ("convert", model, "--no-vocab", "--outtype", outtype, "-o", tmp_path / "out.gguf")
    limit = (300_000, 300_000)
    done = run_fresh(
        *arguments,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        YARN_GGUF_PLAIN_IO=plain,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert re.search(r"cannot be written: File too large; needs .* bytes\), .*ulimit -f\) is lower", failed(done))
    assert hashes(tmp_path) == before


def traced(inject: str, *arguments: str | Path) -> Done:
    """`yarn-gguf convert ARGUMENTS` with a fault between it and the kernel."""
    name = inject.split(":")[0]
    strace = ["strace", "-f", "-qq", "-e", f"trace={name}", "-e", f"inject={inject}", "-o", os.devnull]
    command = [*strace, *COMMAND, "convert", *map(str, arguments), "--no-vocab", "--jobs", "1"]
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


ERRORS: Final = (
    ("pwrite64:error=ENOSPC:when=4+", "f16", "No space left on device; needs"),
    ("pwrite64:error=EDQUOT:when=4+", "q8_0", "Disk quota exceeded; needs"),
    ("copy_file_range:error=EIO:when=3+", "f32", "Input/output error"),
    ("preadv,preadv2:error=EIO:when=3+", "f16", "cannot be read: Input/output error"),
    ("fsync:error=EIO:when=1", "f32", "Input/output error"),
    ("fallocate:error=ENOSPC", "f16", "No space left on device; needs"),
)


@needs_strace
@pytest.mark.parametrize(("fault", "outtype", "says"), ERRORS, ids=[fault for fault, _, _ in ERRORS])
@pytest.mark.parametrize("forced", [False, True])
def test_a_call_that_fails_leaves_everything_as_it_was(
    forced: bool, fault: str, outtype: str, says: str, model: Path, tmp_path: Path
) -> None:
    if forced:
        (tmp_path / "out.gguf").write_text("earlier output")
    before = hashes(tmp_path)
    more = ["--force"] * forced
    assert says in failed(traced(fault, model, "--outtype", outtype, "-o", tmp_path / "out.gguf", *more))
    assert hashes(tmp_path) == before


@pytest.mark.usefixtures("namespaces")
def test_a_dry_run_warns_of_a_disk_that_is_too_small(model: Path) -> None:
    command = [*COMMAND, "convert", str(model), "--no-vocab", "--outtype", "f32", "--dry-run", "-o", "/mnt/out.gguf"]
    done, left = _in_small_tmpfs(command, "1m")
    assert (done.code, done.err, left) == (0, "", [])
    assert re.search(r"warning: /mnt/out.gguf: needs 1\.\d MiB .* in its folder; make room", done.words)


def test_a_folder_that_may_not_be_written_to_is_an_error_of_the_system(model: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, as root may write anywhere")
    drop = "--inh-caps=-dac_override,-dac_read_search", "--bounding-set=-dac_override,-dac_read_search"
    command = [*(["setpriv", *drop] if os.geteuid() == 0 else []), *COMMAND, "convert", str(model), "--no-vocab"]
    before = hashes(tmp_path)
    model.chmod(0o555)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    finally:
        model.chmod(0o755)
    assert "cannot be written: Permission denied" in failed(Done(done.returncode, done.stdout, done.stderr))
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_result_that_cannot_be_printed_is_an_error_of_the_system(
    more: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "convert", str(model), "--no-vocab", *more, "-o", str(out)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    says = f"error: <stdout>: cannot be written: No space left on device; {out} was written all the same\n"
    assert (done.returncode, done.stderr) == (4, says)
    assert load_ok(out)


# ---- somebody stops it, or the power fails (rows 32, 33)


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("name", ["INT", "TERM"])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_signal_in_the_midst_leaves_everything_as_it_was(
    forced: bool, outtype: str, name: str, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    if forced:
        out.write_text("earlier output")
    before = hashes(tmp_path)
    for call, number in (("pwrite64", 2), ("fallocate", 1), ("copy_file_range", 4), ("fsync", 1)):
        if call == "copy_file_range" and outtype != "f32":
            continue
        more = ["--force"] * forced
        done = traced(f"{call}:signal={name}:when={number}", model, "--outtype", outtype, "-o", out, *more)
        assert (done.code, done.out, done.err.count("\n")) == (SIGNALS[name], "", 1), (call, done)
        assert f"stopped by SIG{name}; no unfinished file was left behind" in done.err
        assert hashes(tmp_path) == before, call


@needs_strace
@pytest.mark.slow
def test_whenever_it_is_killed_no_half_of_a_file_has_the_final_name(model: Path, tmp_path: Path) -> None:
    out, wanted = tmp_path / "out.gguf", tmp_path / "wanted.gguf"
    converted(model, "--no-vocab", "--outtype", "q8_0", "-o", wanted)
    ends, deaths = set(), 0
    for call, numbers in {"pwrite64": (1, 5, 20), "fsync": (1, 2, 3), "link": (1,), "unlink": (1,)}.items():
        for number in numbers:
            done = traced(f"{call}:signal=KILL:when={number}", model, "--outtype", "q8_0", "-o", out)
            deaths += done.code == -signal.SIGKILL
            ends.add(out.read_bytes() == wanted.read_bytes() if out.exists() else None)
            litter = list(tmp_path.glob(f".*{LITTER}"))
            assert len(litter) <= 1
            for path in (*litter, out):
                path.unlink(missing_ok=True)
    assert ends == {None, True}
    assert deaths >= 7


# ---- several at once (row 35)


@pytest.mark.parametrize("force", [True, False])
def test_of_two_runs_onto_one_output_one_whole_file_wins(force: bool, model: Path, tmp_path: Path) -> None:
    results = {}
    for factor in ("2", "4"):
        converted(model, "--no-vocab", "--factor", factor, "-o", tmp_path / factor)
        results[factor] = (tmp_path / factor).read_bytes()
    out = tmp_path / "out.gguf"
    for _ in range(2):
        out.unlink(missing_ok=True)
        command = [*COMMAND, "convert", str(model), "--no-vocab", "-o", str(out), *(["--force"] * force), "--factor"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        runs = [subprocess.Popen([*command, factor], env=environment(), **quiet) for factor in results]  # type: ignore[call-overload]  # a dict of options
        assert sorted(child.wait(60) for child in runs) == ([0, 0] if force else [0, 2])
        assert out.read_bytes() in results.values()
        assert not list(tmp_path.glob(".*"))


# ---- the checkpoint changes meanwhile (row 19)

CHANGES: Final[dict[str, Callable[[Path], object]]] = {
    "cut short": lambda path: os.truncate(path, 5000),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "touched": os.utime,
}


@needs_strace
@pytest.mark.parametrize("outtype", ["f32", "f16"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_shard_that_changes_while_it_is_read_gives_no_output(
    name: str, outtype: str, model: Path, tmp_path: Path
) -> None:
    """While bytes are copied by the kernel, and while they are read and encoded."""
    os.utime(model / WEIGHTS, (0, 0))
    call = {"f32": "copy_file_range", "f16": "preadv,preadv2"}[outtype]
    late = f"inject={call}:delay_enter=900000:when=2"
    strace = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", late, "-o", os.devnull]
    out = ["--no-vocab", "--outtype", outtype, "-o", str(tmp_path / "out.gguf"), "--jobs", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [*strace, *COMMAND, "convert", str(model), *out]
    with subprocess.Popen(command, env=environment(), **pipes) as child:  # type: ignore[call-overload]  # a dict of options
        _wait(lambda: any(p.stat().st_size for p in tmp_path.glob(f".*{LITTER}")))
        time.sleep(0.2)
        CHANGES[name](model / WEIGHTS)
        before = hashes(model)
        said, err = child.communicate(timeout=60)
    assert f"{WEIGHTS}: changed while it was read" in failed(Done(child.returncode, said, err))
    assert hashes(model) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# ---- memory (row 37)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", INDEX, "README.md"])
def test_a_file_without_end_takes_no_memory(name: str, model: Path) -> None:
    """/dev/zero in place of each: refused or passed over, within bounds."""
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("/dev/zero")
    done = run("convert", model, "-o", model.parent / "out.gguf", seconds=60, mebibytes=4096)
    assert done.code in (0, 3), done
    assert "Traceback" not in done.err


def test_what_comes_from_a_checkpoint_cannot_move_the_cursor(model: Path, tmp_path: Path) -> None:
    configure(model, architectures=["Made\x1b[31mUp\nForCausalLM"])
    said = fails(model, 3, "--no-vocab")
    assert "\x1b" not in said
    configure(model, architectures=["LlamaForCausalLM"])
    (model / "README.md").write_text('---\nmodel_name: "a\\u001b[31mb"\n---\n')
    (tmp_path / "out.gguf").unlink()
    assert "\x1b" not in converted(model, "-o", tmp_path / "out.gguf").out
    assert read_keys(tmp_path / "out.gguf")["general.name"] == "a\x1b[31mb"
    assert sys.platform != "linux" or read_tensors(tmp_path / "out.gguf")
