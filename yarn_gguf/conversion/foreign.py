"""Somebody else's converter in a child process: for the architectures, and the vision towers, that we have no row for.

It is llama.cpp's `convert_hf_to_gguf.py`, or what takes the same arguments. It writes to a temporary beside the final
output, on the same file system; what becomes of that file is the caller's. What the child says is kept, and its end
shown when it fails. Knows how a process is started and stopped; nothing of GGUF.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError, printable

OUTTYPES: Final = ("f32", "f16", "bf16", "q8_0", "auto")
KEPT: Final = 1 << 20  # bytes of the end of what a child says that are looked at
LINES: Final = 5
LONGEST_LINE: Final = 300
PATIENCE: Final = 5.0  # seconds between asking a child to end and making it


@contextlib.contextmanager
def converted(
    converter: Path,
    checkpoint: Path,
    output: Path,
    outtype: str = "auto",
    *,
    mmproj: bool = False,
    python: str | None = None,
    timeout: float | None = None,
) -> Iterator[Path]:
    """The GGUF that `converter` makes of a checkpoint, beside `output`; gone at the end, unless it was moved away.

    Raises ChildError when the child fails, dies, takes more than `timeout` seconds or writes no file.
    """
    if outtype not in OUTTYPES:
        raise UsageError(f"--converter cannot write {outtype}; {', '.join(OUTTYPES)} can be asked of it")
    if not converter.is_file():
        text = "is no file; give the path of llama.cpp's convert_hf_to_gguf.py"
        raise InputError(text, file=converter, code="no_converter")
    with _folder_beside(output) as folder:
        made = folder / "model.gguf"
        # a checkpoint keeps the name that it was given by, links and all: converters write it into the file
        command = [python or sys.executable, str(converter.resolve()), str(checkpoint.absolute())]
        command += ["--outfile", str(made), "--outtype", outtype, *(["--mmproj"] if mmproj else [])]
        with tempfile.TemporaryFile() as said:
            status = _run(command, said, timeout)
            if status:
                raise ChildError(f"{_fate(status)}: {_end(said)}", file=converter, code="converter_failed")
            found = _written(folder, made)
            if found is None:
                raise ChildError(
                    f"ended well, but wrote no file: {_end(said)}", file=converter, code="converter_silent"
                )
        yield found


def _written(folder: Path, made: Path) -> Path | None:
    """The file that was asked for; a converter may put its own words into the name (mmproj-, the type)."""
    found = [made] if made.is_file() else sorted(path for path in folder.iterdir() if path.is_file())
    return found[0] if len(found) == 1 else None


@contextlib.contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name[:80]}.", suffix=".converting")
    except OSError as error:
        text = f"cannot be written to: {error.strerror}"
        raise ResourceError(text, file=output.parent, code="write_failed") from error
    with folder as name:
        yield Path(name).resolve()


def _run(command: list[str], said: IO[bytes], timeout: float | None) -> int:
    """The exit status of a child and of all that it starts: a group of its own, none of which outlives this call."""
    group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that the last lines of one that is killed are there
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, **group)
    except OSError as error:
        raise ChildError(f"cannot be started: {error.strerror}", file=command[0], code="converter_failed") from error
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired as error:
        text = f"did not end within {timeout:g} seconds: {_end(said)}"
        raise ChildError(text, file=command[1], code="converter_slow") from error
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


def _fate(status: int) -> str:
    if status > 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _end(said: IO[bytes]) -> str:
    """The last lines that a child wrote, on one line."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - KEPT))
    text = said.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return printable(" | ".join(line[-LONGEST_LINE:] for line in lines[-LINES:])) or "it said nothing"
