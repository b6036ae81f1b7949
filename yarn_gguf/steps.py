"""How work of several steps tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], None]
Steps = Callable[[str, int], Any]  # a context manager for a step of so many tokens; gives an `Advance`


@contextmanager
def silent(name: str, tokens: int) -> Iterator[Advance]:
    """No progress shown."""
    yield lambda _: None
