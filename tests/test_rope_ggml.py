"""`yarn_gguf.rope` against ggml's own rope kernel, called through ctypes out of the installed llama.cpp libraries.

Every pair of the input is (1, 0), so that the output holds magnitude × (cos, sin) of the angle itself. Positions run
from 0 to 131071. ggml computes in float32 and takes the powers of θ by repeated multiplication; that is all that the
bounds allow for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from yarn_gguf.rope import (
    Floats,
    FrequencyFactors,
    Linear,
    Llama3,
    NtkByParts,
    Rope,
    Unscaled,
    Yarn,
    correction_range,
    yarn_magnitude,
)

F32, I32 = 0, 26  # enum ggml_type
ADJACENT, HALVES = 0, 2  # GGML_ROPE_TYPE_NORMAL: pair i is (2i, 2i+1). GGML_ROPE_TYPE_NEOX: pair i is (i, i + n/2).
LAST = 131071
POSITIONS = np.unique(np.concatenate([np.arange(8), np.linspace(0, LAST, 3000).astype(np.int32), [LAST]])).astype(
    np.int32
)

# Worst of the ropes below: 0.0144 rad (128 dimensions, base 1e6), at position 131071, where the drift ends.
PHASE_BOUND = 0.02
# Worst of all shapes below: 0.0259 rad (256 dimensions, base 1.5e5). The step θ₁ is rounded by up to 2⁻²⁴, so pair i
# drifts by i·θᵢ·2⁻²⁴ at each position: up to 0.040 rad with 256 dimensions and base 1e4, 0.020 with 128.
DRIFT_BOUND = 0.05
# Worst of the ropes below: 9.6e-8.
MAGNITUDE_BOUND = 1e-5


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@cache
def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """libggml-base and libggml-cpu, with the signatures of ggml.h and ggml-cpu.h."""
    package = importlib.util.find_spec("llama_cpp")
    assert package is not None
    assert package.origin is not None
    name = {"win32": "{}.dll", "darwin": "lib{}.dylib"}.get(sys.platform, "lib{}.so")
    folder = Path(package.origin).parent / "lib"
    base, cpu = (ctypes.CDLL(str(folder / name.format(part)), ctypes.RTLD_GLOBAL) for part in ("ggml-base", "ggml-cpu"))
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    base.ggml_init.argtypes, base.ggml_init.restype = [InitParams], pointer
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    base.ggml_new_tensor_4d.argtypes = [pointer, integer, *[ctypes.c_int64] * 4]
    base.ggml_rope_ext.argtypes = [*[pointer] * 4, *[integer] * 3, *[real] * 6]
    base.ggml_rope_yarn_corr_dims.argtypes = [integer, integer, real, real, real, ctypes.POINTER(real)]
    base.ggml_rope_yarn_corr_dims.restype = None
    base.ggml_new_graph.argtypes = base.ggml_get_data.argtypes = [pointer]
    base.ggml_build_forward_expand.argtypes, base.ggml_build_forward_expand.restype = [pointer, pointer], None
    for function in (base.ggml_new_tensor_4d, base.ggml_rope_ext, base.ggml_new_graph, base.ggml_get_data):
        function.restype = pointer
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, integer]
    cpu.ggml_graph_compute_with_ctx.restype = integer
    return base, cpu


@dataclass(frozen=True)
class Kernel:
    """The parameters that llama.cpp hands to ggml_rope_ext."""

    n_dims: int
    base: float
    factor: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 4096
    freq_factors: Floats | None = None


def rotated(kernel: Kernel, mode: int, heads: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`heads` of shape (position, head_dim), one row for each of POSITIONS, after the kernel."""
    base, cpu = libraries()
    factors_bytes = 0 if kernel.freq_factors is None else 4 * kernel.freq_factors.size
    context = base.ggml_init(InitParams(2 * heads.nbytes + POSITIONS.nbytes + factors_bytes + (1 << 21), None, False))
    assert context

    def tensor(kind: int, values: npt.NDArray[np.generic], *shape: int) -> int:
        made: int = base.ggml_new_tensor_4d(context, kind, *shape)
        ctypes.memmove(base.ggml_get_data(made), values.ctypes.data, values.nbytes)
        return made

    try:
        inputs = tensor(F32, heads, heads.shape[1], 1, len(POSITIONS), 1)
        positions = tensor(I32, POSITIONS, len(POSITIONS), 1, 1, 1)
        factors = None
        if kernel.freq_factors is not None:
            factors = tensor(F32, kernel.freq_factors.astype(np.float32), kernel.freq_factors.size, 1, 1, 1)
        turns = (1 / kernel.factor, kernel.ext_factor, kernel.attn_factor, kernel.beta_fast, kernel.beta_slow)
        shape = (kernel.n_dims, mode, kernel.original_context, kernel.base)
        output = base.ggml_rope_ext(context, inputs, positions, factors, *shape, *turns)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, output)
        assert cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
        result = np.empty_like(heads)
        ctypes.memmove(result.ctypes.data, base.ggml_get_data(output), result.nbytes)
        return result
    finally:
        base.ggml_free(context)


