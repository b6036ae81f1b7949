"""The patches that ship with us, and what a llama.cpp tree is under them.

`series` names the patches in their order; a folder of `variants` has other texts of some of them, for older revisions.
A tree is worked on in memory first, all of the series or nothing: what is written is known to fit. Files are replaced
one by one, the untouched ones not at all, and a run that was killed in between can be finished or undone by the next.
Knows files and diffs; nothing of what the patches do.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a tree: its text now, without any of our changes, and with all of them."""

    path: str
    now: str
    clean: str
    whole: str
    applied: int  # how many of the patches that change it are in


def standing(tree: Path) -> Standing:
    """What a tree is under the series that suits it best."""
    _check_tree(tree)
    found = [_standing(tree, series)[0] for series in all_series()]
    whole = next((one for one in found if one.state in ("clean", "applied")), None)
    partly = next((one for one in found if one.state == "partly"), None)
    return whole or partly or min(found, key=lambda one: len(one.misfits))


def _standing(tree: Path, series: Series) -> tuple[Standing, list[_File]]:
    """The state of a tree, and the files that the series changes.

    Each file is judged by itself: were a run killed between two of them, both kinds are known and can be finished.
    """
    files: list[_File] = []
    misfits: list[tuple[str, Misfit]] = []
    whole = dict.fromkeys((patch.name for patch in series.patches), True)
    for path, steps in _steps(series).items():
        text = _text_of(tree / path)
        if text is None:
            misfits += [(name, Misfit(path, 0, "is missing")) for name, _ in steps]
            continue
        file, wrong = _judged(path, text, steps)
        files.append(file)
        misfits += wrong
        whole |= {name: False for name, _ in steps[file.applied :]}
    applied = sum(whole.values())
    if misfits:
        return Standing("misfit", series, applied, tuple(sorted(misfits, key=lambda pair: pair[0]))), files
    touched = any(file.applied for file in files)
    state: State = "applied" if applied == len(series.patches) else "partly" if touched else "clean"
    return Standing(state, series, applied), files


def _steps(series: Series) -> dict[str, list[tuple[str, FilePatch]]]:
    """By file, the patches that change it and how, in their order."""
    found: dict[str, list[tuple[str, FilePatch]]] = {}
    for patch in series.patches:
        for change in patch.files:
            found.setdefault(change.path, []).append((patch.name, change))
    return found


def _text_of(path: Path) -> str | None:
    try:
        # newline="": the ends of lines stay what they are; surrogateescape: so does everything else
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceError(f"cannot be read: {error.strerror}", file=path, code="read_failed") from error


def _judged(path: str, now: str, steps: list[tuple[str, FilePatch]]) -> tuple[_File, list[tuple[str, Misfit]]]:
    """What of the steps is in a file, and the hunks that fit nowhere; what fits of a step is in for those behind it."""
    applied, clean = 0, now
    for count in range(len(steps), 0, -1):
        text, wrong = now, False
        for _, change in reversed(steps[:count]):
            text, misfits = patched(text, change, reverse=True)
            wrong = wrong or bool(misfits)
        if not wrong:
            applied, clean = count, text
            break
    whole, found = clean, []
    for name, change in steps:
        whole, misfits = patched(whole, change)
        found += [(name, misfit) for misfit in misfits]
    return _File(path, now, clean, whole, applied), found


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
    wanted = {file.path: (file.now, file.whole if forwards else file.clean) for file in _standing(tree, was.series)[1]}
    _replace_all(tree, {path: text for path, (now, text) in wanted.items() if text != now})
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
    path = path.resolve()  # a link stays one
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
