"""Runs the ```console blocks of docs/guide.md and docs/llama-cpp.md, and writes what they print into the pages.

    python scripts/make_console.py [--check] [PAGE …]

A page is one session: a shell in a folder of its own, which a page's commands follow each other in. A line that begins
with `$ ` is a command, one that begins with `> ` goes on with it; all other lines of a block are output, and replaced.
A comment <!-- $ COMMAND --> is run as well, and shows nothing: it makes what a reader has and we have not. `--check`
writes nothing, and exits with 1 where a page shows something else. Numbers may differ, they are the machine's; those of
commands that read headers alone (`EXACT`) may not.

In the shell, `yarn-gguf` is this checkout's, llama.cpp's programs are those of `yarn-gguf build --tools`, on stock
libraries unless a command says otherwise, and $PATCHED is the folder with the patched ones. What takes a while is
built by the tests' own helpers.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("guide.md", "llama-cpp.md")
WIDTH = 100
HOME = "/home/you/models"  # what stands for the folder of a session
SECONDS = 240.0  # that a command may take
END = "\x1e"
PART = re.compile(r"^```console\n(?P<block>.*?)^```$|^<!-- \$ (?P<hidden>.*?) -->$", re.MULTILINE | re.DOTALL)
EXACT = re.compile(r"\$ yarn-gguf (plan|flags|inspect) ")
NUMBER = re.compile(r"-?\d[\d.,]*(?:e[+-]?\d+)?")


class Shell:
    """bash, one command at a time, with what it prints on both streams."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        bin_folder = folder / ".bin"
        bin_folder.mkdir()
        for name, command in _programs().items():
            (bin_folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (bin_folder / name).chmod(0o755)
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=_environment(bin_folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def output(self, command: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        watch = threading.Timer(SECONDS, self._end)
        watch.start()
        self.process.stdin.write(f"{command}\nprintf '{END}\\n'\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.endswith(f"{END}\n"):
                watch.cancel()
                return "".join([*lines, line.removesuffix(f"{END}\n")]).replace(self.folder, HOME)
            lines.append(line)
        watch.cancel()
        raise SystemExit(f"the shell ended at: {command}\n{''.join(lines)}")

    def _end(self) -> None:
        """Everything that the session started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)

    def close(self) -> None:
        self._end()
        self.process.wait()


def _programs() -> dict[str, str]:
    """What stands in the PATH: this checkout's command, and llama.cpp's programs on stock libraries."""
    sys.path.insert(0, str(ROOT))
    from tests.built import stock_tool
    from yarn_gguf.llamacpp.recipes import TOOLS

    return {
        "yarn-gguf": f"{sys.executable} -m yarn_gguf",
        "python": sys.executable,
        **{name: " ".join(stock_tool(name)) for name in TOOLS},
    }


def _environment(bin_folder: Path) -> dict[str, str]:
    from tests.built import builds_cache, patched

    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CHECKOUT": str(ROOT),
        "PATCHED": str(patched()),
        "YARN_GGUF_CACHE": str(builds_cache()),
        "COLUMNS": str(WIDTH),
        "HF_HUB_OFFLINE": "1",
    }


def commands(block: str) -> Iterator[str]:
    """The lines of each command, as they stand."""
    found: list[str] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append(line)
        elif line.startswith("> ") and found:
            found[-1] += line
    yield from found


def renewed(text: str) -> str:
    """A page with the output of its commands."""
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(Path(folder))
        try:
            return PART.sub(lambda part: _renewed(shell, part), text)
        finally:
            shell.close()


def _renewed(shell: Shell, part: re.Match[str]) -> str:
    if part["hidden"] is not None:
        shell.output(part["hidden"])
        return part[0]
    found = []
    for command in commands(part["block"]):
        output = shell.output("\n".join(line[2:] for line in command.splitlines()))
        found.append(command + "".join(f"{line.rstrip()}\n" for line in output.splitlines()))
    return "```console\n" + "".join(found) + "```"


def comparable(text: str) -> list[str]:
    """The words of a page, wherever lines break; of what is measured on a machine without its numbers."""
    exact = False
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith(("$ ", "```")):
            exact = EXACT.match(line) is not None
        found += (line if exact else NUMBER.sub("N", line)).split()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a page is stale")
    parser.add_argument("pages", nargs="*", metavar="PAGE", default=list(PAGES))
    given = parser.parse_args()
    stale = False
    for name in given.pages:
        page = ROOT / "docs" / name
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        if comparable(new) != comparable(old):
            stale = True
            print(
                "".join(
                    difflib.unified_diff(*(text.splitlines(keepends=True) for text in (old, new)), name, "now", n=1)
                )
            )
        if not given.check:
            page.write_text(new, encoding="utf-8")
        print(f"docs/{name}", "is stale" if given.check and stale else "was run")
    return int(given.check and stale)


if __name__ == "__main__":
    sys.exit(main())
