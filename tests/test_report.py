"""The report as a person sees it: the table in a terminal of 100 columns, the page in a browser.

The reports are made of rows that are drawn here: there are as many candidates, and names as bad, as anybody has.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from yarn_gguf.findings import warning
from yarn_gguf.intent import Intent
from yarn_gguf.metrics import ROW, Rows
from yarn_gguf.report import by_position, document, table
from yarn_gguf.report_html import page, write_page
from yarn_gguf.rope import Rope, Yarn
from yarn_gguf.summary import buckets, log_edges, summarize
from yarn_gguf.thresholds import Limits
from yarn_gguf.verification.judging import histogram_of, histogram_reach
from yarn_gguf.verification.results import CandidateReport, ModelInfo, NoiseFloor, Report

from .browser import evaluate, screenshot

CONTEXT, ORIGINAL = 32768, 8192
HOSTILE = 'a</title><script>document.body.remove()</script>"&\x1b[31m\u202e.gguf'
INTENT = Intent(Rope(128, 1e6, Yarn(4.0, ORIGINAL)), ORIGINAL, CONTEXT)


def drawn(kld: float, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    rows = np.zeros(CONTEXT, ROW)
    rows["position"] = np.arange(CONTEXT)
    rows["kld"] = kld * rng.exponential(1, CONTEXT) * (1 + np.arange(CONTEXT) / CONTEXT)
    rows["reference"] = -rng.exponential(2, CONTEXT)
    rows["candidate"] = rows["reference"] + rng.standard_normal(CONTEXT) * np.sqrt(kld)
    rows["top1"], rows["top5"] = rng.random(CONTEXT) > np.sqrt(kld), 4
    return rows


def info(name: str) -> ModelInfo:
    return ModelInfo(Path(name), "gguf", "Q4_K_M", "llama", 4_900_000_000, INTENT, "its keys", "llama 8B Q4_K")


def candidate(name: str, kld: float, reach: float, reasons: tuple[str, ...] = ()) -> CandidateReport:
    rows = drawn(kld, zlib.crc32(name.encode()))
    near, far = rows[:ORIGINAL], rows[ORIGINAL:]
    return CandidateReport(
        info(name),
        summarize(rows),
        tuple(buckets(rows, log_edges(CONTEXT, ORIGINAL))),
        summarize(near),
        summarize(far),
        1.3,
        histogram_of(rows, reach),
        Limits(0.2, 0.5, 4.0),
        "fail" if reasons else "pass",
        reasons,
    )


@pytest.fixture
def report() -> Report:
    reach = histogram_reach([drawn(0.3, 1)])
    names = [
        f"a-model-with-a-rather-long-name-8b-instruct-{kind}.gguf" for kind in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q2_K")
    ]
    everyone = [candidate(name, kld, reach) for name, kld in zip(names, (0.001, 0.01, 0.03, 0.4), strict=True)]
    reasons = ("mean KL 0.9 inside and 2.3 beyond the original context, 0.2 is allowed",)
    everyone += [candidate(HOSTILE, 0.9, reach, reasons), candidate("nan.gguf", float("nan"), reach, ("not finite",))]
    return Report(
        reference=info("reference.gguf"),
        candidates=tuple(everyone),
        noise_floor=NoiseFloor(1024, summarize(drawn(1e-9, 9)[:1024])),
        lower_bound=False,
        top=None,
        rest=None,
        context=CONTEXT,
        windows=1,
        original_context=ORIGINAL,
        tokens=CONTEXT,
        scored=CONTEXT,
        text="the built-in text",
        text_sha256="0" * 64,
        tokens_sha256="1" * 64,
        settings={"kv": "auto"},
        versions={"yarn-gguf": "0"},
        seconds=12.3,
        findings=(warning("rope_differs", "x.gguf: differs"),),
    )


def test_the_table_fits_100_columns(report: Report) -> None:
    lines = [*table(report), *by_position(report)]
    assert max(len(line) for line in lines) <= 100
    assert all(f"{each:>6}-" in "\n".join(lines) for each in (0, 64, 8192, 16384))


def test_numbers_that_are_none_are_null_in_the_document(report: Report) -> None:
    found = document(report)
    assert found["verdict"] == "fail"
    assert [each["verdict"] for each in found["candidates"]] == ["pass"] * 4 + ["fail"] * 2


def test_the_page_asks_for_nothing_and_obeys_no_name(report: Report, tmp_path: Path) -> None:
    write_page(report, tmp_path / "report.html", "yarn-gguf verify <a> 'b'")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert not re.findall(r"<(?:script|link|img|iframe|object)\b", text)
    assert not re.findall(r"(?:https?:)?//[a-z]", text)
    assert "\x1b" not in text
    assert "yarn-gguf verify &lt;a&gt;" in text
    assert page(report, "") == page(report, "")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window_and_can_be_read(report: Report, width: int, dark: bool, tmp_path: Path) -> None:
    """In a browser without a network: nothing sticks out, all plots have lines, ink and paper differ."""
    path = tmp_path / "report.html"
    write_page(report, path, "yarn-gguf verify")
    script = (
        "({overflow: d.documentElement.scrollWidth - d.documentElement.clientWidth,"
        " titles: [...d.querySelectorAll('h2')].map(e => e.textContent),"
        " verdicts: [...d.querySelectorAll('.badge')].map(e => e.textContent),"
        " first: d.querySelector('.badge').getBoundingClientRect().top,"
        " lines: [...d.querySelectorAll('svg')].map(e => e.querySelectorAll('polyline').length),"
        " sizes: [...d.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width),"
        " outside: [...d.querySelectorAll('svg text, svg polyline, svg circle')].filter(e => { const a ="
        " e.getBoundingClientRect(), b = e.ownerSVGElement.getBoundingClientRect(); return a.left < b.left - 1 ||"
        " a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; }).length,"
        " scripts: d.scripts.length, ink: w.getComputedStyle(d.body).color,"
        " paper: w.getComputedStyle(d.body).backgroundColor})"
    )
    found = evaluate(path, script, width, dark=dark)
    assert found["overflow"] <= 0
    assert found["titles"][0] == "Verdicts"
    assert found["verdicts"] == ["PASS"] * 4 + ["FAIL"] * 2
    assert found["first"] < 400
    assert len(found["lines"]) == 4
    assert min(found["lines"]) >= 5
    assert min(found["sizes"]) >= 250
    assert found["outside"] == 0
    assert found["scripts"] == 0
    ink, paper = (_brightness(found[name]) for name in ("ink", "paper"))
    assert (ink - paper > 120) if dark else (paper - ink > 120)
    shot = screenshot(path, tmp_path / "shot.png", width, 1600, dark=dark)
    assert shot.stat().st_size > 20_000


def _brightness(colour: str) -> float:
    red, green, blue = (int(each) for each in re.findall(r"\d+", colour)[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue
