"""What stands at the final name afterwards, how it got there, and whose permissions and links it has.

Real runs on real files; the order of the system calls is read off strace's log. What happens when something fails on
the way is test_faults' matter.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.command import COMMAND, Done, environment, extended, run, run_fresh
from tests.make_gguf import Raw, hashes, rope_freqs_of, small_model
from yarn_gguf.errors import UsageError
from yarn_gguf.gguf_file import fs
from yarn_gguf.gguf_file.fill import Held
from yarn_gguf.gguf_file.writer import staged

STEP: Final = ("--factor", "4")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model.gguf")


@pytest.fixture
def wanted(model: Path) -> bytes:
    """What the extended model is, byte for byte."""
    extended(model, *STEP, "-o", model.parent / "wanted.gguf")
    data = (model.parent / "wanted.gguf").read_bytes()
    (model.parent / "wanted.gguf").unlink()
    return data


def traced(calls: str, *arguments: str | Path) -> tuple[Done, list[str]]:
    """A run of the command line under strace, with the log's lines."""
    log = Path(str(arguments[-1]) + ".log")
    strace = ["strace", "-f", "-y", "-qq", "-e", f"trace={calls}", "-o", str(log)]
    command = [*strace, *COMMAND, "extend", *map(str, arguments)]
    env = environment(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr), log.read_text().splitlines()


# ---- the order of things


@needs_strace
@pytest.mark.parametrize("mode", ["new", "replaced"])
def test_bytes_are_synced_before_the_name_is_given_and_the_folder_after_it(mode: str, model: Path) -> None:
    (model.parent / "out").mkdir()
    out = model.parent / "out" / "out.gguf"
    if mode == "replaced":
        out.write_text("old")
    calls = "pwrite64,copy_file_range,fallocate,fsync,/rename,/link,ftruncate,write"
    done, log = traced(calls, model, *STEP, "--force" if mode == "replaced" else "--strict", "-o", out)
    assert done.code == 0, done
    folder, lines = str(out.parent), [line for line in log if str(out.parent) in line]
    syncs = [n for n, line in enumerate(lines) if "fsync" in line and "yarn-gguf-tmp>" in line]
    names = [n for n, line in enumerate(lines) if re.search(r"(rename|link)\w*\(.*yarn-gguf-tmp\".*out\.gguf\"", line)]
    writes = [n for n, line in enumerate(lines) if re.search(r"(pwrite64|copy_file_range|ftruncate|fallocate)\(", line)]
    folders = [n for n, line in enumerate(lines) if "fsync(" in line and f"<{folder}>" in line]
    assert writes
    assert len(syncs) == len(names) == 1
    assert max(writes) < syncs[0] < names[0] < folders[-1]


