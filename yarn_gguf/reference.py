"""Tokens -> logits through transformers, in a child process, for a Hugging Face checkpoint as the reference.

    with open_transformers(folder, TransformersSettings(context=4096, intent=intent)) as session: …

The same `Session` as `runtime` gives. The text goes through in chunks with a KV cache, and only wanted positions reach
the vocabulary. The RoPE is config.json's, or an intent that is laid over it in transformers' own words, so that
transformers computes the frequencies; only YaRN over llama3, for which it has no words, is put in as numbers. No code
of the checkpoint is run, no pickle is read. The child is `reference_child`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from yarn_gguf.children.process import DEADLINE, Child
from yarn_gguf.children.room import Room
from yarn_gguf.config.model_config import ModelConfig, read_config
from yarn_gguf.errors import InputError
from yarn_gguf.intent import Intent
from yarn_gguf.logits import Session, opened_session, piece_length
from yarn_gguf.rope import Linear, NtkAware, NtkByParts, Scaling, Unscaled, Yarn, ntk_base

MODULE: Final = "yarn_gguf.reference_child"
DTYPES: Final[Mapping[str, str]] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_YARN_FIELDS: Final = ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True, slots=True)
class TransformersSettings:
    """How a checkpoint is opened."""

    context: int
    intent: Intent | None = None  # None: what config.json says
    batch: int | None = None  # tokens to a chunk
    threads: int | None = None
    dtype: str = "f32"
    deadline: float = DEADLINE


def open_transformers(folder: Path, settings: TransformersSettings) -> Session:
    """An open model; to be closed, or used as a context manager."""
    config = read_config(folder)
    rope = None if settings.intent is None else rope_words(config, settings.intent)
    room = Room()
    try:
        child = _child(folder, room, settings.deadline)
    except BaseException:
        room.close()
        raise
    return opened_session(
        child,
        room,
        path=os.fspath(folder.absolute()),
        context=settings.context,
        batch=settings.batch or piece_length(config.vocab_size),
        threads=settings.threads or os.cpu_count() or 1,
        dtype=DTYPES[settings.dtype],
        rope=rope,
    )


def open_tokenizer(folder: Path, deadline: float = DEADLINE) -> Session:
    """A session that can only tokenize; no weights are loaded."""
    room = Room()
    try:
        child = _child(folder, room, deadline)
    except BaseException:
        room.close()
        raise
    return opened_session(child, room, do="vocabulary", path=os.fspath(folder.absolute()))


def _child(folder: Path, room: Room, deadline: float) -> Child:
    return Child(
        MODULE,
        folder,
        what="transformers",
        environment={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"},
        inherited=room.inherited,
        deadline=deadline,
    )


def rope_words(config: ModelConfig, intent: Intent) -> dict[str, Any] | None:
    """An intent in transformers' words; None where it is what config.json says already.

    `parameters` replace the scaling of the layers that scale; `frequencies` and `magnitude`, where they are there,
    are put in the place of what comes of them.
    """
    own = config.rope
    if own is None or own.rope.scaling == intent.rope.scaling:
        return None
    scaling = intent.rope.scaling
    found: dict[str, Any] = {"parameters": _parameters(config, own, scaling), "context": intent.context}
    if own.rope.under is not None and not isinstance(scaling, Unscaled):
        rope = type(own.rope)(own.rope.dim, own.rope.base, scaling, own.rope.under)
        found["frequencies"] = [float(each) for each in rope.inverse_frequencies()]
        found["magnitude"] = rope.magnitude()
    return found


def _parameters(config: ModelConfig, own: Intent, scaling: Scaling) -> dict[str, Any]:
    match scaling:
        case Unscaled():
            return {"rope_type": "default"}
        case Linear():
            return {"rope_type": "linear", "factor": scaling.factor}
        case NtkAware():
            return {"rope_type": "default", "rope_theta": ntk_base(own.rope.base, own.rope.dim, scaling.factor)}
        case NtkByParts():
            ramp = {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
            return {**_extent(scaling), **ramp, "attention_factor": 1.0}
        case Yarn():
            given = {name: getattr(scaling, name) for name in _YARN_FIELDS}
            return {**_extent(scaling), **{name: value for name, value in given.items() if value is not None}}
    text = f"transformers has no name for {type(scaling).__name__}, which the candidate asks for"
    raise InputError(text, file=config.path, code="no_words")


def _extent(scaling: Yarn | NtkByParts) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
    }
