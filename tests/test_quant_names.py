"""The names of quantizations against the source of `llama-quantize`, and the temporary that asks for their types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from yarn_gguf.conversion.keys import FILE_TYPE
from yarn_gguf.gguf_file.format import F32, TENSOR_TYPES, ValueType
from yarn_gguf.gguf_file.header import TensorInfo, array_entry, entry
from yarn_gguf.quant_names import ALIASES, FTYPES, TENSOR_TYPE_NAMES, quantization, target_type
from yarn_gguf.quant_policy import _kept, _write_sparse

from .oracle_gguf import tensor_types
from .upstream import llama_cpp_source


def test_the_names_and_numbers_are_those_of_llama_quantize() -> None:
    tree = llama_cpp_source()
    numbers = dict(re.findall(r"LLAMA_FTYPE_(\w+) += (\d+)", (tree / "include/llama.h").read_text()))
    listed = re.findall(r'\{ "(\w+)", *LLAMA_FTYPE_(\w+),', (tree / "tools/quantize/quantize.cpp").read_text())
    theirs = {name: int(numbers[ftype]) for name, ftype in listed if name != "COPY"}
    assert len(theirs) > 30
    assert {**FTYPES, **{alias: FTYPES[name] for alias, name in ALIASES.items()}} == theirs


def test_any_case_and_the_aliases_are_understood() -> None:
    assert [quantization(text) for text in ("q4_k_m", "Q4_K", "iq2_Xxs", "F16")] == [
        "Q4_K_M",
        "Q4_K_M",
        "IQ2_XXS",
        "F16",
    ]
    assert [quantization(text) for text in ("COPY", "", "Q4", "Q4_K_M ")] == [None] * 4
    assert [target_type(text) for text in ("q6_K", "F32", "mxfp4", "i8", "Q8_1", "none")] == [
        14,
        F32,
        39,
        None,
        None,
        None,
    ]


def test_every_type_that_can_be_asked_for_has_ggmls_number() -> None:
    theirs = tensor_types(max(TENSOR_TYPES) + 1)
    for name in TENSOR_TYPE_NAMES:
        number = target_type(name)
        assert number is not None
        assert theirs[number].name.upper() == name.upper()


@pytest.mark.parametrize("rows", [1 << 18])
def test_asking_for_types_takes_next_to_no_room(rows: int, tmp_path: Path) -> None:
    """A vocabulary as large as any, 100 layers, 200 GB of weights: the file that is asked about has a header only."""
    words = array_entry("tokenizer.ggml.tokens", ValueType.STRING, [f"word {n}" for n in range(rows)])
    entries = [entry("general.architecture", ValueType.STRING, "llama"), entry(FILE_TYPE, ValueType.UINT32, 0), words]
    tensors = [TensorInfo(f"blk.{n}.ffn_up.weight", (8192, 65536), F32, 0) for n in range(100)]
    tensors.append(TensorInfo("token_embd.weight", (8192, rows), F32, 0))
    path = tmp_path / "header.gguf"
    kept = _kept(entries, tensors)
    _write_sparse(path, kept, tensors)
    assert path.stat().st_size > 200e9
    assert path.stat().st_blocks * 512 <= 1 << 16
    assert {e.key: e.value() for e in kept}["llama.vocab_size"] == rows
