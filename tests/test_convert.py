"""`yarn-gguf convert` as a command: what its options do, where it writes, what it prints, what becomes of its files.

Real checkpoints with tokenizers trained here, real processes; gguf-py, ggml's reader, llama.cpp, upstream's converter
and PEFT judge. That tensors, keys and logits are right for every architecture is test_convert_upstream's and
test_convert_logits' matter, what happens when something is amiss test_convert_faults'.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests import upstream
from tests.command import Done, extended, run, run_fresh
from tests.llama_logits import llama_logits, load_ok
from tests.make_checkpoints import (
    HOSTILE_TEMPLATE,
    INDEX,
    WEIGHTS,
    as_bf16,
    as_f16,
    checkpoint,
    configure,
    edit_json,
    load,
    sharded,
    store,
)
from tests.make_gguf import ROPE_FREQS, hashes, read_keys, read_tensors, small_model
from tests.oracle_gguf import Oracle
from tests.test_extend import BAKED, M8, YARN, _rounded, changes
from tests.test_foreign_converter import SHIM
from tests.toys import LENGTH, tokens
from yarn_gguf.gguf_file.shards import read_model

ToyFolder = Callable[[str], Path]
PLAIN: Final = ("--no-vocab", "--outtype", "f32")
COMMIT: Final = "c0ffee" * 6 + "c0de"
NAME: Final = "some-org/some-model"
OWN_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 128,
}
BETAS: Final = ("--beta-fast", "4", "--beta-slow", "2")


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as found:
        yield found


@pytest.fixture
def model(toy_folder: ToyFolder, tmp_path: Path) -> Path:
    """A llama with a tokenizer of its own."""
    return checkpoint(toy_folder("llama"), tmp_path / "my-model")


def converted(*arguments: str | Path) -> Done:
    """`yarn-gguf convert ARGUMENTS`, which must succeed without a word on stderr."""
    done = run("convert", *arguments)
    assert (done.code, done.err) == (0, ""), done
    return done


def refused(done: Done, code: int) -> str:
    """The one line of an error."""
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert done.err.startswith("error: ")
    return done.err


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_ours(path: Path) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Keys in their order, with their bytes, without those of ours; and every tensor of a file or set with its data."""
    found = read_model(path)
    keys = {key: entry.raw for key, entry in found.entries.items() if not key.startswith("yarn_gguf.")}
    parts = [list(read_tensors(part.path).items()) for part in found.parts]
    return keys, [tensor for part in parts for tensor in part]


# ---- a checkpoint becomes a file that works


@pytest.mark.parametrize("kind", ["llama-bpe", "pieces"])
def test_a_whole_checkpoint_becomes_a_file_with_the_logits_of_upstreams(
    kind: str, toy_folder: ToyFolder, tmp_path: Path, oracle: Oracle
) -> None:
    toy = toy_folder("llama")
    folder, out = checkpoint(toy, tmp_path / "model", kind), tmp_path / "out.gguf"
    document = converted(folder, "--outtype", "f32", "-o", out, "--json").json
    assert oracle.takes(out)
    ids = tokens(128)
    assert np.array_equal(llama_logits(out, ids), llama_logits(toy / "f32.gguf", ids))
    keys = read_keys(out)
    special = {"pieces": ["<unk>", "<s>", "</s>"]}.get(kind, ["<|pad|>", "<|begin|>", "<|end|>"])
    assert keys["tokenizer.ggml.tokens"][:3] == special
    assert len(keys["tokenizer.ggml.tokens"]) == 320
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert keys["general.name"] == "Model"
    assert (document["rope"]["method"], document["encoding"]) == ("none", None)


SCALED: Final[list[tuple[str, str, dict[str, Any]]]] = [
    ("llama", "--factor 8", {**YARN, "context_length": 1024}),
    ("llama", "--ctx 1k", {**YARN, "context_length": 1024}),
    ("qwen3", "--ctx 1000", {**YARN, "rope.scaling.factor": 7.8125, "context_length": 1000}),
    ("llama", "--factor 8 --method linear", {**YARN, "rope.scaling.type": "linear", "context_length": 1024}),
    ("llama", "--factor 8 --beta-fast 4", {**BAKED, "rope.scaling.attn_factor": M8, "context_length": 1024}),
    (
        "llama",
        "--factor 8 --attention-factor 1.5",
        {**YARN, "rope.scaling.attn_factor": 1.5 / M8, "context_length": 1024},
    ),
    ("llama-llama3", "--factor 8", {**YARN, "context_length": 1024}),
    ("llama", "--method none", {}),
]


