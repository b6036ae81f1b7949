"""What stock llama.cpp computes from converted files, against transformers with the config that was meant.

Every toy, in float32, at every position of the extended context: with YaRN asked for on the command line, and with a
config.json that has YaRN of its own, at its defaults and with other betas and another attention factor. Bounds as in
test_logits.py. Where `convert` says that stock llama.cpp will not be exact, it must really not be.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from yarn_gguf.errors import InputError
from yarn_gguf.intent import RopeOptions

from .conversions import as_published, convert_folder
from .test_exactness import ABOVE_NOISE, BETAS
from .test_logits import default_yarn, divergence, limit
from .toys import CONTEXT, FACTOR, LENGTH, TOYS, YARN, Toy, save_checkpoint

Folders = Callable[[str], Path]

OTHER: Final = {
    **BETAS,
    "attention_factor": 1.05,
}  # with 1.1, two experts of granitemoe tie within float32 at one token
OWN: Final = {"defaults": {}, "other": OTHER}
WITH_YARN: Final = [name for name, toy in TOYS.items() if toy.yarn]


TAKES_YARN: Final = [name for name in TOYS if not name.startswith("phi3")]


@pytest.mark.parametrize("name", ["phi3", "phi3-partial"])
def test_yarn_on_a_class_that_makes_longrope_of_it_is_refused(name: str, toy_folder: Folders, tmp_path: Path) -> None:
    checkpoint = as_published(toy_folder(name), tmp_path / "checkpoint")
    with pytest.raises(InputError, match="makes longrope of yarn for phi3"):
        convert_folder(checkpoint, tmp_path / "out.gguf", rope=RopeOptions(factor=FACTOR))


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKES_YARN)
def test_yarn_that_was_asked_for_is_exact(name: str, toy_folder: Folders, tmp_path: Path) -> None:
    toy, folder, out = TOYS[name], toy_folder(name), tmp_path / "out.gguf"
    checkpoint = as_published(folder, tmp_path / "checkpoint")
    options = RopeOptions(factor=FACTOR, original_ctx=CONTEXT)
    outcome = convert_folder(checkpoint, out, outtype="f32", rope=options)
    assert outcome.conversion.written.exact
    assert divergence(toy, out, **default_yarn(toy)) <= limit(toy, folder / "f32.gguf")


def own_checkpoint(toy: Toy, folder: Path, settings: dict[str, Any]) -> Path:
    """A checkpoint whose config.json has YaRN."""
    made = save_checkpoint(toy, folder, toy.scaled(**YARN, **settings), max_position_embeddings=LENGTH)
    return as_published(made, folder.with_name("published"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", OWN)
@pytest.mark.parametrize("name", WITH_YARN)
def test_a_checkpoints_own_yarn_is_kept_and_what_is_called_exact_is(
    name: str, settings: str, toy_folder: Folders, tmp_path: Path
) -> None:
    toy, out = TOYS[name], tmp_path / "out.gguf"
    checkpoint = own_checkpoint(toy, tmp_path / "own", OWN[settings])
    outcome = convert_folder(checkpoint, out, outtype="f32")
    measured = divergence(toy, out, toy.scaled(**YARN, **OWN[settings]))
    if outcome.conversion.written.exact:
        assert measured <= limit(toy, toy_folder(name) / "f32.gguf")
    else:
        assert "not_exact_on_stock" in {finding.code for finding in outcome.findings}
        assert measured > ABOVE_NOISE
    if settings == "defaults":
        assert outcome.conversion.written.exact


def test_settings_that_stock_llama_cpp_cannot_compute_are_refused_when_typed(
    toy_folder: Folders, tmp_path: Path
) -> None:
    checkpoint = as_published(toy_folder("qwen2"), tmp_path / "checkpoint")
    with pytest.raises(InputError) as caught:
        convert_folder(checkpoint, tmp_path / "out.gguf", rope=RopeOptions(factor=FACTOR, beta_fast=6.0, beta_slow=2.0))
    assert caught.value.code == "not_exact"
    assert not (tmp_path / "out.gguf").exists()
