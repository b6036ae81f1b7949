"""Rows of architectures with experts: one network of several for each token. More of them: `shared_experts`, `latent`."""

from __future__ import annotations

from typing import Final

from yarn_gguf.archs.common import (
    ATTENTION,
    ENDS,
    EXPERT_FFN,
    HEAD,
    LLAMA,
    NORMS,
    OUT,
    OUT_BIAS,
    PAIRED_BIAS,
    QK_NORM,
    QKV,
    QKV_BIAS,
    QWEN_MOE,
    ROTATED,
    ROUTER,
    SIGMOID,
    SLIDES,
    TIED_HEAD,
    VOCAB,
    WINDOW,
    Row,
    headless,
    renamed,
)
from yarn_gguf.archs.key_tables import ALL, Value, computed, keys, without
from yarn_gguf.archs.latent import LATENT_ROWS
from yarn_gguf.archs.shared_experts import EITHER, QWEN_SHARED, SHARED_EXPERT_ROWS
from yarn_gguf.archs.tensor_tables import Choice, layer


def _positive(field: str) -> Value:
    return lambda h: h.get(field) or None


_BLOCK_SPARSE: Final = layer("""
    block_sparse_moe.gate.weight                               ffn_gate_inp.weight     num_local_experts,hidden
    block_sparse_moe.experts.{num_local_experts}.w1.weight     ffn_gate_exps.weight    intermediate_size,hidden
    block_sparse_moe.experts.{num_local_experts}.w2.weight     ffn_down_exps.weight    hidden,intermediate_size
    block_sparse_moe.experts.{num_local_experts}.w3.weight     ffn_up_exps.weight      intermediate_size,hidden
""")
_FLAT_QK_NORM: Final = layer("""
    self_attn.q_norm.weight    attn_q_norm.weight    heads*head_dim
    self_attn.k_norm.weight    attn_k_norm.weight    kv_heads*head_dim
""")
_GRANITE: Final = layer("""
    block_sparse_moe.router.layer.weight     ffn_gate_inp.weight      num_local_experts,hidden
    block_sparse_moe.input_linear.weight     ffn_gate_exps.weight     num_local_experts,2*intermediate_size,hidden    upper
    block_sparse_moe.input_linear.weight     ffn_up_exps.weight       num_local_experts,2*intermediate_size,hidden    lower
    block_sparse_moe.output_linear.weight    ffn_down_exps.weight     num_local_experts,hidden,intermediate_size
""")
_GRANITE_SHARED: Final = layer("""
    shared_mlp.input_linear.weight     ffn_gate_shexp.weight    2*shared_intermediate_size,hidden    rows:0:shared_intermediate_size
    shared_mlp.input_linear.weight     ffn_up_shexp.weight      2*shared_intermediate_size,hidden    rows:shared_intermediate_size:shared_intermediate_size
    shared_mlp.output_linear.weight    ffn_down_shexp.weight    hidden,shared_intermediate_size
""").given("shared_intermediate_size")
_GRANITE_KEYS: Final = (
    *headless(ALL + VOCAB + HEAD),
    *computed("attention.scale", "f32", _positive("attention_multiplier")),
    *computed("embedding_scale", "f32", _positive("embedding_multiplier")),
    *computed("residual_scale", "f32", _positive("residual_multiplier")),
    *computed("logit_scale", "f32", _positive("logits_scaling")),
    *computed("expert_shared_feed_forward_length", "u32", _positive("shared_intermediate_size")),
)


