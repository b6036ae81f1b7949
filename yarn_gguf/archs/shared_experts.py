"""Rows of architectures whose layers have experts that all tokens go through besides, and often dense layers first."""

from __future__ import annotations

from typing import Final

from yarn_gguf.archs.common import (
    ATTENTION,
    CORRECTION,
    ENDS,
    EXPERT_FFN,
    EXPERTS,
    GATED,
    HEAD,
    NEXT_TOKEN,
    NORMS,
    OUT,
    QK_NORM,
    QKV,
    QKV_BIAS,
    ROTATED,
    ROUTER,
    SCALED_EXPERTS,
    SHARED,
    SIGMOID,
    SLIDES,
    STACKED,
    TIED_HEAD,
    VOCAB,
    WINDOW,
    Row,
    has_experts,
    is_dense,
    optional,
    renamed,
)
from yarn_gguf.archs.key_tables import ALL, computed, keys, without
from yarn_gguf.archs.tensor_tables import Choice, Group, further_layers, layer, size_at
from yarn_gguf.config.hyperparameters import Hyperparameters


def _listed(h: Hyperparameters, i: int) -> bool:
    """By the file's list; without one, all but the first (or the first so many)."""
    kinds = h.config.raw.get("mlp_layer_types")
    if kinds is None or i >= h.config.layers:
        return i >= (1 if h.get("first_k_dense_replace") is None else h.size("first_k_dense_replace"))
    if not isinstance(kinds, list) or len(kinds) != h.config.layers:
        raise h.fail(f"mlp_layer_types is no list of {h.config.layers} names")
    return bool(kinds[i] == "sparse")


def _not_listed(h: Hyperparameters, i: int) -> bool:
    return not _listed(h, i)


def _behind_dense(h: Hyperparameters, i: int) -> bool:
    return i >= h.size("num_dense_layers")


def _among_dense(h: Hyperparameters, i: int) -> bool:
    return not _behind_dense(h, i)


def _at_interval(h: Hyperparameters, i: int) -> bool:
    last = h.get("moe_layer_end_index")
    within = h.size("moe_layer_start_index") <= i and (last is None or last == -1 or i <= last)
    return bool(within and (i + 1) % (h.size("moe_layer_interval") or 1) == 0)


def _off_interval(h: Hyperparameters, i: int) -> bool:
    return not _at_interval(h, i)


def _first_dense(h: Hyperparameters) -> int:
    """How many layers go without experts: the first ones, since llama.cpp can have no others."""
    dense = [_not_listed(h, i) for i in range(h.config.layers)]
    if any(dense[dense.count(True) :]):
        raise h.fail("mlp_layer_types has dense layers behind sparse ones, which llama.cpp does not know")
    return dense.count(True)


def _blocks(h: Hyperparameters) -> int:
    return h.config.layers + further_layers(h)


def _further_if_any(h: Hyperparameters) -> int | None:
    return further_layers(h) or None


def _sliding_dim(h: Hyperparameters) -> int | None:
    sliding = h.config.ropes.get("sliding")
    return sliding.rope.dim if sliding is not None else None


def _window(h: Hyperparameters) -> int | None:
    return h.get("sliding_window") or None


def _heads(h: Hyperparameters) -> list[int]:
    return [size_at(h, "heads", i) for i in range(h.config.layers)]


_ROUTED: Final = {"num_experts": "n_routed_experts"}  # what GLM, dots and others call it
_COUNTED: Final = {"n_shared_experts": "num_shared_experts"}
EITHER: Final = Choice((EXPERTS, STACKED))
_EITHER_ROUTED: Final = Choice((renamed(EXPERTS, **_ROUTED), renamed(STACKED, **_ROUTED)))
QWEN_SHARED: Final = layer("""
    mlp.shared_expert.gate_proj.weight    ffn_gate_shexp.weight    shared_expert_intermediate_size,hidden
    mlp.shared_expert.up_proj.weight      ffn_up_shexp.weight      shared_expert_intermediate_size,hidden
    mlp.shared_expert.down_proj.weight    ffn_down_shexp.weight    hidden,shared_expert_intermediate_size
""")
_GLM_FURTHER: Final[tuple[Group | Choice, ...]] = (
    NEXT_TOKEN,
    *(
        optional(layer(f"{line} vocab,hidden").beyond())
        for line in (
            "embed_tokens.weight nextn.embed_tokens.weight",
            "shared_head.head.weight nextn.shared_head_head.weight",
        )
    ),
    optional(layer("shared_head.norm.weight nextn.shared_head_norm.weight hidden").beyond()),
)
_MTP: Final = "mtp.layers.{k}."
_EXAONE_FURTHER: Final = (
    *(group.beyond(_MTP) for group in (*ATTENTION, QK_NORM, GATED)),
    layer("""
        /mtp.fc.weight                       nextn.eh_proj.weight             hidden,2*hidden
        /mtp.pre_fc_norm_embedding.weight    nextn.enorm.weight               hidden
        /mtp.pre_fc_norm_hidden.weight       nextn.hnorm.weight               hidden
        /mtp.norm.weight                     nextn.shared_head_norm.weight    hidden
    """).beyond(),
)
_EXAONE: Final = Row(
    "exaone-moe",
    (
        ENDS,
        TIED_HEAD,
        *ATTENTION,
        QK_NORM,
        GATED.on(_not_listed),
        ROUTER.on(_listed),
        EITHER.on(_listed),
        renamed(SHARED, **_COUNTED).on(_listed),
        layer("mlp.e_score_correction_bias exp_probs_b.bias num_experts").on(_listed),
        *_EXAONE_FURTHER,
    ),
    (
        *without(ALL, "expert_gating_func"),
        *(VOCAB + EXPERT_FFN + WINDOW + SCALED_EXPERTS + SIGMOID),
        *computed("block_count", "u32", _blocks),
        *SLIDES,
        *keys("""
            expert_shared_count                  u32    num_shared_experts
            expert_shared_feed_forward_length    u32    moe_intermediate_size*num_shared_experts
            rope.scaling.type                    str    "none"
        """),
        *computed("leading_dense_block_count", "u32", _first_dense),
        *computed("nextn_predict_layers", "u32", further_layers),
    ),
)


