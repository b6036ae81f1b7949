"""What a model's keys may say: numbers that no model has are refused where they are read, whatever reads them next.

The bytes are put together by hand. What the numbers mean for RoPE is for the tests of `effective` and `encoding`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests import gguf_bytes as g
from tests.command import run
from tests.toys import TOYS
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.metadata import SCALING_KEYS, Facts, read_facts

Keys = Mapping[str, Any]
SMALL: Final[Keys] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 3,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
}
U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1
LARGEST: Final = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def model(folder: Path, arch: str, keys: Keys) -> Path:
    """A file with one tensor; keys that are None are left out."""
    named = {f"{arch}.{name}": value for name, value in {**SMALL, **keys}.items() if value is not None}
    pairs = [g.text(b"general.architecture", arch.encode()), *(_pair(key.encode(), v) for key, v in named.items())]
    path = folder / "model.gguf"
    path.write_bytes(g.gguf(pairs, [g.tensor(b"token_embd.weight", (8,), g.F32, 0)], bytes(32)))
    return path


def _pair(key: bytes, value: Any) -> bytes:
    if isinstance(value, list):
        kind = _kind(min(value)) if value else g.I32
        return g.pair(key, g.ARRAY, g.array(kind, len(value), b"".join(_packed(kind, item) for item in value)))
    if isinstance(value, str):
        return g.text(key, value.encode())
    return g.pair(key, _kind(value), _packed(_kind(value), value))


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return g.BOOL
    if isinstance(value, float):
        return g.FLOAT32 if abs(value) <= LARGEST or not math.isfinite(value) else g.FLOAT64
    return g.I32 if value < 0 else g.U32 if value <= U32 else g.U64


def _packed(kind: int, value: Any) -> bytes:
    letters = {g.BOOL: "?", g.FLOAT32: "f", g.FLOAT64: "d", g.I32: "i", g.U32: "I", g.U64: "Q"}
    return struct.pack("<" + letters[kind], value)


def facts_of(folder: Path, arch: str, keys: Keys) -> Facts:
    return read_facts(read_model(model(folder, arch, keys)))


def beyond(name: str, value: Any, cap: object, arch: str = "llama") -> tuple[str, Keys, str]:
    return arch, {name: value}, f"{arch}.{name} is {value}, at most {cap} is supported"


def below(name: str, value: Any, need: str, arch: str = "llama") -> tuple[str, Keys, str]:
    return arch, {name: value}, f"{arch}.{name} is {value}, {need}"


POSITIVE: Final = "a positive number is needed"
NEGATIVE: Final = "it cannot be negative"
ABOVE_1: Final = "a number above 1 is needed"
LAYERS: Final = "llama.cpp wants one per layer, and block_count is 3"

REFUSED: Final[dict[str, tuple[str, Keys, str]]] = {
    "ten million layers": beyond("block_count", 10_000_000, 10_000),
    "as many layers as 32 bits can say": beyond("block_count", U32, 10_000),
    "as many layers as 64 bits can say": beyond("block_count", U64, 10_000),
    "layers just beyond the cap": beyond("block_count", 10_001, 10_000),
    "a negative number of layers": below("block_count", -1, POSITIVE),
    "heads as wide as the sea": beyond("attention.key_length", U32 - 1, 65_536),
    "heads of no width": below("attention.key_length", 0, POSITIVE),
    "as many dimensions as 32 bits can say": beyond("rope.dimension_count", U32 - 1, 65_536),
    "as many on sliding layers": beyond("rope.dimension_count_swa", U32 - 1, 65_536, "gemma3"),
    "one wide head": ("llama", {"embedding_length": U32, "attention.head_count": 1}, "heads of 4294967295 dimensions"),
    "more heads than the width": ("llama", {"attention.head_count": 65}, "heads of 0 dimensions, from 1 to 65536"),
    "more dimensions than a head has": (
        "llama",
        {"rope.dimension_count": 34},
        "llama.rope.dimension_count is 34, an even number from 2 to the key length 32 is needed",
    ),
    "an odd number of dimensions": ("llama", {"rope.dimension_count": 31}, "dimension_count is 31, an even number"),
    "no dimensions": ("llama", {"rope.dimension_count": 0}, "dimension_count is 0, an even number"),
    "a negative number of dimensions": below("rope.dimension_count", -2, NEGATIVE),
    "an odd number on sliding layers": (
        "gemma3",
        {"rope.dimension_count_swa": 15},
        "gemma3.rope.dimension_count_swa is 15, an even number from 2 to the key length 32 is needed",
    ),
    "more than the heads of sliding layers have": (
        "gemma4",
        {"rope.dimension_count_swa": 32, "attention.key_length_swa": 16},
        "gemma4.rope.dimension_count_swa is 32, an even number from 2 to the key length 16 is needed",
    ),
    "more heads than there are": beyond("attention.head_count", 65_537, 65_536),
    "more key heads than there are": beyond("attention.head_count_kv", 65_537, 65_536),
    "a layer with too many heads": (
        "llama",
        {"attention.head_count": [2, 65_537, 2]},
        "llama.attention.head_count[1] is 65537, at most 65536 is supported",
    ),
    "a layer with heads below nothing": (
        "llama",
        {"attention.head_count_kv": [1, 1, -1]},
        "llama.attention.head_count_kv[2] is -1, it cannot be negative",
    ),
    "heads for two of three layers": (
        "llama",
        {"attention.head_count": [2, 2]},
        f"llama.attention.head_count has 2 items; {LAYERS}",
    ),
    "key heads for four of three layers": (
        "llama",
        {"attention.head_count_kv": [1, 1, 1, 1]},
        f"llama.attention.head_count_kv has 4 items; {LAYERS}",
    ),
    "heads for no layer": ("llama", {"attention.head_count": []}, f"llama.attention.head_count has 0 items; {LAYERS}"),
    "a pattern of a million layers": (
        "gemma3",
        {"attention.sliding_window_pattern": [True] * 1_000_000},
        "gemma3.attention.sliding_window_pattern has 1000000 items, at most 10000 are supported",
    ),
    "a pattern of texts": (
        "gemma3",
        {"attention.sliding_window_pattern": "LLLG"},
        "gemma3.attention.sliding_window_pattern must be an integer, not string",
    ),
    "every so many layers, below nothing": below("attention.sliding_window_pattern", -3, NEGATIVE, "gemma3"),
    "a context that llama.cpp cannot count": beyond("context_length", 1 << 31, (1 << 31) - 1),
    "no context": below("context_length", 0, POSITIVE),
    "an original context that it cannot": beyond("rope.scaling.original_context_length", U32, (1 << 31) - 1),
    "an original context of nothing": below("rope.scaling.original_context_length", 0, POSITIVE),
    "a window below nothing": below("attention.sliding_window", -1, NEGATIVE, "gemma3"),
    "a window per layer": (
        "gemma3",
        {"attention.sliding_window": [64, 0, 64]},
        "gemma3.attention.sliding_window must be an integer, not array",
    ),
    "a base of 1": below("rope.freq_base", 1.0, ABOVE_1),
    "a base below 1": below("rope.freq_base", 0.5, ABOVE_1),
    "a negative base": below("rope.freq_base", -10000.0, ABOVE_1),
    "a base that is no number": below("rope.freq_base", math.nan, "a finite number is needed"),
    "a base beyond float32": ("llama", {"rope.freq_base": 1e300}, "is 1e+300, at most 3.40282346"),
    "a base of sliding layers of 0": below("rope.freq_base_swa", 0.0, ABOVE_1, "gemma3"),
    "a base of sliding layers below 0": below("rope.freq_base_swa", -1.0, ABOVE_1, "gemma3"),
    "a negative factor": below("rope.scaling.factor", -2.0, NEGATIVE),
    "a negative factor under its old name": below("rope.scale_linear", -2.0, NEGATIVE),
    "an infinite factor": below("rope.scaling.factor", math.inf, "a finite number is needed"),
    "an infinite attention factor": below("rope.scaling.attn_factor", -math.inf, "a finite number is needed"),
    "an infinite extrapolation": below("rope.scaling.yarn_ext_factor", math.nan, "a finite number is needed"),
    "a beta that is no number": below("rope.scaling.yarn_beta_fast", math.nan, "a finite number is needed"),
    "an infinite beta": below("rope.scaling.yarn_beta_slow", math.inf, "a finite number is needed"),
    "an infinite multiplier": below("rope.scaling.yarn_log_multiplier", math.inf, "a finite number is needed"),
    "an alpha beyond all bounds": beyond("rope.scaling.alpha", 2e9, 1000000000, "hunyuan-dense"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_number_that_no_model_has_is_refused_with_key_value_and_bound(name: str, tmp_path: Path) -> None:
    arch, keys, says = REFUSED[name]
    with pytest.raises(InputError) as caught:
        facts_of(tmp_path, arch, keys)
    assert says in caught.value.text
    assert (caught.value.exit_code, caught.value.code) == (3, "bad_metadata")
    assert caught.value.file == str(tmp_path / "model.gguf")


TAKEN: Final[dict[str, tuple[str, Keys, str, Any]]] = {
    "as many layers as the cap": ("llama", {"block_count": 10_000}, "layers", 10_000),
    "a head of 65536": (
        "llama",
        {"attention.key_length": 65_536, "rope.dimension_count": 65_536},
        "dimensions",
        65_536,
    ),
    "a quarter of each head": ("gptneox", {"rope.dimension_count": 8}, "dimensions", 8),
    "a latent head": ("deepseek2", {"attention.key_length": 96, "rope.dimension_count": 32}, "head_dim", 96),
    "a rotation of nothing where nothing rotates": ("mamba", {"rope.dimension_count": 0}, "dimensions", 0),
    "heads by layer": ("deci", {"attention.head_count": [2, 0, 4]}, "head_count", (2, 0, 4)),
    "no head at all where nothing rotates": ("mamba", {"attention.head_count": 0}, "head_count", ()),
    "the longest context": ("llama", {"context_length": (1 << 31) - 1}, "context_length", (1 << 31) - 1),
    "a window of nothing": ("gemma3", {"attention.sliding_window": 0}, "window", 0),
    "a window": ("gemma3", {"attention.sliding_window": 64}, "window", 64),
    "a factor of 0, which is none": ("llama", {"rope.scaling.factor": 0.0}, "factor", 0.0),
    "a factor under its old name": ("llama", {"rope.scale_linear": 4.0}, "factor", 4.0),
    "every third layer": ("gemma3", {"attention.sliding_window_pattern": 3}, "pattern", 3),
    # the converter writes no entry for the prediction layers of cohere2moe and exaone-moe; llama.cpp takes false
    "a pattern that is shorter than the model": (
        "cohere2moe",
        {"attention.sliding_window_pattern": [True, False]},
        "pattern",
        (True, False),
    ),
    "a pattern that is longer than the model": (
        "gemma3",
        {"attention.sliding_window_pattern": [True, False, True, True]},
        "pattern",
        (True, False, True, True),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_number_that_a_model_may_have_is_taken(name: str, tmp_path: Path) -> None:
    arch, keys, attribute, value = TAKEN[name]
    assert getattr(facts_of(tmp_path, arch, keys), attribute) == value


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_what_upstream_converts_is_taken(name: str, toy_gguf: Callable[[str], Path]) -> None:
    assert read_facts(read_model(toy_gguf(name))).layers > 0


COMMANDS: Final[Sequence[Sequence[str]]] = (("inspect",), ("extend", "--factor", "4", "--dry-run"))


@pytest.mark.parametrize("name", ["block_count", "rope.dimension_count", "attention.key_length", "context_length"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_huge_number_costs_nothing_on_the_command_line(command: Sequence[str], name: str, tmp_path: Path) -> None:
    """Ten million layers took minutes, and 2³² dimensions 32 GiB."""
    done = run(*command, model(tmp_path, "llama", {name: U32 - 1}), seconds=5, mebibytes=512)
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done
    assert f"llama.{name} is {U32 - 1}" in done.err


def test_every_scaling_key_is_named_once() -> None:
    assert len(SCALING_KEYS) == len(set(SCALING_KEYS)) == 12
