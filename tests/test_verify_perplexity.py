"""The figures of `verify` against `llama-perplexity --kl-divergence`, on the same tokens and windows.

Its file clamps log-probabilities at the largest − 16 and keeps them in 16 bits, so what depends on the reference's
probabilities differs by that: measured, up to 2e-5 of the mean KL and 1e-6 of the perplexity. The bound is 1 %.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from yarn_gguf.sample_text import sample_text

from .built import stock_tool
from .command import run
from .verify_models import TOYS, make_models

CONTEXT, WINDOWS = 256, 8
NUMBER = r"(-?[\d.]+)"
LINES = {
    "kld": rf"Mean +KLD: +{NUMBER}",
    "median": rf"Median +KLD: +{NUMBER}",
    "p99": rf"99.0% +KLD: +{NUMBER}",
    "max": rf"Maximum +KLD: +{NUMBER}",
    "ppl": rf"Mean PPL\(Q\) +: +{NUMBER}",
    "ppl_reference": rf"Mean PPL\(base\) +: +{NUMBER}",
    "correlation": rf"Cor\(ln\(PPL\(Q\)\), ln\(PPL\(base\)\)\): +{NUMBER}%",
    "delta_p_rms": rf"RMS Δp +: +{NUMBER}",
    "top1": rf"Same top p: +{NUMBER}",
}
ATTEMPTS = 8  # it ends, now and then, before its log is written
PERCENT = ("correlation", "delta_p_rms", "top1")


def theirs(model: Path, text: Path, base: Path, *options: str) -> dict[str, float]:
    command = [
        *stock_tool("llama-perplexity"),
        "-m",
        model,
        "-f",
        text,
        "-c",
        CONTEXT,
        "-b",
        CONTEXT,
        "--chunks",
        WINDOWS,
    ]
    command += ["-t", 2, "-fa", "off", "--kl-divergence-base", base, *options]
    for _ in range(ATTEMPTS):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=True)
        found = {name: re.search(line, done.stdout) for name, line in LINES.items()}
        if "--kl-divergence" not in options or all(found.values()):
            break
    return {name: float(match[1]) / (100 if name in PERCENT else 1) for name, match in found.items() if match}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_the_figures_are_those_of_llama_perplexity(name: str, tmp_path: Path) -> None:
    models = make_models(name, tmp_path)
    text, base = tmp_path / "text.txt", tmp_path / "base.kld"
    text.write_text(sample_text(8 * CONTEXT * WINDOWS))
    assert theirs(models.files["F32"], text, base, "-ctk", "f32", "-ctv", "f32") is not None
    kinds = ("Q8_0", "Q4_K_M", "Q2_K")
    scored = f"{CONTEXT // 2}-{CONTEXT - 1}"  # what it scores of each window
    options = ("--text", text, "--ctx", str(CONTEXT), "--windows", str(WINDOWS), "--positions", scored)
    fixed = ("--flash-attention", "off", "--noise", "0", "--max-kld", "99", "--min-top1", "0", "--json")
    done = run("verify", models.files["F32"], *(models.files[kind] for kind in kinds), *options, *fixed)
    assert done.code == 0, done
    for kind, found in zip(kinds, done.json["candidates"], strict=True):
        wanted = theirs(models.files[kind], text, base, "--kl-divergence")
        assert wanted.keys() == LINES.keys(), kind
        kld = found["kld"]
        ours = {"kld": kld["mean"], "median": kld["median"], "p99": kld["p99"], "max": kld["max"]}
        ours |= {name: found[name] for name in ("ppl", "ppl_reference", "correlation", "top1")}
        ours["delta_p_rms"] = found["delta_p"]["rms"]
        for figure, value in wanted.items():
            printed = 1e-6 if figure in ("kld", "median", "p99", "max", "ppl", "ppl_reference") else 6e-5
            assert ours[figure] == pytest.approx(value, rel=0.01, abs=printed), (kind, figure)
        assert done.json["tokens"] == WINDOWS * (CONTEXT // 2 - 1)
