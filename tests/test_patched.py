"""What our patches mend: the same file on the stock library and on the patched one, held against transformers.

Both libraries are built by `yarn-gguf build` with the same flags. Each case asserts that stock fails and patched
passes, so the day that upstream mends one of them is noticed here. Bounds as in test_logits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from yarn_gguf.before import read_before
from yarn_gguf.effective import Runtime
from yarn_gguf.extend import plan_extension, write_extension
from yarn_gguf.inspection import inspect_gguf
from yarn_gguf.intent import RopeOptions

from .built import patched, stock
from .command import extended, run
from .llama_logits import kl, llama_logits, load_ok
from .llama_shift import shifted_logits, survivors
from .llama_state import state_moves
from .test_convert_kinds import LONGROPE
from .test_exactness import ABOVE_NOISE, EVERYWHERE, MORE, SETTINGS, reference
from .test_logits import EXACT, WRONG, YARN_KEYS, default_yarn, divergence, limit
from .toys import CONTEXT, FACTOR, LENGTH, TOYS, YARN, save_checkpoint, tokens
from .upstream import convert, write_with_keys

pytestmark = pytest.mark.slow
Files = Callable[[str], Path]

WINDOW, DROPPED = 384, 64
SHIFTED = 0.002  # what every file with a magnitude is beyond on stock after one shift
MAGNITUDE = 0.1 * np.log(FACTOR) + 1
F16, Q8_0 = 1, 8  # ggml's numbers of the types that a cache may have
TIES = ("afmoe", "deepseek2")
# every kind of graph: plain, QK norms, GELU, sliding layers that scale and that do not, experts, latent heads, longrope
KINDS = ("llama", "llama-llama3", "qwen3", "gemma2", "gptoss", "olmo3", "deepseek2", "ministral3", "granite", "phi3")


def as_keys(source: Path, out: Path, options: RopeOptions) -> tuple[bool, bool]:
    """Writes keys whatever stock makes of them; whether stock and patched are called exact."""
    before = read_before(source)
    if before.facts.context_length != CONTEXT:
        options = replace(options, original_ctx=CONTEXT)
    extension = plan_extension(before, options, "keys")
    write_extension(extension, out)
    assert extension.encoded is not None
    return extension.encoded.stock.exact, extension.encoded.patched.exact


def assert_same_bits(pair: list[tuple[Path, Path]], context: int, **ctx_params: float) -> None:
    """Two files, each on its library, give the same logits at every position of a context."""
    first, second = (llama_logits(file, tokens()[:context], context, runtime, **ctx_params) for file, runtime in pair)
    assert np.array_equal(first, second)


# ---- keys


@pytest.mark.parametrize("setting", ["betas", "truncate", "all"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gptoss"])
def test_betas_and_truncate_in_the_keys_are_wrong_on_stock_and_exact_when_patched(
    name: str, setting: str, toy_gguf: Files, tmp_path: Path
) -> None:
    toy, out = TOYS[name], tmp_path / "keys.gguf"
    assert as_keys(toy_gguf(name), out, SETTINGS[setting][0]) == (False, True)
    assert divergence(toy, out, **reference(toy, setting), runtime=stock()) > WRONG
    assert divergence(toy, out, **reference(toy, setting), runtime=patched()) <= limit(toy, toy_gguf(name))


@pytest.mark.parametrize("name", TOYS)
def test_other_betas_are_exact_when_patched_where_the_table_says_so_and_wrong_elsewhere(
    name: str, toy_gguf: Files, tmp_path: Path
) -> None:
    """Under 6/2 one position in 1024 of two toys lies so near a tie of two experts that rounding decides: 8/2 there."""
    toy, out = TOYS[name], tmp_path / "keys.gguf"
    fast, slow = (8.0 if name in TIES else 6.0), 2.0
    promises = as_keys(toy_gguf(name), out, RopeOptions(FACTOR, beta_fast=fast, beta_slow=slow))
    exact = dict(zip((stock(), patched()), promises, strict=True))
    side = default_yarn(toy, beta_fast=fast, beta_slow=slow)
    for runtime, promised in exact.items():
        measured = divergence(toy, out, **side, runtime=runtime)
        assert measured <= limit(toy, toy_gguf(name)) if promised else measured > ABOVE_NOISE, (runtime, measured)


@pytest.mark.parametrize("fast", [-4.0, float("nan")])
def test_betas_below_zero_are_refused(fast: float, toy_gguf: Files, tmp_path: Path) -> None:
    keys = {**YARN_KEYS, "rope.scaling.yarn_beta_fast": fast}
    assert not load_ok(write_with_keys(toy_gguf("llama"), tmp_path / "bad.gguf", keys), patched())


def test_betas_of_zero_are_not_set_as_in_transformers(toy_gguf: Files, tmp_path: Path) -> None:
    zero = {"rope.scaling.yarn_beta_fast": 0.0, "rope.scaling.yarn_beta_slow": 0.0}
    file = write_with_keys(toy_gguf("llama"), tmp_path / "zero.gguf", {**YARN_KEYS, **zero})
    toy = TOYS["llama"]
    assert divergence(toy, file, **default_yarn(toy, beta_fast=0, beta_slow=0), runtime=patched()) <= EXACT
    assert_same_bits([(file, stock()), (file, patched())], LENGTH)


# ---- the attention factor


def test_the_users_attention_factor_multiplies_when_patched_and_does_nothing_on_stock(
    toy_gguf: Files, tmp_path: Path
) -> None:
    toy = TOYS["llama"]
    file = write_with_keys(toy_gguf("llama"), tmp_path / "keys.gguf", YARN_KEYS)
    asked = {"yarn_attn_factor": 1 / (0.1 * np.log(FACTOR) + 1)}
    side: dict[str, Any] = default_yarn(toy, attention_factor=1.0)
    assert divergence(toy, file, **side, ctx_params=asked, runtime=stock()) > WRONG
    assert divergence(toy, file, **side, ctx_params=asked, runtime=patched()) <= EXACT


def test_a_factor_of_one_is_neutral_and_the_files_yarn_attn_factor_stays_unread(
    toy_gguf: Files, tmp_path: Path
) -> None:
    plain = write_with_keys(toy_gguf("llama"), tmp_path / "plain.gguf", YARN_KEYS)
    dead = write_with_keys(
        toy_gguf("llama"), tmp_path / "dead.gguf", {**YARN_KEYS, "rope.scaling.yarn_attn_factor": 1.5}
    )
    wanted = llama_logits(plain, tokens(), runtime=stock())
    assert np.array_equal(llama_logits(plain, tokens(), runtime=patched(), yarn_attn_factor=1.0), wanted)
    assert np.array_equal(llama_logits(dead, tokens(), runtime=patched()), wanted)


def test_without_yarn_the_users_factor_means_what_it_meant(toy_gguf: Files) -> None:
    assert_same_bits([(toy_gguf("llama"), stock()), (toy_gguf("llama"), patched())], LENGTH, yarn_attn_factor=1.1)


def test_the_betas_of_llama_cpp_pythons_class_override_the_file_when_patched_too(
    toy_gguf: Files, tmp_path: Path
) -> None:
    """... which `inspect` warns of."""
    toy, out = TOYS["qwen3"], tmp_path / "keys.gguf"
    as_keys(toy_gguf("qwen3"), out, SETTINGS["betas"][0])
    theirs = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": 1.0}
    assert divergence(toy, out, **reference(toy, "betas"), ctx_params=theirs, runtime=patched()) > WRONG
    found = {finding.code: finding.text for finding in inspect_gguf(out, RopeOptions()).findings}
    assert (
        "on a patched llama.cpp too, llama-cpp-python's Llama(...) passes betas 32/1" in found["llama_cpp_python_betas"]
    )


# ---- context shift


def one_layer(name: str, folder: Path) -> Path:
    """A toy of one layer, whose keys and values depend on their token alone; unscaled."""
    return convert(save_checkpoint(TOYS[name], folder / name, num_hidden_layers=1), folder / f"{name}.gguf")


def after(file: Path, shifts: int, runtime: Path, **ctx_params: float) -> float:
    """Mean KL of the logits after these shifts to those of a fresh evaluation of what is left."""
    left = survivors(tokens(), WINDOW, DROPPED, shifts)
    fresh = llama_logits(file, left, None, runtime, n_batch=WINDOW, **ctx_params)[-DROPPED:]
    moved = shifted_logits(file, tokens(), WINDOW, DROPPED, shifts, runtime, **ctx_params)
    return float(kl(fresh, moved).mean())


@pytest.mark.parametrize(("name", "encoding"), [("llama", "keys"), ("llama", "baked"), ("qwen3", "keys")])
def test_a_context_shift_keeps_the_magnitude_of_keys_when_patched(name: str, encoding: str, tmp_path: Path) -> None:
    out = tmp_path / "scaled.gguf"
    extended(one_layer(name, tmp_path), "-o", out, "--factor", "8", "--encoding", encoding)
    assert after(out, 1, stock()) > SHIFTED
    assert max(after(out, shifts, patched()) for shifts in (1, 2, 5, 10)) <= EXACT


def test_a_context_shift_of_a_longrope_model_is_exact_when_patched(tmp_path: Path) -> None:
    settings = {"max_position_embeddings": LENGTH, "num_hidden_layers": 1}
    file = convert(save_checkpoint(TOYS["phi3"], tmp_path / "phi3", LONGROPE, **settings), tmp_path / "phi3.gguf")
    assert after(file, 1, stock()) > SHIFTED
    assert max(after(file, shifts, patched()) for shifts in (1, 2, 5, 10)) <= EXACT


def sharpened(name: str, folder: Path) -> Path:
    """The unscaled toy of one layer, YaRN's magnitude in its queries and keys: it attends as sharply as under YaRN."""
    checkpoint = save_checkpoint(TOYS[name], folder / "sharp", num_hidden_layers=1)
    (weights,) = checkpoint.glob("*.safetensors")
    tensors = load_file(weights)
    for key in tensors:
        if "q_proj" in key or "k_proj" in key:
            tensors[key] = tensors[key] * np.float32(MAGNITUDE)
    save_file(tensors, weights, {"format": "pt"})
    return convert(checkpoint, folder / "sharp.gguf")


