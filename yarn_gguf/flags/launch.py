"""Everything that the words of a program are made from. A leaf of this package: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from yarn_gguf.effective import Runtime
from yarn_gguf.flags.choice import Chosen
from yarn_gguf.flags.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Settings:
    """What has nothing to do with RoPE; None is the program's own default."""

    kv_k: str | None = None
    kv_v: str | None = None
    flash_attention: bool | None = None
    gpu_layers: int | None = None  # -1: all
    threads: int | None = None
    prompt: str | None = None
    more: tuple[str, ...] = ()  # words of the program's own, passed on

    @property
    def kv(self) -> str | None:
        """The type of the whole cache, for programs that have one for both."""
        return self.kv_k if self.kv_k == self.kv_v else None


@dataclass(frozen=True)
class Launch:
    """A model that is started in a program, with a library that computes as stock or as patched llama.cpp."""

    wanted: Wanted
    chosen: Chosen
    runtime: Runtime
    library: Path | None = None  # None: the program's own
    settings: Settings = Settings()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def path(self) -> str:
        return str(self.wanted.path)
