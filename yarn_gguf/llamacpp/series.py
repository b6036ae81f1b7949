"""The patches that ship with us, and what a llama.cpp tree is under them.

`series` names the patches in their order; a folder of `variants` has other texts of some of them, for older revisions.
A tree is worked on in memory first, all of the series or nothing: what is written is known to fit. Files are replaced
one by one, the untouched ones not at all. Knows files and diffs; nothing of what the patches do.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.llamacpp.unified_diff import FilePatch, Misfit, parsed, patched

# in the wheel the patches lie inside the package, in a checkout beside it
_PLACES: Final = (Path(__file__).parents[1] / "patches", Path(__file__).parents[2] / "patches")
_SIGNS: Final = ("CMakeLists.txt", "src/llama-context.cpp", "ggml/src/ggml.c")  # that a folder is a llama.cpp tree

State = Literal["clean", "applied", "partly", "misfit"]


@dataclass(frozen=True, slots=True)
class Patch:
    name: str
    text: str
    files: tuple[FilePatch, ...]

    @property
    def subject(self) -> str:
        """The first line of its message, joined where it was folded."""
        head = self.text.partition("\n\n")[0].replace("\n ", " ")
        line = next((line for line in head.splitlines() if line.startswith("Subject:")), "")
        return line.partition("] ")[2] or self.name


@dataclass(frozen=True, slots=True)
class Series:
    """One text of every patch, in order; `variant` says for which older revision, "" for the pinned one."""

    variant: str
    patches: tuple[Patch, ...]

    @property
    def digest(self) -> str:
        """What tells this series from another: it is in the names of the libraries that are built with it.

        Of the changes alone, so that no word of a message costs a build.
        """
        return hashlib.sha256("\n".join(repr(patch.files) for patch in self.patches).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Standing:
    """A tree under a series: how many of its patches are in, and what those not in need or why they do not fit."""

    state: State
    series: Series
    applied: int
    misfits: tuple[tuple[str, Misfit], ...] = ()  # with the name of the patch


@cache
def patches_folder() -> Path:
    for place in _PLACES:
        if (place / "series").is_file():
            return place
    raise ResourceError("the patches are missing; install yarn-gguf again", file=_PLACES[0], code="no_patches")


@cache
def all_series() -> tuple[Series, ...]:
    """The series of the pinned revision, then those of older ones, newest first.

    An older revision takes its own text of a patch, else that of the next newer one.
    """
    folder = patches_folder()
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in (folder / "series").read_text().split()}
    found = [_series("", texts)]
    variants = folder / "variants"
    for older in sorted(variants.iterdir(), key=_release, reverse=True) if variants.is_dir() else []:
        texts |= {path.name: path.read_text(encoding="utf-8") for path in sorted(older.iterdir())}
        found.append(_series(older.name, texts))
    return tuple(found)


def _release(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split("."))


def _series(variant: str, texts: Mapping[str, str]) -> Series:
    return Series(variant, tuple(Patch(name, text, parsed(text)) for name, text in texts.items()))


class _Texts:
    """The files of a tree as they would be; the tree itself is only read."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.now: dict[str, str] = {}

    def of(self, path: str) -> str | None:
        if path not in self.now:
            try:
                # newline="": the ends of lines stay what they are; surrogateescape: so does everything else
                with (self.tree / path).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                    self.now[path] = file.read()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise ResourceError(f"cannot be read: {error.strerror}", file=self.tree / path) from error
        return self.now[path]

    def take(self, patch: Patch, *, reverse: bool = False) -> tuple[Misfit, ...]:
        """Changes the texts under a whole patch, or returns why not and changes none."""
        after: dict[str, str] = {}
        misfits: list[Misfit] = []
        for change in patch.files:
            text = self.of(change.path)
            if text is None:
                misfits.append(Misfit(change.path, 0, "is missing"))
                continue
            after[change.path], wrong = patched(text, change, reverse=reverse)
            misfits += wrong
        if not misfits:
            self.now |= after
        return tuple(misfits)


