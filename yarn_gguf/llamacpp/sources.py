"""The llama.cpp tree inside an sdist of llama-cpp-python: found, fetched, held against its checksum, unpacked.

`patches/UPSTREAM` records what the patches are for. An sdist comes through the user's own pip, from wherever that is
set up to look. Knows archives; nothing of patches or compilers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from yarn_gguf.children.command import fate, last_words, run
from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError
from yarn_gguf.llamacpp.series import patches_folder, standing

PACKAGE: Final = "llama-cpp-python"
_SDIST: Final = re.compile(r"llama_cpp_python-(\d+(?:\.\d+)+)\.tar\.gz")
_INSIDE: Final = "vendor/llama.cpp"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One release that the patches are for."""

    version: str
    revision: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tree comes from: an archive, or a folder that is only read. `identity` tells it from other sources."""

    path: Path
    version: str
    identity: str
    verified: bool


@cache
def upstreams() -> dict[str, Upstream]:
    """By version; the pinned one first."""
    lines = (patches_folder() / "UPSTREAM").read_text(encoding="utf-8").splitlines()
    rows = [Upstream(*line.split()) for line in lines if line.strip() and not line.startswith("#")]
    return {row.version: row for row in rows}


def installed_version() -> str | None:
    """Of llama-cpp-python; nothing of it is imported."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def given_source(path: Path) -> Source:
    """What `--source` names: an sdist, an unpacked one, or a llama.cpp checkout."""
    version = installed_version() or next(iter(upstreams()))
    if path.is_dir():
        inside = path / _INSIDE
        tree = inside if (inside / "CMakeLists.txt").is_file() else path
        if not (tree / "ggml" / "CMakeLists.txt").is_file():
            text = f"holds no llama.cpp; give a checkout of it, or an sdist of {PACKAGE}"
            raise InputError(text, file=path, code="no_tree")
        return Source(tree, _version_of(path, tree), f"tree-{_tree_digest(tree)}", verified=False)
    if not path.is_file():
        text = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(text, file=path, code="not_found")
    named = _SDIST.fullmatch(path.name)
    digest = _sha256(path)
    row = next((row for row in upstreams().values() if row.sha256 == digest), None)
    if row is None and named is not None and named[1] in upstreams():
        raise _wrong(path, digest, upstreams()[named[1]])
    found = row.version if row is not None else named[1] if named is not None else version
    return Source(path, found, digest, verified=row is not None)


def fetched_source(folder: Path) -> Source:
    """The sdist of the installed version, in `folder`: left there by an earlier call, else brought by pip."""
    version = installed_version()
    if version is None:
        raise UsageError(f"{PACKAGE} is not installed, so there is nothing to build for; install it, or give --source")
    row = upstreams().get(version)
    if row is None:
        known = ", ".join(upstreams())
        text = (
            f"the patches are for {PACKAGE} {known}, but {version} is installed; install one of those, or try --source"
        )
        raise InputError(text, code="unknown_version")
    sdist = folder / f"llama_cpp_python-{version}.tar.gz"
    if not sdist.is_file():
        _fetch(version, sdist)
    if (digest := _sha256(sdist)) != row.sha256:
        sdist.unlink()
        raise _wrong(sdist, digest, row)
    return Source(sdist, version, row.sha256, verified=True)


def _wrong(path: Path, digest: str, row: Upstream) -> InputError:
    text = f"is not the sdist of {PACKAGE} {row.version}: its sha256 is {digest}, not {row.sha256}; fetch it again"
    return InputError(text, file=path, code="wrong_checksum")


def _fetch(version: str, sdist: Path) -> None:
    sdist.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sdist.parent) as temporary, tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--dest", temporary, f"{PACKAGE}=={version}"]
        status = run(command, said)
        found = Path(temporary, sdist.name)
        if status or not found.is_file():
            what = f"pip could not fetch the sdist of {PACKAGE} {version}: it {fate(status)}: {last_words(said)}"
            raise ChildError(f"{what}. Give the sdist with --source", code="fetch_failed")
        found.replace(sdist)


@contextmanager
def unpacked(source: Source, folder: Path) -> Iterator[Path]:
    """A tree that may be changed and built in, inside `folder`; gone at the end."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as temporary:
        tree = Path(temporary, "llama.cpp")
        if source.path.is_dir():
            try:
                shutil.copytree(source.path, tree, symlinks=True, ignore=_built_before(source.path))
            except shutil.Error as error:  # a list of every file that failed
                text = f"cannot be copied: {error.args[0][0][2]}"
                raise ResourceError(text, file=source.path, code="unpack_failed") from error
            except OSError as error:
                text = f"cannot be copied: {error.strerror or error}"
                raise ResourceError(text, file=source.path, code="unpack_failed") from error
        else:
            _extract(source.path, Path(temporary), tree)
        yield tree


def _built_before(top: Path) -> Callable[[str, list[str]], set[str]]:
    """Names `copytree` leaves out: git's folder, and at the top the folders that builds go to."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        builds = {name for name in names if name.startswith("build") and (top / name).is_dir()}
        return {".git"} | (builds if Path(folder) == top else set())

    return left_out


def _extract(archive: Path, folder: Path, tree: Path) -> None:
    """The llama.cpp of an sdist, or of a tarball that is one."""
    try:
        with tarfile.open(archive) as tar:
            members = [member for member in tar if ".git/" not in member.name and member.name != "."]
            for member in members:
                member.name = member.name.removeprefix("./")
            top = members[0].name.partition("/")[0] if members else ""
            if not top:
                raise InputError(f"holds nothing; give an sdist of {PACKAGE}", file=archive, code="bad_archive")
            inside = f"{top}/{_INSIDE}"
            root = inside if any(member.name.startswith(f"{inside}/") for member in members) else top
            wanted = (member for member in members if member.name.startswith(f"{root}/"))
            tar.extractall(folder, members=wanted, filter="data")
        (folder / root).rename(tree)
    except (tarfile.TarError, EOFError, ValueError, FileNotFoundError) as error:
        text = f"is no archive of llama.cpp or {PACKAGE}: {error}"
        raise InputError(text, file=archive, code="bad_archive") from error
    except OSError as error:
        text = f"cannot be unpacked: {error.strerror or error}"
        raise ResourceError(text, file=archive, code="unpack_failed") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree_digest(tree: Path) -> str:
    """Of all files of a tree, names and contents, but for git's and those of builds."""
    found = hashlib.sha256()
    left_out = _built_before(tree)
    for folder, folders, names in os.walk(tree):
        unused = left_out(folder, folders)
        folders[:] = sorted(name for name in folders if name not in unused)
        for path in (Path(folder, name) for name in sorted(names) if name != ".git"):
            if path.is_file():
                found.update(
                    f"{path.relative_to(tree).as_posix()}\0{_sha256(path)}\n".encode("utf-8", "surrogateescape")
                )
    return found.hexdigest()[:12]


def _version_of(top: Path, tree: Path) -> str:
    """The release that a folder is of: an unpacked sdist says it; else that whose patches fit; else the installed."""
    if (top / "PKG-INFO").is_file():
        named = re.search(r"^Version: (\S+)$", (top / "PKG-INFO").read_text("utf-8", "replace"), re.MULTILINE)
        if named is not None:
            return named[1]
    found = standing(tree)
    if found.state != "misfit":
        return found.series.variant or next(iter(upstreams()))
    return installed_version() or next(iter(upstreams()))
