"""`verify` and `record` on toys: against transformers, against themselves, interrupted, misled, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .built import patched
from .command import COMMAND, Done, environment, run
from .conversions import as_published
from .make_checkpoints import checkpoint
from .make_gguf import rewritten
from .toys import LENGTH, TOYS, VOCABULARY, tokens

Folders = Callable[[str], Path]
ALONE = ("--threads", "1")  # threads that wait for each other wait long where others compute too
EXACT = 1e-8  # the bound of tests/test_logits.py, where its ground is


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", tokens())
    return tmp_path / "ids.npy"


def verified(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = run("verify", *arguments, *ALONE, "--json")
    assert done.code == code, done
    return done.json


def extended(source: Path, out: Path, *options: str) -> Path:
    done = run("extend", source, "-o", out, *options)
    assert done.code == 0, done
    return out


def scaled(toy: Path, folder: Path, *options: str) -> Path:
    return extended(toy / "f32.gguf", folder / "scaled.gguf", "--factor", "8", *options)


# ---- against transformers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-llama3", "gemma3", "gptoss", "deepseek3"])
def test_a_float32_file_is_what_transformers_computes(
    name: str, toy_folder: Folders, tmp_path: Path, ids: Path
) -> None:
    folder = as_published(toy_folder(name), tmp_path / "checkpoint")
    file = scaled(toy_folder(name), tmp_path)
    found = verified(folder, file, "--tokens", ids)
    (candidate,) = found["candidates"]
    limit = EXACT if not TOYS[name].gelu else 3e-7
    assert candidate["kld"]["mean"] <= limit
    assert candidate["top1"] == 1.0 or TOYS[name].gelu
    assert (candidate["verdict"], found["verdict"]) == ("pass", "pass")
    assert found["reference"]["rope_source"] == "the yarn_gguf.* keys of scaled.gguf"
    assert (found["context"], found["original_context"], found["tokens"]) == (LENGTH, 128, LENGTH)
    assert [each["from"] for each in candidate["positions"]] == [0, 64, 128, 256, 512]
    assert sum(each["tokens"] for each in candidate["positions"]) == LENGTH
    assert candidate["inside"]["tokens"] + candidate["beyond"]["tokens"] == LENGTH


@pytest.mark.slow
@pytest.mark.parametrize("context", [128, 256, 512, 1024])
def test_a_dynamic_file_is_held_against_the_factor_that_the_context_needs(
    context: int, toy_folder: Folders, tmp_path: Path, ids: Path
) -> None:
    """On our library; the stock one has the full factor, and fails wherever that is not needed."""
    folder = as_published(toy_folder("llama"), tmp_path / "checkpoint")
    file = scaled(toy_folder("llama"), tmp_path, "--dynamic")
    common = (folder, file, "--tokens", ids, "--ctx", str(context), "--noise", "0")
    found = verified(*common, "--runtime", str(patched()))
    assert found["candidates"][0]["kld"]["mean"] <= EXACT
    assert found["reference"]["rope"]["factor"] == max(256, context) / 128
    assert "dynamic: as far as" in found["reference"]["rope_source"]
    stock = verified(*common, code=0 if context == LENGTH else 1)
    assert (stock["candidates"][0]["kld"]["mean"] <= EXACT) == (context == LENGTH)


WRONG: dict[str, tuple[str, ...]] = {
    "betas": ("--factor", "8", "--beta-fast", "4", "--beta-slow", "2"),
    "magnitude": ("--factor", "8", "--attention-factor", "1.0"),
    "truncate": ("--factor", "8", "--no-truncate"),
    "factor": ("--factor", "4"),
    "none": ("--method", "none"),
}


@pytest.mark.slow
def test_files_whose_rope_is_not_what_was_meant_fail_by_default(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    """Of floats and of q8_0, at the extended context; the right ones beside them pass."""
    folder = as_published(toy_folder("llama"), tmp_path / "checkpoint")
    files = [extended(toy_folder("llama") / "q8_0.gguf", tmp_path / "q8_0.gguf", "--factor", "8")]
    files += [scaled(toy_folder("llama"), tmp_path)]
    for kind in ("f32", "q8_0"):
        source = toy_folder("llama") / f"{kind}.gguf"
        files += [extended(source, tmp_path / f"{kind}-{name}.gguf", *wrong) for name, wrong in WRONG.items()]
    found = verified(folder, *files, "--tokens", ids, "--factor", "8", "--ctx", "1k", code=1)["candidates"]
    for candidate in found:
        right = Path(candidate["path"]).stem in ("q8_0", "scaled")
        assert candidate["verdict"] == ("pass" if right else "fail"), candidate["path"]
        if not right:
            measured = [reason for reason in candidate["reasons"] if reason.startswith("mean KL")]
            assert measured, candidate["path"]
            assert candidate["kld"]["mean"] > 20 * found[0]["kld"]["mean"]


def test_the_first_line_says_which_rope_the_reference_has(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    folder = as_published(toy_folder("llama"), tmp_path / "checkpoint")
    file = scaled(toy_folder("llama"), tmp_path, "--beta-fast", "4", "--beta-slow", "2")
    for options, words in (
        ((), "yarn ×8 over 128 (betas 4/2, magnitude 1.2079), context 1024  (by the yarn_gguf.* keys of scaled.gguf)"),
        (("--factor", "8"), "yarn ×8 over 128 (magnitude 1.2079), context 1024  (by the options given)"),
    ):
        done = run("verify", folder, file, "--tokens", ids, "--ctx", "256", "--noise", "0", *options, *ALONE)
        assert done.out.splitlines()[1] == f"  rope      {words}"
        assert done.code == (1 if options else 0), done


def test_candidates_that_ask_for_different_ropes_are_refused(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    folder, toy = as_published(toy_folder("llama"), tmp_path / "checkpoint"), toy_folder("llama") / "f32.gguf"
    one = extended(toy, tmp_path / "one.gguf", "--factor", "8")
    other = extended(toy, tmp_path / "other.gguf", "--factor", "4")
    done = run("verify", folder, one, other, "--tokens", ids)
    assert done.code == 3
    assert "asks for another RoPE than" in done.err


def test_rope_options_are_for_a_checkpoint(toy_folder: Folders, ids: Path) -> None:
    file = toy_folder("llama") / "f32.gguf"
    done = run("verify", file, file, "--tokens", ids, "--factor", "8")
    assert done.code == 2
    assert "--factor is for a Hugging Face reference" in done.err


# ---- what is scored, and how


def test_every_candidate_gets_the_figures_that_it_gets_alone(toy_folder: Folders, ids: Path) -> None:
    folder = toy_folder("llama")
    files = [folder / "q8_0.gguf", folder / "bf16.gguf"]
    options = ("--tokens", ids, "--noise", "0", "--ctx", "256", "--max-kld", "9", "--min-top1", "0")
    together = verified(folder / "f32.gguf", *files, *options)["candidates"]
    for file, found in zip(files, together, strict=True):
        (alone,) = verified(folder / "f32.gguf", file, *options)["candidates"]
        assert {**alone, "histogram": 0} == {**found, "histogram": 0}  # its edges are those of all
        assert found["kld"]["mean"] > 0


def test_positions_stride_and_windows_choose_what_is_scored(toy_folder: Folders, ids: Path) -> None:
    folder = toy_folder("llama")
    arguments = (folder / "f32.gguf", folder / "q8_0.gguf", "--tokens", ids, "--noise", "0", "--min-top1", "0")
    found = verified(*arguments, "--ctx", "256", "--windows", "3", "--positions", "10-20,64-192", "--stride", "2")
    assert (found["tokens"], found["windows"]) == (3 * (5 + 64), 3)
    (candidate,) = found["candidates"]
    assert [each["tokens"] for each in candidate["positions"]] == [15, 96, 96]
    whole = verified(*arguments, "--ctx", "256")["candidates"][0]
    some = verified(*arguments, "--ctx", "256", "--positions", "128-256")["candidates"][0]
    assert some["positions"] == whole["positions"][-1:]  # what is not scored is decoded all the same
    assert run("verify", *arguments, "--positions", "5-3").code == 2
    assert run("verify", *arguments, "--ctx", "256", "--positions", "256-300").code == 2
    assert run("verify", *arguments, "--ctx", "64k").code == 3


def test_a_quantized_cache_is_measured_against_the_references_own(toy_folder: Folders, ids: Path) -> None:
    file = toy_folder("llama") / "f32.gguf"
    found = [
        verified(file, file, "--tokens", ids, "--kv", kv, "--max-kld", "9", "--min-top1", "0")["candidates"][0]
        for kv in ("f32", "f16", "q8_0", "q4_0")
    ]
    means = [each["kld"]["mean"] for each in found]
    assert means[0] == 0
    assert means[0] < means[1] < means[2] < means[3]


def test_the_noise_floor_of_other_batches_is_told(toy_folder: Folders, ids: Path) -> None:
    file = toy_folder("llama") / "q8_0.gguf"
    found = verified(file, file, "--tokens", ids, "--ctx", "128", "--noise", "96", "--batch", "64")
    assert found["noise_floor"]["tokens"] == 96
    assert 0 < found["noise_floor"]["kld"]["mean"] < 0.01  # with flash attention, 64 tokens take another kernel than 31
    assert found["candidates"][0]["kld"]["mean"] == 0
    assert verified(file, file, "--tokens", ids, "--ctx", "128", "--noise", "0")["noise_floor"] is None


# ---- interrupted


def test_after_a_kill_the_figures_are_the_same_and_nothing_is_scored_twice(
    toy_folder: Folders, tmp_path: Path, ids: Path
) -> None:
    folder = toy_folder("llama")
    cache = tmp_path / "cache"
    arguments = [folder / "f32.gguf", folder / "q8_0.gguf", "--tokens", ids, "--ctx", "1k", "--batch", "16"]
    arguments += ["--noise", "0", "--json", *ALONE]
    env = environment(XDG_CACHE_HOME=str(cache))
    whole = subprocess.run([*COMMAND, "verify", *map(str, arguments)], env=env, capture_output=True, check=True)
    wanted = json.loads(whole.stdout)
    assert list(cache.rglob("*.*")) == []  # nothing is kept of what is complete
    with subprocess.Popen([*COMMAND, "verify", *map(str, arguments)], env=env, stdout=subprocess.DEVNULL) as process:
        frame = wait_for_rows(cache, process)
        process.send_signal(signal.SIGKILL)
    (journal,) = cache.rglob("*.scores")
    with journal.open("ab") as file:
        file.write(frame[: len(frame) // 2])  # as if it had been killed in a write
    resumed = subprocess.run(
        [*COMMAND, "verify", *map(str, arguments), "--resume"], env=env, capture_output=True, check=True
    )
    found = json.loads(resumed.stdout)
    assert found["candidates"] == wanted["candidates"]
    assert wanted["scored"] == wanted["tokens"] == found["tokens"] == 1024
    assert 0 < found["scored"] < 1024
    assert list(cache.rglob("*.*")) == []


def wait_for_rows(cache: Path, process: subprocess.Popen[bytes]) -> bytes:
    """Some of the journal of a run that is under way."""
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None:
        for journal in cache.rglob("*.scores"):
            data = journal.read_bytes()
            if len(data) > 2000:
                return data[:500]
        time.sleep(0.01)
    raise AssertionError("no rows were kept")


def test_a_journal_of_other_settings_is_not_taken(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    from yarn_gguf.metrics import ROW
    from yarn_gguf.verification.journal import Journal

    os.environ["XDG_CACHE_HOME"], before = str(tmp_path), os.environ.get("XDG_CACHE_HOME")
    try:
        one = Journal({"a": 1}, 1, resume=False)
        one.add(0, [np.zeros(3, ROW)])
        one.close(finished=False)
        for key, count in (({"a": 1}, 3), ({"a": 2}, 0)):
            journal = Journal(key, 1, resume=True)
            assert journal.resumed == count
            journal.close(finished=True)
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


# ---- records


def test_against_a_record_all_is_exact_but_the_divergence_which_is_a_lower_bound(
    toy_folder: Folders, tmp_path: Path, ids: Path
) -> None:
    folder, record = toy_folder("llama"), tmp_path / "llama.yref"
    options = ("--tokens", ids, "--ctx", "1k", *ALONE)
    made = run("record", folder / "f32.gguf", "-o", record, *options, "--top", "40", "--json")
    assert made.code == 0, made
    assert made.json["outputs"][0]["bytes"] == record.stat().st_size < 1024 * 40 * 7 + 60_000
    assert {"metadata_sha256", "tensors_sha256", "rope", "library", "versions"} <= set(made.json["provenance"])
    arguments = (folder / "q8_0.gguf", folder / "bf16.gguf", "--max-kld", "9", "--min-top1", "0")
    exact = verified(folder / "f32.gguf", *arguments, *options[:4])
    bound = verified(record, *arguments)
    assert bound["lower_bound"]
    assert (bound["top"], bound["noise_floor"]) == (40, exact["noise_floor"])
    for one, other in zip(exact["candidates"], bound["candidates"], strict=True):
        for name in ("top1", "top5", "ppl", "ppl_reference", "ppl_ratio", "correlation", "delta_p"):
            assert other[name] == pytest.approx(one[name], rel=1e-9), name
        assert other["histogram"]["counts"] == one["histogram"]["counts"]
        assert 0 < other["kld"]["mean"] < one["kld"]["mean"]
    whole = tmp_path / "whole.yref"
    assert run("record", folder / "f32.gguf", "-o", whole, *options, "--top", str(VOCABULARY)).code == 0
    for one, other in zip(exact["candidates"], verified(whole, *arguments)["candidates"], strict=True):
        assert other["kld"]["mean"] == pytest.approx(one["kld"]["mean"], rel=1e-6)


def test_the_reference_first_is_a_record_that_nobody_sees(toy_folder: Folders, ids: Path) -> None:
    folder = toy_folder("llama")
    arguments = (folder / "f32.gguf", folder / "q8_0.gguf", folder / "bf16.gguf", "--tokens", ids, "--ctx", "256")
    limits = ("--max-kld", "9", "--min-top1", "0")
    together, apart = (verified(*arguments, *limits, how) for how in ("--lockstep", "--reference-first"))
    assert (together["lower_bound"], apart["lower_bound"]) == (False, True)
    for one, other in zip(together["candidates"], apart["candidates"], strict=True):
        assert (one["top1"], one["path"]) == (other["top1"], other["path"])
        assert other["ppl"] == pytest.approx(one["ppl"], rel=1e-9)
        assert 0 < other["kld"]["mean"] <= one["kld"]["mean"] * (1 + 1e-6)


def test_a_damaged_record_is_refused(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    file, record = toy_folder("llama") / "f32.gguf", tmp_path / "llama.yref"
    assert run("record", file, "-o", record, "--tokens", ids, "--ctx", "64", "--top", "8", "--noise", "0").code == 0
    data = record.read_bytes()
    for damaged in (data[:100], data[:-1], data + b"x", data.replace(b"log_prob", b"log_prog"), b""):
        record.write_bytes(damaged)
        done = run("verify", record, file)
        assert done.code == 3, done
        assert done.err.startswith(f"error: {record}")
    assert run("record", file, "-o", record, "--tokens", ids, "--ctx", "64").code == 2  # it exists


# ---- refused before anything is loaded


def test_vocabularies_that_differ_are_refused(toy_folder: Folders, tmp_path: Path) -> None:
    folder = checkpoint(toy_folder("llama"), tmp_path / "model")
    file = tmp_path / "model.gguf"
    assert run("convert", folder, "--outtype", "f32", "-o", file).code == 0
    words = [str(each) for each in _words(file)]
    words[300], words[301] = words[301], words[300]
    (other,) = rewritten(file, tmp_path / "other.gguf", {"tokenizer.ggml.tokens": words})
    done = run("verify", file, other, "--ctx", "128")
    assert done.code == 3, done
    assert "word 300 of its vocabulary is" in done.err
    larger = as_published(toy_folder("qwen3"), tmp_path / "larger")
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps({**config, "vocab_size": 640}))
    assert run("verify", larger, file, "--ctx", "64", "--text", __file__).code in (3, 5)


def _words(file: Path) -> list[Any]:
    import gguf

    found: list[Any] = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    return found


def test_tokenizers_that_differ_are_refused_at_the_first_token(toy_folder: Folders, tmp_path: Path) -> None:
    folder, file = checkpoint(toy_folder("llama"), tmp_path / "model"), tmp_path / "model.gguf"
    arguments = ("--outtype", "f32", "--pre", "gpt-2", "--skip-tokenizer-check", "-o", file)
    assert run("convert", folder, *arguments).code == 0
    text = tmp_path / "text.txt"
    text.write_text("words and numbers: 1234567890 " * 40)
    done = run("verify", folder, file, "--ctx", "64", "--text", text)
    assert done.code == 3, done
    assert "of the text differs, behind" in done.err
    assert "they cannot be compared" in done.err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama.attention.head_count": 0}, "llama.attention.head_count"),
        ({"llama.block_count": 0}, "llama.block_count"),
        ({"llama.embedding_length": 0}, "llama.embedding_length"),
        ({"tokenizer.ggml.scores": [1.0] * 5}, "tokenizer.ggml.scores has 5 items"),
        ({"tokenizer.ggml.token_type": [1.5] * 320}, "tokenizer.ggml.token_type must be an array of int32"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(
    keys: dict[str, Any], said: str, toy_folder: Folders, tmp_path: Path
) -> None:
    folder, file = checkpoint(toy_folder("llama"), tmp_path / "model"), tmp_path / "model.gguf"
    assert run("convert", folder, "--outtype", "f32", "-o", file).code == 0
    (bad,) = rewritten(file, tmp_path / "bad.gguf", keys)
    done = run("verify", file, bad, "--ctx", "64")
    assert done.code == 3, done
    assert said in done.err


def test_a_file_cut_short_is_refused_with_what_it_needs(toy_folder: Folders, tmp_path: Path, ids: Path) -> None:
    file, torn = toy_folder("llama") / "f32.gguf", tmp_path / "torn.gguf"
    torn.write_bytes(file.read_bytes()[:-1000])
    for arguments in ((file, torn), (torn, file)):
        done: Done = run("verify", *arguments, "--tokens", ids)
        assert done.code == 3
        assert f"bytes, it has {torn.stat().st_size}" in done.err