EXPERT_ROWS: Final[dict[str, Row]] = {
    **LATENT_ROWS,
    **SHARED_EXPERT_ROWS,
    "MixtralForCausalLM": Row("llama", (*LLAMA, _BLOCK_SPARSE), ALL + VOCAB + HEAD),
    "Qwen2MoeForCausalLM": Row(
        "qwen2moe",
        (
            ENDS,
            TIED_HEAD,
            *ATTENTION,
            QKV_BIAS.given("qkv_bias"),
            *QWEN_MOE,
            QWEN_SHARED,
            layer("mlp.shared_expert_gate.weight ffn_gate_inp_shexp.weight 1,hidden"),
        ),
        ALL + EXPERT_FFN + keys("expert_shared_feed_forward_length  u32  shared_expert_intermediate_size"),
    ),
    "Qwen3MoeForCausalLM": Row(
        "qwen3moe",
        (ENDS, *ATTENTION, QK_NORM, *QWEN_MOE),
        ALL + EXPERT_FFN,
    ),
    "GptOssForCausalLM": Row(
        "gpt-oss",
        (
            ENDS,
            TIED_HEAD,
            NORMS.without("ffn_norm"),
            QKV,
            QKV_BIAS,
            OUT,
            OUT_BIAS,
            layer("""
                post_attention_layernorm.weight    post_attention_norm.weight    hidden
                self_attn.sinks                    attn_sinks.weight        heads
                mlp.router.weight                  ffn_gate_inp.weight      num_local_experts,hidden
                mlp.router.bias                    ffn_gate_inp.bias        num_local_experts
                mlp.experts.gate_up_proj_bias      ffn_gate_exps.bias       num_local_experts,2*intermediate_size    even
                mlp.experts.gate_up_proj_bias      ffn_up_exps.bias         num_local_experts,2*intermediate_size    odd
                mlp.experts.down_proj_bias         ffn_down_exps.bias       num_local_experts,hidden
            """),
            Choice(
                (
                    layer("""
                    mlp.experts.gate_up_proj    ffn_gate_exps.weight    num_local_experts,hidden,2*intermediate_size    even
                    mlp.experts.gate_up_proj    ffn_up_exps.weight      num_local_experts,hidden,2*intermediate_size    odd
                    mlp.experts.down_proj       ffn_down_exps.weight    num_local_experts,intermediate_size,hidden      transpose
                """),
                    layer("""
                    mlp.experts.gate_up_proj_blocks&mlp.experts.gate_up_proj_scales    ffn_gate_exps.weight    num_local_experts,2*intermediate_size,hidden/32,16    mxfp4_even
                    mlp.experts.gate_up_proj_blocks&mlp.experts.gate_up_proj_scales    ffn_up_exps.weight      num_local_experts,2*intermediate_size,hidden/32,16    mxfp4_odd
                    mlp.experts.down_proj_blocks&mlp.experts.down_proj_scales          ffn_down_exps.weight    num_local_experts,hidden,intermediate_size/32,16      mxfp4
                """),
                )
            ),
        ),
        (*(ALL + WINDOW + keys("expert_feed_forward_length  u32  intermediate_size")),),
    ),
    "OlmoeForCausalLM": Row(
        "olmoe",
        (
            ENDS,
            TIED_HEAD,
            *ATTENTION,
            _FLAT_QK_NORM,
            ROUTER,
            *(Choice(tuple(renamed(group, moe_intermediate_size="intermediate_size") for group in EITHER.groups)),),
        ),
        ALL,
    ),
    "GraniteMoeForCausalLM": Row("granitemoe", (*LLAMA, PAIRED_BIAS, _GRANITE), _GRANITE_KEYS),
    "GraniteMoeSharedForCausalLM": Row("granitemoe", (*LLAMA, PAIRED_BIAS, _GRANITE, _GRANITE_SHARED), _GRANITE_KEYS),
    "MellumForCausalLM": Row(
        "mellum",
        (ENDS, TIED_HEAD, *ATTENTION, QK_NORM, ROUTER, EITHER),
        ALL + EXPERT_FFN + WINDOW + SLIDES,
    ),
    "MiniMaxM2ForCausalLM": Row(
        "minimax-m2",
        (
            ENDS,
            TIED_HEAD,
            *ATTENTION,
            _FLAT_QK_NORM,
            _BLOCK_SPARSE,
            layer("block_sparse_moe.e_score_correction_bias exp_probs_b.bias num_local_experts"),
        ),
        (
            *(without(ALL, "expert_gating_func") + SIGMOID),
            *keys("expert_feed_forward_length  u32  intermediate_size"),
            *ROTATED,
        ),
    ),
}
