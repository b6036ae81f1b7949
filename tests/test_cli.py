"""The command line around its commands: what an error looks like, when JSON is printed, what a terminal is shown.

What the commands do is the other files' matter. Bugs are made by putting one in a command of this very process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any, Final

import click
import pytest

from tests.command import COMMAND, ROOT, environment, run
from tests.make_gguf import small_model
from yarn_gguf import cli
from yarn_gguf.errors import InputError, printable
from yarn_gguf.gguf_file.reader import read_header

NASTY = "a\nb\x1b[31mc\x07\x85\u2028\u202ed"
SHOWN = r"a\nb\x1b[31mc\x07\x85\u2028\u202ed"


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A model with control characters in its own name, in a key that is reported, and in general.name."""
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 16.0}
    return small_model(tmp_path / f"{NASTY}.gguf", keys={**keys, "general.name": NASTY})


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} - {"\n"}


# ---- control characters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NASTY, SHOWN),
        ("plain, ж模🦙 and \u00a0 stay", "plain, ж模🦙 and \u00a0 stay"),
        ("\0\t\r\x7f\x9b", r"\x00\t\r\x7f\x9b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_is_one_line_whatever_its_file_is_called() -> None:
    error = InputError(f"has a key {NASTY}", file=NASTY)
    assert str(error).splitlines() == [str(error)]
    assert controls(str(error)) == set()
    assert error.file == NASTY


def test_an_error_about_a_file_with_a_newline_is_one_line_and_exact_in_json(tmp_path: Path) -> None:
    path = tmp_path / f"{NASTY}.gguf"
    done = run("inspect", path, "--json")
    assert done.err == f"error: {tmp_path}/{SHOWN}.gguf: {done.json['error']['text']}\n"
    assert done.json["error"]["file"] == str(path)


@pytest.mark.parametrize("command", [("inspect",), ("extend", "--dry-run"), ("extend", "--in-place")])
def test_what_comes_from_a_file_cannot_move_the_cursor(command: tuple[str, ...], nasty: Path) -> None:
    done = run(*command, nasty)
    assert (done.code, controls(done.out), done.err) == (0, set(), "")
    assert SHOWN in done.out


def test_a_name_that_is_not_text_is_shown_and_written_exactly_in_json(tmp_path: Path) -> None:
    path = small_model(tmp_path / "model.gguf").rename(tmp_path / "\udcff.gguf")
    assert r"\udcff.gguf" in run("inspect", path).out
    assert run("inspect", path, "--json").json["path"] == str(path)


# ---- when an error is JSON


@pytest.mark.parametrize(
    ("arguments", "as_json"),
    [
        (("inspect", "nowhere.gguf", "--json"), True),
        (("inspect", "--json", "nowhere.gguf"), True),
        (("inspect", "nowhere.gguf"), False),
        (("inspect", "--", "--json"), False),
        (("inspect", "nowhere.gguf", "--plot", "--json"), False),
        (("extend", "nowhere.gguf", "-o", "--json"), False),
        (("extend", "nowhere.gguf", "-o", "--json", "--json"), True),
        (("extend", "nowhere.gguf", "--factor", "many", "--json"), True),
        (("extend", "nowhere.gguf", "--no-such-option", "--json"), True),
        (("extend", "--json"), True),
        (("extend", "--no-such-option", "--", "--json"), False),
        (("no-such-command", "--json"), True),
    ],
)
def test_an_error_is_json_where_json_was_asked_for(arguments: tuple[str, ...], as_json: bool) -> None:
    done = run(*arguments)
    assert done.code in (2, 3, 4), done
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert bool(done.out) is as_json
    if as_json:
        assert done.json["error"]["exit"] == done.code


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bug_of_ours_is_a_traceback_and_where_asked_for_one_json_document(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError("not\nfor you")

    inspect = cli.cli.get_command(click.Context(cli.cli), "inspect")
    monkeypatch.setattr(inspect, "callback", broken)
    assert cli._run(["inspect", "model.gguf", *["--json"] * as_json]) == cli.BUG
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "ZeroDivisionError" in err
    if not as_json:
        assert out == ""
        return
    found = json.loads(out)
    assert found["schema"] == 1
    assert (found["error"]["code"], found["error"]["exit"], found["error"]["file"]) == ("bug", 70, None)
    assert found["error"]["text"] == "ZeroDivisionError: not for you"


# ---- values that are no names


@pytest.mark.parametrize(
    "arguments", [("extend", "model.gguf", "-o", ""), ("extend", ""), ("inspect", "m.gguf", "--plot", "")]
)
def test_an_empty_name_is_called_empty(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "is empty; name a file" in done.err
    assert ("'-o'" in done.err) is ("-o" in arguments)


def test_a_name_that_ends_like_a_folder_is_no_file(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf")
    done = run("extend", model, "--factor", "4", "-o", f"{tmp_path}/nowhere/")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {tmp_path}/nowhere/: its folder does not exist; create it first\n"


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--force",)])
def test_a_default_name_that_is_too_long_asks_for_a_shorter_one(more: tuple[str, ...], tmp_path: Path) -> None:
    model = small_model(tmp_path / f"{'x' * 245}.gguf")
    done = run("extend", model, "--factor", "4", *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{'x' * 245}-yarn4x.gguf: its name is too long for this filesystem; name a shorter one with -o" in done.err
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_a_picture_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    done = run("inspect", small_model(tmp_path / "model.gguf"), "--plot", tmp_path / f"{'x' * 300}.png")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "name a shorter one with --plot" in done.err


# ---- standard streams, and signals from the first moment on


@pytest.mark.parametrize("arguments", [("--help",), ("inspect", "model.gguf"), ("inspect", "model.gguf", "--json")])
def test_a_reader_that_has_gone_ends_it_like_any_other_program(arguments: tuple[str, ...], tmp_path: Path) -> None:
    small_model(tmp_path / "model.gguf")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = _started(arguments, tmp_path, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_is_closed_is_the_null_device(closed: tuple[int, ...], tmp_path: Path) -> None:
    small_model(tmp_path / "model.gguf")

    def close() -> None:
        for number in closed:
            os.close(number)

    done = _started(("extend", "model.gguf", "--factor", "4", "--json"), tmp_path, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) is (1 not in closed)
    assert read_header(tmp_path / "model-yarn4x.gguf").tensors


def _started(arguments: tuple[str, ...], folder: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment(), text=True, check=False, **pipes)


INTERRUPTED: Final = """
import importlib.abc, os, runpy, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["inspect", "nowhere.gguf"]
runpy.run_module("yarn_gguf", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["click", "numpy", "yarn_gguf.cli", "yarn_gguf.rope", "yarn_gguf.plot"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_the_program_is_still_loading_is_answered_with_a_line(name: str, code: int, module: str) -> None:
    program = INTERRUPTED.format(module=module, signal=name)
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"stopped by {name}; no unfinished file was left behind\n"


def test_the_console_script_is_the_module_that_answers_signals_first() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"yarn-gguf": "yarn_gguf.__main__:main"}


def test_every_exit_code_is_in_the_help() -> None:
    out = run("--help").words
    for code in ("0", "1", "2", "3", "4", "5", "70", "129", "130", "141", "143"):
        assert f" {code}" in out
