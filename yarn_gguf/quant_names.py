"""The quantizations by the names that `llama-quantize` gives them, and their numbers in `general.file_type`.

A table and two look-ups; what a name means for each tensor is llama.cpp's to say (`quant_policy`). A test holds the
table against the source of `llama-quantize`. Imports nothing of ours but the table of tensor types.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from yarn_gguf.gguf_file.format import TENSOR_TYPES

FTYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "F32": 0,
        "F16": 1,
        "BF16": 32,
        "Q4_0": 2,
        "Q4_1": 3,
        "Q5_0": 8,
        "Q5_1": 9,
        "Q8_0": 7,
        "Q1_0": 40,
        "Q2_0": 41,
        "Q2_K": 10,
        "Q2_K_S": 21,
        "Q3_K_S": 11,
        "Q3_K_M": 12,
        "Q3_K_L": 13,
        "Q4_K_S": 14,
        "Q4_K_M": 15,
        "Q5_K_S": 16,
        "Q5_K_M": 17,
        "Q6_K": 18,
        "IQ1_S": 24,
        "IQ1_M": 31,
        "IQ2_XXS": 19,
        "IQ2_XS": 20,
        "IQ2_S": 28,
        "IQ2_M": 29,
        "IQ3_XXS": 23,
        "IQ3_XS": 22,
        "IQ3_S": 26,
        "IQ3_M": 27,
        "IQ4_XS": 30,
        "IQ4_NL": 25,
        "TQ1_0": 36,
        "TQ2_0": 37,
        "MXFP4_MOE": 38,
    }
)
ALIASES: Final[Mapping[str, str]] = MappingProxyType({"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"})
FLOATS: Final = ("F32", "F16", "BF16")  # of them, what is no quantization
# of the types that a tensor can have, what no file is quantized to
_NO_TARGETS: Final = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
_TYPES: Final = {kind.name: number for number, kind in TENSOR_TYPES.items()}


def quantization(text: str) -> str | None:
    """The name as the table has it, of any case and of the aliases too; None for what is no quantization."""
    upper = text.upper()
    name = ALIASES.get(upper, upper)
    return name if name in FTYPES else None


def tensor_type_number(text: str) -> int | None:
    """ggml's number of one tensor's type, of any case: q6_K; None for what is none."""
    return next((number for name, number in _TYPES.items() if name.upper() == text.upper()), None)


TENSOR_TYPE_NAMES: Final = tuple(name for name in _TYPES if name not in _NO_TARGETS)


def target_type(text: str) -> int | None:
    """The same for what a tensor can be quantized to."""
    number = tensor_type_number(text)
    return None if number is None or TENSOR_TYPES[number].name in _NO_TARGETS else number