@pytest.mark.parametrize(("name", "options", "expected"), SCALED, ids=[f"{row[0]} {row[1]}" for row in SCALED])
def test_rope_options_write_the_keys_of_the_scaling_and_nothing_else(
    name: str, options: str, expected: dict[str, Any], toy_folder: ToyFolder, tmp_path: Path, oracle: Oracle
) -> None:
    plain, out = tmp_path / "plain.gguf", tmp_path / "out.gguf"
    converted(toy_folder(name), *PLAIN, "-o", plain)
    converted(toy_folder(name), *PLAIN, *options.split(), "-o", out)
    found = changes(plain, out)
    assert found == {key: _rounded(value) for key, value in expected.items()}
    old, new = read_tensors(plain), read_tensors(out)
    assert list(new)[: len(old)] == list(old)
    assert all(new[each] == old[each] for each in old)
    assert set(new) - set(old) <= {ROPE_FREQS}
    assert oracle.takes(out)
    assert load_ok(out)


def test_a_checkpoints_own_scaling_is_kept_and_can_be_left_out(model: Path, tmp_path: Path) -> None:
    asked, kept, none, plain = (tmp_path / f"{name}.gguf" for name in ("asked", "kept", "none", "plain"))
    converted(model, "--factor", "8", "-o", asked)
    converted(model, "-o", plain)
    configure(model, rope_parameters=OWN_YARN, max_position_embeddings=1024)
    done = converted(model, "-o", kept, "--json").json
    converted(model, "--method", "none", "-o", none)
    assert (done["rope"]["method"], done["rope"]["factor"], done["rope"]["context"]) == ("yarn", 8, 1024)
    assert without_ours(kept) == without_ours(asked)
    assert without_ours(none) == without_ours(plain)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_each_type_has_upstreams_bytes(outtype: str, model: Path, toy_folder: ToyFolder, tmp_path: Path) -> None:
    document = converted(model, "--outtype", outtype, "-o", tmp_path / "out.gguf", "--json").json
    theirs = toy_folder("llama") / f"{outtype}.gguf"
    assert dict(read_tensors(tmp_path / "out.gguf")) == dict(read_tensors(theirs))
    assert read_keys(tmp_path / "out.gguf")["general.file_type"] == read_keys(theirs)["general.file_type"]
    assert document["outputs"][0]["type"] == outtype.upper()


@pytest.mark.parametrize(("cast", "expected"), [(None, "F16"), (as_f16, "F16"), (as_bf16, "BF16")])
def test_auto_is_the_checkpoints_own_16_bits(cast: Any, expected: str, model: Path, tmp_path: Path) -> None:
    if cast is not None:
        store(model / WEIGHTS, cast(load(model / WEIGHTS)))
    out = tmp_path / "out.gguf"
    assert converted(model, "-o", out, "--json").json["outputs"][0]["type"] == expected
    kinds = {kind for kind, shape, _ in read_tensors(out).values() if len(shape) > 1}
    assert kinds == {expected}


def test_16_bits_that_stay_as_they_are_are_the_checkpoints_own(model: Path, tmp_path: Path) -> None:
    weights = as_bf16(load(model / WEIGHTS))
    store(model / WEIGHTS, weights)
    converted(model, "-o", tmp_path / "out.gguf")
    found = read_tensors(tmp_path / "out.gguf")
    expected = hashlib.sha256(weights["model.layers.0.mlp.down_proj.weight"].data).hexdigest()
    assert found["blk.0.ffn_down.weight"] == ("BF16", (192, 128), expected)


# ---- where it is written


def test_the_default_is_upstreams_name_beside_the_weights(model: Path) -> None:
    assert converted(model, "--json").json["outputs"][0]["path"] == str(model / "My-Model-451K-F16.gguf")
    converted(model, "--factor", "8")
    converted(model, "--factor", "4", "--method", "linear", "--outtype", "q8_0")
    names = sorted(path.name for path in model.glob("*.gguf"))
    assert names == [
        "My-Model-451K-F16-yarn8x.gguf",
        "My-Model-451K-F16.gguf",
        "My-Model-451K-Q8_0-linear4x.gguf",
    ]


