"""When the disk is full, the power fails, somebody presses Ctrl-C or the system says no, at every step of a write.

The invariant, checked by hashing all that is in the folder: inputs and any earlier output are what they were, nothing
new stands at a final name, and no temporary is left (after SIGKILL one may be, under a name that says whose it is).
Faults are real where a test can make them, and else injected by strace between the program and the kernel.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests import gguf_bytes as g
from tests.command import COMMAND, Done, environment, extended, run, run_fresh
from tests.make_gguf import ROPE_FREQS, Raw, hashes, rewritten, small_model

STEP: Final = ("--factor", "4", "--encoding", "baked", "--jobs", "1")
TEMPORARY: Final = re.compile(r"\.out\.gguf\.[0-9a-f]{8}\.yarn-gguf-tmp|\.model.*\.[0-9a-f]{8}\.yarn-gguf-tmp")
LITTER: Final = "yarn-gguf-tmp"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: strace, namespaces, /proc")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Raw(trailing=b"behind", rope_freqs="first").write(tmp_path / "model.gguf")


@pytest.fixture
def wanted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the extended model is, byte for byte."""
    out = tmp_path_factory.mktemp("wanted") / "out.gguf"
    extended(model, *STEP, "-o", out)
    return out.read_bytes()


def injected(inject: str, *arguments: str | Path) -> Done:
    """`yarn-gguf extend ARGUMENTS` with a fault between it and the kernel."""
    name = inject.split(":")[0]
    strace = ["strace", "-f", "-qq", "-e", f"trace={name}", "-e", f"inject={inject}", "-o", os.devnull]
    command = [*strace, *COMMAND, "extend", *map(str, arguments)]
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def failed(done: Done, code: int = 4) -> str:
    """The one line of an error."""
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    return done.err


# ---- no room (row 31)


def _in_small_tmpfs(arguments: Sequence[str], size: str, first: str = ":") -> tuple[Done, list[str]]:
    """A run with a tmpfs of `size` at /mnt, in namespaces of its own, and what is left there."""
    mount = f"mount -t tmpfs -o size={size} none /mnt"
    script = f'left=$1; shift; {mount} && {first} && "$@"; code=$?; ls -A /mnt >"$left"; exit $code'
    with tempfile.NamedTemporaryFile("r") as left:
        command = ["unshare", "-Urm", "sh", "-c", script, "sh", left.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        return Done(done.returncode, done.stdout, done.stderr), left.read().split()


@pytest.fixture(scope="module")
def namespaces() -> None:
    tried = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"namespaces are not permitted here: {tried.stderr.decode().strip()}")


@pytest.mark.usefixtures("namespaces")
def test_a_file_that_will_not_fit_is_refused_before_its_first_byte(tmp_path: Path) -> None:
    model = Raw(blob=1_500_000).write(tmp_path / "model.gguf")
    done, left = _in_small_tmpfs([*COMMAND, "extend", str(model), *STEP, "-o", "/mnt/out.gguf"], "1m")
    said = r"/mnt/out.gguf: needs 1\.\d MiB \(15\d{5} bytes\), free .* \(10\d{5} bytes\) in its folder; make room"
    assert re.search(said, failed(done))
    assert left == []


@pytest.mark.usefixtures("namespaces")
def test_a_set_that_will_not_fit_is_refused_though_each_of_its_parts_would(tmp_path: Path) -> None:
    tensors = {f"blob{n}": np.ones(100_000, np.float32) for n in range(4)}
    parts = rewritten(small_model(tmp_path / "m.gguf"), tmp_path / "model.gguf", split=4, tensors=tensors)
    assert len(parts) == 3
    done, left = _in_small_tmpfs([*COMMAND, "extend", str(parts[0]), *STEP, "-o", "/mnt/out.gguf"], "1m")
    assert re.search(r"needs 1\.\d MiB \(1[67]\d{5} bytes\), free .* \(10\d{5} bytes\)", failed(done))
    assert left == []
    done, left = _in_small_tmpfs([*COMMAND, "extend", str(parts[0]), *STEP, "-o", "/mnt/out.gguf"], "2m")
    assert (done.code, len(left)) == (0, 3)
    assert "2 other parts copied" in done.words


