"""What `verify` says when llama.cpp crashes, hangs, floods or lies: one line, the right exit code, and an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .bad_library import bad_library
from .command import Done, run
from .toys import tokens

Files = Callable[[str], Path]
BATCH = 64


def verified(gguf: Path, folder: Path, *options: str | Path) -> Done:
    ids = folder / "ids.npy"
    np.save(ids, tokens(4 * BATCH))
    return run("verify", gguf, gguf, "--tokens", ids, "--batch", str(BATCH), "--noise", "0", "--threads", "1", *options)


@pytest.mark.parametrize(
    ("fault", "exit_code", "code", "said"),
    [
        (
            "aborts",
            5,
            "child_died",
            "ended with signal SIGABRT; the last it said: GGML_ASSERT(the moon is full) failed",
        ),
        ("segfaults", 5, "child_died", "ended with signal SIGSEGV"),
        ("exits", 5, "child_died", "ended with exit code 7; the last it said: out of memory"),
        ("floods", 5, "child_floods", "wrote over 64 MiB to stderr and was stopped"),
        ("refuses", 5, "decode_failed", "llama_decode returned -3 at position 64"),
        ("gives_nan", 1, "not_finite", "not finite at position 64"),
    ],
)
def test_a_library_that_misbehaves_is_told_by_its_cause(
    fault: str, exit_code: int, code: str, said: str, toy_gguf: Files, tmp_path: Path
) -> None:
    library = bad_library(fault, tmp_path / "library")
    done = verified(toy_gguf("llama"), tmp_path, "--runtime", library, "--json")
    assert done.code == exit_code, done
    assert done.json["error"]["code"] == code
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("fault", ["hangs", "spins"])
def test_a_library_that_hangs_is_stopped_when_its_time_is_over(fault: str, toy_gguf: Files, tmp_path: Path) -> None:
    library, started = bad_library(fault, tmp_path / "library"), time.monotonic()
    done = verified(toy_gguf("llama"), tmp_path, "--runtime", library, "--deadline", "3")
    assert done.code == 5, done
    assert "gave no sign of life for 3 s and was stopped" in done.err
    assert time.monotonic() - started < 60


def test_logits_of_a_candidate_that_are_not_numbers_fail_it_and_name_the_position(
    toy_gguf: Files, tmp_path: Path
) -> None:
    gguf, record = toy_gguf("llama"), tmp_path / "good.yref"
    ids = tmp_path / "ids.npy"
    np.save(ids, tokens(4 * BATCH))
    made = run("record", gguf, "-o", record, "--tokens", ids, "--batch", str(BATCH), "--noise", "0", "--top", "40")
    assert made.code == 0, made
    library = bad_library("gives_nan", tmp_path / "library")
    done = run("verify", record, gguf, "--batch", str(BATCH), "--runtime", library, "--json")
    assert done.code == 1
    (candidate,) = done.json["candidates"]
    assert candidate["verdict"] == "fail"
    assert candidate["reasons"] == ["its logits are not finite at position 64, and at 1 of 128 in all"]
    assert candidate["kld"]["mean"] is None


def test_a_healthy_library_in_a_folder_of_its_own_is_used(toy_gguf: Files, tmp_path: Path) -> None:
    library = bad_library("aborts", tmp_path / "library")
    (library / "libllama.so").unlink()
    (library / "libllama.so").symlink_to(library / "libllama.so.0")
    assert verified(toy_gguf("llama"), tmp_path, "--runtime", library).code == 0


def test_a_runtime_that_is_none_is_refused(toy_gguf: Files, tmp_path: Path) -> None:
    done = verified(toy_gguf("llama"), tmp_path, "--runtime", tmp_path / "nowhere")
    assert done.code == 3
    assert "give stock, patched, or a folder" in done.err


def test_a_library_without_rpc_says_so(toy_gguf: Files, tmp_path: Path) -> None:
    done = verified(toy_gguf("llama"), tmp_path, "--rpc", "localhost:50052")
    assert done.code == 3, done
    assert "no RPC" in done.err
