"""Unified diffs on text: what one says, and what becomes of a text under it, forwards or backwards.

A hunk fits where all its lines stand, context included, to the letter; it may have moved, but never to a place that is
one of several. There is no fuzz: a hunk that fits nowhere is an answer. Knows no files: texts go in and come out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from yarn_gguf.errors import InputError

_HEAD: Final = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines that are looked for, and those that stand there afterwards; `line` is where, counted from 1."""

    line: int
    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def reversed(self) -> Hunk:
        return Hunk(self.line, self.new, self.old)


@dataclass(frozen=True, slots=True)
class FilePatch:
    """All hunks of one file, from top to bottom."""

    path: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A hunk that has no place in a file, or more than one."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.reason}"


def parsed(text: str) -> tuple[FilePatch, ...]:
    """The files of a patch that changes files that exist; anything else is refused."""
    lines = text.splitlines()
    files: list[tuple[str, list[Hunk]]] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith("--- a/") and lines[at + 1 : at + 2] and lines[at + 1].startswith("+++ b/"):
            files.append((lines[at + 1][len("+++ b/") :], []))
            at += 2
        elif files and (head := _HEAD.match(lines[at])):
            hunk, at = _hunk(lines, at, head)
            files[-1][1].append(hunk)
        else:
            at += 1
    if not files or not all(hunks for _, hunks in files):
        raise InputError("is no unified diff of files that exist", code="bad_patch")
    return tuple(FilePatch(path, tuple(hunks)) for path, hunks in files)


def _hunk(lines: list[str], at: int, head: re.Match[str]) -> tuple[Hunk, int]:
    """The hunk whose header stands at `at`, and the line behind it. The header's counts say where it ends."""
    first, old_left, new_left = int(head[1]), int(head[2] or 1), int(head[4] or 1)
    old, new = [], []
    at += 1
    while old_left or new_left:
        line = lines[at] if at < len(lines) else "?"
        sign, text = line[:1] or " ", line[1:]
        if sign not in " -+":
            raise InputError(f"line {at + 1}: a hunk ends before its header says so", code="bad_patch")
        if sign != "+":
            old.append(text)
            old_left -= 1
        if sign != "-":
            new.append(text)
            new_left -= 1
        at += 1
    return Hunk(first, tuple(old), tuple(new)), at


def patched(text: str, patch: FilePatch, *, reverse: bool = False) -> tuple[str, tuple[Misfit, ...]]:
    """The text under all hunks that fit, and those that do not. Line ends stay as the text has them."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.split(end)
    misfits: list[Misfit] = []
    moved = after = 0  # by how much the last hunk had moved; the first line that no hunk has taken yet
    for hunk in (hunk.reversed for hunk in patch.hunks) if reverse else patch.hunks:
        places = _places(lines, hunk.old, after)
        near = hunk.line - 1 + moved
        if near in places:
            places = [near]
        if len(places) != 1:
            reason = f"fits in {len(places)} places" if places else "does not fit"
            misfits.append(Misfit(patch.path, hunk.line, reason))
            continue
        (place,) = places
        lines[place : place + len(hunk.old)] = hunk.new
        after = place + len(hunk.new)
        # what comes after is shifted by how far off this hunk was, and by what it has added
        moved = place - (hunk.line - 1) + len(hunk.new) - len(hunk.old)
    return end.join(lines), tuple(misfits)


def _places(lines: list[str], wanted: tuple[str, ...], start: int) -> list[int]:
    """Where these lines stand, from line `start` on."""
    size = len(wanted)
    if not size:
        return []
    firsts = (at for at in range(start, len(lines) - size + 1) if lines[at] == wanted[0])
    return [at for at in firsts if tuple(lines[at : at + size]) == wanted]