def phase_and_magnitude_errors(rope: Rope, kernel: Kernel, mode: int) -> tuple[float, float]:
    """The worst over all pairs and POSITIONS, in radians and relative."""
    pairs = rope.dim // 2
    first = np.arange(pairs) if mode == HALVES else np.arange(0, rope.dim, 2)
    second = first + (pairs if mode == HALVES else 1)
    heads = np.zeros((len(POSITIONS), rope.dim), np.float32)
    heads[:, first] = 1.0
    result = rotated(kernel, mode, heads).astype(np.float64)
    cos, sin = result[:, first], result[:, second]
    ahead = np.arctan2(sin, cos) - POSITIONS[:, None] * rope.inverse_frequencies()
    phase = np.abs((ahead + np.pi) % (2 * np.pi) - np.pi).max()
    magnitude = np.abs(np.hypot(cos, sin) / rope.magnitude() - 1).max()
    return float(phase), float(magnitude)


def baked(rope: Rope) -> Kernel:
    """What a GGUF with `rope_freqs.weight` and without a scaling type makes of the same rope."""
    return Kernel(rope.dim, rope.base, attn_factor=rope.magnitude(), freq_factors=rope.frequency_factors())


def yarn_kernel(dim: int, base: float, factor: float, original_context: int, **changed: float) -> Kernel:
    return Kernel(dim, base, factor, 1.0, original_context=original_context, **changed)  # type: ignore[arg-type]  # floats


LLAMA3 = Llama3(8.0, 1.0, 4.0, 8192)
LLAMA3_ROPE = Rope(128, 5e5, LLAMA3)
UNTRUNCATED = Rope(64, 1.5e5, Yarn(32.0, 4096, truncate=False))  # gpt-oss
OTHER_BETAS = Rope(128, 1e6, Yarn(4.0, 32768, beta_fast=16.0, beta_slow=2.0))
ON_LLAMA3 = Rope(128, 5e5, Yarn(4.0, 131072), under=LLAMA3)

SAME_ROPES = {
    "unscaled": (Rope(128, 5e5), Kernel(128, 5e5)),
    "unscaled, 64 dimensions, base 1e4": (Rope(64, 1e4), Kernel(64, 1e4)),
    "unscaled, base 5e6": (Rope(128, 5e6), Kernel(128, 5e6)),
    "linear": (Rope(128, 1e4, Linear(8.0)), Kernel(128, 1e4, 8.0)),
    "yarn": (Rope(128, 1e6, Yarn(4.0, 32768)), yarn_kernel(128, 1e6, 4.0, 32768)),
    "yarn, factor 64, base 1e4": (Rope(64, 1e4, Yarn(64.0, 2048)), yarn_kernel(64, 1e4, 64.0, 2048)),
    "yarn, other betas": (OTHER_BETAS, yarn_kernel(128, 1e6, 4.0, 32768, beta_fast=16.0, beta_slow=2.0)),
    "yarn, attention factor": (
        Rope(128, 1e6, Yarn(4.0, 32768, attention_factor=1.5)),
        yarn_kernel(128, 1e6, 4.0, 32768, attn_factor=1.5 / yarn_magnitude(4.0)),
    ),
    "NTK-by-parts": (
        Rope(128, 1e6, NtkByParts(4.0, 32768)),
        yarn_kernel(128, 1e6, 4.0, 32768, attn_factor=1 / yarn_magnitude(4.0)),
    ),
    "yarn, half extrapolated": (
        Rope(128, 1e6, Yarn(4.0, 32768, extrapolation_factor=0.5)),
        Kernel(128, 1e6, 4.0, 0.5, original_context=32768),
    ),
    "yarn, not extrapolated": (
        Rope(128, 1e6, Yarn(4.0, 32768, extrapolation_factor=0.0)),
        Kernel(128, 1e6, 4.0, 0.0, original_context=32768),
    ),
    "baked yarn, not truncated": (UNTRUNCATED, baked(UNTRUNCATED)),
    "baked yarn, other betas": (OTHER_BETAS, baked(OTHER_BETAS)),
    "baked llama3": (LLAMA3_ROPE, baked(LLAMA3_ROPE)),
    "baked yarn on llama3": (ON_LLAMA3, baked(ON_LLAMA3)),
    "yarn on llama3 factors": (
        ON_LLAMA3,
        yarn_kernel(128, 5e5, 4.0, 131072, freq_factors=LLAMA3_ROPE.frequency_factors()),  # type: ignore[arg-type]
    ),
    "linear on llama3 factors": (
        Rope(128, 5e5, Linear(4.0), under=LLAMA3),
        Kernel(128, 5e5, 4.0, freq_factors=LLAMA3_ROPE.frequency_factors()),
    ),
}


