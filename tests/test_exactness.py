"""The table of exactness, held row by row: files that `extend` wrote, run by llama.cpp, against transformers.

For every toy and every setting, `extend` says that stock llama.cpp will be exact, or that it will not. Here llama.cpp
is asked: exact must be at the floor (`limit`, on average over every position of the extended context), and what was
refused must really be wrong when it is written all the same, else the refusal is. Bounds as in test_logits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yarn_gguf.before import read_before
from yarn_gguf.encoding import Encoding
from yarn_gguf.errors import InputError
from yarn_gguf.extend import plan_extension, write_extension
from yarn_gguf.graphs import TESTED
from yarn_gguf.intent import RopeOptions

from .test_logits import EXACT, WRONG, YARN_KEYS, divergence, limit
from .toys import CONTEXT, FACTOR, HEAD, TOYS, YARN, Toy, yarn_frequencies
from .upstream import write_with_keys

Files = Callable[[str], Path]
CORE = ("llama", "llama-llama3", "qwen2", "qwen3")  # every setting, both encodings
BETAS = {"beta_fast": 6.0, "beta_slow": 2.0}
PAIR = {"mscale": 0.7, "mscale_all_dim": 1.0}
ABOVE_NOISE = 10 * EXACT  # what is refused must be measurably wrong


def yarn(**more: Any) -> tuple[RopeOptions, dict[str, Any]]:
    """YaRN with these settings, as options of ours and as rope parameters of transformers."""
    return RopeOptions(factor=FACTOR, **more), {**YARN, **more}


# name -> (options, rope parameters of transformers)
EVERYWHERE: dict[str, tuple[RopeOptions, dict[str, Any]]] = {
    "defaults": yarn(),
    "betas": yarn(**BETAS),
    "attention": yarn(attention_factor=1.1),
    "linear": (RopeOptions(factor=FACTOR, method="linear"), {"rope_type": "linear", "factor": FACTOR}),
    "ntk": (RopeOptions(factor=FACTOR, method="ntk"), {}),
}
MORE: dict[str, tuple[RopeOptions, dict[str, Any]]] = {
    "attention 0": yarn(attention_factor=0.0),
    "truncate": yarn(truncate=False),
    "pair": yarn(**PAIR),
    "half a pair": yarn(mscale_all_dim=0.7),
    "parts": (RopeOptions(factor=FACTOR, method="ntk-by-parts"), {**YARN, "attention_factor": 1.0}),
    "all": yarn(**BETAS, truncate=False, attention_factor=1.1),
    "ctx": (RopeOptions(ctx=4 * CONTEXT), {**YARN, "factor": 4.0}),
    "none": (RopeOptions(method="none"), {}),
}
SETTINGS = EVERYWHERE | MORE
CASES = [(name, setting) for name in TOYS for setting in (SETTINGS if name in CORE else EVERYWHERE)]


def reference(toy: Toy, setting: str, dim: int = HEAD) -> dict[str, Any]:
    """transformers' side of a setting, as arguments of `divergence`; `dim` dimensions of each head turn."""
    scaling = SETTINGS[setting][1]
    if setting == "none":
        return {"rope_parameters": None}
    if setting == "ntk":
        theta = toy.rope.get("full_attention", toy.rope)["rope_theta"]
        scaling = {"rope_theta": theta * FACTOR ** (dim / (dim - 2))}
        scaling |= {} if toy.yarn else {"rope_type": "linear", "factor": 1.0}
    if setting == "linear" and "mscale_all_dim" in toy.rope:
        scaling = {**scaling, "mscale_all_dim": 0}  # transformers' softmax scale takes it under any type
    if toy.yarn:
        return {"rope_parameters": toy.scaled(**scaling)}
    return {"rope_parameters": None, "frequencies": yarn_frequencies(toy, **scaling)}


def extended(source: Path, out: Path, options: RopeOptions, encoding: Encoding) -> bool:
    """Writes the extension; says whether `extend` calls it exact on stock llama.cpp."""
    before = read_before(source)
    if before.facts.context_length != CONTEXT:  # upstream's converter writes a 2048 of its own for falcon
        options = replace(options, original_ctx=CONTEXT)
    extension = plan_extension(before, options, encoding)
    write_extension(extension, out)
    assert extension.encoded is not None
    return extension.encoded.stock.exact


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), CASES)
def test_what_extend_calls_exact_is_exact_and_what_it_refuses_is_not(
    name: str, setting: str, toy_gguf: Files, tmp_path: Path
) -> None:
    toy, source, out = TOYS[name], toy_gguf(name), tmp_path / "extended.gguf"
    options = SETTINGS[setting][0]
    try:
        exact = extended(source, out, options, "auto")
        assert exact
    except InputError as refusal:
        assert refusal.code == "not_exact"
        exact = extended(source, out, options, "keys")
        assert not exact
    measured = divergence(toy, out, **reference(toy, setting, read_before(source).own.rope.dim))
    if exact:
        assert measured <= limit(toy, source)
    else:
        assert measured > ABOVE_NOISE


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "llama-llama3", "granite"])
def test_baked_is_exact_for_every_setting(name: str, setting: str, toy_gguf: Files, tmp_path: Path) -> None:
    toy, out = TOYS[name], tmp_path / "baked.gguf"
    assert extended(toy_gguf(name), out, SETTINGS[setting][0], "baked")
    assert divergence(toy, out, **reference(toy, setting)) <= limit(toy, toy_gguf(name))


def test_the_checkpoints_own_settings_are_kept_and_repaired_without_options(toy_gguf: Files, tmp_path: Path) -> None:
    """As upstream writes them: betas that nobody reads, and a context length left at the original."""
    dead = {key: value for key, value in YARN_KEYS.items() if key != "context_length"}
    dead |= {f"rope.scaling.yarn_{key}": value for key, value in BETAS.items()}
    toy = TOYS["llama"]
    source = write_with_keys(toy_gguf("llama"), tmp_path / "dead.gguf", dead)
    side = {"rope_parameters": toy.scaled(**YARN, **BETAS)}
    assert divergence(toy, source, **side) > WRONG
    assert extended(source, tmp_path / "alive.gguf", RopeOptions(), "auto")
    assert divergence(toy, tmp_path / "alive.gguf", **side) <= EXACT


def test_the_table_names_exactly_the_architectures_that_are_tested_here(toy_gguf: Files) -> None:
    assert {read_before(toy_gguf(name)).facts.arch for name in TOYS} == TESTED


def test_a_wrong_magnitude_is_told_from_the_right_one(toy_gguf: Files, tmp_path: Path) -> None:
    toy, options = TOYS["qwen2"], replace(SETTINGS["attention"][0], attention_factor=1.12)
    assert extended(toy_gguf("qwen2"), tmp_path / "wrong.gguf", options, "auto")
    assert divergence(toy, tmp_path / "wrong.gguf", **reference(toy, "attention")) > WRONG / 10
