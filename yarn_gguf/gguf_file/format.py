"""The numbers of the GGUF format: value types, tensor types and their block sizes, limits.

A test holds the tensor table against ggml itself. Nothing here reads or writes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)  # 1 had 32-bit counts and is gone from every reader
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20  # ours: padding beyond it would only waste the disk
MAX_STRING: Final = 1 << 30  # ggml's own limits
MAX_ARRAY: Final = 1 << 30
MAX_KEY: Final = (1 << 16) - 1  # the format's, though ggml takes longer ones
MAX_HEADER: Final = 1 << 28  # ours: ten times the largest vocabulary's; a sparse file declares gigabytes for nothing
MAX_ENTRIES: Final = 1 << 16  # ours, like the next: 20 bytes of file cost us 300 of memory and 10 µs
MAX_TENSORS: Final = 1 << 18
MAX_NAME: Final = 63  # bytes; ggml keeps 64 with the closing NUL
MAX_DIMS: Final = 4
MAX_SIZE: Final = (1 << 63) - 1  # what a file offset can hold


class ValueType(IntEnum):
    """How the value behind a key is stored; the numbers are the file's."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's letter of each scalar; all little-endian, all unaligned
SCALARS: Final[dict[ValueType, str]] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
INTEGERS: Final = frozenset(t for t, letter in SCALARS.items() if letter in "BbHhIiQq")


class TensorType(NamedTuple):
    """One ggml type: a row is a whole number of blocks."""

    name: str
    block: int  # elements
    size: int  # bytes of one block


TENSOR_TYPES: Final[dict[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}
F32: Final = 0


def pad(offset: int, alignment: int) -> int:
    """`offset` rounded up to a multiple of `alignment`."""
    return -(-offset // alignment) * alignment
