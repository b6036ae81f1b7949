"""`quantize` against `llama-quantize`, byte for byte; and what it refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yarn_gguf.gguf_file.shards import read_model

from .built import stock_tool
from .command import run
from .make_gguf import hashes
from .quantize_tool import importances, write_gguf_imatrix, write_legacy_imatrix
from .toys import TOYS, save_checkpoint
from .upstream import convert

Files = Callable[[str], Path]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "TQ2_0", "BF16"])
def test_the_bytes_are_those_of_llama_quantize(kind: str, toy_gguf: Files, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    done = run("quantize", toy_gguf("llama"), kind.lower(), "-o", ours, "--json")
    assert done.code == 0, done
    assert (done.json["outputs"][0]["type"], done.json["outputs"][0]["bytes"]) == (kind, ours.stat().st_size)
    subprocess.run([*stock_tool("llama-quantize"), toy_gguf("llama"), theirs, kind], check=True, capture_output=True)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_gguf_imatrix, write_legacy_imatrix])
@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ2_XXS"])
def test_an_importance_matrix_does_what_it_does_in_llama_quantize(
    kind: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    wide: dict[str, Any] = {
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 256,
    }
    model = convert(save_checkpoint(TOYS["llama"], tmp_path / "toy", **wide), tmp_path / "toy.gguf")
    tensors = [tensor for _, tensor in read_model(model).tensors.values() if len(tensor.dims) > 1]
    matrix = write(tmp_path / "imatrix", importances({each.name: (1, each.dims[0]) for each in tensors}))
    ours, theirs, plain = tmp_path / "ours.gguf", tmp_path / "theirs.gguf", tmp_path / "plain.gguf"
    done = run("quantize", model, kind, "--imatrix", matrix, "-o", ours)
    assert done.code == 0, done
    command: list[str | Path] = [*stock_tool("llama-quantize"), "--imatrix", matrix, model, theirs, kind]
    subprocess.run(command, check=True, capture_output=True)
    assert ours.read_bytes() == theirs.read_bytes()
    if kind == "Q4_K_M":
        subprocess.run([*stock_tool("llama-quantize"), model, plain, kind], check=True, capture_output=True)
        assert ours.read_bytes()[-4096:] != plain.read_bytes()[-4096:]


def test_rows_that_fit_no_block_are_told(toy_gguf: Files, tmp_path: Path) -> None:
    done = run("quantize", toy_gguf("llama"), "Q4_K_M", "-o", tmp_path / "out.gguf")
    assert done.code == 0, done
    assert "22 tensors have another type than the mix has for them" in done.words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf"]


def test_what_cannot_be_quantized_is_refused_and_nothing_is_written(toy_folder: Files, tmp_path: Path) -> None:
    folder = toy_folder("llama")
    taken = tmp_path / "taken.gguf"
    taken.write_text("mine")
    before = hashes(tmp_path)
    for source, kind, out, code, said in (
        (folder / "q8_0.gguf", "Q4_K_M", "out.gguf", 3, "is quantized already, most of it as Q8_0"),
        (folder / "f32.gguf", "IQ2_XS", "out.gguf", 2, "IQ2_XS needs an importance matrix"),
        (folder / "f32.gguf", "Q4_L", "out.gguf", 2, "'Q4_L' is no type; there are F32, F16, BF16"),
        (folder / "f32.gguf", "Q8_0", "taken.gguf", 2, "exists; --force replaces it"),
        (folder / "config.json", "Q8_0", "out.gguf", 3, "a GGUF file starts with"),
    ):
        done = run("quantize", source, kind, "-o", tmp_path / out)
        assert done.code == code, done
        assert said in done.err
        assert hashes(tmp_path) == before
    again = run("quantize", folder / "q8_0.gguf", "Q4_0", "--allow-requantize", "-o", tmp_path / "out.gguf")
    assert again.code == 0, again


def test_rows_no_quantization_takes_are_refused_beforehand(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    odd = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(odd, "llama")
    for name, value in (("block_count", 1), ("context_length", 64), ("embedding_length", 40)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 40), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("quantize", odd, "Q4_0", "-o", tmp_path / "out.gguf")
    assert done.code == 3, done
    assert "no matrix has rows that are a multiple of 32" in done.err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are POSIX")
def test_a_full_disk_leaves_nothing(toy_gguf: Files, tmp_path: Path) -> None:
    from .command import run_fresh

    def small_files() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    done = run_fresh("quantize", toy_gguf("llama"), "Q8_0", "-o", tmp_path / "out.gguf", before=small_files)
    assert done.code in (3, 4, 5), done
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