@pytest.mark.usefixtures("namespaces")
def test_a_disk_without_a_single_byte_is_an_error_of_the_system(model: Path) -> None:
    fill = "dd if=/dev/zero of=/mnt/filler bs=4k status=none 2>/dev/null || true"
    done, left = _in_small_tmpfs(
        [*COMMAND, "extend", str(model), *STEP, "-o", "/mnt/out.gguf"], "64k", f"{{ {fill}; }}"
    )
    assert "free 0 B in its folder" in failed(done)
    assert left == ["filler"]


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("where", [("-o", "/mnt/out.gguf"), ("-o", "/mnt/out.gguf", "--force"), ("--in-place",), ()])
def test_on_a_filesystem_that_is_read_only_the_error_is_about_the_output(where: tuple[str, ...], model: Path) -> None:
    """Removing the temporary that could not be made fails there as well, and says nothing."""
    ready = f"cp {shlex.quote(str(model))} /mnt/model.gguf && mount -o remount,ro /mnt"
    command = [*COMMAND, "extend", "/mnt/model.gguf", *STEP, *where]
    done, left = _in_small_tmpfs(command, "1m", ready)
    final = {"-o": "out", "--in-place": "model"}.get(where[0], "") if where else "model-yarn4x"
    assert failed(done) == f"error: /mnt/{final}.gguf: cannot be written: Read-only file system\n"
    assert left == ["model.gguf"]


