"""Rows of architectures with latent attention: keys and values are made of one short vector per token (DeepSeek).

llama.cpp lets the queries take part of the work, so the matrix that makes keys and values comes apart into two.
"""

from __future__ import annotations

import re
from typing import Any, Final

from yarn_gguf.archs.common import (
    CORRECTION,
    ENDS,
    EXPERT_FFN,
    EXPERTS,
    GATED,
    NORMS,
    ROUTER,
    SHARED,
    SIGMOID,
    STACKED,
    VOCAB,
    Row,
    has_experts,
    is_dense,
    renamed,
)
from yarn_gguf.archs.key_tables import ALL, computed, keys, without
from yarn_gguf.archs.tensor_tables import Choice, layer
from yarn_gguf.config.hyperparameters import Hyperparameters

_ROUTED: Final = {"num_experts": "n_routed_experts"}
_LATENT: Final = (
    ENDS,
    NORMS,
    layer("""
        self_attn.q_proj.weight                attn_q.weight           heads*qk_nope_head_dim+heads*qk_rope_head_dim,hidden         ?!q_lora_rank
        self_attn.q_a_proj.weight              attn_q_a.weight         q_lora_rank,hidden                                           ?q_lora_rank
        self_attn.q_a_layernorm.weight         attn_q_a_norm.weight    q_lora_rank                                                  ?q_lora_rank
        self_attn.q_b_proj.weight              attn_q_b.weight         heads*qk_nope_head_dim+heads*qk_rope_head_dim,q_lora_rank    ?q_lora_rank
        self_attn.kv_a_proj_with_mqa.weight    attn_kv_a_mqa.weight    kv_lora_rank+qk_rope_head_dim,hidden
        self_attn.kv_a_layernorm.weight        attn_kv_a_norm.weight   kv_lora_rank
        self_attn.kv_b_proj.weight             attn_k_b.weight         heads*qk_nope_head_dim+heads*v_head_dim,kv_lora_rank         k_b
        self_attn.kv_b_proj.weight             attn_v_b.weight         heads*qk_nope_head_dim+heads*v_head_dim,kv_lora_rank         v_b
        self_attn.o_proj.weight                attn_output.weight      hidden,heads*v_head_dim
    """),
)
_DEEPSEEK: Final = (
    *_LATENT,
    GATED.on(is_dense),
    renamed(ROUTER, **_ROUTED).on(has_experts),
    SHARED.on(has_experts),
    Choice((renamed(EXPERTS, **_ROUTED), renamed(STACKED, **_ROUTED))).on(has_experts),
)


def _first_dense(h: Hyperparameters) -> int:
    return h.size("first_k_dense_replace") if h.get("first_k_dense_replace") is not None else 0


_KEYS: Final = (
    *(ALL + VOCAB + EXPERT_FFN),
    *computed("leading_dense_block_count", "u32", _first_dense),
    *keys("""
        attention.head_count_kv       u32    "1"
        attention.q_lora_rank         u32    q_lora_rank
        attention.kv_lora_rank        u32    kv_lora_rank
        attention.key_length          u32    kv_lora_rank+qk_rope_head_dim
        attention.value_length        u32    kv_lora_rank
        attention.key_length_mla      u32    qk_nope_head_dim+qk_rope_head_dim
        attention.value_length_mla    u32    v_head_dim
        expert_shared_count           u32    n_shared_experts
        expert_weights_scale          f32    routed_scaling_factor
        rope.dimension_count          u32    qk_rope_head_dim
    """),
)
_NORMED: Final = keys("""
    expert_weights_norm    bool    "true"    ?norm_topk_prob
""")


def _further_layer(h: Hyperparameters, name: str) -> bool:
    """The layers that predict further tokens: upstream's converter leaves them out too."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return match is not None and int(match[1]) >= h.config.layers


def _rope_setting(name: str, h: Hyperparameters) -> Any:
    settings = h.get("rope_parameters", "rope_scaling")
    return settings.get(name) if isinstance(settings, dict) else None


def _score_slope(h: Hyperparameters) -> float | None:
    """Mistral 4 scales the scores of tokens late in the text: by this, for every original context before them."""
    return _rope_setting("llama_4_scaling_beta", h) or None


def _score_step(h: Hyperparameters) -> int | None:
    return _rope_setting("original_max_position_embeddings", h) if _score_slope(h) else None


_MISTRAL4: Final = Row(
    "mistral4",
    (
        *_LATENT,
        GATED.on(is_dense),
        renamed(ROUTER, **_ROUTED).on(has_experts),
        SHARED.on(has_experts),
        layer("""
            mlp.experts.gate_up_proj    ffn_gate_up_exps.weight    n_routed_experts,2*moe_intermediate_size,hidden
            mlp.experts.down_proj       ffn_down_exps.weight       n_routed_experts,hidden,moe_intermediate_size
        """).on(has_experts),
    ),
    (
        *(_KEYS + _NORMED),
        *computed("attention.temperature_scale", "f32", _score_slope),
        *computed("attention.temperature_length", "u32", _score_step),
    ),
)
# rows of classes that stand for several model types have the type behind the name
LATENT_ROWS: Final[dict[str, Row]] = {
    "DeepseekV2ForCausalLM": Row("deepseek2", _DEEPSEEK, _KEYS, left_out=_further_layer),
    "DeepseekV3ForCausalLM": Row(
        "deepseek2",
        (*_DEEPSEEK, renamed(CORRECTION, **_ROUTED).on(has_experts)),
        without(_KEYS, "expert_gating_func") + SIGMOID + _NORMED,
        left_out=_further_layer,
    ),
    "Mistral4ForCausalLM": _MISTRAL4,
    "Ministral3ForCausalLM/mistral4": _MISTRAL4,
    "Mistral3ForConditionalGeneration/mistral4": _MISTRAL4,
}
