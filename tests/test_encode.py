"""The bytes of encoded slices against gguf-py's `quants`, which upstream's converter uses, bit for bit.

Every finite pattern of BF16 and F16, random float32 patterns, and the numbers where roundings turn; with libggml's
functions and without them. Then: what is said of numbers that do not fit, and where.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from numpy.typing import NDArray

from yarn_gguf import ggml
from yarn_gguf.encode import BF16, CHUNK, F16, F32, Q8_0, Unfit, encoded, encoded_size, fitting_type

Bits = NDArray[Any]
TYPES: Final = {"F32": F32, "F16": F16, "BF16": BF16, "Q8_0": Q8_0}
SOURCES: Final = ("F32", "F16", "BF16")
ALL: Final = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(params=["with libggml", "with numpy alone"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "with numpy alone":
        monkeypatch.setattr(ggml, "kernel", lambda source, target: None)
    yield


def upstream(values: Bits, dtype: str, name: str) -> bytes:
    """As `conversion/base.py` does it: what is neither F16 nor F32 becomes F32, then gguf-py quantizes."""
    if dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        return bytes(quantize(values, gguf.GGMLQuantizationType[name]).tobytes())


def ours(values: Bits, dtype: str, name: str) -> bytes:
    return encoded(values, dtype, TYPES[name], values.shape[-1]).tobytes()


def in_rows(values: Bits, row: int = 64) -> Bits:
    return values[: values.size // row * row].reshape(-1, row)


def fitting(values: Bits, dtype: str, name: str) -> Bits:
    """The values that `name` can hold."""
    numbers = ggml.converted(values, dtype, "F32")
    most = {"F16": 65519.0, "Q8_0": 8e6, "BF16": 3.3895e38, "F32": np.inf}[name]
    kept: Bits = values[np.isfinite(numbers) & (np.abs(numbers) <= most)]
    return kept


def edges() -> Bits:
    """Floats at, just above and just below ties of every kind, denormal ones and zeros of both signs."""
    exponents = np.arange(0, 255, dtype=np.uint32)[:, None] << 23
    low = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000])
    positive = (exponents | np.append(low, 0x7FFFFF).astype(np.uint32)).ravel()
    return np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32)


def sources(dtype: str) -> Bits:
    """Every pattern there is; of float32 three million at random, and the edges."""
    if dtype == "F32":
        random = np.random.default_rng(5).integers(0, 1 << 32, 3_000_000, np.uint32).view(np.float32)
        return np.concatenate([random, edges()])
    return ALL if dtype == "BF16" else ALL.view(np.float16)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", SOURCES)
def test_every_pattern_is_encoded_as_upstream_does(dtype: str, name: str, ways: None) -> None:
    values = in_rows(fitting(sources(dtype), dtype, name))
    assert values.size > 30_000
    assert ours(values, dtype, name) == upstream(values, dtype, name)


@pytest.mark.parametrize("dtype", SOURCES)
def test_blocks_are_rounded_as_upstream_rounds_them(dtype: str, ways: None) -> None:
    """Scales of every size, from denormal to the largest, and blocks whose quotients are ties by construction."""
    random = np.random.default_rng(6)
    sizes = np.exp2(random.uniform(-149, 22, (40_000, 1)))
    plain = (random.standard_normal((40_000, 32)) * sizes).astype(np.float32)
    ties = random.integers(-254, 255, (40_000, 32)).astype(np.float32) / 2  # with 127 in each block its scale is 1
    ties[:, 7] = 127
    near = np.nextafter(ties, random.choice([-np.inf, np.inf], ties.shape).astype(np.float32)).astype(np.float32)
    near[:, 7] = 127
    scaled = ties * np.exp2(random.integers(-120, 16, (40_000, 1))).astype(np.float32)
    zeros = np.zeros((40, 32), np.float32)
    most = np.float32(6e4 if dtype == "F16" else 8e6)
    blocks = np.concatenate([plain, ties, near, scaled, zeros, -zeros])
    with np.errstate(over="ignore"):
        values = ggml.converted(np.clip(blocks, -most, most), "F32", dtype)
    assert ours(values, dtype, "Q8_0") == upstream(values, dtype, "Q8_0")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 15, 17, 63, 65, 77, CHUNK + 1])
@pytest.mark.parametrize("dtype", SOURCES)
def test_what_fills_no_vector_is_right_too(dtype: str, count: int, ways: None) -> None:
    numbers = np.random.default_rng(count).standard_normal((1, count)).astype(np.float32)
    values = ggml.converted(numbers, "F32", dtype)
    for name in ("F32", "F16", "BF16"):
        assert ours(values, dtype, name) == upstream(values, dtype, name)


@pytest.mark.parametrize("rows", [1, 3, CHUNK // 96, CHUNK // 96 + 1, 3 * CHUNK // 96 + 5])
def test_where_the_chunks_are_cut_does_not_show(rows: int, ways: None) -> None:
    values = (np.random.default_rng(rows).standard_normal((rows, 96))).astype(np.float32)
    for name, type in TYPES.items():
        wanted = upstream(values, "F32", name)
        assert ours(values, "F32", name) == wanted
        out = np.empty(encoded_size(values.size, "F32", type), np.uint8)
        assert encoded(values, "F32", type, 96, out) is out
        assert out.tobytes() == wanted


def test_libggml_is_used_where_it_is_installed() -> None:
    for source, target in (("BF16", "F32"), ("F16", "F32"), ("F32", "F16"), ("F32", "BF16")):
        assert ggml.kernel(source, target) is not None


def test_without_libraries_there_is_numpy() -> None:
    code = """
