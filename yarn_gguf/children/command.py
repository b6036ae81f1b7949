"""A child process and all that it starts: run to its end, or ended with everything that it has begun.

Each child leads a group of its own, none of which outlives the call. What it says goes to a file; what is shown of that
is its end. Knows how a process is started and stopped; nothing of what it does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from yarn_gguf.errors import ChildError, printable

KEPT: Final = 1 << 20  # bytes of the end of what a child says that are looked at
LINES: Final = 5
LONGEST_LINE: Final = 300
PATIENCE: Final = 5.0  # seconds between asking a child to end and making it


def run(
    command: Sequence[str],
    said: IO[bytes],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    line: Callable[[str], None] | None = None,
) -> int:
    """The exit status of a child, negative for a signal's. `line` is called with each line that it says, as it comes.

    Raises ChildError when it cannot be started, and subprocess.TimeoutExpired after `timeout` seconds, which are not
    looked at while lines are waited for.
    """
    group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    out: Any = said if line is None else subprocess.PIPE
    try:
        child = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=said if line is None else subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}, cwd=folder, **group,
        )  # fmt: skip
    except OSError as error:
        raise ChildError(f"cannot be started: {error.strerror}", file=command[0], code="child_failed") from error
    try:
        if line is not None:
            assert child.stdout is not None
            with child.stdout:
                for raw in child.stdout:
                    said.write(raw)
                    line(raw.decode("utf-8", "replace"))
        return child.wait(timeout)
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the whole group to end, then makes it; also when a second Ctrl-C comes meanwhile."""
    try:
        if child.poll() is None:
            _signal(child, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
    finally:
        _signal(child, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        child.wait()


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(child.pid, number)
        else:
            child.terminate()


def program(name: str) -> str | None:
    """A program on PATH, or in the environment that we run in (`pip install cmake ninja`)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def fate(status: int) -> str:
    """How a child ended, in words."""
    if status > 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def ending(done: subprocess.CompletedProcess[str]) -> str:
    """How a child ended that was waited for, and the last that it said."""
    said = done.stderr.strip().splitlines()[-1:] or ["no word"]
    how = f"code {done.returncode}"
    if done.returncode < 0:
        names = {int(each): each.name for each in signal.Signals}
        how = f"signal {names.get(-done.returncode, -done.returncode)}"
    return f"ended with {how}, saying: {said[0]}"


def last_words(said: IO[bytes]) -> str:
    """The last lines that a child wrote, on one line."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - KEPT))
    text = said.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return printable(" | ".join(line[-LONGEST_LINE:] for line in lines[-LINES:])) or "it said nothing"
