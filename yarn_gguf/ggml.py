"""The C functions of the installed llama.cpp libraries that change numbers from one type to another.

The only place that loads libggml by itself. `llama_cpp` is not imported for it: that would load all of llama.cpp.
Each kernel is proven on hard numbers when it is first asked for, so whoever gets one may rely on its bits; where the
library, the function or the proof is missing the answer is None, and the caller has numpy. The quantizers have nothing
that stands in for them. ggml ends the process where it finds something that cannot be: `ending` says who hears of it.
Knows no tensors, no files.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
Kernel = Callable[
    [Bits, Bits], None
]  # from, to: contiguous, equally many elements; runs without the interpreter's lock

_NAMES: Final = {"win32": "ggml-{}.dll", "darwin": "libggml-{}.dylib"}
_VECTOR: Final = 64  # elements; what is left over from them ggml looks up in tables that nobody has filled here
# what stands in libggml-cpu, and the types on both sides
_KERNELS: Final = {
    ("BF16", "F32"): "ggml_cpu_bf16_to_fp32",
    ("F16", "F32"): "ggml_cpu_fp16_to_fp32",
    ("F32", "F16"): "ggml_cpu_fp32_to_fp16",
    ("F32", "BF16"): "ggml_cpu_fp32_to_bf16",
}


def library_folder() -> Path | None:
    """Where llama-cpp-python looks for its libraries: the variable it honours, else its own folder."""
    if chosen := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(chosen)
    return stock_folder()


def stock_folder() -> Path | None:
    """Where llama-cpp-python has its own libraries; None where it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0], "lib") if places else None


def _library(name: str) -> ctypes.CDLL | None:
    folder = library_folder()
    if folder is None:
        return None
    path = folder / _NAMES.get(sys.platform, "libggml-{}.so").format(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not there, or built for another machine
        return None


@cache
def _cpu() -> ctypes.CDLL | None:
    return None if _library("base") is None else _library("cpu")  # base first: Windows finds it no other way


@cache
def kernel(source: str, target: str) -> Kernel | None:
    """The function that turns one type's numbers into another's, if there is one that is exact for all finite ones."""
    library, name = _cpu(), _KERNELS.get((source, target))
    function = None if library is None or name is None else getattr(library, name, None)
    if function is None:
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None

    def run(numbers: Bits, out: Bits) -> None:
        whole = numbers.size // _VECTOR * _VECTOR
        function(_address(numbers), _address(out), whole)
        if whole < numbers.size:
            out[whole:] = converted(numbers[whole:], source, target)

    return run if _is_exact(run, source, target) else None


# ---- quantizers


class Missing(Exception):
    """There is no libggml-base here."""


@cache
def _base() -> ctypes.CDLL:
    library = _library("base")
    if library is None or getattr(library, "ggml_quantize_chunk", None) is None:
        raise Missing
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, count, count, count, pointer)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


def quantize(type: int, numbers: Bits, row: int, importance: Bits | None, out: Bits) -> bool:
    """Whole rows of float32 into `out`, without the interpreter's lock; whether ggml finds the result valid.

    `importance`: a number for each element of a row. All arrays are contiguous.
    """
    library, weights = _base(), None if importance is None else _address(importance)
    target, rows = _address(out), numbers.size // row
    size = library.ggml_quantize_chunk(type, _address(numbers), target, 0, rows, row, weights)
    if size != out.size:
        raise AssertionError(f"ggml made {size} bytes of {rows} rows, not {out.size}")
    return bool(library.ggml_validate_row_data(type, target, size))


def free() -> None:
    """Gives back the tables that quantizers have made; they are made again when needed."""
    with suppress(Missing):
        _base().ggml_quantize_free()


class _Doing(threading.local):
    what = ""


_DOING: Final = _Doing()
_ENDING: Final = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """What this thread asks of ggml, for whoever hears that ggml has had enough."""
    _DOING.what = what
    yield
    _DOING.what = ""


@contextmanager
def ending(hear: Callable[[str, str], None]) -> Iterator[None]:
    """`hear` is told what was being done and what ggml says when it ends the process, on the thread where that happens.

    It must not come back: what called ggml cannot go on, and the process is aborted when it does.
    """
    try:
        library = _base()
    except Missing:
        yield
        return

    def heard(said: bytes) -> None:
        hear(_DOING.what, said.decode("utf-8", "replace"))

    callback = _ENDING(heard)
    library.ggml_set_abort_callback.restype = ctypes.c_void_p
    library.ggml_set_abort_callback(callback)
    try:
        yield
    finally:
        library.ggml_set_abort_callback(None)


def _address(array: Bits) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


# ---- numpy's own way, which is what the libraries are held against, and what stands in for them


def converted(numbers: Bits, source: str, target: str) -> Bits:
    """The same numbers in another type, by numpy alone; BF16 as its bits on either side."""
    if source == "BF16":
        numbers = np.left_shift(numbers, np.uint32(16), dtype=np.uint32).view(np.float32)
    elif source == "F16":
        numbers = numbers.view(np.float16).astype(np.float32)
    if target == "BF16":
        return _to_bf16(numbers)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16 if target == "F16" else np.float32, copy=False)


def _to_bf16(numbers: Bits) -> Bits:
    """To the nearest, ties to even; a NaN stays one."""
    bits = numbers.view(np.uint32)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    high = rounded.astype(np.uint16)
    nan = np.isnan(numbers)
    if nan.any():
        high[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(64)
    return high


def _hard_numbers() -> Bits:
    """Finite float32 around every tie and edge of the shorter types."""
    exponents = np.arange(0, 255, dtype=np.uint32)[:, None] << np.uint32(23)
    fractions = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7FFFFF], np.uint32)
    positive = (exponents | fractions).ravel()
    return np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32)


def _is_exact(run: Kernel, source: str, target: str) -> bool:
    numbers = converted(_hard_numbers(), "F32", source)
    if source == "F16":
        numbers = numbers[np.isfinite(numbers)]
    wanted = converted(numbers, source, target)
    out = np.empty_like(wanted)
    run(numbers, out)
    return wanted.tobytes() == out.tobytes()