import sys
from yarn_gguf import ggml
assert ggml.kernel("BF16", "F32") is None
assert "llama_cpp" not in sys.modules
"""
    env = {"LLAMA_CPP_LIB_PATH": "/nowhere"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_what_is_encoded_already_passes_through() -> None:
    values = np.arange(34, dtype=np.uint8).reshape(2, 17)
    assert encoded(values, "U8", 39, 32).tobytes() == values.tobytes()


def test_rows_that_are_no_whole_blocks_fall_back_to_f16() -> None:
    assert [fitting_type(Q8_0, row) for row in (32, 33, 4096, 4100)] == [Q8_0, F16, Q8_0, F16]
    assert [fitting_type(type, 7) for type in (F32, F16, BF16)] == [F32, F16, BF16]


# ---- what does not fit


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 31, CHUNK - 1, CHUNK, 2 * CHUNK + 95])
def test_infinite_numbers_and_none_are_found(at: int, bad: float, dtype: str, name: str, ways: None) -> None:
    numbers = np.full(3 * CHUNK, 0.5, np.float32)
    numbers[at] = bad
    with pytest.raises(Unfit) as unfit:
        encoded(ggml.converted(numbers, "F32", dtype), dtype, TYPES[name], CHUNK)
    assert unfit.value.index == at
    np.testing.assert_equal(unfit.value.value, bad)


@pytest.mark.parametrize(
    ("name", "most", "over"),
    [
        ("F16", 65519.996, 65520.0),
        ("F16", -65519.996, -65520.0),
        ("BF16", float.fromhex("0x1.fefffep127"), float.fromhex("0x1.ffp127")),
        ("Q8_0", 8321039.0, 8321040.0),
    ],
)
def test_numbers_just_too_large_are_found_and_others_kept(name: str, most: float, over: float, ways: None) -> None:
    numbers = np.full((4, CHUNK), 0.5, np.float32)
    numbers[2, 77] = most
    assert ours(numbers, "F32", name) == upstream(numbers, "F32", name)
    numbers[2, 77] = over
    with pytest.raises(Unfit) as unfit:
        ours(numbers, "F32", name)
    assert (unfit.value.index, unfit.value.value) == (2 * CHUNK + 77, float(np.float32(over)))
