"""`yarn_gguf.rope` against the RoPE tables of transformers 5.23.

Bounds, and what was measured over the whole grid: |Δθ′| 4.9e-7·θ (allowed 1e-6: transformers computes in float32,
and a float32 power of 1e7 is off by several of its 6e-8); magnitude equal to the last bit (allowed 1e-12).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any

import numpy as np
import pytest
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

from yarn_gguf import rope
from yarn_gguf.rope import (
    DynamicNtk,
    DynamicYarn,
    Floats,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    PairClass,
    Rope,
    Scaling,
    Unscaled,
    Yarn,
)

FREQUENCY_BOUND = 1e-6  # of the unscaled frequency of the same pair
MAGNITUDE_BOUND = 1e-12


@dataclass(frozen=True)
class Case:
    """One configuration, as transformers spells it and as we do."""

    rope_type: str
    scaling: Scaling
    head_dim: int
    base: float
    partial: float = 1.0
    max_position: int = 4096
    parameters: dict[str, Any] = field(default_factory=dict)
    length: int | None = None

    @property
    def rope(self) -> Rope:
        return Rope(int(self.head_dim * self.partial), self.base, self.scaling)

    def __str__(self) -> str:
        lists = {"short_factor", "long_factor"}
        shown = " ".join(f"{name}={value:g}" for name, value in self.parameters.items() if name not in lists)
        return f"{self.rope_type} d={self.head_dim}x{self.partial} base={self.base:g} {shown} n={self.length}"


def transformers_table(case: Case) -> tuple[Floats, float]:
    parameters = {"rope_type": case.rope_type, "rope_theta": case.base, "partial_rotary_factor": case.partial}
    parameters |= case.parameters
    if case.rope_type == "default":
        config = GPTNeoXConfig(hidden_size=case.head_dim, num_attention_heads=1, rope_parameters=parameters)
        frequencies, magnitude = GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        config = LlamaConfig(
            head_dim=case.head_dim, max_position_embeddings=case.max_position, rope_parameters=parameters
        )
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[case.rope_type](config, "cpu", seq_len=case.length)
    return frequencies.double().numpy(), float(magnitude)


HEADS = [(32, 1.0), (64, 1.0), (96, 0.75), (128, 1.0), (128, 0.25), (256, 0.5), (256, 1.0)]
BASES = [1e4, 5e5, 1e6, 5e6, 1e7]


def default_cases() -> list[Case]:
    return [Case("default", Unscaled(), d, base, partial) for (d, partial), base in itertools.product(HEADS, BASES)]


def linear_cases() -> list[Case]:
    grid = itertools.product(HEADS[::2], BASES, [1.0, 2.5, 64.0])
    return [Case("linear", Linear(s), d, base, partial, parameters={"factor": s}) for (d, partial), base, s in grid]


def dynamic_cases() -> list[Case]:
    grid = itertools.product(HEADS[1::2], [1e4, 1e7], [1.0, 4.0, 64.0], [None, 100, 4097, 131072])
    return [
        Case("dynamic", DynamicNtk(s, 4096), d, base, partial, parameters={"factor": s}, length=n)
        for (d, partial), base, s, n in grid
    ]


def yarn_case(head: tuple[int, float], base: float, yarn: Yarn) -> Case:
    """What is at our default is left to the default of transformers."""
    given = {f.name: getattr(yarn, f.name) for f in fields(yarn) if getattr(yarn, f.name) != f.default}
    given["original_max_position_embeddings"] = given.pop("original_context")
    full = round(yarn.factor * yarn.original_context)
    return Case("yarn", yarn, head[0], base, head[1], full, given)


def yarn_cases() -> list[Case]:
    """Frequencies over shapes, contexts and ramps; then every way to say the magnitude."""
    contexts = [(128, 8.0), (2048, 16.0), (4096, 32.0), (32768, 4.0), (131072, 64.0), (8192, 1.0), (8192, 1.25)]
    ramps: list[dict[str, Any]] = [
        {},
        {"truncate": False},
        {"beta_fast": 4.0, "beta_slow": 2.0},
        {"beta_fast": 64.0, "beta_slow": 0.5, "truncate": False},
    ]
    magnitudes: list[dict[str, Any]] = [
        {"attention_factor": 1.0},
        {"attention_factor": 0.0},
        {"attention_factor": 1.3, "mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 0.8},
        {"mscale": 0.707},
        {"mscale_all_dim": 0.707},
        {"mscale": 0.0, "mscale_all_dim": 0.707},
        {"mscale": 0.707, "mscale_all_dim": 0.0},
    ]
    shaped = itertools.product(HEADS, [1e4, 5e6], contexts, ramps)
    named = itertools.product([HEADS[3]], [1e6], contexts, magnitudes)
    grid = itertools.chain(shaped, named)
    return [yarn_case(head, base, Yarn(s, original, **settings)) for head, base, (original, s), settings in grid]


def llama3_cases() -> list[Case]:
    turns = [(1.0, 4.0), (1.0, 32.0), (2.0, 8.0)]
    grid = itertools.product(HEADS[::2], [1e4, 5e5], [1.0, 8.0, 32.0], turns, [128, 8192])
    return [
        Case(
            "llama3",
            Llama3(s, low, high, original),
            d,
            base,
            partial,
            131072,
            {
                "factor": s,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            },
        )
        for (d, partial), base, s, (low, high), original in grid
    ]


def longrope_cases() -> list[Case]:
    grid = itertools.product(HEADS[::2], [1e4, 5e5], [1.0, 32.0], [None, 1.2], [None, 4096, 4097])
    cases = []
    for (d, partial), base, s, given, n in grid:
        pairs = int(d * partial) // 2
        short, long = np.linspace(1.0, 1.5, pairs).tolist(), np.geomspace(1.0, 60.0, pairs).tolist()
        parameters = {"factor": s, "original_max_position_embeddings": 4096}
        parameters |= {"short_factor": short, "long_factor": long}
        if given is not None:
            parameters["attention_factor"] = given
        scaling = LongRope(tuple(short), tuple(long), 4096, s, given)
        cases.append(Case("longrope", scaling, d, base, partial, 131072, parameters, n))
    return cases


GRID = [
    *default_cases(),
    *linear_cases(),
    *dynamic_cases(),
    *yarn_cases(),
    *llama3_cases(),
    *longrope_cases(),
]
A_FEW_OF_EACH = GRID[::23]


def test_the_grid_holds_at_least_three_hundred_different_configurations_of_all_types() -> None:
    assert len({(str(case), str(case.scaling)) for case in GRID}) >= 300
    assert {case.rope_type for case in GRID} == {"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}
    assert {case.rope_type for case in A_FEW_OF_EACH} == {case.rope_type for case in GRID}


@pytest.mark.parametrize("case", GRID, ids=str)
def test_frequencies_and_magnitude_are_those_of_transformers(case: Case) -> None:
    frequencies, magnitude = transformers_table(case)
    ours = case.rope.inverse_frequencies(case.length)
    assert ours.dtype == np.float64
    assert np.abs((ours - frequencies) / case.rope.plain_frequencies).max() <= FREQUENCY_BOUND
    assert case.rope.magnitude(case.length) == pytest.approx(magnitude, rel=MAGNITUDE_BOUND, abs=0)


@pytest.mark.parametrize("factor", [2.0, 5.0, 33.0])
@pytest.mark.parametrize("dim", [32, 128])
def test_ntk_aware_is_transformers_dynamic_at_the_length_that_gives_the_same_base(dim: int, factor: float) -> None:
    # At twice the trained length dynamic(f) multiplies the base by (2f − (f − 1))^(d/(d−2)), that of a factor f + 1.
    parameters = {"factor": factor - 1}
    dynamic = Case("dynamic", NtkAware(factor), dim, 1e4, parameters=parameters, length=2 * 4096)
    frequencies, magnitude = transformers_table(dynamic)
    ours = dynamic.rope
    assert np.abs((ours.inverse_frequencies() - frequencies) / ours.plain_frequencies).max() <= FREQUENCY_BOUND
    assert ours.magnitude() == magnitude == 1.0


@pytest.mark.parametrize("dim", [2, 4, 128])
def test_ntk_aware_is_an_unscaled_rope_with_a_larger_base(dim: int) -> None:
    larger = Rope(dim, rope.ntk_base(1e4, dim, 8.0))
    np.testing.assert_allclose(
        larger.inverse_frequencies(), Rope(dim, 1e4, NtkAware(8.0)).inverse_frequencies(), rtol=1e-14
    )


@pytest.mark.parametrize("settings", [{}, {"beta_fast": 4.0, "beta_slow": 2.0}, {"truncate": False}], ids=str)
def test_ntk_by_parts_is_transformers_yarn_with_attention_factor_1(settings: dict[str, Any]) -> None:
    yarn = yarn_case((128, 1.0), 1e6, Yarn(8.0, 4096, attention_factor=1.0, **settings))
    frequencies, magnitude = transformers_table(yarn)
    ours = Rope(128, 1e6, NtkByParts(8.0, 4096, **settings))
    assert np.abs((ours.inverse_frequencies() - frequencies) / ours.plain_frequencies).max() <= FREQUENCY_BOUND
    assert ours.magnitude() == magnitude == 1.0


@pytest.mark.parametrize(
    ("length", "max_factor", "factor"),
    [(None, None, 1.0), (1, None, 1.0), (4096, None, 1.0), (6144, None, 1.5), (32768, None, 8.0), (32768, 4.0, 4.0)],
)
def test_dynamic_yarn_is_transformers_yarn_with_the_factor_that_the_length_needs(
    length: int | None, max_factor: float | None, factor: float
) -> None:
    frequencies, magnitude = transformers_table(yarn_case((128, 1.0), 1e6, Yarn(factor, 4096)))
    ours = Rope(128, 1e6, DynamicYarn(4096, max_factor=max_factor))
    error = np.abs((ours.inverse_frequencies(length) - frequencies) / ours.plain_frequencies).max()
    assert error <= FREQUENCY_BOUND
    assert ours.magnitude(length) == pytest.approx(magnitude, rel=MAGNITUDE_BOUND)


def test_dynamic_yarn_passes_all_of_its_settings_to_yarn() -> None:
    dynamic = DynamicYarn(4096, 16.0, 2.0, False, None, 0.7, 0.9)
    assert dynamic.at(16384) == Yarn(4.0, 4096, 16.0, 2.0, False, None, 0.7, 0.9)
    assert DynamicYarn(4096, attention_factor=1.1).at(None) == Yarn(1.0, 4096, attention_factor=1.1)


def test_a_ramp_whose_ends_meet_is_a_step_as_in_transformers() -> None:
    # 21 turns over 128 tokens lie just below pair 0, so that both ends are rounded and clamped to it.
    step = yarn_case((64, 1.0), 1e4, Yarn(8.0, 128, 32.0, 21.0))
    frequencies, _ = transformers_table(step)
    assert step.rope.correction_range == (0.0, 0.001)
    assert step.rope.pair_classes() == (PairClass.KEPT, *[PairClass.INTERPOLATED] * 31)
    assert np.abs((step.rope.inverse_frequencies() - frequencies) / step.rope.plain_frequencies).max() <= 1e-6


def test_a_ramp_that_ends_beyond_the_last_dimension_is_cut_there_as_in_transformers() -> None:
    wide = yarn_case((64, 1.0), 10.0, Yarn(8.0, 131072, 1e4, 1.0))
    frequencies, _ = transformers_table(wide)
    assert wide.rope.correction_range is not None
    assert wide.rope.correction_range[1] == 63.0
    assert np.abs((wide.rope.inverse_frequencies() - frequencies) / wide.rope.plain_frequencies).max() <= 1e-6
    assert PairClass.INTERPOLATED not in wide.rope.pair_classes()


@pytest.mark.parametrize("case", A_FEW_OF_EACH, ids=str)
def test_frequency_factors_times_scaled_frequencies_are_the_plain_ones(case: Case) -> None:
    plain = case.rope.frequency_factors(case.length) * case.rope.inverse_frequencies(case.length)
    np.testing.assert_allclose(plain, case.rope.plain_frequencies, rtol=1e-15)


@pytest.mark.parametrize("case", A_FEW_OF_EACH, ids=str)
def test_a_rope_read_back_from_its_frequency_factors_is_the_same_rope(case: Case) -> None:
    factors = case.rope.frequency_factors(case.length).astype(np.float32)  # as a GGUF stores them
    magnitude = case.rope.magnitude(case.length)
    baked = Rope(case.rope.dim, case.base, FrequencyFactors(tuple(factors.tolist()), magnitude))
    expected = case.rope.inverse_frequencies(case.length)
    np.testing.assert_allclose(baked.inverse_frequencies(), expected, rtol=1e-7)
    assert baked.magnitude() == magnitude
    if PairClass.INTERPOLATED in case.rope.pair_classes():  # a bare list can tell only its own largest stretch
        assert baked.pair_classes() == case.rope.pair_classes()


def test_yarn_on_llama3_blends_the_llama3_frequencies_with_the_ramp_of_the_base() -> None:
    llama3 = Llama3(8.0, 1.0, 4.0, 8192)
    composed = Rope(128, 5e5, Yarn(4.0, 131072), under=llama3)
    alone, under = Rope(128, 5e5, Yarn(4.0, 131072)), Rope(128, 5e5, llama3).inverse_frequencies()
    assert composed.correction_range == alone.correction_range
    assert alone.ramp is not None
    expected = under / 4.0 * alone.ramp + under * (1 - alone.ramp)
    np.testing.assert_allclose(composed.inverse_frequencies(), expected, rtol=1e-14)
    assert composed.magnitude() == alone.magnitude()
    assert composed.pair_classes() == alone.pair_classes()


@pytest.mark.parametrize("scaling", [Linear(3.0), NtkAware(3.0), Yarn(3.0, 4096), NtkByParts(3.0, 4096)], ids=str)
def test_any_static_scaling_may_lie_under_another_and_the_two_multiply(scaling: Scaling) -> None:
    over = DynamicYarn(8192)
    composed, below, above = Rope(64, 1e4, over, scaling), Rope(64, 1e4, scaling), Rope(64, 1e4, over)
    product = below.frequency_factors() * above.frequency_factors(32768)
    np.testing.assert_allclose(composed.frequency_factors(32768), product, rtol=1e-14)
    assert composed.magnitude(32768) == below.magnitude() * above.magnitude(32768)


def test_llama3_looks_at_the_frequencies_that_it_is_given() -> None:
    # Linear(2) makes every wavelength twice as long, which is as if the context were half as long.
    composed = Rope(128, 5e5, Llama3(8.0, 1.0, 4.0, 8192), under=Linear(2.0))
    expected = Rope(128, 5e5, Llama3(8.0, 1.0, 4.0, 4096)).frequency_factors() * 2.0
    np.testing.assert_allclose(composed.frequency_factors(), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "scaling", [DynamicNtk(2.0, 128), DynamicYarn(128), LongRope((1.0,), (2.0,), 128, 2.0)], ids=str
)
def test_what_depends_on_the_length_says_so_and_may_not_lie_under_another_scaling(scaling: Scaling) -> None:
    assert not Rope(2, 1e4, scaling).is_static
    with pytest.raises(ValueError, match="depends on the length"):
        Rope(2, 1e4, Yarn(2.0, 128), under=scaling)


STATIC: list[Scaling] = [
    Unscaled(),
    Linear(4.0),
    NtkAware(4.0),
    NtkByParts(4.0, 4096),
    Yarn(4.0, 4096),
    Llama3(4.0, 1.0, 4.0, 4096),
    FrequencyFactors((1.0, 2.0)),
]


@pytest.mark.parametrize("scaling", STATIC, ids=str)
def test_a_static_rope_ignores_the_length(scaling: Scaling) -> None:
    static = Rope(4, 1e4, scaling)
    assert static.is_static
    assert np.array_equal(static.inverse_frequencies(), static.inverse_frequencies(10**6))
    assert static.magnitude() == static.magnitude(10**6)


@pytest.mark.parametrize("case", [case for case in GRID if case.rope_type == "yarn"][::7], ids=str)
def test_ramp_and_pair_classes_of_yarn_go_from_kept_to_interpolated(case: Case) -> None:
    order = [PairClass.KEPT, PairClass.BLENDED, PairClass.INTERPOLATED]
    classes, ramp = case.rope.pair_classes(), case.rope.ramp
    assert [order.index(name) for name in classes] == sorted(order.index(name) for name in classes)
    assert ramp is not None
    assert np.all(np.diff(ramp) >= 0)
    for name, share in zip(classes, ramp, strict=True):
        if case.parameters["factor"] == 1:
            assert name is PairClass.KEPT
        else:
            assert name is (order[0] if share == 0 else order[2] if share == 1 else order[1])


def test_methods_without_a_ramp_over_the_pairs_say_none() -> None:
    llama3 = Rope(128, 5e5, Llama3(8.0, 1.0, 4.0, 8192))
    assert llama3.correction_range is None
    assert llama3.ramp is None


def test_pair_classes_of_the_other_methods_follow_the_stretch() -> None:
    kept, blended, interpolated = PairClass
    assert set(Rope(64, 1e4).pair_classes()) == {kept}
    assert set(Rope(64, 1e4, Linear(4.0)).pair_classes()) == {interpolated}
    assert Rope(64, 1e4, NtkAware(4.0)).pair_classes() == (kept, *[blended] * 30, interpolated)
    assert Rope(64, 1e4, DynamicNtk(4.0, 128)).pair_classes(128) == (kept,) * 32
    assert Rope(64, 1e4, DynamicNtk(4.0, 128)).pair_classes(129) == (kept, *[blended] * 30, interpolated)
    assert Rope(6, 1e4, FrequencyFactors((1.0, 2.0, 1e30))).pair_classes() == (kept, blended, interpolated)
    # The 64 pairs of Llama 3.1: 8192/4 tokens hold a turn of the first 29, 8192 tokens no turn of the last 29.
    llama3 = Rope(128, 5e5, Llama3(8.0, 1.0, 4.0, 8192)).pair_classes()
    assert [llama3.count(name) for name in PairClass] == [29, 6, 29]


def test_extrapolation_factor_0_is_plain_interpolation_without_a_magnitude() -> None:
    none = Rope(128, 1e6, Yarn(8.0, 4096, extrapolation_factor=0.0))
    linear = Rope(128, 1e6, Linear(8.0))
    assert np.array_equal(none.inverse_frequencies(), linear.inverse_frequencies())
    assert none.magnitude() == 1.0
    assert Rope(128, 1e6, Yarn(8.0, 4096, attention_factor=1.2, extrapolation_factor=0.0)).magnitude() == 1.2


def test_the_yarn_magnitude_is_one_and_a_tenth_of_the_logarithm() -> None:
    assert rope.yarn_magnitude(math.exp(10)) == pytest.approx(2.0, rel=1e-15)
    assert rope.yarn_magnitude(math.exp(10), 0.5) == pytest.approx(1.5, rel=1e-15)
    assert [rope.yarn_magnitude(factor, 7.0) for factor in (0.5, 1.0)] == [1.0, 1.0]


def test_the_correction_dimension_is_the_pair_that_makes_that_many_turns() -> None:
    pair = rope.correction_dim(32.0, 128, 1e6, 32768)
    wavelength = 2 * math.pi * 1e6 ** (2 * pair / 128)
    assert 32768 / wavelength == pytest.approx(32.0, rel=1e-13)


def test_a_rope_is_a_value() -> None:
    one, other = Rope(128, 1e6, Yarn(8.0, 4096)), Rope(128, 1e6, Yarn(8.0, 4096))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Rope(128, 1e6, Yarn(8.0, 4096, truncate=False))
    with pytest.raises(FrozenInstanceError):
        one.base = 1e4  # type: ignore[misc]  # the point of the test
    one.plain_frequencies[0] = 7.0
    assert one.plain_frequencies[0] == 1.0


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "words"),
    [
        *[(lambda s=s: Linear(s), "factor is .* finite number of at least 1") for s in (0.5, 0.0, -4.0, NAN, INF)],
        (lambda: Linear(10**400), "factor is 1000.*finite"),
        (lambda: NtkAware(0.99), "factor is 0.99"),
        (lambda: Yarn(NAN, 4096), "factor is nan"),
        (lambda: NtkByParts(-1.0, 4096), "factor is -1"),
        (lambda: DynamicNtk(0.0, 4096), "factor is 0"),
        (lambda: DynamicYarn(4096, max_factor=0.5), "max_factor is 0.5"),
        (lambda: Llama3(0.5, 1.0, 4.0, 8192), "factor is 0.5"),
        (lambda: LongRope((1.0,), (1.0,), 4096, INF), "factor is inf"),
        *[(lambda n=n: Yarn(4.0, n), "original_context is .* at least 2") for n in (0, -1, 1, NAN, INF)],
        (lambda: NtkByParts(4.0, 0), "original_context is 0"),
        (lambda: DynamicYarn(0), "original_context is 0"),
        (lambda: DynamicNtk(4.0, 0), "max_context is 0"),
        (lambda: Llama3(8.0, 1.0, 4.0, 0), "original_context is 0"),
        (lambda: LongRope((1.0,), (1.0,), 1, 2.0), "original_context is 1"),
        (lambda: Yarn(4.0, 4096, 1.0, 32.0), "beta_fast is 1.0, but must be above beta_slow"),
        (lambda: Yarn(4.0, 4096, 2.0, 2.0), "beta_fast is 2.0, but must be above beta_slow"),
        (lambda: Yarn(4.0, 4096, 32.0, 0.0), "beta_slow is 0.0, .* above 0"),
        (lambda: NtkByParts(4.0, 4096, -32.0), "beta_fast is -32"),
        (lambda: DynamicYarn(4096, NAN), "beta_fast is nan"),
        (lambda: Yarn(4.0, 4096, INF), "beta_fast is inf"),
        (lambda: Llama3(8.0, 4.0, 4.0, 8192), "high_freq_factor is 4.0, but must be above low_freq_factor"),
        (lambda: Llama3(8.0, 0.0, 4.0, 8192), "low_freq_factor is 0"),
        (lambda: Yarn(4.0, 4096, attention_factor=NAN), "attention_factor is nan"),
        (lambda: Yarn(4.0, 4096, attention_factor=-1.0), "attention_factor is -1"),
        (lambda: Yarn(4.0, 4096, mscale=1.0, mscale_all_dim=-7.0), "mscale_all_dim is -7"),
        (lambda: Yarn(4.0, 4096, extrapolation_factor=1.5), "extrapolation_factor is 1.5"),
        (lambda: Yarn(4.0, 4096, extrapolation_factor=-1.0), "extrapolation_factor is -1"),
        (lambda: LongRope((1.0, 0.0), (1.0, 1.0), 4096, 2.0), r"short_factors\[1\] is 0"),
        (lambda: LongRope((1.0, 1.0), (NAN, 1.0), 4096, 2.0), r"long_factors\[0\] is nan"),
        (lambda: LongRope((1.0, 1.0), (1.0,), 4096, 2.0), "2 short_factors, but 1 long_factors"),
        (lambda: FrequencyFactors((1.0, -2.0)), r"factors\[1\] is -2"),
        (lambda: FrequencyFactors((1.0,), INF), "attention_factor is inf"),
        (lambda: Rope(63, 1e4), "dim is 63, but must be even"),
        (lambda: Rope(0, 1e4), "dim is 0"),
        (lambda: Rope(64, 1.0), "base is 1.0, .* above 1"),
        (lambda: Rope(64, NAN), "base is nan"),
        (lambda: Rope(64, 1e4, FrequencyFactors((1.0,) * 31)), "31 factors given, but 64 dimensions are 32 pairs"),
        (lambda: Rope(64, 1e4, LongRope((1.0,), (1.0,), 4096, 2.0)), "1 factors given"),
        (lambda: Rope(64, 1e4, Linear(2.0), under=FrequencyFactors(())), "0 factors given"),
        (lambda: Rope(64, 1e4, Yarn(4.0, 128, 40.0, 30.0, truncate=False)), "the ramp .* is reversed"),
        (lambda: Rope(64, 2.0, Yarn(4.0, 131072)), "the ramp .* is reversed"),
        (lambda: Rope(64, 1e4).inverse_frequencies(0), "length is 0"),
        (lambda: Rope(64, 1e4).magnitude(-5), "length is -5"),
    ],
)
def test_values_that_make_no_sense_are_refused_in_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
