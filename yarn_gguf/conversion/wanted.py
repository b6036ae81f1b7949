"""What a conversion was asked for, besides where from and where to. A value; nothing is checked here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarn_gguf.encoding import Encoding
from yarn_gguf.intent import RopeOptions
from yarn_gguf.quant_names import FTYPES

AUTO: Final = "auto"
CONVERTED: Final = ("f32", "f16", "bf16", "q8_0")  # what upstream's converter writes: types and bytes are as there
OUTTYPES: Final = (AUTO, *CONVERTED, *(name for name in FTYPES if name.lower() not in CONVERTED))


@dataclass(frozen=True)
class Types:
    """Which tensors get another type than the quantization gives them, as `llama-quantize` takes it."""

    overrides: tuple[tuple[str, int], ...] = ()  # a regular expression, and ggml's number
    output: int | None = None
    embedding: int | None = None
    pure: bool = False


@dataclass(frozen=True)
class Wanted:
    """What was asked for, besides where from and where to."""

    rope: RopeOptions = field(default_factory=RopeOptions)
    encoding: Encoding = "auto"
    outtypes: tuple[str, ...] = (AUTO,)  # one file, or set, for each
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
    types: Types = field(default_factory=Types)
    imatrix: str | None = None  # the path of an importance matrix, as it was given

    @property
    def outtype(self) -> str:
        """The only one, or the first."""
        return self.outtypes[0]
