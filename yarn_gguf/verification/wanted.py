"""What `verify` and `record` are asked for, and how they tell of their progress. Data: nothing is looked up here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yarn_gguf.effective import Runtime
from yarn_gguf.intent import RopeOptions
from yarn_gguf.verification.judging import Overrides
from yarn_gguf.verification.windows import Ranges

Advance = Callable[[int], None]
Steps = Callable[[str, int], Any]  # a context manager for a step of so many tokens; gives an `Advance`


@contextmanager
def silent(name: str, tokens: int) -> Iterator[Advance]:
    """No progress shown."""
    yield lambda _: None


@dataclass(frozen=True)
class Wanted:
    """What is asked for. None: found from the models."""

    context: int | None = None
    text: Path | None = None
    tokens: Path | None = None  # ids in the place of a text
    windows: int = 1
    ranges: Ranges = ()
    stride: int = 1
    rope: RopeOptions = field(default_factory=RopeOptions)
    kv: str | None = None  # of the candidates
    flash_attention: bool | None = None
    runtime: Runtime = Runtime.STOCK
    library: Path | None = None
    threads: int | None = None
    gpu_layers: int = 0
    rpc: tuple[str, ...] = ()
    batch: int | None = None
    dtype: str = "f32"  # of a checkpoint's weights and arithmetic
    noise: int = 1024  # tokens over which the reference is held against itself; 0: not at all
    overrides: Overrides = field(default_factory=Overrides)
    resume: bool = False
    lockstep: bool | None = None
    deadline: float = 300.0
