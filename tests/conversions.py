"""Conversions of toys, as the command does them; what several test modules need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from yarn_gguf.conversion.decided import Outcome
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.conversion.writing import write_conversion
from yarn_gguf.convert import planned


def as_published(folder: Path, target: Path) -> Path:
    """A toy's checkpoint with the model type that transformers gives it; one toy's is written for upstream's sake."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.gguf"))
    path = target / "config.json"
    config = json.loads(path.read_text())
    if config["model_type"] == "raw":
        path.write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    return target


def convert_folder(folder: Path, out: Path, outtype: str = "auto", **wanted: Any) -> Outcome:
    """Converts a checkpoint that has no tokenizer."""
    request = Wanted(tokenizer=False, outtypes=(outtype,), **wanted)
    with planned(folder, request) as conversion:
        return write_conversion(conversion, [out], wanted=request)


def convert_toy(folder: Path, out: Path, **wanted: Any) -> Path:
    """Converts a toy of `toy_folder`; returns `out`."""
    checkpoint = as_published(folder, out.with_name(f"{out.stem}-checkpoint"))
    convert_folder(checkpoint, out, **wanted)
    return out
