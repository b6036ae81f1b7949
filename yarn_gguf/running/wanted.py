"""What a person asks for of a model at work, as frozen values. Sampling has llama.cpp's own names and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarn_gguf.errors import UsageError
from yarn_gguf.flags.llama_words import quantized, unflashed

SEED: Final = 0xFFFFFFFF  # llama.cpp's "another one each time"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: the samplers of llama.cpp's default chain that a person sets, in its order."""

    temp: float = 0.8  # 0 or less: always the most probable token
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = SEED
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name in ("temp", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{_flag(name)} must be a number", code="sampling")
        if not self.repeat_penalty > 0:
            raise UsageError("--repeat-penalty must be above 0; 1 changes nothing", code="sampling")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{_flag(name)} is a probability, from 0 to 1", code="sampling")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a model is opened. None: found from the model, or llama.cpp's own default."""

    context: int | None = None
    predict: int | None = None  # tokens to generate at most; None: until the model ends, or the context does
    sampling: Sampling = field(default_factory=Sampling)
    chat: bool = False
    system: str | None = None  # the first message of a chat
    kv_k: str = "f16"
    kv_v: str = "f16"
    flash_attention: bool | None = None
    threads: int | None = None
    gpu_layers: int | None = None  # −1: all; None: what fits
    batch: int | None = None
    library: Path | None = None
    rpc: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    allow_shift: bool = False
    deadline: float = 300.0
    template: str | None = None  # of a chat, instead of the file's

    def __post_init__(self) -> None:
        if self.flash_attention is False and quantized(self.kv_v):
            raise UsageError(unflashed(self.kv_v), code="kv_needs_flash")
