"""What `verify` needs: memory at 32k tokens and 152k words, and processor time beside the models' own.

Measured when this was written, two models and the command together, in MiB beyond weights and KV caches: 310 to 330.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from .command import COMMAND, environment
from .make_wide import HEADS, LAYERS, WIDTH, WORDS, make_wide

CONTEXT = 32_768
SCORED = 512
MEBI = 1 << 20


def proportional_set(pid: int) -> int:
    """Bytes of a process and its children, what several share counted once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(proportional_set(int(child)) for child in children)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process takes")
def test_memory_at_32k_tokens_and_152k_words_is_weights_caches_and_600_mib(tmp_path: Path) -> None:
    files = [make_wide(tmp_path / "one.gguf", CONTEXT), make_wide(tmp_path / "two.gguf", CONTEXT, 0.05)]
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(1).integers(0, WORDS, CONTEXT).astype(np.int32))
    command = [
        *COMMAND,
        "verify",
        *map(str, files),
        "--tokens",
        str(ids),
        "--ctx",
        str(CONTEXT),
        "--batch",
        "64",
        "--threads",
        "1",
    ]
    command += ["--positions", f"{CONTEXT - SCORED}-{CONTEXT}", "--noise", "0", "--max-kld", "99", "--min-top1", "0"]
    peak = 0
    with subprocess.Popen([*command, "--json"], env=environment(), stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, proportional_set(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert (found["tokens"], found["context"]) == (SCORED, CONTEXT)
    weights = sum(file.stat().st_size for file in files)
    caches = len(files) * 2 * LAYERS * CONTEXT * (WIDTH // HEADS) * HEADS * 2
    assert peak - weights - caches < 600 * MEBI
