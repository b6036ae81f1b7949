"""What `verify` and `record` are asked for. Data: nothing is looked up here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from yarn_gguf.effective import Runtime
from yarn_gguf.intent import RopeOptions
from yarn_gguf.thresholds import Limits
from yarn_gguf.verification.windows import Ranges


@dataclass(frozen=True, slots=True)
class Overrides:
    """Limits that somebody typed."""

    kld: float | None = None
    top1: float | None = None
    growth: float | None = None

    def over(self, limits: Limits) -> Limits:
        given = {name: getattr(self, name) for name in ("kld", "top1", "growth")}
        return replace(limits, **{name: value for name, value in given.items() if value is not None})


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
    gpu_layers: int | None = None
    rpc: tuple[str, ...] = ()  # of the candidates; of the model that is recorded
    tensor_split: tuple[float, ...] = ()
    batch: int | None = None
    dtype: str = "f32"  # of a checkpoint's weights and arithmetic
    noise: int = 1024  # tokens over which the reference is held against itself; 0: not at all
    overrides: Overrides = field(default_factory=Overrides)
    resume: bool = False
    lockstep: bool | None = None
    deadline: float = 300.0
