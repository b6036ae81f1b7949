"""Quantizations that cannot be: bad numbers, bad importance matrices, wishes that make no sense.

The invariant is that of `test_convert_faults`: everything in the folder is what it was, and what is said is one line.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.reader import read_header
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.imatrix import read_imatrix

from .command import environment, run
from .make_checkpoints import WEIGHTS, as_bf16, checkpoint, load, store
from .make_gguf import hashes
from .quantize_tool import Importances, importances, quantized, write_gguf_imatrix, write_legacy_imatrix
from .test_archs_experts import CASES as EXPERT_CASES
from .test_archs_experts import made as made_experts
from .test_convert import refused
from .test_convert_upstream import differing_tensors
from .toys import TOYS, save_checkpoint
from .upstream import convert

DOWN: Final = "model.layers.1.mlp.down_proj.weight"
SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
LINEAR: Final = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MATRICES: Final = {f"blk.{n}.{name}.weight": (1, 256) for n in range(2) for name in LINEAR}
Write = Callable[..., Path]
WRITERS: Final = (write_gguf_imatrix, write_legacy_imatrix)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(TOYS["llama"], tmp_path_factory.mktemp("plain") / "model", **SHAPE)


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    """A llama in bf16 whose rows are whole blocks."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
    store(folder / WEIGHTS, as_bf16(load(plain / WEIGHTS)))
    return folder


def fails(folder: Path, code: int, *arguments: str | Path) -> str:
    """What `convert` says when it fails, with nothing changed."""
    before = hashes(folder.parent)
    said = refused(run("convert", folder, "--no-vocab", "-o", folder.parent / "out.gguf", *arguments), code)
    assert hashes(folder.parent) == before
    return said


def spoil(folder: Path, number: float) -> None:
    tensors = load(folder / WEIGHTS)
    bits = np.array([number], np.float32).view(np.uint32) >> 16
    tensors[DOWN] = tensors[DOWN].with_number(3 * 256 + 7, bits.astype(np.uint16)[0])
    store(folder / WEIGHTS, tensors)


# ---- numbers


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("outtype", ["Q4_K_M", "IQ4_NL", "TQ2_0", "Q8_0,Q5_1"])
def test_a_number_that_is_none_is_found_before_a_quantizer_breaks_over_it(
    outtype: str, number: float, model: Path
) -> None:
    spoil(model, number)
    out = model.parent / "{ftype}.gguf"
    said = fails(model, 3, "--outtype", outtype, "-o", out)
    assert f"blk.1.ffn_down.weight (from {DOWN}): {number:g} at [3, 7] is no finite number" in said


@pytest.mark.parametrize("number", [1e10, -3e38])
@pytest.mark.parametrize("outtype", ["Q4_K_M", "Q4_0", "Q6_K", "IQ4_XS", "Q8_0"])
def test_a_number_too_large_for_its_block_is_named(outtype: str, number: float, model: Path) -> None:
    """llama-quantize writes zeros in place of some, without a word, and leaves half a file where it sees one."""
    spoil(model, number)
    said = fails(model, 3, "--outtype", outtype)
    assert f"blk.1.ffn_down.weight (from {DOWN})" in said
    assert "at [3, 7] is too large for" in said


def test_a_quantizer_that_ends_the_process_is_a_child_that_died(model: Path, tmp_path: Path) -> None:
    """Finite numbers, and an importance as large as can be: the products are infinite, and ggml stops at once."""
    matrix = {name: sums * 0 + np.float32(3e38) for name, sums in importances(MATRICES).items()}
    path = write_legacy_imatrix(tmp_path / "imatrix.dat", matrix, 1)
    said = fails(model, 5, "--outtype", "IQ2_XXS", "--imatrix", path)
    assert "blk." in said
    assert "llama.cpp's quantizer broke down over it" in said
    arguments: list[str | Path] = ["-o", tmp_path / "out.gguf", "--outtype", "IQ1_S", "--imatrix", path, "--json"]
    done = run("convert", model, "--no-vocab", *arguments)
    assert done.code == 5
    assert json.loads(done.out)["error"]["code"] == "quantizer"
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("*out*"))


# ---- importance matrices