def test_an_output_is_a_file_or_a_folder_or_a_template(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    converted(model, "--no-vocab", "-o", tmp_path / "out")
    converted(model, "--no-vocab", "-o", tmp_path / "out" / "a-{ftype}-{OUTTYPE}.gguf", "--outtype", "q8_0")
    converted(model, "--no-vocab", "-o", tmp_path / "out" / "plain")
    assert sorted(hashes(tmp_path / "out")) == ["My-Model-451K-F16.gguf", "a-q8_0-Q8_0.gguf", "plain"]


def test_a_name_is_written_and_makes_the_files_name(model: Path) -> None:
    converted(model, "--no-vocab", "--model-name", "Another Llama")
    (made,) = model.glob("*.gguf")
    assert read_keys(made)["general.name"] == "Another Llama"
    assert made.name.startswith("Another-Llama")


def test_an_output_that_exists_is_replaced_only_when_told(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("earlier")
    assert "exists; --force replaces it" in refused(run("convert", model, "--no-vocab", "-o", out), 2)
    assert out.read_text() == "earlier"
    converted(model, "--no-vocab", "-o", out, "--force")
    assert load_ok(out)


def test_a_link_is_replaced_and_never_written_through(model: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "out.gguf"
    target.write_text("precious")
    link.symlink_to(target)
    assert "is a symbolic link" in refused(run("convert", model, "--no-vocab", "-o", link), 2)
    converted(model, "--no-vocab", "-o", link, "--force")
    assert target.read_text() == "precious"
    assert not link.is_symlink()
    assert load_ok(link)


def test_places_that_no_file_can_be_written_to_are_usage_errors(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = hashes(tmp_path)
    for where, says in {
        tmp_path / "no" / "out.gguf": "its folder does not exist",
        tmp_path / "pipe": "is a device or a pipe",
        Path("/dev/null"): "is a device or a pipe",
        tmp_path / ("x" * 300): "its name is too long",
    }.items():
        assert says in refused(run("convert", model, "--no-vocab", "-o", where), 2)
        assert says in refused(run("convert", model, "--no-vocab", "-o", where, "--force"), 2)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_no_file_of_the_checkpoint_is_ever_replaced(name: str, model: Path) -> None:
    before = hashes(model)
    assert "is a file of the checkpoint" in refused(run("convert", model, "-o", model / name, "--force"), 2)
    assert hashes(model) == before


# ---- a dry run


def test_a_dry_run_prints_every_tensor_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = hashes(tmp_path)
    done = converted(model, "--factor", "8", "--outtype", "q8_0", "--dry-run", "-o", tmp_path / "out.gguf")
    assert hashes(tmp_path) == before
    converted(model, "--factor", "8", "--outtype", "q8_0", "-o", tmp_path / "out.gguf")
    for name, (kind, _, _) in read_tensors(tmp_path / "out.gguf").items():
        assert re.search(rf"^  {re.escape(name)} +{kind} .*model\.|lm_head", done.out, re.MULTILINE), name
    assert "[permuted]" in done.out
    assert "yarn ×8 over 128" in done.words
    size = (tmp_path / "out.gguf").stat().st_size
    assert f"needs {size / 1024:.1f} KiB of disk" in done.words
    assert "would be" in done.out


def test_a_dry_run_as_json_has_the_plan(model: Path, tmp_path: Path) -> None:
    before = hashes(tmp_path)
    planned = converted(model, "--factor", "8", "--dry-run", "-o", tmp_path / "out.gguf", "--json").json
    assert hashes(tmp_path) == before
    assert planned["dry_run"] is True
    done = converted(model, "--factor", "8", "-o", tmp_path / "out.gguf", "--json").json
    assert done["dry_run"] is False
    assert "plan" not in done
    assert planned["outputs"] == done["outputs"]
    assert done["outputs"][0]["bytes"] == (tmp_path / "out.gguf").stat().st_size
    found = {name: (kind, shape[::-1]) for name, (kind, shape, _) in read_tensors(tmp_path / "out.gguf").items()}
    assert {each["name"]: (each["type"], tuple(each["shape"])) for each in planned["plan"]} == found
    assert {each["name"]: each["transforms"] for each in planned["plan"]}["blk.0.attn_q.weight"] == ["permuted"]


def test_a_dry_run_says_that_the_output_exists(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("earlier")
    done = converted(model, "--no-vocab", "--dry-run", "-o", out)
    assert "exists; --force replaces it" in done.words
    assert out.read_text() == "earlier"


# ---- JSON


def test_an_error_as_json_is_one_document(tmp_path: Path) -> None:
    done = run("convert", tmp_path / "nowhere", "--json")
    assert (done.code, done.err.count("\n"), done.out.count("\n")) == (3, 1, 1)
    assert done.json["error"]["exit"] == 3
    done = run("convert", tmp_path, "--factor", "0.5", "--json")
    assert done.json["error"]["exit"] == done.code


# ---- split sets


@pytest.mark.parametrize("options", [(), ("--factor", "8"), ("--factor", "8", *BETAS)])
def test_a_set_is_the_single_file_in_parts(options: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.gguf"
    converted(model, "--outtype", "f32", *options, "-o", single)
    done = converted(
        model, "--outtype", "f32", *options, "--split-max-size", "400K", "-o", tmp_path / "set.gguf", "--json"
    )
    parts = [Path(each["path"]) for each in done.json["outputs"][0]["files"]]
    assert len(parts) >= 4
    assert parts == sorted(tmp_path.glob("set-0*"))
    assert [part.name for part in parts] == [f"set-{n + 1:05}-of-{len(parts):05}.gguf" for n in range(len(parts))]
    found, whole = read_model(parts[0]), read_model(single)
    assert set(found.tensors) == set(whole.tensors)
    ours = {name: each for part in parts for name, each in read_tensors(part).items()}
    assert ours == read_tensors(single)
    assert all(part.stat().st_size <= 400_000 + 20_000 for part in parts)  # of data, that is
    ids = tokens(64)
    assert np.array_equal(llama_logits(parts[0], ids), llama_logits(single, ids))
    assert done.json["outputs"][0]["bytes"] == sum(part.stat().st_size for part in parts)


def test_a_set_that_fits_in_one_file_is_one(model: Path, tmp_path: Path) -> None:
    converted(model, "--no-vocab", "--split-max-size", "1G", "-o", tmp_path / "out.gguf")
    assert load_ok(tmp_path / "out.gguf")


# ---- the same bytes, however


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_two_runs_and_any_number_of_workers_give_the_same_bytes(outtype: str, model: Path, tmp_path: Path) -> None:
    found = set()
    for n, jobs in enumerate(("1", "1", "2", "7")):
        out = tmp_path / f"{n}.gguf"
        converted(model, "--factor", "8", "--outtype", outtype, "--jobs", jobs, "-o", out)
        found.add(sha(out))
    found.add(sha(_without_fast_paths(model, outtype, tmp_path / "plain.gguf")))
    assert len(found) == 1


def _without_fast_paths(model: Path, outtype: str, out: Path) -> Path:
    done = run_fresh(
        "convert", model, "--factor", "8", "--outtype", outtype, "--no-vocab", "-o", out, YARN_GGUF_PLAIN_IO="1"
    )
    assert done.code == 0
    again = out.with_suffix(".fast")
    converted(model, "--factor", "8", "--outtype", outtype, "--no-vocab", "-o", again)
    assert sha(out) == sha(again)
    converted(model, "--factor", "8", "--outtype", outtype, "-o", out, "--force")
    return out


def test_shards_give_the_bytes_of_the_single_file(model: Path, tmp_path: Path) -> None:
    converted(model, "-o", tmp_path / "single.gguf")
    sharded(model, 3)
    assert (model / INDEX).exists()
    converted(model, "-o", tmp_path / "shards.gguf")
    assert sha(tmp_path / "single.gguf") == sha(tmp_path / "shards.gguf")


# ---- what becomes of the file later


WAYS: Final = [
    ("llama", "--factor 8"),
    ("llama", "--factor 8 --beta-fast 4 --beta-slow 2"),
    ("llama", "--factor 8 --method linear"),
    ("llama", "--factor 8 --method ntk"),
    ("llama-llama3", "--factor 8"),
    ("llama-llama3", "--factor 8 --encoding baked"),
    ("qwen3", "--factor 8 --attention-factor 1.1"),
]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("name", "options"), WAYS, ids=[" ".join(row) for row in WAYS])
def test_a_converted_file_restores_to_what_converting_without_scaling_gives(
    name: str, options: str, split: bool, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    """Byte for byte, but for the version that only a file made by `convert` states."""
    more = ("--split-max-size", "400K") if split else ()
    scaled, plain, back = (tmp_path / name / "model.gguf" for name in ("scaled", "plain", "back"))
    for out, wanted in ((scaled, options), (plain, "--method none")):
        out.parent.mkdir()
        converted(toy_folder(name), *PLAIN, *more, *wanted.split(), "-o", out)
    back.parent.mkdir()
    first = sorted(scaled.parent.iterdir())[0]
    done = extended(first, "--restore", "-o", back, "--json").json
    assert done["identical"] is True
    assert without_ours(sorted(back.parent.iterdir())[0]) == without_ours(sorted(plain.parent.iterdir())[0])
    assert not any(key.startswith("yarn_gguf.") for key in read_keys(sorted(back.parent.iterdir())[0]))
    for one, other in list(zip(sorted(back.parent.iterdir()), sorted(plain.parent.iterdir()), strict=True))[1:]:
        assert sha(one) == sha(other)
    assert _data(sorted(back.parent.iterdir())[0]) == _data(sorted(plain.parent.iterdir())[0])


def _data(path: Path) -> bytes:
    """All behind the header, padding and all."""
    header = read_model(path).first
    return path.read_bytes()[header.data_offset :]


def test_in_place_and_back_again_leaves_the_restored_bytes(toy_folder: ToyFolder, tmp_path: Path) -> None:
    out, other = tmp_path / "out.gguf", tmp_path / "other.gguf"
    converted(toy_folder("llama"), *PLAIN, "--factor", "8", *BETAS, "-o", out)
    extended(out, "--restore", "-o", other)
    extended(out, "--factor", "4", "--in-place")
    extended(out, "--restore", "--in-place")
    assert sha(out) == sha(other)


@pytest.mark.parametrize("first", ["--factor 8", "--factor 8 --beta-fast 4", "--method none"])
def test_a_converted_file_is_extended_from_the_unscaled_model(
    first: str, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    """Converting with these options and extending with them say the same."""
    one, two, direct = (tmp_path / f"{name}.gguf" for name in ("one", "two", "direct"))
    converted(toy_folder("llama"), *PLAIN, *first.split(), "-o", one)
    extended(one, "--factor", "4", "-o", two)
    converted(toy_folder("llama"), *PLAIN, "--factor", "4", "-o", direct)
    keys, other = read_keys(two), read_keys(direct)
    assert {k: v for k, v in keys.items() if k != "yarn_gguf.restore" and k != "yarn_gguf.padding"} == {
        k: v for k, v in other.items() if k != "yarn_gguf.restore"
    }
    assert read_tensors(two) == read_tensors(direct)


@pytest.mark.parametrize("options", ["", "--factor 8", "--factor 8 --no-truncate", "--ctx 1k --method linear"])
def test_inspect_says_that_a_converted_file_is_exact(options: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = converted(model, *options.split(), "-o", out, "--json").json
    found = run("inspect", out, "--json")
    assert (found.code, found.err) == (0, "")
    assert found.json["exact"] == {"stock": True, "patched": True} == done["exact"]
    assert {k: v for k, v in found.json["rope"].items() if k != "encoding"} == {
        k: v for k, v in done["rope"].items() if k != "encoding"
    }
    assert {each["code"] for each in found.json["findings"] if each["level"] != "note"} <= {"context_shift"}


# ---- the hub's cache


@pytest.fixture
def cache(model: Path, tmp_path: Path) -> Path:
    """A cache of the hub as huggingface_hub lays it out: links to blobs."""
    root = tmp_path / "hf" / "hub" / "models--some-org--some-model"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for path in model.iterdir():
        blob = root / "blobs" / sha(path)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return tmp_path / "hf"


def test_a_name_of_the_hub_is_found_in_its_cache_and_its_commit_is_kept(cache: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    before = hashes(cache)
    env = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_OFFLINE": "1"}
    done = run_fresh("convert", NAME, "--factor", "8", "--json", before=lambda: os.chdir(here), **env)
    assert (done.code, done.err) == (0, ""), done
    (made,) = here.iterdir()
    keys = read_keys(made)
    assert made.name == "Some-Model-451K-F16-yarn8x.gguf"
    assert keys["general.name"] == "Some Model"
    assert keys["yarn_gguf.convert.repository"] == NAME
    assert keys["yarn_gguf.convert.revision"] == COMMIT
    assert hashes(cache) == before
    done = run_fresh("convert", "some-org/another", before=lambda: os.chdir(here), **env)
    assert "--download" in refused(done, 3)


# ---- vocabularies


def test_a_template_that_would_run_code_is_copied_as_text(model: Path, tmp_path: Path) -> None:
    """From both places that it may stand in; where both have one, upstream takes that of tokenizer_config.json."""
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    edit_json(model / "tokenizer_config.json", chat_template=HOSTILE_TEMPLATE)
    converted(model, "-o", one)
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").write_text(HOSTILE_TEMPLATE)
    converted(model, "-o", two)
    for out in (one, two):
        assert read_keys(out)["tokenizer.chat_template"] == HOSTILE_TEMPLATE
    assert not list(tmp_path.rglob("rendered")) and not Path("rendered").exists()


def test_fewer_tokens_than_rows_are_padded_and_said(toy_folder: ToyFolder, tmp_path: Path) -> None:
    folder, out = checkpoint(toy_folder("llama"), tmp_path / "model", tokens=300), tmp_path / "out.gguf"
    done = converted(folder, "-o", out)
    found = read_keys(out)["tokenizer.ggml.tokens"]
    assert found[300:] == [f"[PAD{n}]" for n in range(300, 320)]
    assert re.search(r"\b20\b.*pad", done.words), done.out
    assert load_ok(out)


def test_what_was_chosen_about_the_tokenizer_is_kept_in_the_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = converted(model, "--pre", "smaug-bpe", "--skip-tokenizer-check", "-o", out)
    keys = read_keys(out)
    assert keys["tokenizer.ggml.pre"] == "smaug-bpe"
    assert keys["yarn_gguf.convert.pre_tokenizer"] == "smaug-bpe"
    assert keys["yarn_gguf.convert.tokenizer_check"] == "skipped"
    assert "not checked" in done.words


def test_a_file_without_a_vocabulary_says_so(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    converted(model, "--no-vocab", "-o", out)
    assert read_keys(out)["tokenizer.ggml.model"] == "none"
    assert load_ok(out)


# ---- adapters


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_an_adapter_is_merged_as_peft_merges_it(
    outtype: str, model: Path, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(toy_folder("llama"), dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(init_lora_weights=False, r=4, target_modules="all-linear"))
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = shutil.copytree(model, tmp_path / "my-merged-model")
    wrapped.merge_and_unload().save_pretrained(merged)
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    converted(model, "--lora", tmp_path / "adapter", "--outtype", outtype, "--factor", "8", "-o", one)
    converted(merged, "--outtype", outtype, "--factor", "8", "-o", two)
    assert read_tensors(one) == read_tensors(two)
    assert read_keys(one)["yarn_gguf.convert.lora"] == "adapter"


# ---- somebody else's converter


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    """llama.cpp's own, with the vocabulary step answered."""
    script, tree = tmp_path / "convert_hf_to_gguf.py", str(upstream.llama_cpp_source())
    script.write_text(SHIM.format(tree=tree, folder=tree, driver=str(upstream.DRIVER)))
    return script


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--factor", "8"), ("--factor", "8", *BETAS), ()])
def test_another_converters_file_gets_the_scaling_that_was_asked_for(
    options: tuple[str, ...], converter: Path, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("llama"), folder, ignore=shutil.ignore_patterns("*.gguf"))
    before = hashes(folder)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    converted(folder, *PLAIN, *options, "-o", ours)
    converted(folder, "--converter", converter, "--outtype", "f32", *options, "-o", theirs)
    assert hashes(folder) == before
    ids = tokens(LENGTH if options else 128)
    assert np.array_equal(llama_logits(ours, ids), llama_logits(theirs, ids))
    rope = {k: v for k, v in read_keys(ours).items() if "rope" in k or "context_length" in k}
    assert {k: v for k, v in read_keys(theirs).items() if "rope" in k or "context_length" in k} == rope
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_scaling_that_another_converter_left_out_is_missed(
    converter: Path, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    """Upstream's writes no YaRN for StableLM."""
    folder, out = tmp_path / "model", tmp_path / "out.gguf"
    shutil.copytree(toy_folder("stablelm"), folder, ignore=shutil.ignore_patterns("*.gguf"))
    own = json.loads((folder / "config.json").read_text())["rope_parameters"]
    configure(folder, rope_parameters={**own, **OWN_YARN}, max_position_embeddings=1024)
    done = converted(folder, "--converter", converter, "-o", out, "--json").json
    assert (done["rope"]["method"], done["arch"], done["exact"]) == ("none", "stablelm", None)
    assert done["outputs"][0]["bytes"] == out.stat().st_size
    assert [each["code"] for each in done["findings"]] == ["scaling_dropped"]
    ours = converted(folder, "-o", tmp_path / "ours.gguf", "--no-vocab", "--json").json
    assert set(done) == set(ours)
    assert ours["rope"]["method"] == "yarn"


@pytest.mark.slow
def test_what_another_converter_makes_of_an_unknown_class_is_its_own_affair(
    converter: Path, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder("llama"), folder, ignore=shutil.ignore_patterns("*.gguf"))
    configure(folder, architectures=["MadeUpForCausalLM"], model_type="made_up")
    before = hashes(tmp_path)
    done = run("convert", folder, "--converter", converter, "-o", tmp_path / "out.gguf")
    assert "MadeUpForCausalLM is not supported" in refused(done, 5)
    assert hashes(tmp_path) == before
    done = run("convert", folder, "--converter", converter, "-o", folder / WEIGHTS, "--force")
    assert "is a file of the checkpoint" in refused(done, 2)
    assert hashes(tmp_path) == before


COPIES: Final = """
import os, shutil, sys
tower = "--mmproj" in sys.argv
out = sys.argv[sys.argv.index("--outfile") + 1]
open({log!r}, "a").write("tower " if tower else "model ")
{extra}
shutil.copy({tower!r} if tower else {model!r}, out)
"""


@pytest.fixture
def copier(toy_folder: ToyFolder, tmp_path: Path) -> Callable[..., Path]:
    """A converter that copies finished GGUFs, and does `extra` before that."""

    def made(extra: str = "", model: Path | None = None) -> Path:
        tower, path = tmp_path / "a-tower.gguf", tmp_path / "their.py"
        if not tower.exists():
            small_model(tower)
        files = {"tower": str(tower), "model": str(model or toy_folder("llama") / "f16.gguf")}
        path.write_text(COPIES.format(log=str(tmp_path / "log"), extra=extra, **files))
        return path

    return made


def towers(model: Path, tmp_path: Path, known: bool) -> Path:
    """A folder for the outputs; the checkpoint is of a class that we know, or not."""
    if not known:
        configure(model, architectures=["MadeUpForCausalLM"], model_type="made_up")
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "my.gguf"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [(), ("--factor", "8")])
def test_a_vision_tower_is_another_output_of_the_same_run(
    known: bool, options: tuple[str, ...], model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    converter, out = copier(), towers(model, tmp_path, known)
    arguments: tuple[str | Path, ...] = (model, "--converter", converter, "--mmproj", "-o", out, *options)
    document = converted(*arguments, "--json").json
    assert sorted(path.name for path in out.parent.iterdir()) == ["mmproj-my.gguf", "my.gguf"]
    main, tower = document["outputs"]
    assert (main["path"], tower["path"]) == (str(out), str(out.with_name("mmproj-my.gguf")))
    assert tower["bytes"] == tower["files"][0]["bytes"] == Path(tower["path"]).stat().st_size
    assert sha(Path(tower["path"])) == sha(tmp_path / "a-tower.gguf")
    done = converted(*arguments, "--force")
    assert f"mmproj {out.with_name('mmproj-my.gguf')}" in done.words
    assert "by their.py" in done.words
    assert done.out.startswith("my-model  llama, 3 layers")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        ("tower and sys.exit('no tower here')", 5, "no tower here"),
        ("tower and (open(out, 'w').write('x'), sys.exit())", 5, "their.py: wrote something that is no GGUF"),
        ("tower and open({late!r}, 'w').write('late')", 2, "my.gguf: appeared meanwhile"),
    ],
)
def test_a_tower_that_fails_leaves_no_model_either(
    extra: str, code: int, says: str, known: bool, model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    out = towers(model, tmp_path, known)
    late = out.with_name("mmproj-my.gguf")
    says = says if known or "appeared" not in says else "appeared meanwhile|exists"
    converter = copier(extra.format(late=str(late)))
    done = run("convert", model, "--no-vocab" if known else "--json", "--converter", converter, "--mmproj", "-o", out)
    assert (done.code, done.err.count("\n")) == (code, 1), done
    assert re.search(says, done.err), done
    assert [path.name for path in out.parent.iterdir()] == [late.name] * ("late" in extra)


@pytest.mark.parametrize("known", [True, False])
def test_a_towers_name_that_is_taken_is_found_out_before_anything_runs(
    known: bool, model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    converter, out = copier(), towers(model, tmp_path, known)
    out.with_name("mmproj-my.gguf").write_text("earlier")
    more = ("--no-vocab",) if known else ()
    done = run("convert", model, *more, "--converter", converter, "--mmproj", "-o", out)
    assert "mmproj-my.gguf: exists; --force replaces it" in refused(done, 2)
    assert not (tmp_path / "log").exists()


def test_a_dry_run_says_that_there_will_be_a_tower_and_makes_none(
    model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = (model, "--no-vocab", "--converter", copier(), "--mmproj", "--dry-run", "-o", tmp_path / "my.gguf")
    assert f"mmproj {tmp_path / 'mmproj-my.gguf'}, to be made by their.py" in converted(*arguments).words
    tower = converted(*arguments, "--json").json["outputs"][1]
    assert (tower["path"], tower["bytes"]) == (str(tmp_path / "mmproj-my.gguf"), None)
    assert not (tmp_path / "log").exists()


def test_another_converters_file_is_called_by_the_type_that_it_has(
    model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    done = converted(model, "--converter", copier())
    assert [path.name for path in model.glob("*.gguf")] == ["my-model-F16.gguf"]
    assert re.match(
        r"my-model  llama, 3 layers, F16\n  is +unscaled, context 128\n  wrote .*KiB, by their.py", done.out
    )
    converted(model, "--converter", copier(), "--factor", "4", "-o", tmp_path / "a-{ftype}.gguf")
    assert (tmp_path / "a-f16.gguf").exists()
    converted(model, "--converter", copier(), "--outtype", "q8_0", "-o", tmp_path / "a-{FTYPE}.gguf")
    assert (tmp_path / "a-Q8_0.gguf").exists()


def test_a_converter_that_writes_rubbish_is_named(model: Path, copier: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_text("This is not a model.")
    done = run("convert", model, "--converter", copier(model=tmp_path / "rubbish"), "-o", tmp_path / "out.gguf")
    assert "their.py: wrote something that is no GGUF: " in refused(done, 5)
    assert not (tmp_path / "out.gguf").exists()


def test_options_that_exclude_each_other_are_usage_errors(model: Path, tmp_path: Path) -> None:
    for arguments in (
        ("--converter", "x.py", "--lora", "y"),
        ("--converter", "x.py", "--dry-run"),
        ("--converter", "x.py", "--split-max-size", "1G", "--no-vocab"),
        ("--converter", "x.py", "--skip-tokenizer-check"),
        ("--converter", "x.py", "--allow-pickle"),
        ("--mmproj",),
        ("--no-vocab", "--pre", "gpt-2"),
        ("--no-vocab", "--skip-tokenizer-check"),
        ("--no-vocab", "--encoding", "keys"),
        ("--no-vocab", "--encoding", "baked"),
        ("--download",),
        ("--revision", ""),
        ("--split-max-size", "0"),
        ("--jobs", "0"),
        ("--outtype", "q2_kk"),
        ("--converter", "x.py", "--imatrix", "y"),
        ("--converter", "x.py", "--tensor-type", "attn_q=q8_0"),
        ("--converter", "x.py", "--output-tensor-type", "q8_0"),
        ("--converter", "x.py", "--token-embedding-type", "q8_0"),
        ("--converter", "x.py", "--pure"),
        ("--converter", "x.py", "--outtype", "f16,f32"),
    ):
        refused(run("convert", model, *arguments, "-o", tmp_path / "out.gguf"), 2)
    assert not (tmp_path / "out.gguf").exists()
    assert "CHECKPOINT is empty" in refused(run("convert", ""), 2)


def test_another_converter_has_nothing_to_encode_either(
    model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    done = run("convert", model, "--converter", copier(), "--encoding", "keys", "-o", tmp_path / "out.gguf")
    assert "nothing is scaled" in refused(done, 2)


def test_an_attention_factor_beside_mscale_decides_and_that_is_said(model: Path, tmp_path: Path) -> None:
    wanted = ("--factor", "4", "--attention-factor", "1.2", "--mscale", "1")
    done = converted(model, "--no-vocab", *wanted, "--dry-run", "-o", tmp_path / "out.gguf")
    assert "--attention-factor decides" in done.words
    assert "magnitude 1.2" in done.words


def test_what_is_given_in_place_of_a_checkpoint_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    gguf = small_model(tmp_path / "only" / "model.gguf")
    for source in (gguf, gguf.parent):
        said = refused(run("convert", source), 3)
        assert (
            said
            == f"error: {gguf}: is a GGUF already, not a checkpoint; `yarn-gguf extend` gives it a longer context\n"
        )
    for name in (WEIGHTS, "config.json"):
        assert f"is a file; give the folder that it is in, {model}" in refused(run("convert", model / name), 3)


def test_among_the_checkpoints_files_only_a_gguf_is_written(model: Path) -> None:
    before = hashes(model)
    for name in ("model-2.safetensors", "pytorch_model.bin", "plain"):
        said = refused(run("convert", model, "--no-vocab", "-o", model / name, "--force"), 2)
        assert "use a name that ends in .gguf" in said
    assert hashes(model) == before
    converted(model, "--no-vocab", "-o", model / "plain.gguf")


@pytest.mark.parametrize("more", [(), ("--converter",)])
def test_a_folder_that_is_missing_is_no_name_of_a_file(
    more: tuple[str, ...], model: Path, copier: Callable[..., Path], tmp_path: Path
) -> None:
    arguments: tuple[str | Path, ...] = (*more, copier()) if more else ()
    for where in ("nofolder/", "nofolder/.", "no/folder/"):
        done = run("convert", model, *arguments, "-o", f"{tmp_path}/{where}")
        assert "its folder does not exist" in refused(done, 2)
    assert not (tmp_path / "nofolder").exists()
    assert "is a file, not a folder" in refused(run("convert", model, "-o", f"{model}/{WEIGHTS}/"), 2)


def test_links_that_lead_in_a_circle_are_passed_over(model: Path, tmp_path: Path) -> None:
    (model / "a").symlink_to("b")
    (model / "b").symlink_to("a")
    converted(model, "--no-vocab", "-o", tmp_path / "out.gguf")


def test_a_plan_keeps_to_the_width_of_the_terminal(model: Path, tmp_path: Path) -> None:
    """Names, types, shapes and sizes stay whole; what is no terminal has everything."""
    arguments = ("convert", model, "--no-vocab", "--dry-run", "-o", tmp_path / "o.gguf")
    wide = run_fresh(*arguments, COLUMNS="300").out.splitlines()
    plan = [line for line in wide if " F16 " in line or " F32 " in line]
    for columns in (200, 100, 80, 60):
        lines = run_fresh(*arguments, COLUMNS=str(columns)).out.splitlines()
        for whole, line in zip(plan, lines, strict=False):
            assert len(line) <= max(columns, 64)
            assert line.split()[:5] == whole.split()[:5]
    assert "…" in run_fresh(*arguments, COLUMNS="85").out


def test_an_architecture_without_the_tensor_names_the_checkpoint(toy_folder: ToyFolder, tmp_path: Path) -> None:
    folder = toy_folder("gemma3")
    done = run("convert", folder, "--no-vocab", "--factor", "4", "--encoding", "baked", "-o", tmp_path / "out.gguf")
    assert refused(done, 2).startswith(f"error: {folder}: llama.cpp's gemma3 graph takes no rope_freqs tensor")


def test_a_card_and_its_kin_are_read_as_text(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\nbase_model: some-org/base\n---\n# Hello\n")
    edit_json(model / "generation_config.json", temperature=0.6, top_p=0.9)
    converted(model, "--no-vocab", "-o", tmp_path / "out.gguf")
    keys = read_keys(tmp_path / "out.gguf")
    assert (keys["general.license"], keys["general.tags"]) == ("mit", ["a", "b"])
    assert json.loads(json.dumps(keys["general.sampling.temp"])) == pytest.approx(0.6)
