"""The file of transformers' defaults, against the transformers that it was made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_defaults_are_those_of_the_pinned_transformers() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "make_config_defaults.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/make_config_defaults.py"