def _ernie_mtp(h: Hyperparameters, name: str) -> bool:
    """What predicts further tokens in Ernie: upstream's converter leaves it out, and llama.cpp has no graph for it."""
    return name.startswith(
        ("model.mtp_block.", "model.mtp_emb_norm.", "model.mtp_hidden_norm.", "model.mtp_linear_proj.")
    )


def _ernie_dense(h: Hyperparameters) -> int:
    """llama.cpp's loader wants experts in every layer behind the first dense ones."""
    first = h.size("moe_layer_start_index")
    if any(_off_interval(h, i) for i in range(first, h.config.layers)):
        raise h.fail("some layers behind the first with experts have none, which llama.cpp does not know")
    return first


SHARED_EXPERT_ROWS: Final[dict[str, Row]] = {
    "Glm4MoeForCausalLM": Row(
        "glm4moe",
        (
            ENDS,
            NORMS.without("ffn_norm").further(),
            layer("post_attention_layernorm.weight post_attention_norm.weight hidden").further(),
            QKV.further(),
            QKV_BIAS.given("attention_bias").further(),
            QK_NORM.given("use_qk_norm").further(),
            OUT.further(),
            GATED.on(is_dense),
            renamed(ROUTER, **_ROUTED).on(has_experts).further(),
            renamed(CORRECTION, **_ROUTED).on(has_experts).further(),
            _EITHER_ROUTED.on(has_experts).further(),
            SHARED.given("n_shared_experts").on(has_experts).further(),
            *_GLM_FURTHER,
        ),
        (
            *(without(ALL, "expert_gating_func") + EXPERT_FFN + SCALED_EXPERTS + SIGMOID),
            *computed("block_count", "u32", _blocks),
            *ROTATED,
            *keys("""
                expert_shared_count          u32    n_shared_experts
                leading_dense_block_count    u32    first_k_dense_replace
            """),
            *computed("nextn_predict_layers", "u32", further_layers),
        ),
    ),
    "Dots1ForCausalLM": Row(
        "dots1",
        (
            ENDS,
            TIED_HEAD,
            *ATTENTION,
            QK_NORM,
            GATED.on(is_dense),
            renamed(ROUTER, **_ROUTED).on(has_experts),
            renamed(CORRECTION, **_ROUTED).on(has_experts),
            _EITHER_ROUTED.on(has_experts),
            SHARED.on(has_experts),
        ),
        (
            *(without(ALL, "expert_gating_func") + EXPERT_FFN + SCALED_EXPERTS + SIGMOID),
            *keys("""
                expert_shared_count          u32    n_shared_experts
                leading_dense_block_count    u32    first_k_dense_replace
            """),
        ),
    ),
    "ExaoneMoeForCausalLM": _EXAONE,
    "ExaoneMoEForCausalLM": _EXAONE,
    "AfmoeForCausalLM": Row(
        "afmoe",
        (
            ENDS,
            *(QKV, OUT, QK_NORM),
            layer("""
                self_attn.gate_proj.weight         attn_gate.weight              heads*head_dim,hidden
                input_layernorm.weight             attn_norm.weight              hidden
                post_attention_layernorm.weight    post_attention_norm.weight    hidden
                pre_mlp_layernorm.weight           ffn_norm.weight               hidden
                post_mlp_layernorm.weight          post_ffw_norm.weight          hidden
            """),
            GATED.on(_among_dense),
            layer("""
                mlp.router.gate.weight    ffn_gate_inp.weight    num_experts,hidden
                mlp.expert_bias           exp_probs_b.bias       num_experts
            """).on(_behind_dense),
            EITHER.on(_behind_dense),
            renamed(SHARED, **_COUNTED).given("num_shared_experts").on(_behind_dense),
        ),
        (
            *(without(ALL, "expert_gating_func") + VOCAB + HEAD + EXPERT_FFN + WINDOW),
            *keys("""
                expert_shared_count          u32     num_shared_experts
                leading_dense_block_count    u32     num_dense_layers
                expert_weights_norm          bool    "true"
                expert_weights_scale         f32     route_scale
            """),
        ),
    ),
    "LagunaForCausalLM": Row(
        "laguna",
        (
            ENDS,
            NORMS,
            QK_NORM,
            layer("""
                self_attn.q_proj.weight    attn_q.weight         heads[i]*head_dim,hidden
                self_attn.k_proj.weight    attn_k.weight         kv_heads*head_dim,hidden
                self_attn.v_proj.weight    attn_v.weight         kv_heads*head_dim,hidden
                self_attn.o_proj.weight    attn_output.weight    hidden,heads[i]*head_dim
                self_attn.g_proj.weight    attn_gate.weight      heads[i],hidden             ?gating=True
                self_attn.g_proj.weight    attn_gate.weight      heads[i],hidden             ?gating=per-head
                self_attn.g_proj.weight    attn_gate.weight      heads[i]*head_dim,hidden    ?gating=per-element
            """),
            GATED.on(_not_listed),
            ROUTER.on(_listed),
            layer("mlp.experts.e_score_correction_bias exp_probs_b.bias num_experts").on(_listed),
            EITHER.on(_listed),
            QWEN_SHARED.on(_listed),
        ),
        (
            *(without(ALL, "expert_gating_func") + VOCAB + EXPERT_FFN + SIGMOID),
            *computed("attention.head_count", "u32", _heads),
            *computed("attention.sliding_window", "u32", _window),
            *keys("""
                expert_shared_feed_forward_length    u32     shared_expert_intermediate_size
                expert_weights_norm                  bool    "true"
                expert_weights_scale                 f32     moe_routed_scaling_factor
            """),
            *computed("leading_dense_block_count", "u32", _first_dense),
            *ROTATED,
            *computed("rope.dimension_count_swa", "u32", _sliding_dim),
        ),
    ),
    "HYV3ForCausalLM": Row(
        "hy_v3",
        (
            ENDS,
            *(group.further() for group in (*ATTENTION, QK_NORM)),
            GATED.on(_not_listed).further(),
            layer("""
                mlp.router.gate.weight                ffn_gate_inp.weight      num_experts,hidden
                mlp.expert_bias                       exp_probs_b              num_experts
                mlp.shared_mlp.gate_proj.weight       ffn_gate_shexp.weight    moe_intermediate_size*num_shared_experts,hidden
                mlp.shared_mlp.up_proj.weight         ffn_up_shexp.weight      moe_intermediate_size*num_shared_experts,hidden
                mlp.shared_mlp.down_proj.weight       ffn_down_shexp.weight    hidden,moe_intermediate_size*num_shared_experts
            """)
            .on(_listed)
            .further(),
            EITHER.on(_listed).further(),
            NEXT_TOKEN,
            layer("final_layernorm.weight nextn.shared_head_norm.weight hidden").beyond(),
        ),
        (
            *(without(ALL, "expert_gating_func") + EXPERT_FFN + SIGMOID),
            *computed("block_count", "u32", _blocks),
            *keys("""
                expert_shared_feed_forward_length    u32     moe_intermediate_size*num_shared_experts
                expert_weights_norm                  bool    "true"
                expert_weights_scale                 f32     router_scaling_factor
            """),
            *computed("nextn_predict_layers", "u32", _further_if_any),
        ),
    ),
    "Ernie4_5_MoeForCausalLM": Row(
        "ernie4_5-moe",
        (
            ENDS,
            *ATTENTION,
            GATED.on(_off_interval),
            layer("""
                mlp.gate.weight                                ffn_gate_inp.weight    moe_num_experts,hidden
                mlp.moe_statics.e_score_correction_bias        exp_probs_b.bias       1,moe_num_experts
            """).on(_at_interval),
            Choice(tuple(renamed(group, num_experts="moe_num_experts") for group in EITHER.groups)).on(_at_interval),
            renamed(SHARED, n_shared_experts="moe_num_shared_experts").given("moe_num_shared_experts").on(_at_interval),
        ),
        (
            *ALL,
            *keys("""
                expert_count                  u32    moe_num_experts
                expert_used_count             u32    moe_k
                interleave_moe_layer_step     u32    moe_layer_interval
                expert_feed_forward_length    u32    moe_intermediate_size
                expert_shared_count           u32    moe_num_shared_experts
                expert_shared_feed_forward_length    u32    moe_intermediate_size*moe_num_shared_experts    ?moe_num_shared_experts
            """),
            *computed("leading_dense_block_count", "u32", _ernie_dense),
        ),
        left_out=_ernie_mtp,
    ),
}
