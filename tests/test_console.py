"""The console blocks of the docs are run again: what stands below a command is what it prints, but for times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yarn_gguf.cli import COMMANDS

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "make_console.py"
pytestmark = pytest.mark.slow


NEEDED = {"guide.md": {"plan", "run", "flags"}, "llama-cpp.md": {"verify"}}


@pytest.mark.parametrize("page", NEEDED)
def test_a_page_shows_what_its_commands_print(page: str) -> None:
    if not NEEDED[page] <= set(COMMANDS):
        pytest.skip("shows commands that are not here")
    done = subprocess.run([sys.executable, str(SCRIPT), "--check", page], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