def test_new_data_of_a_tensor_is_not_overtaken_by_the_copy_around_it(tmp_path: Path) -> None:
    """The copy of everything waits at its start: had it the tensor's old bytes in it, they would come last."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    source = Raw(rope_freqs="first").write(tmp_path / "model.gguf")
    step = ("--factor", "4", "--method", "linear", "--encoding", "baked")
    extended(source, *step, "--jobs", "1", "-o", tmp_path / "one.gguf")
    late = "inject=copy_file_range:delay_enter=300000"
    strace = ["strace", "-f", "-qq", "-e", "trace=copy_file_range", "-e", late, "-o", os.devnull]
    command = [*strace, *COMMAND, "extend", str(source), *step, "--jobs", "4", "-o", str(tmp_path / "four.gguf")]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    assert rope_freqs_of(tmp_path / "four.gguf") == [4 * f for f in rope_freqs_of(source)]
    assert (tmp_path / "four.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_files_of_a_set_take_their_names_together_or_not_at_all(tmp_path: Path) -> None:
    finals = [tmp_path / name for name in ("a", "b", "c")]
    (tmp_path / "b").write_text("precious")
    before = hashes(tmp_path)
    with pytest.raises(UsageError, match="appeared meanwhile"), staged(overwrite=False) as stage:
        for final in finals:
            stage.write(final, 3, [Held(b"new", 0)])
    assert hashes(tmp_path) == before  # c had its name when b failed


@pytest.mark.parametrize("swaps", [True, False])
def test_a_set_that_fails_half_way_gives_its_files_back_where_names_can_be_swapped(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finals = [tmp_path / name for name in ("a", "b")]
    for final in finals:
        final.write_text("old")
    if not swaps:
        monkeypatch.setattr(fs, "FAST", False)
    with pytest.raises(KeyboardInterrupt), staged(overwrite=True) as stage:
        for final in finals:
            stage.write(final, 3, [Held(b"new", 0)])
        monkeypatch.setattr(fs, "sync_folder", _fails_the(3))
    if swaps and not fs.exchange(*finals):
        pytest.skip("this system cannot swap two names")
    assert [final.read_text() for final in finals] == (["old", "old"] if swaps else ["old", "new"])
    assert sorted(hashes(tmp_path)) == ["a", "b"]


def _fails_the(last: int) -> Callable[[Path], None]:
    """A folder's sync that is interrupted the so-manieth time: before anything, after b, after a."""
    calls: list[Path] = []

    def sync(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == last - 1:
            raise KeyboardInterrupt

    return sync


def test_a_temporary_that_cannot_be_removed_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with pytest.raises(ValueError, match="what went wrong"), staged(overwrite=False) as stage:
        stage.write(tmp_path / "a", 3, [Held(b"new", 0)])
        monkeypatch.setattr(Path, "unlink", refuses)
        raise ValueError("what went wrong")
    assert not (tmp_path / "a").exists()


# ---- names, links, permissions (row 34)


def _same_path(model: Path) -> Path:
    return model


def _dotted_path(model: Path) -> Path:
    (model.parent / "folder").mkdir()
    return model.parent / "folder" / ".." / model.name


def _hard_link(model: Path) -> Path:
    os.link(model, model.parent / "out.gguf")
    return model.parent / "out.gguf"


def _symlink(model: Path) -> Path:
    (model.parent / "out.gguf").symlink_to(model.name)
    return model.parent / "out.gguf"


def _symlink_elsewhere(model: Path) -> Path:
    (model.parent / "precious").write_text("precious")
    (model.parent / "out.gguf").symlink_to("precious")
    return model.parent / "out.gguf"


def _dangling(model: Path) -> Path:
    (model.parent / "out.gguf").symlink_to("nowhere")
    return model.parent / "out.gguf"


def _file(model: Path) -> Path:
    (model.parent / "out.gguf").write_text("precious")
    return model.parent / "out.gguf"


TARGETS: Final[dict[str, tuple[Callable[[Path], Path], str]]] = {
    "the input itself": (_same_path, "is the input itself"),
    "the input by another path": (_dotted_path, "is the input itself"),
    "a hard link of the input": (_hard_link, "is the input itself"),
    "a symbolic link to the input": (_symlink, "is the input itself"),
    "a symbolic link elsewhere": (_symlink_elsewhere, "is a symbolic link; --force replaces it"),
    "a symbolic link to nowhere": (_dangling, "is a symbolic link; --force replaces it"),
    "a file": (_file, "exists; --force replaces it"),
}


@needs_posix
@pytest.mark.parametrize("name", TARGETS)
def test_an_output_that_exists_is_replaced_by_force_only_and_never_written_through(
    name: str, model: Path, wanted: bytes
) -> None:
    make, says = TARGETS[name]
    out = make(model)
    before = hashes(model.parent)
    done = run("extend", model, *STEP, "-o", out)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert hashes(model.parent) == before
    extended(model, *STEP, "-o", out, "--force")
    assert out.read_bytes() == wanted
    assert not out.is_symlink()
    after = hashes(model.parent)
    assert {n for n in before if after[n] != before[n]} == {out.resolve().name}
    assert set(after) == set(before)


@needs_posix
def test_an_output_that_is_no_file_is_refused_even_by_force(model: Path) -> None:
    folder = model.parent
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "null").symlink_to("/dev/null")
    before = hashes(folder)
    for name in ("folder", "pipe", "null", "nowhere/out.gguf", "model.gguf/out.gguf"):
        done = run("extend", model, *STEP, "--force", "-o", folder / name)
        assert done.code == 2, (name, done)
    for device in ("/dev/null", "/dev/stdout", "/dev/new.gguf"):  # should one be taken, a dry run does it no harm
        assert run("extend", model, *STEP, "--force", "--dry-run", "-o", device).code == 2
    assert hashes(folder) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


