"""Worker processes: the same bytes however many there are, and every way in which one of them, or we, can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import COMMAND, environment, run
from tests.make_checkpoints import Raw, as_bf16, checkpoint, configure, load, store
from yarn_gguf.errors import ChildError
from yarn_gguf.gguf_file import fill
from yarn_gguf.gguf_file.fill import Made, Target
from yarn_gguf.gguf_file.forked import can_fork

FORWARD = 200_000  # a feed-forward layer so wide that the weights are worth processes, in every type
PATIENCE = 20.0
PROCESSES = 4  # for two jobs

pytestmark = pytest.mark.skipif(not can_fork(), reason="worker processes are for Linux")


@pytest.fixture(scope="module")
def large(toy_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 150 MB, in bf16."""
    folder = checkpoint(toy_folder("llama"), tmp_path_factory.mktemp("large") / "model")
    (weights,) = folder.glob("*.safetensors")
    tensors, rng = load(weights), np.random.default_rng(3)
    for name, raw in tensors.items():
        if ".mlp." in name:
            shape = tuple(FORWARD if size == max(raw.shape) else size for size in raw.shape)
            drawn = rng.standard_normal(shape, dtype=np.float32)
            tensors[name] = Raw("F32", shape, drawn.tobytes())
    store(weights, as_bf16(tensors))
    return configure(folder, intermediate_size=FORWARD)


def converted(model: Path, out: Path, outtype: str, jobs: int) -> bytes:
    done = run("convert", model, "-o", out, "--outtype", outtype, "--jobs", str(jobs), "--skip-tokenizer-check")
    assert done.code == 0, done
    return out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f16", "q8_0", "f32"])
def test_the_bytes_are_those_of_one_worker(outtype: str, large: Path, tmp_path: Path) -> None:
    alone = converted(large, tmp_path / "1.gguf", outtype, 1)
    assert len(alone) > 64 << 20
    assert all(converted(large, tmp_path / f"{jobs}.gguf", outtype, jobs) == alone for jobs in (2, 3))


@pytest.mark.slow
def test_several_files_of_one_reading_are_those_of_their_own(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out-{ftype}.gguf"
    done = run("convert", large, "-o", out, "--outtype", "f16,q8_0", "--jobs", "2", "--skip-tokenizer-check", "--json")
    assert done.code == 0, done
    for output in done.json["outputs"]:
        alone = converted(large, tmp_path / "alone.gguf", output["type"].lower(), 1)
        assert Path(output["path"]).read_bytes() == alone
        (tmp_path / "alone.gguf").unlink()


@pytest.mark.slow
def test_a_number_that_does_not_fit_is_named_as_by_one_worker(large: Path, tmp_path: Path) -> None:
    (weights,) = large.glob("*.safetensors")
    before = weights.read_bytes()
    tensors = load(weights)
    name = next(each for each in tensors if "up_proj" in each)
    raw = bytearray(tensors[name].data)
    raw[-4:] = np.array([0x7149, 0], np.uint16).tobytes()  # 1e30 in bf16
    try:
        store(weights, {**tensors, name: Raw("BF16", tensors[name].shape, bytes(raw))})
        common = ("convert", large, "-o", tmp_path / "out.gguf", "--outtype", "f16", "--skip-tokenizer-check")
        ends = [run(*common, "--jobs", str(jobs)) for jobs in (1, 2)]
    finally:
        weights.write_bytes(before)
    assert ends[0] == ends[1]
    assert ends[1].code == 3
    assert "too large for F16" in ends[1].err
    assert list(tmp_path.iterdir()) == []


# ---- how processes end


def filled(path: Path, make: Callable[[], bytes], count: int = 16) -> set[bytes]:
    """What came of as many slices, computed in processes however small they are."""
    path.write_bytes(bytes(count * 8))
    with path.open("r+b") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "_FORKED", 0)
        pieces = [Made(lambda: [make()], 8, 8 * n, short=True) for n in range(count)]
        fill.fill([Target(file.fileno())], pieces, 2, lambda _: None)
    data = path.read_bytes()
    return {data[at : at + 8] for at in range(0, len(data), 8)}


def own_number() -> bytes:
    time.sleep(0.05)
    return os.getpid().to_bytes(8, "little")


def test_slices_are_computed_in_processes_that_are_gone_afterwards(tmp_path: Path) -> None:
    found = {int.from_bytes(each, "little") for each in filled(tmp_path / "file", own_number)}
    assert len(found) == PROCESSES
    assert os.getpid() not in found
    assert not any(Path(f"/proc/{number}").exists() for number in found)


def test_a_worker_that_is_killed_is_an_error_of_a_child(tmp_path: Path) -> None:
    def make() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return bytes(8)

    with pytest.raises(ChildError, match="ended from outside"):
        filled(tmp_path / "file", make)


def test_what_a_worker_raises_is_raised_here(tmp_path: Path) -> None:
    def make() -> bytes:
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        filled(tmp_path / "file", make)


@contextlib.contextmanager
def working(large: Path, out: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The command line in the midst of a conversion, and its workers."""
    command = [*COMMAND, "convert", large, "-o", out, "--outtype", "q8_0,f16", "--jobs", "2", "--skip-tokenizer-check"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    ) as child:  # fmt: skip
        try:
            listed, limit = Path(f"/proc/{child.pid}/task/{child.pid}/children"), time.monotonic() + PATIENCE
            workers: list[int] = []
            while len(workers) < PROCESSES and time.monotonic() < limit:
                workers = [int(number) for number in listed.read_text().split()]
            yield child, workers
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def gone(numbers: list[int]) -> bool:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if not any(Path(f"/proc/{number}").exists() for number in numbers):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_workers_do_not_outlive_us(large: Path, tmp_path: Path) -> None:
    with working(large, tmp_path / "out-{ftype}.gguf") as (child, workers):
        child.kill()
        assert len(workers) == PROCESSES
        assert gone(workers)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_to_all_of_them_ends_in_one_line(name: str, code: int, large: Path, tmp_path: Path) -> None:
    with working(large, tmp_path / "out-{ftype}.gguf") as (child, workers):
        os.killpg(child.pid, getattr(signal, name))
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (code, "")
    assert err == f"stopped by {name}; no unfinished file was left behind\n"
    assert gone(workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_nothing_behind(large: Path, tmp_path: Path) -> None:
    with working(large, tmp_path / "out-{ftype}.gguf") as (child, workers):
        os.kill(workers[0], signal.SIGKILL)
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (5, "")
    assert err.count("\n") == 1
    assert "ended from outside" in err
    assert gone(workers)
    assert list(tmp_path.iterdir()) == []
