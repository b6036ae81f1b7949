"""Settings that llama.cpp's graphs honour in part: a function each, that says what the graph does instead, or nothing.

Knows what loaders and graphs take for granted, by architecture and by number of layers, as measured. The text of an
answer goes on after "but llama.cpp's graph …". Which field asks for which check is in `audit_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from yarn_gguf.config.families import FULL, SLIDING
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.config.model_config import ModelConfig

TOPK_METHODS: Final = ("greedy", "group_limited_greedy")
LATENT_EPS: Final = 1e-5  # up to here, the norms that keep 1e-6 whatever the config says differ by less than noise


@dataclass(frozen=True, slots=True)
class Model:
    """What the checks look at."""

    config: ModelConfig
    context: int  # tokens that the converted model is for

    def get(self, name: str) -> Any:
        """The field; where the file has none, what transformers takes it for. An explicit null stays null."""
        return Hyperparameters(self.config).get(name)

    def slides(self) -> list[bool]:
        return [kind == SLIDING for kind in self.config.layer_types]


def _window_ignored(model: Model) -> str | None:
    """No window, or one that no token is far enough away for."""
    window, sliding = model.config.sliding_window, sum(model.slides())
    if window is None or window >= model.context:
        return None
    also = [name for name in ("use_sliding_window", "max_window_layers", "layer_types") if model.get(name) is not None]
    where = f"{sliding} of {model.config.layers} layers slide{', by ' + ', '.join(also) if also else ''}"
    exact = f"exact up to {window} tokens; beyond that every layer would see all {model.context}"
    return f"knows no window: {exact} ({where})"


def _heads_fill_hidden(model: Model) -> str | None:
    wide = model.config.heads * model.config.head_dim
    if wide == model.config.hidden_size:
        return None
    return f"demands num_attention_heads as wide together as hidden_size ({model.config.hidden_size}, not {wide})"


def _every_head_has_keys(model: Model) -> str | None:
    return None if model.config.kv_heads == model.config.heads else "demands as many as num_attention_heads"


def _some_shared_expert(model: Model) -> str | None:
    names = ("n_shared_experts", "num_shared_experts")
    return None if any(model.get(name) for name in names) else "demands a shared expert"


def _latent_queries(model: Model) -> str | None:
    """The loader tells the small models, which have no latent queries, by their number of layers."""
    layers, given = model.config.layers, model.get("q_lora_rank") is not None
    if model.config.model_type == "minicpm3":
        return None if given else "demands latent queries"
    plain = layers in (26, 27) or (layers == 48 and model.config.vocab_size == 128256)
    if given is not plain:
        return None
    return f"demands {'direct' if plain else 'latent'} queries in a model of {layers} layers"


def _latent_norms(model: Model) -> str | None:
    if float(model.get("rms_norm_eps")) <= LATENT_EPS:
        return None
    return "takes it in the norms of latent queries and keys too, where transformers takes 1e-06"


def _query_scale(model: Model) -> str | None:
    """Scores are divided by the root of a number that the loader finds by the number of layers."""
    special = {"gemma2": 46, "gemma3_text": 62}[model.config.model_type]
    by_hidden = model.config.layers == special
    scale = model.config.hidden_size / model.config.heads if by_hidden else model.config.head_dim
    if model.get("query_pre_attn_scalar") == scale:
        return None
    which = "hidden_size / num_attention_heads" if by_hidden else "head_dim"
    return f"of {model.config.layers} layers divides scores by the root of {which}, {scale:g}"


def _every_fourth_unrotated(model: Model) -> str | None:
    rotates = [kind is not None for kind in model.config.layer_ropes]
    if rotates == [(i + 1) % 4 != 0 for i in range(len(rotates))]:
        return None
    return "leaves every fourth layer without RoPE (no_rope_layers, no_rope_layer_interval)"


def _every_fourth_full(model: Model) -> str | None:
    if model.slides() == loaded(model.config.layers, 4):
        return None
    return "leaves every fourth layer without RoPE (layer_types, global_attn_every_n_layers)"


def _some_layer_slides(model: Model) -> str | None:
    return None if any(model.slides()) else "demands a sliding layer"


def _slides_at_64(model: Model) -> str | None:
    """Without a window transformers rotates every layer, and so does the graph when it does not slide."""
    if model.config.raw.get("sliding_window", 1) is None:
        return None
    if model.config.layers != 64:
        return f"does not slide in a model of {model.config.layers} layers (layer_types, sliding_window_pattern)"
    return _some_layer_slides(model)


def _norms_by_depth(model: Model) -> str | None:
    deep = model.config.layers >= 64
    if bool(model.get("use_qk_norm")) is deep:
        return None
    return f"{'demands' if deep else 'has no'} norms of queries and keys in a model of {model.config.layers} layers"


def _some_layer_rotates(model: Model) -> str | None:
    return None if any(model.config.layer_ropes) else "demands a layer that rotates"


def _some_layer_convolves(model: Model) -> str | None:
    attends = [kind == FULL for kind in model.config.layer_types]
    if any(attends) and not all(attends):
        return None
    return "demands both layers that attend and layers that convolve (layer_types, full_attn_idxs)"


def _experts_to_the_end(model: Model) -> str | None:
    last = model.config.layers - 1
    return None if model.get("moe_layer_end_index") in (-1, None, last) else f"has experts up to the last layer, {last}"


def _small_sum(model: Model) -> str | None:
    """The weights of the chosen experts, at least 1/number of experts each, add up to more than that."""
    return None if float(model.get("moe_norm_min") or 0) <= 1e-6 else "divides by the sum of weights, however small"


def _chosen_experts(model: Model) -> str | None:
    """DeepSeek-V2 ranks groups of experts by the best of each, llama.cpp by the sum of the best two.

    At any other method than the two that it knows, transformers' class breaks off.
    """
    if model.get("topk_method") not in TOPK_METHODS:
        return (
            f"always takes the best experts, and transformers' class knows no method but {' and '.join(TOPK_METHODS)}"
        )
    if not limits_groups(model):
        return None
    return "ranks groups of experts by the sum of their best two, where transformers takes the best one (n_group)"


def limits_groups(model: Model) -> bool:
    """As many groups as experts chosen hold the best of them all in any case."""
    if model.get("topk_method") != "group_limited_greedy" or (model.get("n_group") or 1) == 1:
        return False
    return bool((model.get("topk_group") or 0) < model.get("num_experts_per_tok"))


def _sparse_layers(model: Model) -> str | None:
    return None if "dense" not in (model.get("mlp_layer_types") or ()) else "takes every layer for a mixture of experts"


def _dense_layers_first(model: Model) -> str | None:
    if dense_lead(model) is not None:
        return None
    return "has dense layers only before the first with experts"


def dense_lead(model: Model) -> int | None:
    """How many dense layers come first; None where one comes later."""
    dense = [kind == "dense" for kind in model.config.raw.get("mlp_layer_types") or ()]
    lead = dense.index(False) if False in dense else len(dense)
    return None if any(dense[lead:]) else lead


def loaded(layers: int, period: int, dense_first: bool = False) -> list[bool]:
    """Which layers llama.cpp's loader lets slide where no key says it."""
    return [i % period != (0 if dense_first else period - 1) for i in range(layers)]


CHECKS: Final[Mapping[str, Callable[[Model], str | None]]] = {
    "window_ignored": _window_ignored,
    "heads_fill_hidden": _heads_fill_hidden,
    "every_head_has_keys": _every_head_has_keys,
    "some_shared_expert": _some_shared_expert,
    "latent_queries": _latent_queries,
    "latent_norms": _latent_norms,
    "query_scale": _query_scale,
    "every_fourth_unrotated": _every_fourth_unrotated,
    "every_fourth_full": _every_fourth_full,
    "some_layer_slides": _some_layer_slides,
    "slides_at_64": _slides_at_64,
    "norms_by_depth": _norms_by_depth,
    "some_layer_rotates": _some_layer_rotates,
    "some_layer_convolves": _some_layer_convolves,
    "experts_to_the_end": _experts_to_the_end,
    "small_sum": _small_sum,
    "chosen_experts": _chosen_experts,
    "sparse_layers": _sparse_layers,
    "dense_layers_first": _dense_layers_first,
}
