"""What a conversion was asked for, besides where from and where to. A value; nothing is checked here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarn_gguf.encoding import Encoding
from yarn_gguf.intent import RopeOptions

OUTTYPES: Final = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Wanted:
    """What was asked for, besides where from and where to."""

    rope: RopeOptions = field(default_factory=RopeOptions)
    encoding: Encoding = "auto"
    outtype: str = "auto"
    name: str | None = None  # general.name
    pre: str | None = None  # tokenizer.ggml.pre, in place of the one that is recognised
    tokenizer: bool = True  # False: without a vocabulary
    check_tokenizer: bool = True  # hold llama.cpp's token ids against the original tokenizer's
    split: int | None = None  # bytes of data in a file
    check: bool = False  # look at numbers that are copied as they are
    allow_pickle: bool = False
    lora: Path | None = None  # a PEFT adapter that is merged
    fold: bool = False  # the magnitude of cos and sin goes into the weights
    force: bool = False  # convert what llama.cpp cannot honour, all the same
    origin: tuple[str, str] | None = None  # the hub's repository and commit
