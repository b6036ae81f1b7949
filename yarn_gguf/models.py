"""Opens what a person names: a GGUF in llama.cpp, or a Hugging Face folder in transformers, with the same face.

The only place that tells the two apart for evaluations. Knows how each is set up, so that figures can be compared:
nothing of RoPE is overridden, a checkpoint gets what config.json says or what is laid over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from yarn_gguf.checkpoint_ropes import meant_ropes
from yarn_gguf.config.model_config import read_config
from yarn_gguf.extend import main_type
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.intent import Intent, RopeOptions
from yarn_gguf.logits import Session
from yarn_gguf.reference import TransformersSettings, open_transformers
from yarn_gguf.runtime import LlamaSettings, open_llama


@dataclass(frozen=True)
class Opening:
    """How models are opened."""

    context: int  # the longest text
    threads: int | None = None
    gpu_layers: int | None = None
    rpc: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    library: Path | None = None
    kv: str | None = None  # the type of llama.cpp's cache; None: f32 for an F32 file, else f16
    rope: RopeOptions = field(default_factory=RopeOptions)  # laid over a checkpoint's own


def is_checkpoint(path: Path) -> bool:
    return path.is_dir()


def open_model(path: Path, how: Opening) -> Session:
    """An open model; to be closed, or used as a context manager."""
    if is_checkpoint(path):
        intent = _intent(path, how.rope)
        return open_transformers(path, TransformersSettings(how.context, intent, threads=how.threads))
    exact = main_type(read_model(path)) == "F32"
    kv = how.kv or ("f32" if exact else "f16")
    settings = LlamaSettings(
        how.context,
        threads=how.threads,
        gpu_layers=how.gpu_layers,
        rpc=how.rpc,
        tensor_split=how.tensor_split,
        flash_attention=False if kv == "f32" else None,
        kv_k=kv,
        kv_v=kv,
        library=how.library,
    )
    return open_llama(path, settings)


def _intent(folder: Path, options: RopeOptions) -> Intent | None:
    return meant_ropes(read_config(folder), options).intent if options.given else None
