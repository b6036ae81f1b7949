"""Keys that upstream's converter does not write, or writes with another value, though the graph would take them.

One function or more for a model type; each gives nothing for a config at which upstream's keys are right. Knows names
of keys without the architecture before them. All were measured: with the key llama.cpp equals transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from yarn_gguf.config.audit_checks import Model, dense_lead, limits_groups, loaded
from yarn_gguf.config.audit_tables import SCORING

KeyValue: TypeAlias = bool | int | float | list[bool]
Keys: TypeAlias = dict[str, KeyValue]

WIDE: Final = 1 << 24  # tokens; a window that nobody reaches, times the sequences of a batch still below 2³²
UNCAPPED: Final = 1e5  # tanh(x / this) · this is x, in float32, for any logit or score there is
SLIDING_PATTERN: Final = "attention.sliding_window_pattern"
WINDOW_KEY: Final = "attention.sliding_window"


def _pattern(period: int, dense_first: bool = False, wide: bool = False) -> Callable[[Model], Keys]:
    """The layers that slide. Where none does, the window goes: as 0, or `wide` where the graph cannot do without."""

    def keys(model: Model) -> Keys:
        slides = model.slides()
        if not any(slides):
            return {WINDOW_KEY: WIDE if wide else 0}
        return {} if slides == loaded(len(slides), period, dense_first) else {SLIDING_PATTERN: slides}

    return keys


def _no_window_if_none_slides(model: Model) -> Keys:
    return {} if any(model.slides()) else {WINDOW_KEY: 0}


def _all_slide_widely_if_none_slides(model: Model) -> Keys:
    slides = model.slides()
    return {} if any(slides) else {WINDOW_KEY: WIDE, SLIDING_PATTERN: [True] * len(slides)}


def _without_window_at_64(model: Model) -> Keys:
    if model.config.layers != 64 or model.config.raw.get("sliding_window", 1) is not None:
        return {}
    return {WINDOW_KEY: WIDE, SLIDING_PATTERN: [True] * 64}


def _rotating_layers(model: Model) -> Keys:
    rotates = [kind is not None for kind in model.config.layer_ropes]
    return {} if all(rotates) else {"attention.rope_pattern": rotates}


def _caps(model: Model) -> Keys:
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    return {name: UNCAPPED for name in names if model.get(name) is None}


def _eps_unless_1e5(model: Model) -> Keys:
    """The converter writes 1e-5, whatever the config says."""
    eps = float(model.get("rms_norm_eps"))
    return {} if eps == 1e-5 else {"attention.layer_norm_rms_epsilon": eps}


def _feed_forward(field: str) -> Callable[[Model], Keys]:
    """The converter writes four times hidden_size, whatever the config says."""

    def keys(model: Model) -> Keys:
        given = model.get(field)
        return {} if given in (None, 4 * model.config.hidden_size) else {"feed_forward_length": int(given)}

    return keys


def _kv_heads(written: Callable[[Model], Any]) -> Callable[[Model], Keys]:
    def keys(model: Model) -> Keys:
        heads = model.config.kv_heads
        return {} if written(model) == heads else {"attention.head_count_kv": heads}

    return keys


def _shared_width(model: Model) -> Keys:
    """The converter divides intermediate_size by the key heads, which comes out right for the published models."""
    shared = model.get("moe_num_shared_experts") or 0
    width = int(shared * model.get("moe_intermediate_size"))
    same = width == model.get("intermediate_size") // model.config.kv_heads
    return {} if same or not shared else {"expert_shared_feed_forward_length": width}


def _value_length(model: Model) -> Keys:
    width = int(model.get("v_head_dim"))
    return {} if width == model.config.hidden_size // model.config.heads else {"attention.value_length": width}


def _dense_layers(model: Model) -> Keys:
    lead = dense_lead(model)
    same = not model.config.raw.get("mlp_layer_types") or lead == model.get("first_k_dense_replace")
    return {} if same or lead is None else {"leading_dense_block_count": lead}


def _plain_experts(model: Model) -> Keys:
    """transformers' DeepSeek-V2 never divides by the sum; groups that exclude nobody are none."""
    keys = Keys()
    if model.get("norm_topk_prob"):
        keys["expert_weights_norm"] = False
    if (model.get("n_group") or 1) > 1 and not limits_groups(model):
        keys |= {"expert_group_count": 1, "expert_group_used_count": 1}
    return keys


def _scored(by: int) -> Callable[[Model], Keys]:
    """Said where the file does not, as the loader takes the other way for granted. 1 is softmax, 2 sigmoid."""
    return lambda model: {} if any(map(model.get, SCORING.split())) else {"expert_gating_func": by}


def _normalised(model: Model) -> Keys:
    return {} if model.get("route_norm") else {"expert_weights_norm": True}


EXTRA: Final[Mapping[str, tuple[Callable[[Model], Keys], ...]]] = {
    "gemma2": (_pattern(2, wide=True), _caps),
    "gemma3_text": (_pattern(6),),
    "gpt_oss": (_pattern(2, wide=True),),
    "cohere2": (_pattern(4),),
    "laguna": (_pattern(4, dense_first=True),),
    "olmo3": (_no_window_if_none_slides,),
    "mellum": (_no_window_if_none_slides,),
    "granite_swa": (_all_slide_widely_if_none_slides, _rotating_layers),
    "exaone4": (_without_window_at_64,),
    "exaone_moe": (_dense_layers, _scored(2)),
    "glm": (_eps_unless_1e5,),
    "olmoe": (_eps_unless_1e5,),
    "phi": (_feed_forward("intermediate_size"), _kv_heads(lambda model: model.config.heads)),
    "falcon": (_feed_forward("ffn_hidden_size"), _kv_heads(lambda model: model.get("num_kv_heads"))),
    "ernie4_5_moe": (_shared_width,),
    "minicpm3": (_value_length,),
    "deepseek_v2": (_plain_experts,),
    "deepseek_v3": (_scored(2),),
    "dots1": (_scored(2),),
    "minimax_m2": (_scored(2),),
    "afmoe": (_normalised,),
}