def standing(tree: Path) -> Standing:
    """What a tree is under the series that suits it best."""
    _check_tree(tree)
    found = [_standing(tree, series)[0] for series in all_series()]
    whole = next((one for one in found if one.state in ("clean", "applied")), None)
    partly = next((one for one in found if one.state == "partly"), None)
    return whole or partly or min(found, key=lambda one: len(one.misfits))


def _standing(tree: Path, series: Series) -> tuple[Standing, _Texts]:
    """The state of a tree, and its files without any of the patches that are in."""
    texts = _Texts(tree)
    applied = _taken_back(texts, series)
    after = _Texts(tree)
    after.now = dict(texts.now)
    misfits = [(patch.name, misfit) for patch in series.patches for misfit in after.take(patch)]
    if misfits:
        return Standing("misfit", series, applied, tuple(misfits)), texts
    state: State = "clean" if not applied else "applied" if applied == len(series.patches) else "partly"
    return Standing(state, series, applied), texts


def _taken_back(texts: _Texts, series: Series) -> int:
    """Takes the patches that are in out of the texts, last first; how many they were."""
    for count in range(len(series.patches), 0, -1):
        trial = _Texts(texts.tree)
        trial.now = dict(texts.now)
        if not any(trial.take(patch, reverse=True) for patch in reversed(series.patches[:count])):
            texts.now = trial.now
            return count
    return 0


def apply(tree: Path) -> Standing:
    """Puts the whole series into a tree; one that has all of it, or some, ends with all of it. Returns what it was."""
    return _write(tree, forwards=True)


def reverse(tree: Path) -> Standing:
    """Takes whatever is in of the series out of a tree. Returns what it was."""
    return _write(tree, forwards=False)


def _write(tree: Path, *, forwards: bool) -> Standing:
    was = standing(tree)
    if was.state == "misfit":
        raise InputError(misfit_text(was), file=tree, code="patch_misfit")
    _, texts = _standing(tree, was.series)
    for patch in was.series.patches if forwards else ():
        texts.take(patch)
    changed = {path: text for path, text in texts.now.items() if text != _Texts(tree).of(path)}
    _replace_all(tree, changed)
    return was


def misfit_text(found: Standing) -> str:
    """Which hunks have no place, and what to do."""
    revision = f"llama.cpp of llama-cpp-python {found.series.variant}" if found.series.variant else "the pinned one"
    hunks = "; ".join(f"{name[:4]} {misfit}" for name, misfit in found.misfits)
    text = f"is neither a revision that the patches are for nor one that has them (nearest: {revision}): {hunks}"
    return f"{text}. Nothing was changed; patches/UPSTREAM names the revision that they are for"


def _check_tree(tree: Path) -> None:
    missing = [sign for sign in _SIGNS if not (tree / sign).is_file()]
    if missing:
        text = f"is no llama.cpp source tree: {missing[0]} is missing; give the top folder of a checkout"
        raise InputError(text, file=tree, code="no_tree")


def _replace_all(tree: Path, texts: Mapping[str, str]) -> None:
    """Each file by a complete new one. Should one fail, those before it get their old text back."""
    before = {path: (tree / path).read_bytes() for path in texts}
    done: list[str] = []
    try:
        for path, text in texts.items():
            _replace(tree / path, text.encode("utf-8", "surrogateescape"))
            done.append(path)
    except BaseException as error:
        for path in done:
            _replace(tree / path, before[path])
        if isinstance(error, OSError):
            text = f"cannot be written: {error.strerror}; the tree is as it was"
            raise ResourceError(text, file=error.filename or tree, code="write_failed") from error
        raise


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).chmod(mode & 0o7777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def applied_names(found: Standing) -> Iterator[tuple[Patch, bool]]:
    """Every patch of the series, and whether it is in."""
    for number, patch in enumerate(found.series.patches):
        yield patch, number < found.applied