def without(matrix: Importances, name: str) -> Importances:
    return {key: sums for key, sums in matrix.items() if key != name}


@pytest.mark.parametrize("write", WRITERS)
def test_what_a_matrix_lacks_is_an_error_only_where_llama_quantize_needs_it(
    write: Write, model: Path, tmp_path: Path
) -> None:
    name = "blk.1.ffn_down.weight"
    path = write(tmp_path / "imatrix", without(importances(MATRICES), name))
    said = fails(model, 3, "--outtype", "IQ2_XXS", "--imatrix", path)
    assert f"{name} would become IQ2_XXS" in said
    assert "make one of this model" in said
    done = run("convert", model, "--no-vocab", "-o", tmp_path / "ours.gguf", "--outtype", "Q4_K_M", "--imatrix", path)
    assert f"Q4_K_M: the importance matrix has nothing about {name}" in done.words
    theirs = tmp_path / "theirs.gguf"
    upstream = convert(model, tmp_path / "upstream.gguf", "bf16")
    assert quantized(upstream, theirs, "Q4_K_M", "--imatrix", path) == ""
    assert differing_tensors(read_model(tmp_path / "ours.gguf"), read_model(theirs)) == []
    assert "Missing importance matrix" in quantized(upstream, theirs, "IQ2_XXS", "--imatrix", path)


@pytest.mark.parametrize("write", WRITERS)
def test_a_matrix_of_another_model_is_refused(write: Write, model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "imatrix", importances({**MATRICES, "blk.0.attn_q.weight": (1, 128)}))
    said = fails(model, 3, "--outtype", "Q4_K_M", "--imatrix", path)
    assert "has 128 numbers for blk.0.attn_q.weight, which has 256 columns" in said


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -1.0])
def test_a_matrix_with_a_number_that_cannot_be_is_refused(
    number: float, write: Write, model: Path, tmp_path: Path
) -> None:
    matrix = importances(MATRICES)
    matrix["blk.1.attn_v.weight"][0, 99] = number
    path = write(tmp_path / "imatrix", matrix)
    said = fails(model, 3, "--outtype", "Q4_K_M", "--imatrix", path)
    assert f"importance 99 of blk.1.attn_v.weight is {number:g}" in said


