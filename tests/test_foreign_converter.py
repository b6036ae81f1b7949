"""Another converter is run as a child: upstream's own on toys, and small scripts that fail in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import upstream
from yarn_gguf.conversion.foreign import OUTTYPES, converted
from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError
from yarn_gguf.gguf_file.reader import read_header

# What a person would give is upstream's script; the toys have no tokenizer, so its driver stands before it.
SHIM: Final = """
import runpy, sys
sys.argv[1:1] = [{tree!r}]
sys.path[0] = {folder!r}
runpy.run_path({driver!r}, run_name="__main__")
"""
ROOT: Final = Path(__file__).resolve().parent.parent


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    script = tmp_path / "convert_hf_to_gguf.py"
    tree = str(upstream.llama_cpp_source())
    script.write_text(SHIM.format(tree=tree, folder=tree, driver=str(upstream.DRIVER)))
    return script


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "their converter; rm -rf.py"
        path.write_text(f"import os, signal, sys, time\nout = sys.argv[sys.argv.index('--outfile') + 1]\n{text}\n")
        return path

    return written


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Where the output will be."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.gguf"


def test_what_upstreams_converter_writes_is_what_it_writes_alone(
    converter: Path, beside: Path, toy_folder: Callable[[str], Path]
) -> None:
    toy = toy_folder("qwen2")
    with converted(converter, toy, beside, "f32") as made:
        assert made.parent.parent == beside.parent
        expected, found = read_header(toy / "f32.gguf"), read_header(made)
        names = {
            "general.name",
            "general.basename",
            "general.finetune",
            "general.version",
        }  # which the folder has a say in
        assert {k: e.raw for k, e in found.entries.items() if k not in names} == {
            k: e.raw for k, e in expected.entries.items() if k not in names
        }
        assert dict(found.tensors) == dict(expected.tensors)
        assert made.read_bytes()[found.data_offset :] == (toy / "f32.gguf").read_bytes()[expected.data_offset :]
    assert list(beside.parent.iterdir()) == []


def test_what_upstream_does_not_know_is_said_in_its_words(
    converter: Path, beside: Path, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    config = json.loads((toy_folder("qwen2") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MadeUpForCausalLM"]}))
    with (
        pytest.raises(ChildError, match=r"ended with exit status 1: .*MadeUpForCausalLM is not supported"),
        converted(converter, folder, beside),
    ):
        pass
    assert list(beside.parent.iterdir()) == []


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_the_arguments_are_upstreams(outtype: str, beside: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    path = script("import json; json.dump(sys.argv[1:], open(out, 'w'))")
    model = tmp_path / "-a model; $(touch x)"
    for mmproj in (False, True):
        with converted(path, model, beside, outtype, mmproj=mmproj) as made:
            told = [str(model), "--outfile", str(made), "--outtype", outtype] + mmproj * ["--mmproj"]
            assert json.loads(made.read_text()) == told


def test_the_result_can_be_moved_away(beside: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    with converted(script("open(out, 'w').write('x')"), tmp_path, beside) as made:
        made.rename(beside)
    assert [path.name for path in beside.parent.iterdir()] == ["model.gguf"]


def test_a_name_of_the_converters_own_is_found(beside: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    path = script("open(os.path.join(os.path.dirname(out), 'mmproj-model.gguf'), 'w').write('x')")
    with converted(path, tmp_path, beside, mmproj=True) as made:
        assert made.name == "mmproj-model.gguf"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sys.exit(3)", "ended with exit status 3: it said nothing"),
        ("print('one\\ntwo'); raise ValueError('bad \\x1b[31m thing')", r"ValueError: bad \\x1b\[31m thing"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("pass", "wrote no file: it said nothing"),
        ("sys.stdout.write('y' * 5_000_000 + '\\nlast'); sys.exit(1)", r"y{300} \| last$"),
        ("sys.stdout.buffer.write(bytes(range(256)) * 100); sys.exit(1)", "exit status 1"),
    ],
)
def test_a_converter_that_fails_is_shown_by_its_last_lines(
    text: str, said: str, beside: Path, script: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ChildError, match=said) as error, converted(script(text), tmp_path, beside):
        pass
    assert len(str(error.value)) < 3000
    assert str(error.value).isprintable()
    assert list(beside.parent.iterdir()) == []


def test_nothing_of_it_is_read_from_the_terminal_or_shown(
    beside: Path, script: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = script("print('noise'); print('more', file=sys.stderr); open(out, 'w').write(sys.stdin.read() or 'nothing')")
    with converted(path, tmp_path, beside) as made:
        assert made.read_text() == "nothing"
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_run_is_refused_beforehand(beside: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.py"):
        with pytest.raises(InputError, match="is no file; give the path"), converted(path, tmp_path, beside):
            pass
    with pytest.raises(UsageError, match="cannot write Q4_K_M"), converted(script(""), tmp_path, beside, "Q4_K_M"):
        pass
    with (
        pytest.raises(ChildError, match="cannot be started"),
        converted(script(""), tmp_path, beside, python="/nowhere"),
    ):
        pass
    with (
        pytest.raises(ResourceError, match="cannot be written to"),
        converted(script(""), tmp_path, tmp_path / "no" / "x"),
    ):
        pass


def _gone(pid: int) -> bool:
    """Whether nothing runs under this number, within two seconds; a zombie does not."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


STUBBORN: Final = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = os.fork()
open(out, 'w').write('half')
open({pids!r} + str(os.getpid()), 'w')
time.sleep(600)
"""


def test_a_timeout_ends_the_child_and_its_children(
    beside: Path, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yarn_gguf.children.command.PATIENCE", 0.2)
    path = script(STUBBORN.format(pids=str(tmp_path / "pid-")))
    with pytest.raises(ChildError, match="did not end within 3 seconds"), converted(path, tmp_path, beside, timeout=3):
        pass
    pids = [int(found.name[4:]) for found in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)
    assert list(beside.parent.iterdir()) == []


RUN: Final = """
import sys
from pathlib import Path
from yarn_gguf.children import command
from yarn_gguf.conversion import foreign as foreign_converter
command.PATIENCE = 0.2
with foreign_converter.converted(*map(Path, sys.argv[1:])):
    pass
"""


def test_ctrl_c_ends_all_of_it_and_leaves_nothing(beside: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    path = script(STUBBORN.format(pids=str(tmp_path / "pid-")))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command: list[str | Path] = [sys.executable, "-P", "-c", RUN, path, tmp_path, beside]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=env) as run:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    assert run.returncode == -signal.SIGINT
    assert all(_gone(int(found.name[4:])) for found in tmp_path.glob("pid-*"))
    assert list(beside.parent.iterdir()) == []
