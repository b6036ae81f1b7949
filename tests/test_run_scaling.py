"""What `run` opens a model with: every position's logits against transformers with the RoPE that it says it opened.

Toys, float32 throughout; bounds as in test_logits.py. Overrides of keys and context parameters are found by
`running.scaling`; here a session computes with exactly those, on the stock library and on the patched one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_gguf.before import read_before
from yarn_gguf.effective import Runtime
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.opened import padded
from yarn_gguf.running.scaling import Scaling, choose
from yarn_gguf.runtime import LlamaSettings, open_llama

from .built import patched
from .command import extended
from .llama_logits import kl
from .test_convert_kinds import LONGROPE
from .test_exactness import BETAS, reference
from .test_logits import EXACT, WRONG, YARN_KEYS, default_yarn, limit
from .toys import CONTEXT, FACTOR, LENGTH, TOYS, YARN, Toy, reference_logits, save_checkpoint, tokens
from .upstream import convert, write_with_keys

pytestmark = pytest.mark.slow
Files = Callable[[str], Path]
BOTH = (Runtime.STOCK, Runtime.PATCHED)
# every kind of graph: plain, llama3 below, QK norms, sliding layers that scale and that do not, latent heads, experts
KINDS = ("llama", "llama-llama3", "qwen3", "gemma2", "gptoss", "olmo3", "deepseek2", "granite")


def opened(path: Path, runtime: Runtime, context: int) -> tuple[Scaling, np.ndarray[Any, Any]]:
    """What is chosen for a context, and the logits at every position of it."""
    found = choose(read_before(path), runtime, context)
    library = patched() if runtime is Runtime.PATCHED else None
    settings = LlamaSettings(
        padded(context),
        batch=256,
        threads=1,
        flash_attention=False,
        kv_k="f32",
        kv_v="f32",
        library=library,
        keys=found.keys,
        rope=found.parameters,
    )
    with open_llama(path, settings) as session:
        pieces = [piece.logits.copy() for piece in session.stream(tokens()[:context])]
    return found, np.concatenate(pieces)


def distance(toy: Toy, logits: np.ndarray[Any, Any], context: int, **side: Any) -> float:
    config = {"max_position_embeddings": LENGTH} if side.get("rope_parameters") else {}
    frequencies = side.get("frequencies")
    wanted = reference_logits(toy, side["rope_parameters"], tokens()[:context], frequencies, **config)
    return float(kl(wanted, logits).mean())


@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("name", KINDS)
def test_a_file_without_scaling_gets_yarn_for_a_longer_context(name: str, runtime: Runtime, toy_gguf: Files) -> None:
    toy = TOYS[name]
    found, logits = opened(toy_gguf(name), runtime, LENGTH)
    assert (found.intent.method, found.intent.factor, found.difference) == ("yarn", FACTOR, "")
    assert distance(toy, logits, LENGTH, **default_yarn(toy)) <= limit(toy, toy_gguf(name))


@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize(("context", "factor"), [(128, 2.0), (256, 2.0), (512, 4.0), (1024, 8.0)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_dynamic_file_gets_the_smallest_factor_that_covers_the_context(
    name: str, context: int, factor: float, runtime: Runtime, toy_gguf: Files, tmp_path: Path
) -> None:
    """llama.cpp opens at least 256 tokens, which is 2 times what the toys know."""
    toy, file = TOYS[name], tmp_path / "dynamic.gguf"
    extended(toy_gguf(name), "-o", file, "--factor", str(FACTOR), "--dynamic", "--encoding", "keys")
    found, logits = opened(file, runtime, context)
    assert found.intent.factor == factor and not found.difference
    assert found.start.nothing is (runtime is Runtime.PATCHED or factor == FACTOR)
    right, wrong = ({"rope_parameters": toy.scaled(**{**YARN, "factor": each})} for each in (factor, 2 * factor))
    assert distance(toy, logits, context, **right) <= limit(toy, toy_gguf(name))
    assert distance(toy, logits, context, **wrong) > WRONG / 10


@pytest.mark.parametrize("runtime", BOTH)
def test_a_dynamic_file_is_not_scaled_within_its_original_context(
    runtime: Runtime, toy_gguf: Files, tmp_path: Path
) -> None:
    file, toy = tmp_path / "dynamic.gguf", TOYS["llama"]
    longer = write_with_keys(toy_gguf("llama"), tmp_path / "longer.gguf", {"context_length": 256})
    extended(longer, "-o", file, "--factor", "4", "--dynamic")
    found, logits = opened(file, runtime, 256)
    assert found.text == "no scaling" and not found.difference and not found.spoils_shifts
    wanted = reference_logits(toy, None, tokens()[:256], max_position_embeddings=256)
    assert float(kl(wanted, logits).mean()) <= EXACT


@pytest.mark.parametrize("setting", ["betas", "attention", "ctx"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_settings_in_keys_that_stock_does_not_read_reach_it_all_the_same(
    name: str, setting: str, toy_gguf: Files, tmp_path: Path
) -> None:
    """Betas by context parameters, which stock honours; the attention factor by a key that it reads."""
    toy, file = TOYS[name], tmp_path / "keys.gguf"
    if setting == "attention":  # as upstream's converter writes it
        keys: dict[str, str | int | float | bool] = {**YARN_KEYS, "context_length": CONTEXT}
        write_with_keys(toy_gguf(name), file, {**keys, "rope.scaling.yarn_attn_factor": 1.1})
    else:
        options = {"betas": ("--factor", "8", "--beta-fast", "6", "--beta-slow", "2"), "ctx": ("--ctx", "512")}
        extended_keys(toy_gguf(name), file, *options[setting])
    found, logits = opened(file, Runtime.STOCK, LENGTH if setting != "ctx" else 4 * CONTEXT)
    assert not found.difference
    length = len(logits)
    assert distance(toy, logits, length, **reference(toy, setting)) <= limit(toy, toy_gguf(name))


def extended_keys(source: Path, out: Path, *options: str) -> None:
    """(Under keys `extend` warns that stock differs.)"""
    from .command import run

    done = run("extend", source, "-o", out, "--encoding", "keys", *options)
    assert done.code == 0, done


def test_betas_and_a_longer_context_go_together(toy_gguf: Files, tmp_path: Path) -> None:
    file, toy = tmp_path / "keys.gguf", TOYS["llama"]
    extended_keys(toy_gguf("llama"), file, "--factor", "4", "--beta-fast", "6", "--beta-slow", "2")
    found, logits = opened(file, Runtime.STOCK, LENGTH)
    assert {"yarn_beta_fast", "yarn_beta_slow", "rope_freq_scale"} <= set(found.parameters)
    side = {"rope_parameters": toy.scaled(**YARN, **BETAS)}
    assert distance(toy, logits, LENGTH, **side) <= EXACT


def test_what_no_override_makes_exact_is_said_of_the_file_and_refused_of_a_wish(
    toy_gguf: Files, tmp_path: Path
) -> None:
    """truncate false has no parameter on stock: the file runs with a warning, a longer context is refused."""
    file = tmp_path / "keys.gguf"
    extended_keys(toy_gguf("qwen3"), file, "--factor", "4", "--no-truncate")
    before = read_before(file)
    assert "frequencies" in choose(before, Runtime.STOCK, 512).difference
    assert not choose(before, Runtime.PATCHED, 512).difference
    with pytest.raises(UsageError, match="extend --ctx 1024 writes a file that has it"):
        choose(before, Runtime.STOCK, 1024)
    assert not choose(before, Runtime.PATCHED, 1024).difference


def test_a_baked_file_keeps_its_context(toy_gguf: Files, tmp_path: Path) -> None:
    file = tmp_path / "baked.gguf"
    extended(toy_gguf("llama"), "-o", file, "--factor", "4", "--encoding", "baked")
    assert choose(read_before(file), Runtime.STOCK, 512).start.nothing
    with pytest.raises(UsageError, match="writes a file"):
        choose(read_before(file), Runtime.STOCK, 1024)


def test_a_scaling_that_yarn_cannot_stand_on_is_refused_beyond_its_context(tmp_path: Path) -> None:
    settings = {"max_position_embeddings": 4 * CONTEXT, "original_max_position_embeddings": CONTEXT}
    made = save_checkpoint(TOYS["phi3"], tmp_path / "longrope", LONGROPE, **settings)
    file = convert(made, tmp_path / "longrope.gguf")
    assert choose(read_before(file), Runtime.STOCK, 512).intent.method == "longrope"
    with pytest.raises(InputError, match="beyond the 512 that it is meant for, and it is scaled with longrope"):
        choose(read_before(file), Runtime.STOCK, 1024)