@pytest.mark.parametrize("cache", [F16, Q8_0])
def test_shifting_a_smaller_cache_drifts_no_more_than_where_there_is_no_magnitude(cache: int, tmp_path: Path) -> None:
    """Rounding's drift grows with the fourth power of the magnitude, shifts or not, so that is in both sides' weights.

    Measured in f16: within 0.5 % of the same function with the magnitude in its weights after each shift; 1.07 times
    the drift of the unscaled model on average over the shifts.
    """
    sharp, folded, out = sharpened("llama", tmp_path), tmp_path / "folded.gguf", tmp_path / "scaled.gguf"
    extended(one_layer("llama", tmp_path), "-o", out, "--factor", "8")
    extended(sharp, "-o", folded, "--factor", "8", "--attention-factor", "1")
    counts = (1, 2, 5, 10)
    drift = [after(out, shifts, patched(), type_k=cache) for shifts in counts]
    assert all(found <= 1.1 * after(folded, n, patched(), type_k=cache) for n, found in zip(counts, drift, strict=True))
    assert np.mean(drift) <= 1.1 * np.mean([after(sharp, shifts, patched(), type_k=cache) for shifts in counts])


def test_on_stock_a_shift_of_a_scaled_f16_cache_is_wrong_and_one_of_these_heads_in_q8_0_ends_the_process(
    tmp_path: Path,
) -> None:
    out = tmp_path / "scaled.gguf"
    extended(one_layer("llama", tmp_path), "-o", out, "--factor", "8")
    assert after(out, 1, stock(), type_k=F16) > SHIFTED
    with pytest.raises(RuntimeError, match=r"llama\.cpp ended with -11"):
        after(out, 1, stock(), type_k=Q8_0)


