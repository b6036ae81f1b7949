"""Token ids cut into windows of the context, and which of their positions are scored. Pure arrays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.logits import Tokens
from yarn_gguf.metrics import NONE

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Windows:
    """Each window is decoded by itself, from an empty cache."""

    tokens: Tokens  # [windows, context]
    wanted: NDArray[np.bool_]  # [windows, context]

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def scored(self) -> int:
        return int(self.wanted.sum())

    @property
    def sha256(self) -> str:
        """Of the ids, as 32-bit numbers."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens, "<i4").tobytes()).hexdigest()

    def following(self, window: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The token behind each position, `NONE` behind the last one."""
        row = np.append(self.tokens[window].astype(np.int64), NONE)
        found: NDArray[np.int64] = row[positions + 1]
        return found


def cut(tokens: Tokens, context: int, count: int, bos: int | None) -> Tokens:
    """[count, context]. With several windows each begins with BOS, if the vocabulary puts it before a text."""
    if len(tokens) < context * count:
        windows = "" if count == 1 else f" for {count} windows of {context}"
        text = f"the text makes {len(tokens)} tokens, {context * count} are needed{windows}"
        raise InputError(f"{text}; give a longer one with --text, or a smaller --ctx", code="text_short")
    found = tokens[: context * count].reshape(count, context).copy()
    if bos is not None and count > 1:
        found[:, 0] = bos
    return found


def chosen(context: int, ranges: Ranges, stride: int) -> NDArray[np.bool_]:
    """Every `stride`-th position that lies in one of the ranges; in all of them, if there are none."""
    inside = np.zeros(context, bool)
    for first, end in ranges or ((0, context),):
        if first >= context:
            raise UsageError(f"--positions {first}-{end} lies beyond the context of {context}", code="positions")
        inside[first:end] = True
    every = np.zeros(context, bool)
    every[::stride] = True
    found: NDArray[np.bool_] = inside & every
    if not found.any():
        raise UsageError("--positions and --stride leave nothing to score", code="positions")
    return found


def parse_ranges(text: str) -> Ranges:
    """`0-512,4096-8192`: from the first number up to, not including, the second."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(f"--positions {text!r}: ranges such as 0-512,4096-8192 are needed", code="positions")
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def first_difference(one: Sequence[int] | Tokens, other: Sequence[int] | Tokens) -> int | None:
    """The index of the first token that differs; None where both are the same."""
    a, b = np.asarray(one), np.asarray(other)
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    if len(different):
        return int(different[0])
    return None if len(a) == len(b) else length
