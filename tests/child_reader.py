"""Reads one file in a fresh process that has nothing but the reader loaded, and says what came of it and what it cost.

For what a test's own process cannot measure, or would not survive: peak memory, a read that never returns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent


class Read(NamedTuple):
    exit: int  # 0, or the error's
    text: str
    seconds: float  # of processor time
    before: float  # MiB at the peak so far, when the imports were done
    peak: float  # MiB


def read_in_child(path: Path, seconds: float = 20) -> Read:
    """Fails with TimeoutExpired when the read hangs."""
    command = [sys.executable, "-m", "tests.child_reader", str(path)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=seconds)
    return Read(*json.loads(done.stdout))


def _peak() -> float:
    """MiB. On Linux ru_maxrss would begin at what the parent had when it forked, so the kernel's own mark is read."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _read(path: str) -> Read:
    from yarn_gguf.errors import YarnGgufError
    from yarn_gguf.gguf_file.reader import read_header

    before, begin, code, text = _peak(), time.process_time(), 0, ""
    try:
        header = read_header(path)  # noqa: F841 - held, so that its memory counts
    except YarnGgufError as error:
        code, text = error.exit_code, error.text
    return Read(code, text, time.process_time() - begin, before, _peak())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_read(sys.argv[1])))
