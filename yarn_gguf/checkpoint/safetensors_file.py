"""The header of a safetensors file, proven before it is believed.

    8 bytes   length of the header, little-endian
    header    JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {string: string}}
    data      every tensor once, end to end, without holes, up to the last byte of the file

One function accepts or refuses; what the safetensors package refuses, it refuses. Stricter than that package in three
points: a key that stands twice, a field of a tensor that nobody defined, and a tensor written as a list. Reads the
header and nothing behind it. Knows one file; nothing of checkpoints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from yarn_gguf.checkpoint.stored import Stored
from yarn_gguf.errors import InputError, about
from yarn_gguf.files import Stamp, open_regular, stamp_of
from yarn_gguf.json_file import LFS_POINTER

LARGEST_HEADER: Final = 100_000_000  # the format's own limit
# bits of one element
BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_FIELDS: Final = ("dtype", "shape", "data_offsets")
_COUNT: Final = 1 << 64  # counts and offsets are 64-bit numbers


def read_header(path: Path) -> list[Stored]:
    """The tensors of one file, by name."""
    with open_regular(path, "a safetensors file") as file, about(path):
        stamp = stamp_of(file.fileno())
        length = _header_length(file, stamp.size)
        text = file.read(length)
        if len(text) != length:
            raise _bad(f"the header ends after {len(text)} of {length} bytes")
        tensors = [_stored(name, entry, path, stamp, 8 + length) for name, entry in _entries(text).items()]
        _prove_order(tensors, 8 + length, stamp.size)
    return sorted(tensors, key=attrgetter("name"))


def _bad(text: str) -> InputError:
    return InputError(text, code="bad_safetensors")


def _header_length(file: BinaryIO, size: int) -> int:
    start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise InputError("a git-LFS pointer, not the file it stands for; run `git lfs pull`", code="lfs_pointer")
    if len(start) < 8:
        raise _bad(f"has {size} bytes, which no safetensors file has; fetch it again")
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST_HEADER:
        raise _bad(
            f"claims a header of {length} bytes, more than the format's {LARGEST_HEADER}; not a safetensors file"
        )
    if 8 + length > size:
        raise _bad(f"needs {8 + length} bytes for its header, has {size}; fetch it again")
    file.seek(8)
    return length


def strict_json(text: bytes, parse_float: Callable[[str], Any] = float, parse_int: Callable[[str], Any] = int) -> Any:
    """JSON in UTF-8 without double keys, NaN or infinity. Raises ValueError with what is wrong."""
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_float=parse_float,
            parse_int=parse_int,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{double[:100]!r} stands twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} where only sizes and offsets can stand")


def _natural(text: str) -> int:
    return _no_number(text) if text.startswith("-") else int(text)


def _entries(text: bytes) -> dict[str, Any]:
    try:
        # Python reads -0 as 0, safetensors refuses it; looking at each number costs, so only where there can be one
        header = strict_json(text, _no_number, _natural if b"-0" in text else int)
    except ValueError as error:  # bad UTF-8 and numbers of thousands of digits too
        raise _bad(f"the header is not what safetensors writes: {error}") from error
    if not isinstance(header, dict):
        raise _bad(f"the header is a JSON {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise _bad("__metadata__ is not an object of strings")
    for word in (*header, *(metadata or {}), *(metadata or {}).values()):
        if not _is_text(word):
            raise _bad(f"{word[:100]!r} holds half a character")
    return header


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # an escape that stands for half of a surrogate pair
        return False
    return True


def _bad_tensor(name: str, text: str) -> InputError:
    return _bad(f"tensor {name[:200]!r} {text}")


def _stored(name: str, entry: Any, path: Path, stamp: Stamp, data: int) -> Stored:
    if not isinstance(entry, dict) or len(entry) != len(_FIELDS) or not all(map(entry.__contains__, _FIELDS)):
        raise _bad_tensor(name, "must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _bad_tensor(name, f"has the dtype {str(dtype)[:40]!r}, which the format does not know")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise _bad_tensor(name, "has a shape or data_offsets that cannot be")
    bits = _bits(dtype, shape)
    if bits is None or bits % 8:
        raise _bad_tensor(name, f"has a shape of {dtype} that no bytes can hold")
    length = offsets[1] - offsets[0]
    if bits // 8 != length:
        raise _bad_tensor(name, f"needs {bits // 8} bytes for {dtype} {list(shape[:8])}, has {length}")
    return Stored(name, dtype, tuple(shape), path, stamp, data + offsets[0], length)


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110 - `all` takes twice as long, and checkpoints have tens of thousands of tensors
        if type(value) is not int or not 0 <= value < _COUNT:
            return False
    return True


def _bits(dtype: str, shape: list[int]) -> int | None:
    """None where a 64-bit product overflows on the way, also when a zero comes after."""
    product = 1
    for count in (*shape, BITS[dtype]):
        product *= count
        if product >= _COUNT:
            return None
    return product


def _prove_order(tensors: list[Stored], data: int, size: int) -> None:
    """The data follow each other and end with the file."""
    end = data
    for tensor in sorted(tensors, key=attrgetter("start", "length")):
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "begins after a hole"
            raise _bad(f"tensor {tensor.name[:200]!r} {what}: at {tensor.start}, expected at {end}")
        end = tensor.start + tensor.length
    if end != size:
        what = "fetch it again" if end > size else "there are trailing bytes"
        raise _bad(f"needs {end} bytes, has {size}; {what}")
