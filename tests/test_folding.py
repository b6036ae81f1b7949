"""Files whose weights hold YaRN's magnitude, against transformers, and against stock llama.cpp's own context shifts.

Measured when this was written, in float32: mean KL to transformers 6e-12 to 7e-10 (GELU rows 2e-8 to 2e-7, where the
bound is twice what their float16 table does to the unscaled file); after up to ten shifts 1e-13 to 9e-11 to a fresh
evaluation, where a file that is not folded has 5e-3 to 0.3 after one shift and up to 4 after ten.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader

from yarn_gguf.before import read_before
from yarn_gguf.cli.convert import convert
from yarn_gguf.conversion.decided import Outcome
from yarn_gguf.effective import Runtime
from yarn_gguf.errors import InputError
from yarn_gguf.extend import plan_extension, plan_restoration, write_extension
from yarn_gguf.findings import Level
from yarn_gguf.inspection import Inspection, inspect_gguf
from yarn_gguf.intent import RopeOptions
from yarn_gguf.provenance import FOLDED

from .conversions import as_published, convert_folder
from .llama_logits import kl, llama_logits
from .llama_shift import shifted_logits, survivors
from .test_logits import EXACT, EXACT_GELU, default_yarn, divergence, limit
from .toys import FACTOR, LENGTH, TOYS, YARN, save_checkpoint, tokens

Folder = Callable[[str], Path]

M = 0.1 * np.log(FACTOR) + 1
WINDOW, DROPPED = 384, 64
SHIFTED = 0.002  # what a file that is not folded is beyond after one shift
UNSCALED_SLIDING = ("gemma3", "laguna", "mellum", "olmo3")
NORMED_AFTER = ("hunyuan",)  # QK norms after RoPE: the magnitude cancels
OF_THEIR_OWN = {"ministral3": 1.3, "mistral4": 1.3, "deepseek3": 1.3}  # where the settings leave cos and sin alone, too
NO_YARN = ("phi3", "phi3-partial")  # transformers makes longrope of it
FOLDABLE = [name for name in TOYS if name not in (*UNSCALED_SLIDING, *NORMED_AFTER, *NO_YARN)]
# one layer, so that keys and values depend on their token alone; llama.cpp cannot shift one layer that slides
ONE_LAYER = (
    *("llama", "qwen3", "glm4", "falcon", "gptneox"),
    *("deepseek2", "stablelm", "olmo2", "granite", "nemotron"),
)


def _fold(checkpoint: Path, out: Path, **wanted: Any) -> Outcome:
    rope = RopeOptions(factor=FACTOR, attention_factor=wanted.pop("attention_factor", None))
    return convert_folder(checkpoint, out, **{"outtype": "f32", "rope": rope, "fold": True, **wanted})


def _scaled_checkpoint(name: str, folder: Path, **scaling: Any) -> tuple[Path, dict[str, Any]]:
    """With YaRN of its own, for models whose kinds of layers differ."""
    rope = TOYS[name].scaled(**YARN, **scaling)
    return save_checkpoint(TOYS[name], folder, rope, max_position_embeddings=LENGTH), rope


def _tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def _extended(source: Path, target: Path, **options: Any) -> Path:
    write_extension(plan_extension(read_before(source), RopeOptions(**options)), target)
    return target


def _codes(found: Inspection) -> list[str]:
    return [finding.code for finding in found.findings]


# ---- what is computed


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_file_is_exact_and_keeps_cos_and_sin_as_they_are(
    name: str, toy_folder: Folder, tmp_path: Path
) -> None:
    toy, attention = TOYS[name], OF_THEIR_OWN.get(name)
    given = {} if attention is None else {"attention_factor": attention}
    out = tmp_path / "folded.gguf"
    outcome = _fold(as_published(toy_folder(name), tmp_path / "checkpoint"), out, **given)
    assert "folded" in [finding.code for finding in outcome.findings]
    found = inspect_gguf(out, RopeOptions())
    assert all(layers.magnitude == pytest.approx(1) for layers in found.meant)
    assert found.sound() and "context_shift" not in _codes(found) and "folded" in _codes(found)
    assert divergence(toy, out, **default_yarn(toy, **given)) <= limit(toy, toy_folder(name) / "f32.gguf")


@pytest.mark.parametrize("name", UNSCALED_SLIDING)
def test_where_some_layers_stay_unscaled_only_what_a_key_cannot_say_is_folded(name: str, tmp_path: Path) -> None:
    checkpoint, rope = _scaled_checkpoint(name, tmp_path / "checkpoint", attention_factor=1.5)
    out = tmp_path / "folded.gguf"
    outcome = _fold(checkpoint, out, rope=RopeOptions())
    codes = {finding.code: finding.text for finding in outcome.findings}
    assert f"multiplies cached keys by {M:.6g}" in codes["context_shift"]
    assert outcome.conversion.written.exact
    assert divergence(TOYS[name], out, rope) <= (EXACT_GELU if TOYS[name].gelu else EXACT)
    plain, _ = _scaled_checkpoint(name, tmp_path / "default")
    with pytest.raises(InputError, match="sliding layers stay unscaled") as refused:
        _fold(plain, tmp_path / "refused.gguf", rope=RopeOptions())
    assert refused.value.code == "not_foldable"


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_folded_file_stays_exact_over_context_shifts_and_another_does_not(name: str, tmp_path: Path) -> None:
    checkpoint = as_published(save_checkpoint(TOYS[name], tmp_path / "saved", num_hidden_layers=1), tmp_path / "one")
    folded, plain = tmp_path / "folded.gguf", tmp_path / "plain.gguf"
    _fold(checkpoint, folded)
    _fold(checkpoint, plain, fold=False)

    def after(file: Path, shifts: int) -> float:
        fresh = llama_logits(file, survivors(tokens(), WINDOW, DROPPED, shifts))[-DROPPED:]
        return float(kl(fresh, shifted_logits(file, tokens(), WINDOW, DROPPED, shifts)).mean())

    assert max(after(folded, shifts) for shifts in (1, 2, 5, 10)) <= EXACT
    assert after(plain, 1) > SHIFTED
    assert after(plain, 10) > 20 * SHIFTED


# ---- what is multiplied


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("smollm3", ["attn_k.weight", "attn_q.weight"]),
        ("qwen3", ["attn_k_norm.weight", "attn_q_norm.weight"]),
        ("qwen2", ["attn_k.bias", "attn_k.weight", "attn_q.bias", "attn_q.weight"]),
        ("deepseek2", ["attn_kv_a_mqa.weight", "attn_q_b.weight"]),
    ],
)
def test_nothing_but_queries_and_keys_of_layers_that_scale_is_multiplied_once(
    name: str, changed: list[str], toy_folder: Folder, tmp_path: Path
) -> None:
    checkpoint = as_published(toy_folder(name), tmp_path / "checkpoint")
    _fold(checkpoint, tmp_path / "folded.gguf")
    _fold(checkpoint, tmp_path / "plain.gguf", fold=False)
    before, after = _tensors(tmp_path / "plain.gguf"), _tensors(tmp_path / "folded.gguf")
    different = [tensor for tensor in before if before[tensor].tobytes() != after[tensor].tobytes()]
    layers = (0, 1, 2)  # of smollm3 the fourth does not turn
    assert sorted(different) == sorted(f"blk.{i}.{tensor}" for i in layers for tensor in changed)
    for tensor in different:
        ratios = after[tensor] / before[tensor]
        multiplied = np.abs(ratios - 1) > 1e-3
        assert ratios[multiplied] == pytest.approx(M, rel=3e-7)
        assert np.array_equal(after[tensor][~multiplied], before[tensor][~multiplied])
        turns = multiplied.reshape(len(multiplied), -1)
        assert (turns.all(axis=1) == turns.any(axis=1)).all()  # by whole rows


def test_of_a_head_that_turns_in_part_only_those_rows_are_multiplied(toy_folder: Folder, tmp_path: Path) -> None:
    checkpoint = as_published(toy_folder("gptneox"), tmp_path / "checkpoint")
    _fold(checkpoint, tmp_path / "folded.gguf")
    _fold(checkpoint, tmp_path / "plain.gguf", fold=False)
    name = "blk.0.attn_qkv.weight"
    ratios = _tensors(tmp_path / "folded.gguf")[name] / _tensors(tmp_path / "plain.gguf")[name]
    rows = (np.abs(ratios - 1) > 1e-3).all(axis=1).reshape(3, 2, 64)  # queries, keys, values of two heads
    assert rows[:2, :, :16].all()
    assert not rows[:2, :, 16:].any() and not rows[2].any()


# ---- what is refused, and what is said


def test_a_model_whose_norms_undo_any_magnitude_is_refused(toy_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hunyuan-dense") as refused:
        _fold(toy_folder("hunyuan"), tmp_path / "x.gguf")
    assert refused.value.code == "not_foldable"


def test_a_magnitude_of_nothing_is_refused(toy_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="magnitude of 0"):
        _fold(toy_folder("llama"), tmp_path / "x.gguf", attention_factor=0.0)


def test_queries_and_keys_that_are_cut_off_cannot_be_folded_into(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(TOYS["olmo"], tmp_path / "clipped", clip_qkv=8.0)
    with pytest.raises(InputError, match="clip_qkv"):
        _fold(checkpoint, tmp_path / "x.gguf")


def test_without_a_magnitude_nothing_is_folded_and_it_is_said(toy_folder: Folder, tmp_path: Path) -> None:
    for method in ("linear", "ntk", "ntk-by-parts"):
        out = tmp_path / f"{method}.gguf"
        rope = RopeOptions(factor=FACTOR, method=method)
        outcome = convert_folder(toy_folder("llama"), out, outtype="f32", rope=rope, fold=True)
        assert "nothing_folded" in [finding.code for finding in outcome.findings]
        assert FOLDED not in read_before(out).model.entries


@pytest.mark.parametrize(("outtype", "most"), [("bf16", 1e-3), ("f16", 1e-5), ("q8_0", 3e-3)])
def test_in_other_types_folding_rounds_and_says_how_much(
    outtype: str, most: float, toy_folder: Folder, tmp_path: Path
) -> None:
    folded, plain = tmp_path / "folded.gguf", tmp_path / "plain.gguf"
    outcome = _fold(toy_folder("llama"), folded, outtype=outtype)
    _fold(toy_folder("llama"), plain, outtype=outtype, fold=False)
    said = {finding.code: finding.text for finding in outcome.findings}
    assert outtype in said["folding_rounds"]
    assert 0 < kl(llama_logits(plain, tokens()), llama_logits(folded, tokens())).mean() < most


@pytest.mark.parametrize("outtype", ["bf16", "f16", "q8_0"])
def test_norms_stay_float32_so_nothing_is_rounded_there(outtype: str, toy_folder: Folder, tmp_path: Path) -> None:
    outcome = _fold(toy_folder("qwen3"), tmp_path / "folded.gguf", outtype=outtype)
    assert "folding_rounds" not in [finding.code for finding in outcome.findings]


def test_the_command_tells_what_was_folded_and_a_dry_run_where(toy_folder: Folder, tmp_path: Path) -> None:
    flags = ["--no-vocab", "--factor", "8", "--fold-magnitude", "--outtype", "bf16", "-o", str(tmp_path / "x.gguf")]
    checkpoint = str(as_published(toy_folder("glm4"), tmp_path / "checkpoint"))
    planned = CliRunner(env={"COLUMNS": "250"}).invoke(
        convert, [checkpoint, *flags, "--dry-run"], catch_exceptions=False
    )
    lines = [line for line in planned.output.splitlines() if f"×{M:.6g}" in line]
    assert len(lines) == 12  # weights and biases of queries and keys, three layers
    assert all("some rows" in line for line in lines)
    done = CliRunner().invoke(convert, [checkpoint, *flags], catch_exceptions=False)
    said = " ".join(done.output.split())
    assert "a context shift is exact" in said and "folding rounds these weights in bf16" in said


# ---- what becomes of the file later


@pytest.mark.parametrize("name", ["llama", "glm4", "smollm3"])
def test_extending_a_folded_file_again_takes_the_folded_part_out(name: str, toy_folder: Folder, tmp_path: Path) -> None:
    toy, file = TOYS[name], tmp_path / "folded.gguf"
    convert_folder(toy_folder(name), file, outtype="f32", rope=RopeOptions(factor=4.0), fold=True)
    extended = _extended(file, tmp_path / "extended.gguf", factor=FACTOR)
    assert divergence(toy, extended, **default_yarn(toy)) <= EXACT
    found = inspect_gguf(extended, RopeOptions())
    assert found.sound() and "folded" in _codes(found)
    assert inspect_gguf(extended, RopeOptions(factor=FACTOR)).sound()
    kept = _extended(extended, tmp_path / "kept.gguf")
    assert divergence(toy, kept, **default_yarn(toy)) <= EXACT
    other = _extended(kept, tmp_path / "other.gguf", factor=FACTOR, attention_factor=1.0)
    assert divergence(toy, other, **default_yarn(toy, attention_factor=1.0)) <= EXACT


@pytest.mark.parametrize("method", ["linear", "ntk", "none"])
def test_methods_that_have_no_key_to_undo_it_are_refused(method: str, toy_folder: Folder, tmp_path: Path) -> None:
    _fold(toy_folder("llama"), tmp_path / "folded.gguf")
    factor = {} if method == "none" else {"factor": 2.0}
    with pytest.raises(InputError, match="convert the checkpoint again") as refused:
        _extended(tmp_path / "folded.gguf", tmp_path / "x.gguf", method=method, **factor)
    assert refused.value.code == "folded"


@pytest.mark.parametrize("name", ["llama", "llama-llama3", "qwen3", "glm4", "gptoss"])
def test_restoring_a_folded_file_gives_the_unscaled_model(name: str, toy_folder: Folder, tmp_path: Path) -> None:
    toy, file, restored = TOYS[name], tmp_path / "folded.gguf", tmp_path / "restored.gguf"
    _fold(toy_folder(name), file)
    way_back = plan_restoration(read_before(file))
    write_extension(way_back, restored)
    assert way_back.identical
    assert divergence(toy, restored, None) <= EXACT
    found = inspect_gguf(restored, RopeOptions())
    assert found.exact_on(Runtime.STOCK) and "folded" in _codes(found) and "context_shift" in _codes(found)
    again = _extended(restored, tmp_path / "again.gguf", factor=FACTOR)
    assert divergence(toy, again, **default_yarn(toy)) <= EXACT


def test_where_no_key_undoes_it_restoring_is_refused(toy_folder: Folder, tmp_path: Path) -> None:
    _fold(toy_folder("deepseek2"), tmp_path / "folded.gguf")
    with pytest.raises(InputError, match="no key undoes") as refused:
        plan_restoration(read_before(tmp_path / "folded.gguf"))
    assert refused.value.code == "folded"


def test_no_finding_of_a_folded_file_is_an_error(toy_folder: Folder, tmp_path: Path) -> None:
    _fold(toy_folder("llama"), tmp_path / "folded.gguf")
    findings = inspect_gguf(tmp_path / "folded.gguf", RopeOptions()).findings
    assert not [finding for finding in findings if finding.level is Level.ERROR]
