"""What all tests share. Oracles live outside: llama.cpp's libraries, transformers, the upstream converter."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from . import upstream
from .toys import TOYS, save_checkpoint, toy_key

# what runs the tests may ignore these (nohup, a background job), and children would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


OUTTYPES = ("f32", "f16", "bf16", "q8_0")  # that upstream's converter makes of every toy


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker() -> None:
    """The toys are too small for more, and workers of pytest-xdist would fight over the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_folder() -> Callable[[str], Path]:
    """name → a folder with the toy's unscaled checkpoint and, as `f32.gguf` …, what upstream's converter makes of it.

    Made once and kept in the user's cache folder, under a key of everything that it depends on. Not to be written to.
    """
    return _made_toy


@pytest.fixture(scope="session")
def toy_gguf(toy_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    """name → the toy's unscaled float32 GGUF. Not to be written to."""
    return lambda name: toy_folder(name) / "f32.gguf"


def _made_toy(name: str) -> Path:
    toy = TOYS[name]
    converter = hashlib.sha256(upstream.DRIVER.read_bytes() + f"{upstream.SHA256}{OUTTYPES}".encode()).hexdigest()[:8]
    toys = upstream.cache_folder() / "toys"
    folder = toys / f"{name}-{toy_key(toy)}-{converter}"
    if not folder.is_dir():
        toys.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=toys) as temporary:
            made = save_checkpoint(toy, Path(temporary, name))
            upstream.convert_to(made, made, OUTTYPES)
            try:
                made.rename(folder)
            except OSError:  # another worker was first
                if not folder.is_dir():
                    raise
    return folder