@pytest.mark.usefixtures("namespaces")
def test_a_picture_on_a_filesystem_that_is_read_only_is_an_error_of_the_system(model: Path) -> None:
    command = [*COMMAND, "inspect", str(model), "--plot", "/mnt/rope.svg"]
    done, left = _in_small_tmpfs(command, "1m,ro")
    assert failed(done) == "error: /mnt/rope.svg: cannot be written: Read-only file system\n"
    assert left == []


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("mode", ["new", "forced", "in place"])
def test_a_limit_on_the_size_of_files_is_an_error_of_the_system(mode: str, plain: str, model: Path) -> None:
    import resource  # not on every system, and a skipped module is still imported

    where, before = _mode(mode, model)
    limit = (4096, 4096)
    done = run_fresh(
        "extend",
        model,
        *STEP,
        *where,
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        YARN_GGUF_PLAIN_IO=plain,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert "cannot be written: File too large; needs" in failed(done)
    assert hashes(model.parent) == before


def _mode(mode: str, model: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments that say where to write, and the folder as it is before."""
    out = model.parent / "out.gguf"
    if mode == "forced":
        out.write_text("earlier output")
    where = {"new": ("-o", str(out)), "forced": ("-o", str(out), "--force"), "in place": ("--in-place",)}[mode]
    return where, hashes(model.parent)


# ---- the system says no (row 36)

ERRORS: Final = (
    ("fallocate:error=ENOSPC", "No space left on device; needs"),
    ("fallocate:error=EIO", "Input/output error"),
    ("pwrite64:error=ENOSPC", "No space left on device; needs"),
    ("pwrite64:error=EDQUOT", "Disk quota exceeded; needs"),
    ("copy_file_range:error=EIO", "Input/output error"),
    ("copy_file_range:error=ENOSPC", "No space left on device; needs"),
    ("fsync:error=EIO:when=1", "Input/output error"),
    ("fsync:error=EIO:when=2", "Input/output error"),
    ("fsync:error=EIO:when=3", "Input/output error"),
    ("link,renameat2:error=EIO", "Input/output error"),
)


@needs_strace
@pytest.mark.parametrize("mode", ["new", "forced", "in place"])
@pytest.mark.parametrize(("fault", "says"), ERRORS, ids=[fault for fault, _ in ERRORS])
def test_a_call_that_fails_leaves_everything_as_it_was(fault: str, says: str, mode: str, model: Path) -> None:
    """The third fsync is the folder's after the rename: the name is taken back."""
    where, before = _mode(mode, model)
    assert says in failed(injected(fault, model, *STEP, *where))
    assert hashes(model.parent) == before


UNSUPPORTED: Final = ("fallocate:error=EOPNOTSUPP", "copy_file_range:error=EXDEV", "copy_file_range:retval=0")
REPLACED: Final = ("link:error=EPERM", "renameat2:error=EINVAL", "fsync:error=EINVAL:when=2+")


@needs_strace
@pytest.mark.parametrize("fault", [*UNSUPPORTED, *REPLACED])
@pytest.mark.parametrize("mode", ["new", "forced"])
def test_a_call_that_the_filesystem_lacks_is_done_without(fault: str, mode: str, model: Path, wanted: bytes) -> None:
    """The fsync of a folder, that is: a file's own has to work."""
    where, before = _mode(mode, model)
    done = injected(fault, model, *STEP, *where)
    assert (done.code, done.err) == (0, "")
    assert (model.parent / "out.gguf").read_bytes() == wanted
    assert set(hashes(model.parent)) == {*before, "out.gguf"}


@needs_strace
def test_a_close_that_fails_leaves_everything_as_it_was(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a network filesystem tells of a full disk only then: each close of the temporary, one after the other."""
    log = tmp_path_factory.mktemp("log") / "log"
    trace = ["strace", "-f", "-y", "-qq", "-e", "trace=close", "-o", str(log)]
    command = [*COMMAND, "extend", str(model), *STEP, "-o"]
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    subprocess.run([*trace, *command, str(log.parent / "out.gguf")], check=True, capture_output=True, env=env)
    closes = [n for n, line in enumerate(log.read_text().splitlines(), 1) if LITTER in line]
    assert len(closes) >= 2
    where, before = _mode("new", model)
    for number in closes:
        assert "Input/output error" in failed(injected(f"close:error=EIO:when={number}", model, *STEP, *where))
        assert hashes(model.parent) == before


def test_a_folder_that_may_not_be_written_to_is_an_error_of_the_system(model: Path) -> None:
    folder = model.parent / "folder"
    folder.mkdir(mode=0o555)
    drop = ["-dac_override", "-dac_read_search"]
    capabilities = ["setpriv", f"--inh-caps={','.join(drop)}", f"--bounding-set={','.join(drop)}"]
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, as root may write anywhere")
    command = [*(capabilities if os.geteuid() == 0 else []), *COMMAND, "extend", str(model), *STEP]
    before = hashes(model.parent)
    for out in (folder / "out.gguf", model):
        where = ["-o", str(out)] if out != model else ["--in-place"]
        model.parent.chmod(0o555)
        try:
            done = subprocess.run([*command, *where], capture_output=True, text=True, env=environment(), check=False)
        finally:
            model.parent.chmod(0o755)
        assert "cannot be written: Permission denied" in failed(Done(done.returncode, done.stdout, done.stderr))
        assert hashes(model.parent) == before


# ---- power fails (row 32)

KILLED: Final = {
    "new": ("fallocate", "pwrite64", "copy_file_range", "fsync", "link", "unlink"),
    "forced": ("fallocate", "pwrite64", "copy_file_range", "fsync", "renameat2", "unlink"),
    "in place": ("fallocate", "pwrite64", "copy_file_range", "fsync", "renameat2", "unlink"),
}


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("mode", KILLED)
def test_whenever_it_is_killed_the_old_file_is_whole_or_the_new_one_is(mode: str, model: Path, wanted: bytes) -> None:
    original, deaths = model.read_bytes(), 0
    final = model if mode == "in place" else model.parent / "out.gguf"
    for call in KILLED[mode]:
        for number in range(1, 20):
            shutil.rmtree(model.parent)
            model.parent.mkdir()
            model.write_bytes(original)
            where, before = _mode(mode, model)
            done = injected(f"{call}:signal=KILL:when={number}", model, *STEP, *where)
            after = hashes(model.parent)
            litter = [name for name in after if LITTER in name]
            new = final.exists() and final.read_bytes() == wanted
            assert new or after.get(final.name) == before.get(final.name), (call, number)
            assert mode == "in place" or after["model.gguf"] == before["model.gguf"]
            assert len(litter) <= 1
            assert all(map(TEMPORARY.fullmatch, litter))
            assert set(after) - set(litter) <= {*before, final.name}
            if done.code != -signal.SIGKILL:
                assert (done.code, new, litter) == (0, True, [])
                break
            deaths += 1
    assert deaths >= 9


@needs_strace
@pytest.mark.slow
def test_whenever_it_is_killed_a_set_can_still_be_extended_and_restored(tmp_path: Path) -> None:
    """Both part 1 and part 3 change. One of the two may be the old one: part 1 always knows what part 3 was."""
    folder = tmp_path / "set"
    folder.mkdir()
    factors = {ROPE_FREQS: np.linspace(1, 4, 16, dtype=np.float32)}
    parts = rewritten(small_model(tmp_path / "m.gguf"), folder / "model.gguf", split=3, tensors=factors)
    assert len(parts) == 3
    states = {"original": {part: part.read_bytes() for part in parts}}
    steps = {"baked": STEP, "linear": (*STEP, "--method", "linear"), "keys": ("--factor", "4", "--encoding", "keys")}
    for name, step in steps.items():
        extended(parts[0], *step, "--in-place")
        states[name] = {part: part.read_bytes() for part in parts}
    ways = [("original", "baked"), ("baked", "linear"), ("linear", "keys"), ("linear", "original")]
    mixed = 0
    for old, new in ways:
        step = steps.get(new, ("--restore",))
        for number in range(3, 9):
            _reset(folder, states[old])
            done = injected(f"fsync,renameat2:signal=KILL:when={number}", parts[0], *step, "--in-place")
            now = {part: part.read_bytes() for part in parts}
            assert all(data in (states[old][part], states[new][part]) for part, data in now.items())
            mixed += now not in (states[old], states[new])
            if now != states["original"]:
                extended(parts[0], "--restore", "--in-place")
            assert {part: part.read_bytes() for part in parts} == states["original"]
            assert done.code in (0, -signal.SIGKILL)
    assert mixed >= len(ways)


def _reset(folder: Path, files: dict[Path, bytes]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for path, data in files.items():
        path.write_bytes(data)


# ---- somebody stops it (row 33)

SIGNALS: Final = {"INT": 130, "TERM": 143, "HUP": 129}


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("mode", ["new", "forced"])
def test_a_signal_at_any_step_leaves_everything_as_it_was(name: str, mode: str, model: Path, wanted: bytes) -> None:
    """Once all names are given it comes too late: the new file is there, and whole."""
    calls = ("fallocate", 1), ("copy_file_range", 1), ("fsync", 1), ("fsync", 3), ("link,renameat2", 1), ("unlink", 1)
    for call, number in calls:
        where, before = _mode(mode, model)
        done = injected(f"{call}:signal={name}:when={number}", model, *STEP, *where)
        assert (done.code, done.out, done.err.count("\n")) == (SIGNALS[name], "", 1), (call, done)
        assert "stopped by SIG" in done.err
        after = hashes(model.parent)
        if after != before:
            assert call == "unlink"
            assert (model.parent / "out.gguf").read_bytes() == wanted
            assert set(after) == {*before, "out.gguf"}
            (model.parent / "out.gguf").unlink()


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Path]:
    """A file of 2 GB that takes no room, and whose copy takes seconds."""
    path = sparse(tmp_path / "model.gguf", 2 << 30)
    yield path
    for left in tmp_path.iterdir():
        left.unlink()


def sparse(path: Path, size: int) -> Path:
    """A llama with one tensor of `size` zeros that are holes."""
    small = Raw(blob=32, state_alignment=False).data()
    old = g.tensor(b"blob", (32,), 24, 160)
    head = small[: small.index(old)] + g.tensor(b"output.weight", (size,), 24, 160)
    count = 8 + head.index(b"GGUF")
    head = head[:count] + (2).to_bytes(8, "little") + head[count + 8 :]
    head += bytes(-len(head) % 32)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 160 + size)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_long_write_stops_within_seconds_and_tidies_up(name: str, again: bool, big: Path) -> None:
    """`again`: an impatient second signal while it does so."""
    command = [*COMMAND, "extend", str(big), "--factor", "4", "-o", str(big.parent / "out.gguf")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as child:  # type: ignore[call-overload]  # a dict of options
        _wait(lambda: any(p.stat().st_size for p in big.parent.glob(f".*{LITTER}")))
        number = getattr(signal, f"SIG{name}")
        began = time.monotonic()
        child.send_signal(number)
        if again:
            child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (
        SIGNALS[name],
        "",
        f"stopped by SIG{name}; no unfinished file was left behind\n",
    )
    assert time.monotonic() - began < 10  # whatever the disk does: one slice a worker, and removing the temporary
    assert [path.name for path in big.parent.iterdir()] == ["model.gguf"]


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_started_to_ignore_signals_ignores_them(model: Path, wanted: bytes) -> None:
    """As `nohup` does."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = ["strace", "-f", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:signal=HUP:when=1", "-o", os.devnull]
    command = ["nohup", *trace, *COMMAND, "extend", str(model), *STEP, "-o", str(model.parent / "out.gguf")]
    done = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done
    assert (model.parent / "out.gguf").read_bytes() == wanted


# ---- several at once (row 35)


@pytest.mark.parametrize("force", [True, False])
def test_of_two_runs_onto_one_output_one_whole_file_wins(force: bool, tmp_path: Path) -> None:
    model = Raw(blob=3_000_000).write(tmp_path / "model.gguf")
    results = {}
    for factor in ("2", "3"):
        extended(model, "--factor", factor, "-o", tmp_path / factor)
        results[factor] = (tmp_path / factor).read_bytes()
    out = tmp_path / "out.gguf"
    for _ in range(3):
        out.unlink(missing_ok=True)
        runs = [
            subprocess.Popen(
                [*COMMAND, "extend", str(model), "--factor", factor, "-o", str(out), *(["--force"] * force)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for factor in results
        ]
        codes = sorted(child.wait(60) for child in runs)
        assert codes == ([0, 0] if force else [0, 2])
        assert out.read_bytes() in results.values()
        assert sorted(hashes(tmp_path)) == ["2", "3", "model.gguf", "out.gguf"]


# ---- the input changes meanwhile (row 19)

CHANGES: Final[dict[str, Callable[[Path], object]]] = {
    "cut short": lambda path: os.truncate(path, 5000),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "touched": os.utime,
    "emptied": lambda path: os.truncate(path, 0),
    "written to": lambda path: path.write_bytes(path.read_bytes()),
}


@needs_strace
@pytest.mark.parametrize("name", CHANGES)
def test_an_input_that_changes_while_it_is_copied_gives_no_output(name: str, tmp_path: Path) -> None:
    model = Raw(blob=100_000).write(tmp_path / "model.gguf")
    os.utime(model, (0, 0))
    late = "inject=copy_file_range:delay_enter=700000:when=1"
    strace = ["strace", "-f", "-qq", "-e", "trace=copy_file_range", "-e", late, "-o", os.devnull]
    command = [*strace, *COMMAND, "extend", str(model), *STEP, "-o", str(tmp_path / "out.gguf")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as child:  # type: ignore[call-overload]  # a dict of options
        _wait(lambda: any(p.stat().st_size for p in tmp_path.glob(f".*{LITTER}")))
        CHANGES[name](model)
        before = hashes(tmp_path)["model.gguf"]
        out, err = child.communicate(timeout=60)
    assert f"{model}: changed while it was read" in failed(Done(child.returncode, out, err))
    assert hashes(tmp_path) == {"model.gguf": before}


@needs_strace
def test_an_input_that_is_replaced_between_its_header_and_its_data_gives_no_output(tmp_path: Path) -> None:
    """The new file has the old one's name, size and time."""
    model = Raw(blob=100_000).write(tmp_path / "model.gguf")
    other = Raw(blob=100_000, padding=9).write(tmp_path / "other")
    stat = model.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    script = (
        "import os, sys; from yarn_gguf import before, extend, intent\n"
        "before = before.read_before(sys.argv[1]); os.replace(sys.argv[2], sys.argv[1])\n"
        "plan = extend.plan_extension(before, intent.RopeOptions(factor=4.0))\n"
        "extend.write_extension(plan, None)"
    )
    command = [sys.executable, "-c", script, str(model), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert "ResourceError" in done.stderr
    assert "changed while it was read" in done.stderr
    assert sorted(hashes(tmp_path)) == ["model.gguf"]


# ---- what it takes (row 37)

MEASURE: Final = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@pytest.mark.slow
def test_a_tensor_of_3_gib_takes_no_more_memory_than_a_small_one(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Measured: about 40 MiB, nearly all of it Python and numpy; the promise is 150."""
    if shutil.disk_usage(tmp_path).free < 5 << 30:
        pytest.skip("needs 5 GiB of disk")
    model = sparse(tmp_path / "model.gguf", 3 << 30)
    try:
        command = [sys.executable, "-c", MEASURE, *COMMAND, "extend", str(model), "--factor", "4", "--in-place"]
        found = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout.split()
        record_property("peak_kib", int(found[1]))
        assert found[0] == "0"
        assert int(found[1]) <= 150 << 10
        assert model.stat().st_size > 3 << 30
    finally:
        for left in tmp_path.iterdir():
            left.unlink()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_result_that_cannot_be_printed_is_an_error_of_the_system(more: tuple[str, ...], model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "extend", str(model), *STEP, *more, "-o", str(model.parent / "out.gguf")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done
    assert "No space left on device" in done.stderr


def test_nothing_is_left_when_the_plan_itself_fails(model: Path) -> None:
    before = hashes(model.parent)
    assert run("extend", model, "--factor", "0", "--in-place").code == 2
    assert hashes(model.parent) == before
