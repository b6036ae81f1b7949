"""Somebody else's converter in a child process: for the architectures, and the vision towers, that we have no row for.

It is llama.cpp's `convert_hf_to_gguf.py`, or what takes the same arguments. It writes to a temporary beside the final
output, on the same file system; what becomes of that file is the caller's. What the child says is kept, and its end
shown when it fails. Knows nothing of GGUF.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from yarn_gguf.children.command import fate, last_words, run
from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError

OUTTYPES: Final = ("f32", "f16", "bf16", "q8_0", "auto")


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
            try:
                status = run(command, said, timeout=timeout)
            except subprocess.TimeoutExpired as error:
                text = f"did not end within {error.timeout:g} seconds: {last_words(said)}"
                raise ChildError(text, file=converter, code="converter_slow") from error
            if status:
                raise ChildError(f"{fate(status)}: {last_words(said)}", file=converter, code="converter_failed")
            found = _written(folder, made)
            if found is None:
                raise ChildError(
                    f"ended well, but wrote no file: {last_words(said)}", file=converter, code="converter_silent"
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
