"""The demo models, in llama.cpp: the figures of their card, and the order of the methods.

Bounds are those that the models were made for; docs/methods.md has what was measured when they were made. Every GGUF
is written by the command line from the checkpoints in the package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf import GGUFReader

from tests.command import ROOT, environment, run
from yarn_gguf.demo import CONTEXT, DEPTHS, LENGTHS, demo_model
from yarn_gguf.evaluate import Sliding, perplexity, predicted, prompts
from yarn_gguf.evaluation import Evaluated, Job, evaluate
from yarn_gguf.models import Opening, open_model
from yarn_gguf.tasks.prompts import TASKS
from yarn_gguf.tasks.text import Mix, document

MEGABYTES = 12_000_000
File = Callable[..., Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """(model, type, options …) → its GGUF."""
    folder = tmp_path_factory.mktemp("demo")

    def made(model: str, kind: str = "f32", *options: str) -> Path:
        out = folder / f"{'-'.join((model, kind, *options))}.gguf"
        if out.exists():
            return out
        if kind.startswith("Q"):
            done = run("quantize", made(model), kind, "-o", out)
        else:
            done = run("convert", demo_model(model), "-o", out, "--outtype", kind, *options)
        assert done.code == 0, done.err
        return out

    return made


def measured(path: Path, job: Job, **how: object) -> Evaluated:
    _, found = evaluate([path], Opening(CONTEXT, threads=1, **how), job)  # type: ignore[arg-type]  # its fields, by name
    return found[0]


def copied(path: Path, length: int, *, seed: int = 0, lists: int = 6) -> float:
    """The share of words of lists that stood at the beginning of texts of this length."""
    (cell,) = measured(path, Job("copy", (length,), (0.0,), lists, seed)).results
    return cell.score  # type: ignore[union-attr]  # copying gives cells


def loss(path: Path) -> float:
    """Nats per token, on texts of 256 tokens."""
    with open_model(path, Opening(264, threads=1)) as session:
        texts = (session.tokenize(document(Random(f"short {n}"), 256, Mix()), add_special=False) for n in range(48))
        return float(np.mean([perplexity(session, text, 256, Sliding(0, 254, 254)).nll for text in texts]))


def test_the_base_model_copies_at_its_own_context_and_not_at_eight_times(file: File) -> None:
    assert copied(file("base"), 256) >= 0.98
    assert copied(file("base"), 2048) <= 0.2


def test_yarn_without_fine_tuning_copies_at_four_times(file: File) -> None:
    assert copied(file("base", "f32", "--factor", "8"), 1024) >= 0.9


def test_the_fine_tune_copies_and_finds_keys_at_eight_times(file: File) -> None:
    assert copied(file("yarn8"), 2048) >= 0.95
    cells = measured(file("yarn8"), Job("passkey", LENGTHS, DEPTHS, 2)).results
    assert np.mean([cell.score for cell in cells]) >= 0.95  # type: ignore[union-attr]


def test_the_fine_tune_loses_nothing_on_short_texts(file: File) -> None:
    assert loss(file("yarn8")) <= 1.02 * loss(file("base"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_eight_times_only_a_method_that_keeps_fast_pairs_copies_and_yarn_copies_most(file: File, seed: int) -> None:
    """Over the seeds: 0 to 0.01, 0.45 to 0.52, 0.96 to 0.99. The margins are half of what lies between, or less."""
    methods: dict[str, tuple[str, ...]] = {
        "none": (),
        **{name: ("--factor", "8", "--method", name) for name in ("linear", "ntk", "yarn")},
    }
    found = {name: copied(file("base", "f32", *options), 2048, seed=seed) for name, options in methods.items()}
    assert max(found["none"], found["linear"]) <= 0.05, found
    assert found["ntk"] >= max(found["none"], found["linear"]) + 0.2, found
    assert found["yarn"] >= found["ntk"] + 0.2, found


@pytest.mark.parametrize("model", ["base", "yarn8"])
def test_llama_cpp_and_transformers_agree_token_for_token(file: File, model: str) -> None:
    how = Opening(CONTEXT + 8, threads=1)
    with open_model(file(model), how) as ours, open_model(demo_model(model), how) as theirs:
        for name in ("copy", "passkey"):
            grid = Job(name, (256, CONTEXT), (0.0, 0.5), 1).grid
            for length in grid.lengths:
                for depth in grid.depths:
                    for prompt in prompts(ours, TASKS[name], grid, length, depth):
                        assert np.array_equal(theirs.tokenize(text_of(ours, prompt.tokens)), prompt.tokens)
                        assert np.array_equal(predicted(ours, prompt), predicted(theirs, prompt))


def text_of(session: object, tokens: np.ndarray) -> str:
    """Without the token that opens it."""
    found: bytes = session.text_of(tokens[1:])  # type: ignore[attr-defined]  # a Session
    return found.decode()


def test_the_divergence_from_transformers_at_eight_times_is_that_of_rounding(file: File, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(document(Random(1), 2 * CONTEXT, Mix()), encoding="utf-8")
    done = run(
        "verify", demo_model("yarn8"), file("yarn8"), "--ctx", str(CONTEXT), "--text", text, "--noise", "0", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["candidates"][0]["kld"]["mean"] <= 1e-6


def test_q8_0_keeps_every_accuracy(file: File) -> None:
    for length in LENGTHS:
        assert abs(copied(file("yarn8", "Q8_0"), length) - copied(file("yarn8"), length)) <= 0.01


def test_half_of_the_weights_or_more_are_q4_k_in_q4_k_m(file: File) -> None:
    counts: dict[str, int] = {}
    for tensor in GGUFReader(file("yarn8", "Q4_K_M")).tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    assert counts["Q4_K"] >= sum(counts.values()) / 2, counts
    assert not {"Q5_0", "Q8_0"} & set(counts), "a row that is no multiple of 256 falls back"


def test_the_package_stays_small() -> None:
    folder = demo_model("base").parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MEGABYTES
    for name in ("base", "yarn8"):
        config = json.loads((demo_model(name) / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == "bfloat16"


def test_training_is_deterministic(tmp_path: Path) -> None:
    """A hundredth of the steps, twice: the same weights, byte for byte."""
    for name in ("one", "other"):
        words = [sys.executable, str(ROOT / "scripts" / "train_demo.py"), str(tmp_path / name), "--steps", "0.01"]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for model in ("base", "yarn8", "yarn4"):
        for part in ("model.safetensors", "tokenizer.json", "config.json"):
            assert (tmp_path / "one" / model / part).read_bytes() == (tmp_path / "other" / model / part).read_bytes()


def test_the_demos_tokenizer_is_what_the_script_makes(tmp_path: Path) -> None:
    one = (demo_model("base") / "tokenizer.json").read_bytes()
    assert one == (demo_model("yarn8") / "tokenizer.json").read_bytes()


def test_the_methods_page_follows_from_its_figures() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "make_methods.py"), "--check"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_demo_shows_it_all_and_leaves_its_files_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo-out"
    done = run("demo", "-o", folder)
    assert (done.code, done.err) == (0, ""), done
    names = {"base", "yarn8", "text.txt", "before.gguf", "after.gguf", "after-Q8_0.gguf", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["demo-out"]
    commands = [line for line in done.out.splitlines() if line.startswith("$ yarn-gguf ")]
    assert [command.split()[2] for command in commands] == ["convert", "convert", "quantize", "verify", "eval"]
    before, after = done.out.split("after-Q8_0.gguf in llama.cpp")
    assert "  2048    0.0" in before.rpartition("before.gguf in llama.cpp")[2]
    assert "  2048  100.0  100.0  100.0  100.0  100.0   100.0" in after
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Is the key found?" in page and "src=" not in page and "before.gguf" in page


def test_the_demo_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("demo", "-o", tmp_path / "file" / "below")
    assert done.code in (2, 4)
    assert len(done.err.strip().splitlines()) == 1