# ---- dynamic


@pytest.mark.parametrize("name", ["llama", "qwen3", "gptoss", "gemma2"])
def test_dynamic_yarn_is_yarn_with_the_factor_that_the_context_needs(
    name: str, toy_gguf: Files, tmp_path: Path
) -> None:
    toy, out = TOYS[name], tmp_path / "dynamic.gguf"
    extended(toy_gguf(name), "-o", out, "--factor", "8", "--dynamic")
    for context in (256, 512, 1024):
        side: dict[str, Any] = {"rope_parameters": toy.scaled(**{**YARN, "factor": context / CONTEXT})}
        params = {"n_ctx": context}
        assert divergence(toy, out, **side, ctx_params=params, runtime=patched()) <= limit(toy, toy_gguf(name))
        if context < LENGTH:
            assert divergence(toy, out, **side, ctx_params=params, runtime=stock()) > WRONG


def test_a_dynamic_file_never_scales_beyond_its_factor(toy_gguf: Files, tmp_path: Path) -> None:
    out, plain = tmp_path / "dynamic.gguf", tmp_path / "plain.gguf"
    extended(toy_gguf("llama"), "-o", out, "--factor", "4", "--dynamic")
    extended(toy_gguf("llama"), "-o", plain, "--factor", "4")
    assert_same_bits([(out, patched()), (plain, patched())], 1024)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gptoss"])
