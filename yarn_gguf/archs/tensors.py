"""The plan of a conversion: which GGUF tensor is made of which tensors of the checkpoint, and how. Data, no disk.

A transform works on whole blocks of a tensor's first axis, and one block does not depend on another: so any tensor can
be made slice by slice, in bounded memory. Knows no architecture (that is `archs`) and no encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from yarn_gguf.checkpoint.weights import Weight

Rearrange = Callable[..., "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Transform:
    """`make` takes whole blocks of each weight of a part, and gives whole blocks of the result."""

    name: str  # for people: "permuted", "transposed", "+1"
    block: int  # first-axis entries that must be given together
    make: Rearrange
    share: tuple[int, int] = (1, 1)  # of the first weight's elements, how many the result has


@dataclass(frozen=True, slots=True)
class Part:
    weights: tuple[Weight, ...]  # read in step along their first axes
    transform: Transform | None = None  # None: as it lies


@dataclass(frozen=True, slots=True)
class Planned:
    name: str
    shape: tuple[int, ...]  # slowest axis first; a GGUF has them the other way round
    type: int  # ggml's number
    parts: tuple[Part, ...]  # their results follow each other
    importance: Callable[[], np.ndarray[Any, Any]] | None = None  # of its columns, one matrix after the other
