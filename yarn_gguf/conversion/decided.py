"""A conversion, decided: values that `convert` plans, `writing` writes and the command line shows.

Nothing is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.archs import Row
from yarn_gguf.archs.tensors import Planned
from yarn_gguf.checkpoint_ropes import MeantRopes
from yarn_gguf.config.model_config import ModelConfig
from yarn_gguf.conversion.file import Blueprint
from yarn_gguf.conversion.general import General
from yarn_gguf.conversion.outputs import Beside
from yarn_gguf.conversion.rope import Written
from yarn_gguf.findings import Finding
from yarn_gguf.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Version:
    """One of the files, or split sets, that come of a checkpoint."""

    outtype: str  # as it was asked for, or guessed: "f16", "Q4_K_M"
    kind: str  # what the file is called by: "F16", "MXFP4_MOE"
    blueprint: Blueprint

    @property
    def tensors(self) -> tuple[Planned, ...]:
        return tuple(tensor for each in self.blueprint.tensors for tensor in each)

    @property
    def bytes(self) -> int:
        return sum(header.stamp.size for header in self.blueprint.headers)


@dataclass(frozen=True)
class Conversion:
    """Everything that will be written, decided; no byte of it is on disk yet."""

    folder: Path
    config: ModelConfig
    row: Row
    general: General
    vocabulary: Vocabulary | None
    meant: MeantRopes
    written: Written  # the same for all versions
    versions: tuple[Version, ...]
    findings: tuple[Finding, ...]
    tokenizer_verdict: str
    verify: Callable[[], None] = lambda: None  # raises if a file that weights come from has changed

    @property
    def exact(self) -> bool:
        """On stock llama.cpp, by all that is known: the RoPE, and the settings that were converted under protest."""
        return self.written.exact and not any(f.code == "not_honoured" for f in self.findings)

    @property
    def bytes(self) -> int:
        return sum(version.bytes for version in self.versions)


@dataclass(frozen=True)
class Output:
    """The files of one version, with their sizes."""

    version: Version
    files: tuple[tuple[Path, int], ...]

    @property
    def path(self) -> Path:
        return self.files[0][0]


@dataclass(frozen=True)
class Outcome:
    conversion: Conversion
    outputs: tuple[Output, ...]
    seconds: float
    findings: tuple[Finding, ...]
    beside: tuple[Beside, ...] = ()
