"""A launch in the words of programs that are not ours to run: Ollama, LM Studio, KoboldCpp, vLLM.

Read in their documentation and sources, as `remarks` says; none of them is run by a test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from yarn_gguf.checkpoint_ropes import rope_settings
from yarn_gguf.config.model_config import ModelConfig
from yarn_gguf.effective import LayerClass, layer_classes, sliding_base
from yarn_gguf.errors import UsageError
from yarn_gguf.flags.launch import Launch, Settings
from yarn_gguf.graphs import GRAPHS, Sliding
from yarn_gguf.intent import Intent
from yarn_gguf.metadata import Facts
from yarn_gguf.rope import Linear, NtkAware, NtkByParts, Yarn, ntk_base, yarn_magnitude

ALL_LAYERS: Final = 999  # -1 is KoboldCpp's own guess, and Ollama's
KOBOLD_KV: Final = {"f16": "0", "q8_0": "1", "q4_0": "2"}  # --quantkv
_RAMP: Final = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # defaults that need no word


def modelfile(launch: Launch) -> str:
    """Raises where the path has what ends an instruction, or what Ollama trims: there is no way to quote it."""
    path, s = str(Path(launch.path).absolute()), launch.settings
    if not path.isprintable() or path != path.strip():
        text = "a Modelfile has no words for a path with line breaks or the like, or a space at its end; rename it"
        raise UsageError(text, file=path, code="path")
    parameters = {
        "num_ctx": launch.wanted.context,
        "num_gpu": None if s.gpu_layers is None else _layers(s.gpu_layers),
        "num_thread": s.threads,
    }
    lines = [f"PARAMETER {name} {value}" for name, value in parameters.items() if value is not None]
    return "\n".join((f"FROM {path}", *lines))


def _layers(count: int) -> int:
    return count if count >= 0 else ALL_LAYERS


def lms(launch: Launch) -> list[list[str]]:
    load = ["lms", "load", "--context-length", str(launch.wanted.context)]
    layers = launch.settings.gpu_layers
    if layers is not None:
        share = layers / launch.wanted.facts.layers
        load += ["--gpu", "off" if layers == 0 else "max" if layers < 0 or share >= 1 else f"{share:.3g}"]
    return [["lms", "import", launch.path], load]


def koboldcpp(launch: Launch) -> list[str]:
    s = launch.settings
    words = ["koboldcpp", "--model", launch.path, "--contextsize", str(launch.wanted.context), "--noshift"]
    quantized = s.kv in KOBOLD_KV and s.kv != "f16"
    if s.kv is not None and quantized:
        words += ["--quantkv", KOBOLD_KV[s.kv]]
    if s.flash_attention or (quantized and s.flash_attention is None):  # without it V stays f16
        words.append("--flashattention")
    if s.gpu_layers is not None:
        words += ["--gpulayers", str(_layers(s.gpu_layers))]
    if s.threads is not None:
        words += ["--threads", str(s.threads)]
    return [*words, *s.more]


def vllm(path: str, asked: Intent, context: int, rope: dict[str, Any] | None, settings: Settings) -> list[str]:
    words = ["vllm", "serve", path, "--max-model-len", str(context)]
    if rope is not None:
        overrides = {"max_position_embeddings": max(context, asked.context), "rope_parameters": rope}
        words += ["--hf-overrides", json.dumps(overrides)]
    return [*words, *settings.more]


def gguf_rope_parameters(facts: Facts, asked: Intent) -> dict[str, Any] | None:
    """`rope_parameters` of config.json for what a GGUF asks for; None where that is nothing, or has no words."""
    found = rope_words(asked)
    if found is None:
        return None
    if (dimensions := asked.rope.dim) < facts.head_dim:
        found["partial_rotary_factor"] = dimensions / facts.head_dim
    graph = GRAPHS[facts.arch]
    if graph.sliding in (Sliding.UNSCALED, Sliding.PLAIN) and LayerClass.SLIDING in layer_classes(facts):
        sliding = {"rope_type": "default", "rope_theta": sliding_base(facts)}
        return {"full_attention": found, "sliding_attention": sliding}
    return found


def checkpoint_rope_parameters(config: ModelConfig, asked: Intent) -> dict[str, Any] | None:
    """The same for a checkpoint: what replaces `rope_parameters` must hold all of it."""
    found, settings = rope_words(asked), rope_settings(config)
    if found is None:
        return None
    full = settings.get("full_attention", settings)
    partial = full.get("partial_rotary_factor", config.raw.get("partial_rotary_factor"))
    if partial is not None:
        found["partial_rotary_factor"] = partial
    return {**settings, "full_attention": found} if config.ropes_differ else found


def rope_words(asked: Intent) -> dict[str, Any] | None:
    """One scaling in transformers' words, with what differs from its defaults."""
    scaling, base = asked.rope.scaling, asked.rope.base
    match scaling:
        case Linear():
            return {"rope_type": "linear", "rope_theta": base, "factor": scaling.factor}
        case NtkAware():
            return {"rope_type": "default", "rope_theta": ntk_base(base, asked.rope.dim, scaling.factor)}
        case Yarn() | NtkByParts():
            found: dict[str, Any] = {"rope_type": "yarn", "rope_theta": base, "factor": scaling.factor}
            found["original_max_position_embeddings"] = scaling.original_context
            found |= {k: getattr(scaling, k) for k, usual in _RAMP.items() if getattr(scaling, k) != usual}
            pair = {k: getattr(scaling, k, None) for k in ("mscale", "mscale_all_dim")}
            found |= pair if all(pair.values()) else {}
            magnitude = asked.rope.magnitude()
            if not all(pair.values()) and abs(magnitude / yarn_magnitude(scaling.factor) - 1) > 1e-9:
                found["attention_factor"] = magnitude
            return found
    return None