KEYS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "no data sets": ({"datasets": None}, "has no imatrix.datasets"),
    "no count": ({"chunk_count": None}, "has no imatrix.chunk_count"),
    "a count in words": ({"chunk_count": ["three"]}, "imatrix.chunk_count is no 32-bit number"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_gguf_without_the_keys_of_a_matrix_is_none(case: str, tmp_path: Path) -> None:
    keys, said = KEYS[case]
    path = write_gguf_imatrix(tmp_path / "imatrix.gguf", importances(MATRICES), **keys)
    with pytest.raises(InputError, match=said):
        read_imatrix(str(path))


@pytest.mark.parametrize("write", WRITERS)
def test_a_matrix_cut_short_anywhere_is_refused_in_one_line(write: Write, tmp_path: Path) -> None:
    """But where only the older format's trailer is gone, which its first versions did not have, or padding."""
    path = write(tmp_path / "imatrix", importances({"blk.0.attn_q.weight": (2, 4), "output.weight": (1, 8)}))
    whole = path.read_bytes()
    trailer = 8 + len("calibration.txt") if write is write_legacy_imatrix else len(whole) - read_header(path).end
    least = len(whole) - trailer
    for size in range(least):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_imatrix(str(path))
    for size in range(least, len(whole) + 1):
        path.write_bytes(whole[:size])
        assert len(read_imatrix(str(path)).entries) == 2


@pytest.mark.parametrize("number", [0, -1, 1 << 30, 0x7FFFFFFF])
@pytest.mark.parametrize("at", ["entries", "length", "values"])
def test_the_older_format_is_not_believed(at: str, number: int, tmp_path: Path) -> None:
    path = write_legacy_imatrix(tmp_path / "imatrix.dat", importances({"output.weight": (1, 8)}))
    offset = {"entries": 0, "length": 4, "values": 8 + len("output.weight") + 4}[at]
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = struct.pack("<i", number)
    path.write_bytes(data)
    if (at, number) == ("length", 0):  # an entry without a name; what follows it is then out of place
        with pytest.raises(InputError):
            read_imatrix(str(path))
        return
    with pytest.raises(InputError, match="give a file that llama-imatrix wrote"):
        read_imatrix(str(path))


def test_what_is_no_file_is_no_matrix(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "nowhere", "no such file"),
        (model, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ):
        assert said in fails(model, 3, "--outtype", "Q4_K_M", "--imatrix", path)
    said = fails(model, 3, "--outtype", "Q4_K_M", "--imatrix", model / WEIGHTS)
    assert "give a file that llama-imatrix wrote" in said


# ---- wishes


WISHES: Final = (
    (["--outtype", "Q4_K_XXL"], "'Q4_K_XXL' is none of auto, f32, f16, bf16, q8_0, Q4_0"),
    (["--outtype", "Q4_0,q4_0"], "names Q4_0 twice"),
    (["--outtype", "Q4_0,"], "'' is none of"),
    (["--outtype", "Q4_0,Q4_1"], "would be the name of several files"),
    (["--outtype", "Q4_0", "--tensor-type", "attn_q"], "is no PATTERN=TYPE"),
    (["--outtype", "Q4_0", "--tensor-type", "attn_q=i8"], "'i8' is none of F32"),
    (["--outtype", "Q4_0", "--tensor-type", "attn_(q=q8_0"], "--tensor-type attn_(q: llama.cpp does not take that"),
    (["--outtype", "f16", "--tensor-type", "attn_q=q8_0"], "no effect on f16"),
    (["--outtype", "f32", "--pure"], "no effect on f32"),
    (["--outtype", "bf16", "--imatrix", "x"], "no effect on bf16"),
    (["--outtype", "Q4_0", "--imatrix", ""], "is empty"),
)


@pytest.mark.parametrize(("arguments", "words"), WISHES)
def test_wishes_that_make_no_sense_are_usage_errors(arguments: list[str], words: str, model: Path) -> None:
    assert words in fails(model, 2, *arguments)


def test_a_type_that_the_output_cannot_have_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(TOYS["llama"], tmp_path / "model")  # 128 columns
    for option, name in (("--output-tensor-type", "output"), ("--token-embedding-type", "token_embd")):
        said = fails(folder, 3, "--outtype", "Q4_0", option, "q6_K")
        assert f"{name}.weight has rows of 128, which are no whole blocks of Q6_K (256)" in said


def test_the_importance_matrix_is_never_replaced(model: Path, tmp_path: Path) -> None:
    path = write_gguf_imatrix(tmp_path / "imatrix.gguf", importances(MATRICES))
    said = fails(model, 2, "--outtype", "Q4_0", "--imatrix", path, "-o", path, "--force")
    assert "is the importance matrix" in said


def test_experts_in_mxfp4_are_not_quantized_twice_but_kept(tmp_path: Path) -> None:
    folder = made_experts(EXPERT_CASES["gptoss-mxfp4"], tmp_path / "model")
    said = fails(folder, 3, "--outtype", "Q4_K_M")
    assert "is MXFP4 in the checkpoint and would become" in said
    upstream = convert(folder, tmp_path / "upstream.gguf", "f32")
    for name, options in (("MXFP4_MOE", []), ("Q5_0", ["--tensor-type", "exps=mxfp4"])):
        ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
        done = run("convert", folder, "--no-vocab", "-o", ours, "--force", "--outtype", name, *options)
        assert done.code == 0, done
        assert quantized(upstream, theirs, name, *options) == ""
        assert differing_tensors(read_model(ours), read_model(theirs)) == []


def test_no_module_of_the_current_folder_is_run_by_a_child(plain: Path, tmp_path: Path) -> None:
    """Somebody may stand in the checkpoint's folder, which may hold anything."""
    folder = checkpoint(plain, tmp_path / "model", tokens=320)
    for name in ("llama_cpp", "ctypes", "tokenizers"):
        (folder / f"{name}.py").write_text("import pathlib; pathlib.Path('run').touch()")
    arguments = ["convert", ".", "-o", "../out.gguf", "--outtype", "Q4_K_M"]
    command = [sys.executable, "-P", "-m", "yarn_gguf", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "run").exists()