@needs_posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_new_file(umask: int, model: Path) -> None:
    done = run_fresh("extend", model, *STEP, "-o", model.parent / "out.gguf", before=lambda: (os.umask(umask), None)[1])
    assert done.code == 0
    assert stat.S_IMODE((model.parent / "out.gguf").stat().st_mode) == 0o666 & ~umask


@needs_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_in_place_keeps_the_permissions(mode: int, model: Path, wanted: bytes) -> None:
    model.chmod(mode)
    extended(model, *STEP, "--in-place")
    assert model.read_bytes() == wanted
    assert stat.S_IMODE(model.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files away")
def test_in_place_keeps_the_owner(model: Path) -> None:
    os.chown(model, 65534, 65534)
    extended(model, *STEP, "--in-place")
    assert (model.stat().st_uid, model.stat().st_gid) == (65534, 65534)


@needs_posix
def test_in_place_refuses_a_symbolic_link_and_leaves_other_hard_links_alone(model: Path, wanted: bytes) -> None:
    link, other = model.parent / "link.gguf", model.parent / "other.gguf"
    link.symlink_to(model.name)
    os.link(model, other)
    before = hashes(model.parent)
    done = run("extend", link, *STEP, "--in-place")
    assert done.code == 2
    assert "is a symbolic link" in done.err
    assert hashes(model.parent) == before
    extended(model, *STEP, "--in-place")
    assert model.read_bytes() == wanted
    assert hashes(model.parent)["other.gguf"] == before["other.gguf"]


@pytest.mark.parametrize("name", ["ж" * 120 + ".gguf", "模" * 80 + ".gguf", "x" * 245 + ".gguf", "🦙" * 62 + "ab.gguf"])
def test_a_name_as_long_as_the_system_allows_can_be_written(name: str, model: Path, wanted: bytes) -> None:
    """The limit is 255 bytes, not characters, and the temporary's name must keep to it."""
    out = model.parent / name
    extended(model, *STEP, "-o", out)
    assert out.read_bytes() == wanted
    extended(model, *STEP, "-o", out, "--force")
    assert len(hashes(model.parent)) == 2


# ---- sharing extents


@pytest.fixture(params=["btrfs", "xfs"])
def sharing_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a fresh filesystem that can share extents, mounted from a file."""
    kind = str(request.param)
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind} ({kind}progs)")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(600 << 20)
    options = ["-q", "-m", "reflink=1"] if kind == "xfs" else ["-q"]
    subprocess.run([f"mkfs.{kind}", *options, str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount {kind} here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        image.unlink()


def used(folder: Path) -> int:
    """Bytes that are taken on the folder's filesystem, once all is on disk."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
    info = os.statvfs(folder)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


@pytest.mark.slow
@pytest.mark.parametrize("step", [("--factor", "4", "--encoding", "keys"), ("--factor", "4", "--encoding", "baked")])
def test_where_extents_can_be_shared_the_data_costs_nothing(
    step: tuple[str, ...], sharing_folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """64 MB, of which under 4 MB may be new: the header and the ragged ends take a few blocks, the rest is log."""
    raw = Raw(rope_freqs="first", blob=64_000_001, trailing=b"behind")
    source = raw.write(sharing_folder / "model.gguf")
    before = used(sharing_folder)
    document = extended(source, *step, "-o", sharing_folder / "shared.gguf", "--json").json
    grown = used(sharing_folder) - before
    record_property("bytes_taken", grown)
    assert document["outputs"][0]["files"][0]["how"] == "shared"
    assert grown < 4 << 20, grown
    if shutil.which("filefrag") is not None:
        frag = subprocess.run(
            ["filefrag", "-v", str(sharing_folder / "shared.gguf")], capture_output=True, text=True, check=True
        )
        assert "shared" in frag.stdout
    done = run_fresh("extend", source, *step, "-o", sharing_folder / "copied.gguf", YARN_GGUF_PLAIN_IO="1")
    assert done.code == 0
    assert (sharing_folder / "copied.gguf").read_bytes() == (sharing_folder / "shared.gguf").read_bytes()
    restored = extended(sharing_folder / "shared.gguf", "--restore", "-o", sharing_folder / "back.gguf", "--json").json
    assert (sharing_folder / "back.gguf").read_bytes() == source.read_bytes()
    assert restored["outputs"][0]["files"][0]["how"] == "shared"
    again = used(sharing_folder)
    extended(source, *step, "--in-place")
    assert used(sharing_folder) - again < 4 << 20
