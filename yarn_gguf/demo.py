"""The demo: a little model that knows 256 tokens, the same with YaRN for 2048, and what is shown of them.

Knows where the models lie in the package, and what the demo's page says; runs nothing itself. The models were made by
`scripts/train_demo.py`; their model cards have the figures.
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Final

from yarn_gguf.errors import ResourceError
from yarn_gguf.evaluation import Evaluated, Job
from yarn_gguf.evaluation_html import sections as evaluation_sections
from yarn_gguf.report_html import sections as verification_sections
from yarn_gguf.report_html import whole_page
from yarn_gguf.tasks.text import Mix, document
from yarn_gguf.verification.results import Report

MODELS: Final = ("base", "yarn8")
CONTEXT: Final = 2048  # of yarn8; base was trained on texts of 256 tokens
LENGTHS: Final = (256, 512, 1024, 2048)
DEPTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Places:
    """The files of one demo, in a folder of their own."""

    base: Path
    yarn8: Path
    text: Path
    before: Path
    after: Path
    small: Path
    page: Path


def _places(folder: Path) -> Places:
    names = ("base", "yarn8", "text.txt", "before.gguf", "after.gguf", "after-Q8_0.gguf", "report.html")
    return Places(*(folder / name for name in names))


def demo_model(name: str) -> Path:
    """The folder of one of `MODELS` in the package."""
    return Path(str(files("yarn_gguf"))) / "demo_models" / name


def prepare(folder: Path) -> Places:
    """The folder with both checkpoints and a text of more than `CONTEXT` tokens in it."""
    places = _places(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODELS:
            shutil.copytree(demo_model(name), folder / name, dirs_exist_ok=True)
        places.text.write_text(document(Random(1), 2 * CONTEXT, Mix()) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot be filled: {error.strerror or error}", file=folder, code="demo_folder") from error
    return places


def page(report: Report, job: Job, found: Sequence[Evaluated], commands: Sequence[str]) -> str:
    return whole_page("yarn-gguf: the demo", _body(report, job, found, commands))


def _body(report: Report, job: Job, found: Sequence[Evaluated], commands: Sequence[str]) -> Iterator[str]:
    yield "<h1>Eight times the context</h1>"
    yield (
        "<p>A little Llama was trained on texts of 256 tokens. With YaRN ×8 and a short fine-tune it reads 2048. "
        "Below: a key is hidden in a text and asked for at its end, before and after; then whether the GGUFs compute "
        "what the checkpoint does, at every position.</p>"
    )
    yield "<h2>Is the key found?</h2>"
    yield from evaluation_sections(job, found)
    yield "<h2>Do the GGUFs compute what the checkpoint does?</h2>"
    yield from verification_sections(report, commands[-2])
    lines = "\n".join(html.escape(f"$ {command}") for command in commands)
    yield f"<h2>All of it again</h2><pre>{lines}</pre>"