@pytest.mark.parametrize("mode", [ADJACENT, HALVES], ids=["adjacent", "halves"])
@pytest.mark.parametrize(("rope", "kernel"), SAME_ROPES.values(), ids=SAME_ROPES)
def test_angles_and_magnitude_are_those_of_ggml_at_every_position(rope: Rope, kernel: Kernel, mode: int) -> None:
    phase, magnitude = phase_and_magnitude_errors(rope, kernel, mode)
    assert phase <= PHASE_BOUND
    assert magnitude <= MAGNITUDE_BOUND


@pytest.mark.parametrize("base", [1e4, 1.5e5, 5e5, 1e6, 5e6, 1e7])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_no_common_shape_drifts_further_than_the_rounding_of_one_step_explains(dim: int, base: float) -> None:
    phase, _ = phase_and_magnitude_errors(Rope(dim, base), Kernel(dim, base), HALVES)
    assert phase <= DRIFT_BOUND


def test_the_positions_include_the_first_two_and_the_last_of_128k() -> None:
    assert POSITIONS[:2].tolist() == [0, 1]
    assert POSITIONS[-1] == LAST == 131072 - 1


@pytest.mark.parametrize("mode", [ADJACENT, HALVES], ids=["adjacent", "halves"])
def test_a_partial_rope_turns_its_own_dimensions_and_leaves_the_rest(mode: int) -> None:
    rope, kernel = Rope(32, 1e4, Yarn(8.0, 4096)), yarn_kernel(32, 1e4, 8.0, 4096)
    heads = np.random.default_rng(0).standard_normal((len(POSITIONS), 80), np.float32)
    result = rotated(kernel, mode, heads)
    assert np.array_equal(result[:, 32:], heads[:, 32:])

    first = np.arange(16) if mode == HALVES else np.arange(0, 32, 2)
    second = first + (16 if mode == HALVES else 1)
    before, after = (x[:, first].astype(np.float64) + 1j * x[:, second] for x in (heads, result))
    turn = rope.magnitude() * np.exp(1j * POSITIONS[:, None] * rope.inverse_frequencies())
    assert np.abs(np.angle(after / (before * turn))).max() <= PHASE_BOUND
    assert np.abs(np.abs(after / (before * turn)) - 1).max() <= MAGNITUDE_BOUND


@pytest.mark.parametrize(
    "wrong",
    [
        Yarn(4.0, 32768, beta_fast=31.0, beta_slow=1.5),
        Yarn(4.0, 32768, beta_fast=16.0),
        Yarn(4.0, 32768, truncate=False),
        Yarn(5.0, 32768),
        Unscaled(),
    ],
    ids=str,
)
def test_a_wrong_ramp_or_factor_is_caught_by_a_wide_margin(wrong: Yarn | Unscaled) -> None:
    phase, _ = phase_and_magnitude_errors(Rope(128, 1e6, wrong), yarn_kernel(128, 1e6, 4.0, 32768), HALVES)
    assert phase > 50 * PHASE_BOUND  # measured: 157 times, the whole half turn


def test_a_wrong_attention_factor_is_caught_by_a_wide_margin() -> None:
    rope = Rope(128, 1e6, Yarn(4.0, 32768, attention_factor=1.0))
    _, magnitude = phase_and_magnitude_errors(rope, yarn_kernel(128, 1e6, 4.0, 32768), HALVES)
    assert magnitude > 1000 * MAGNITUDE_BOUND  # measured: 0.139, as 0.1·ln 4 should be


def test_llama3_factors_left_out_or_taken_twice_are_caught_by_a_wide_margin() -> None:
    twice = FrequencyFactors(tuple(LLAMA3_ROPE.frequency_factors().tolist()))
    for wrong in (Rope(128, 5e5), Rope(128, 5e5, LLAMA3, under=twice)):
        phase, _ = phase_and_magnitude_errors(wrong, baked(LLAMA3_ROPE), HALVES)
        assert phase > 50 * PHASE_BOUND


def test_the_truncated_correction_range_is_that_of_ggml() -> None:
    contexts, bases = [2048, 4096, 8192, 32768, 40960, 131072, 262144], [1e4, 5e4, 1.5e5, 5e5, 1e6, 5e6, 1e7]
    grid = list(
        itertools.product([32, 64, 80, 96, 128, 192, 256], bases, contexts, [(32.0, 1.0), (16.0, 2.0), (4.0, 0.5)])
    )
    assert len(grid) == 1029
    ends = (ctypes.c_float * 2)()
    for dim, base, context, (fast, slow) in grid:
        libraries()[0].ggml_rope_yarn_corr_dims(dim, context, base, fast, slow, ends)
        assert tuple(ends) == correction_range(dim, base, context, fast, slow, truncate=True)
