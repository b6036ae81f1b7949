"""The weights of a checkpoint as numbers, read in slices along their first axis, from any number of threads.

What is BF16, F16 or F32 in a file is handed out as it lies there; quantized weights are computed slice by slice
(`dequantize`), and everything else becomes float32, as in upstream's converter. MXFP4 blocks and their scales stay
bytes. Knows what a tensor's numbers are; nothing of what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

from yarn_gguf.checkpoint.dequantize import dequantized, modelopt_settings
from yarn_gguf.checkpoint.shards import Checkpoint
from yarn_gguf.checkpoint.stored import Array, Files, Source, Stored, source

AS_THEY_ARE: Final = ("F32", "F16", "BF16")
RAW_ENDINGS: Final = ("_blocks", "_scales")  # of MXFP4


class Weight(Protocol):
    """`dtype` is what `read` gives: "F32", "F16", "BF16" (bits in uint16) or "U8" (bytes). A scalar has shape (1,).

    `stored` says where the same bytes lie in a file, None where they do not.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stored(self) -> Stored | None: ...
    def read(self, begin: int, end: int) -> Array:
        """Entries [begin, end) of the first axis, C-contiguous; the array is the caller's."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor whose bytes are what is wanted."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.stored.name

    @property
    def dtype(self) -> str:
        return self.source.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def stored(self) -> Stored | None:
        return self.source.stored

    def read(self, begin: int, end: int) -> Array:
        return self.source.raw(begin, end)


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor of another dtype, in float32."""

    source: Source
    dtype: str = "F32"
    stored: Stored | None = None

    @property
    def name(self) -> str:
        return self.source.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self, begin: int, end: int) -> Array:
        return self.source.numbers(begin, end)


class Weights(dict[str, Weight]):
    """The weights by name, and the open files that they are read from: a context manager, which closes them."""

    def __init__(self, weights: Mapping[str, Weight], files: Files) -> None:
        super().__init__(weights)
        self._files = files

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing can be read after this."""
        self._files.close()

    def verify(self) -> None:
        """Raises ResourceError when a file that was read has changed since its header was."""
        self._files.verify()


def open_weights(checkpoint: Checkpoint, quantization: Mapping[str, Any] | None) -> Weights:
    """`quantization`: config.json's quantization_config. Names are the checkpoint's own, in its order.

    Raises InputError with the code "quantization" for a quantization that cannot be read.
    """
    files = Files()
    with _closed_on_error(files):
        sources = {name: source(stored, files) for name, stored in checkpoint.tensors.items()}
        settings = modelopt_settings(checkpoint.folder) if quantization is None else quantization
        made, used = dequantized(sources, settings, checkpoint.folder)
        plain = {name: _as_stored(each) for name, each in sources.items() if name not in used}
        weights: dict[str, Weight] = {}
        for name in (*sources, *made):
            if name in made:
                weights[name] = made[name]
            elif name in plain:
                weights[name] = plain[name]
        return Weights(weights, files)


@contextmanager
def _closed_on_error(files: Files) -> Iterator[None]:
    try:
        yield
    except BaseException:
        files.close()
        raise


def _as_stored(tensor: Source) -> Weight:
    dtype = tensor.stored.dtype
    if dtype in AS_THEY_ARE or (dtype == "U8" and tensor.stored.name.endswith(RAW_ENDINGS)):
        return Plain(tensor)
    return Cast(tensor)