def test_a_dynamic_file_opened_short_is_the_unscaled_model_bit_for_bit(
    name: str, toy_gguf: Files, tmp_path: Path
) -> None:
    out = tmp_path / "dynamic.gguf"
    extended(toy_gguf(name), "-o", out, "--factor", "4", "--dynamic", "--original-ctx", "512")
    for context in (256, 512):
        assert_same_bits([(out, patched()), (toy_gguf(name), patched())], context)


def test_a_state_saved_at_one_factor_does_not_load_at_another(toy_gguf: Files, tmp_path: Path) -> None:
    out = tmp_path / "dynamic.gguf"
    extended(toy_gguf("llama"), "-o", out, "--factor", "8", "--dynamic")
    assert state_moves(out, (512, 512), (patched(), patched())) == (True, True)
    assert state_moves(out, (512, 1024), (patched(), patched())) == (False, False)
    assert state_moves(out, (1024, 2048), (patched(), patched())) == (True, True)  # both at the file's own factor


def test_states_of_files_that_are_not_dynamic_move_as_before(toy_gguf: Files, tmp_path: Path) -> None:
    out = tmp_path / "plain.gguf"
    extended(toy_gguf("llama"), "-o", out, "--factor", "8")
    for runtime in (stock(), patched()):
        assert state_moves(out, (512, 1024), (runtime, runtime)) == (True, True)


def test_a_dynamic_state_is_not_taken_by_a_stock_library_nor_one_of_stock_by_a_patched_one(
    toy_gguf: Files, tmp_path: Path
) -> None:
    out = tmp_path / "dynamic.gguf"
    extended(toy_gguf("llama"), "-o", out, "--factor", "8", "--dynamic")
    for libraries in ((stock(), patched()), (patched(), stock())):
        assert state_moves(out, (1024, 1024), libraries) == (False, False)


def test_dynamic_is_refused_beside_an_attention_factor(toy_gguf: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = run("extend", toy_gguf("llama"), "-o", out, "--factor", "8", "--dynamic", "--attention-factor", "1.1")
    assert (done.code, done.out) == (2, "")
    assert "--dynamic needs the attention factor that follows from the factor" in done.err
    assert not out.exists()
    keys = {**YARN_KEYS, "rope.scaling.yarn_dynamic": True, "rope.scaling.attn_factor": 0.9}
    assert not load_ok(write_with_keys(toy_gguf("llama"), out, keys), patched())


def test_a_dynamic_file_says_so_and_what_stock_makes_of_it(toy_gguf: Files, tmp_path: Path) -> None:
    out = tmp_path / "dynamic.gguf"
    document = run("extend", toy_gguf("llama"), "-o", out, "--factor", "8", "--dynamic", "--json").json
    assert document["rope"]["dynamic"] is True
    assert document["exact"] == {"stock": False, "patched": True}
    assert [finding["code"] for finding in document["findings"]] == ["dynamic"]
    found = inspect_gguf(out, RopeOptions())
    assert found.intent.dynamic
    assert found.verdict() == "stock llama.cpp computes something else than this file asks for"
    assert found.verdict(Runtime.PATCHED) == "patched llama.cpp computes exactly what this file asks for"
    assert [finding.level for finding in found.findings if finding.code == "dynamic"] == ["warning"]
    baked = run("extend", toy_gguf("llama"), "--factor", "8", "--dynamic", "--encoding", "baked", "--dry-run")
    assert baked.code == 2


# ---- what uses none of it


@pytest.mark.parametrize("name", KINDS)
def test_files_that_use_nothing_new_are_computed_bit_for_bit_as_before(
    name: str, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    files = [toy_folder(name) / "f32.gguf", toy_folder(name) / "q8_0.gguf"]
    if TOYS[name].yarn:
        files.append(write_with_keys(files[0], tmp_path / "yarn.gguf", YARN_KEYS))
    for file in files:
        assert_same_bits([(file, stock()), (file, patched())], LENGTH)


def test_the_other_settings_that_stock_gets_right_stay_right(toy_gguf: Files, tmp_path: Path) -> None:
    toy = TOYS["llama"]
    for setting in (*EVERYWHERE, *MORE):
        out = tmp_path / f"{setting}.gguf".replace(" ", "-")
        extension = plan_extension(read_before(toy_gguf("llama")), SETTINGS[setting][0], "auto")
        write_extension(extension, out)
        assert divergence(toy, out, **reference(toy, setting), runtime=patched()) <= EXACT, setting
