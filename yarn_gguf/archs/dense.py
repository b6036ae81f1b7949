"""Rows of architectures whose every token goes through the same feed-forward network, and whose norms are RMS norms.

`layernorms` has those with biases in their norms. A bias that llama.cpp's loader has no place for is in no row, so that
a checkpoint which has it is refused, where a file with it would not load.
"""

from __future__ import annotations

from typing import Any, Final

from yarn_gguf.archs.common import (
    ATTENTION,
    ENDS,
    FUSED_GATED,
    GATED,
    GATED_BIAS_IF,
    HEAD,
    LLAMA,
    NORMS,
    OUT,
    OUT_BIAS_IF,
    PAIRED_BIAS,
    POST_NORMS,
    QK_NORM,
    QKV,
    QKV_BIAS,
    QKV_BIAS_IF,
    ROTATED,
    SLIDES,
    TIED_HEAD,
    UNGATED,
    VOCAB,
    WINDOW,
    Row,
    headless,
)
from yarn_gguf.archs.key_tables import ALL, SILENT_BASE, computed, from_layers, keys, without
from yarn_gguf.archs.layernorms import LAYER_NORMED
from yarn_gguf.archs.tensor_tables import layer, model
from yarn_gguf.config.hyperparameters import Hyperparameters

_LLAMA_KEYS: Final = ALL + VOCAB + HEAD


# ---- Llama and its kin, most of whose graphs turn neighbours


def _temperature(h: Hyperparameters) -> Any:
    """By how much the scores of late tokens grow; the plain Mistral that may be in the same wrapper has none."""
    rope = h.get("rope_scaling") or h.get("rope_parameters") or {}
    return rope.get("llama_4_scaling_beta") if h.config.model_type == "ministral3" else None


def _rotates(h: Hyperparameters) -> list[bool] | None:
    """Which layers rotate, if not all do."""
    kinds = h.config.layer_ropes
    return [kind is not None for kind in kinds] if None in kinds else None


_LLAMA: Final = Row("llama", (*LLAMA, PAIRED_BIAS, GATED, GATED_BIAS_IF), _LLAMA_KEYS)
_MISTRAL3: Final = Row(
    "mistral3", (*LLAMA, GATED), _LLAMA_KEYS + computed("attention.temperature_scale", "f32", _temperature)
)
_GRANITE_TENSORS: Final = (*LLAMA, PAIRED_BIAS, GATED, GATED_BIAS_IF)
_GRANITE_KEYS: Final = headless(_LLAMA_KEYS) + keys("""
    attention.scale    f32    attention_multiplier    ?attention_multiplier
    embedding_scale    f32    embedding_multiplier    ?embedding_multiplier
    residual_scale     f32    residual_multiplier     ?residual_multiplier
    logit_scale        f32    logits_scaling          ?logits_scaling
""")
_KIN: Final[dict[str, Row]] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "MistralForCausalLM": Row("llama", (*LLAMA, GATED), _LLAMA_KEYS),
    "Ministral3ForCausalLM": _MISTRAL3,
    "Mistral3ForConditionalGeneration": _MISTRAL3,
    "SmolLM3ForCausalLM": Row("smollm3", (*LLAMA, GATED), _LLAMA_KEYS),
    "ArceeForCausalLM": Row("arcee", (*LLAMA, UNGATED), _LLAMA_KEYS),
    "GraniteForCausalLM": Row("granite", _GRANITE_TENSORS, _GRANITE_KEYS),
    "GraniteSWAForCausalLM": Row(
        "granite_swa",
        (*_GRANITE_TENSORS, layer("self_attn.sinks    attn_sinks.weight    heads")),
        (*_GRANITE_KEYS, *WINDOW, *SLIDES, *computed("attention.rope_pattern", "bool", _rotates)),
    ),
    "InternLM3ForCausalLM": Row(
        "llama",
        (
            *LLAMA,
            GATED,
            layer("""
                self_attn.q_proj.bias    attn_q.bias         heads*head_dim       permute    ?qkv_bias
                self_attn.k_proj.bias    attn_k.bias         kv_heads*head_dim    permute    ?qkv_bias
                self_attn.v_proj.bias    attn_v.bias         kv_heads*head_dim               ?qkv_bias
                self_attn.o_proj.bias    attn_output.bias    hidden                          ?bias
                mlp.gate_proj.bias       ffn_gate.bias       intermediate_size               ?bias
                mlp.up_proj.bias         ffn_up.bias         intermediate_size               ?bias
                mlp.down_proj.bias       ffn_down.bias       hidden                          ?bias
            """),
        ),
        _LLAMA_KEYS,
    ),
    "Ernie4_5ForCausalLM": (_ERNIE := Row("ernie4_5", (ENDS, *ATTENTION, GATED), ALL)),
    "Ernie4_5_ForCausalLM": _ERNIE,
    "ApertusForCausalLM": Row(
        "apertus",
        (
            ENDS,
            TIED_HEAD,
            QKV,
            QKV_BIAS_IF,
            OUT,
            OUT_BIAS_IF,
            QK_NORM,
            UNGATED,
            layer("""
                attention_layernorm.weight      attn_norm.weight    hidden
                feedforward_layernorm.weight    ffn_norm.weight     hidden
                mlp.act_fn.alpha_n              -                   1
                mlp.act_fn.alpha_p              -                   1
                mlp.act_fn.beta                 -                   1
                mlp.act_fn.eps                  -                   1
            """),
        ),
        (
            *_LLAMA_KEYS,
            *from_layers("xielu.alpha_n", "model.layers.{i}.mlp.act_fn.alpha_n"),
            *from_layers("xielu.alpha_p", "model.layers.{i}.mlp.act_fn.alpha_p"),
            *from_layers("xielu.beta", "model.layers.{i}.mlp.act_fn.beta"),
            *from_layers("xielu.eps", "model.layers.{i}.mlp.act_fn.eps"),
        ),
    ),
}


# ---- those that turn halves, as transformers does


def _hunyuan_length(h: Hyperparameters) -> int:
    """An alpha of 1000 stands for 256k tokens; the config keeps saying 32k."""
    rope = h.get("rope_scaling") or h.get("rope_parameters") or {}
    longer = rope.get("alpha") == 1000 and "dynamic" in (rope.get("type"), rope.get("rope_type"))
    return max(h.config.max_position_embeddings, 256 * 1024 if longer else 0)


_HALVES: Final[dict[str, Row]] = {
    "Qwen2ForCausalLM": Row("qwen2", (ENDS, *ATTENTION, QKV_BIAS, GATED), ALL),
    "Qwen3ForCausalLM": Row("qwen3", (ENDS, *ATTENTION, QK_NORM, GATED), ALL),
    "SeedOssForCausalLM": Row(
        "seed_oss",
        (
            ENDS,
            NORMS.without("ffn_norm"),
            layer("post_attention_layernorm.weight    post_attention_norm.weight    hidden"),
            QKV,
            QKV_BIAS_IF,
            OUT,
            GATED,
        ),
        ALL,
    ),
    "HunYuanDenseV1ForCausalLM": Row(
        "hunyuan-dense",
        (
            ENDS,
            *ATTENTION,
            GATED,
            layer("""
                self_attn.query_layernorm.weight    attn_q_norm.weight    head_dim
                self_attn.key_layernorm.weight      attn_k_norm.weight    head_dim
            """),
        ),
        ALL + computed("context_length", "u32", _hunyuan_length),
    ),
    "Phi3ForCausalLM": Row(
        "phi3",
        (
            ENDS,
            NORMS,
            layer("self_attn.qkv_proj.weight    attn_qkv.weight    heads*head_dim+2*kv_heads*head_dim,hidden"),
            OUT,
            FUSED_GATED,
        ),
        (
            *ALL,
            *ROTATED,
            *keys("rope.scaling.original_context_length    u32    original_max_position_embeddings"),
            *computed("attention.sliding_window", "u32", lambda h: h.get("sliding_window") or 0),  # 0 is what Phi-4 has
        ),
    ),
    "GlmForCausalLM": Row("chatglm", (ENDS, *ATTENTION, QKV_BIAS_IF, FUSED_GATED), headless(ALL) + ROTATED),
    "Glm4ForCausalLM": Row(
        "glm4",
        (
            ENDS,
            *ATTENTION,
            QKV_BIAS_IF,
            FUSED_GATED,
            layer("""
                post_self_attn_layernorm.weight    post_attention_norm.weight    hidden
                post_mlp_layernorm.weight          post_ffw_norm.weight          hidden
            """),
        ),
        ALL + ROTATED,
    ),
}


# ---- Gemma: norms hold what is added to 1, and there is no head but the embedding

_GEMMA_ENDS: Final = ENDS.without("output").but(output_norm="+1")
_GEMMA_NORMS: Final = NORMS.but(attn_norm="+1", ffn_norm="+1")
_FOUR_NORMS: Final = (
    layer("""
        input_layernorm.weight              attn_norm.weight              hidden    +1
        pre_feedforward_layernorm.weight    ffn_norm.weight               hidden    +1
    """),
    POST_NORMS.but(post_attention_norm="+1", post_ffw_norm="+1"),
)
_CAPS: Final = keys("""
    attn_logit_softcapping     f32    attn_logit_softcapping
    final_logit_softcapping    f32    final_logit_softcapping
""")
_GEMMA3: Final = Row(
    "gemma3",
    (_GEMMA_ENDS, *_FOUR_NORMS, QKV, OUT, QK_NORM.but(attn_q_norm="+1", attn_k_norm="+1"), GATED),
    (
        *ALL,
        *without(_CAPS, "attn_logit_softcapping"),
        *computed("attention.sliding_window", "u32", lambda h: h.config.sliding_window),  # none: no layer slides
    ),
)
_GEMMA: Final[dict[str, Row]] = {
    "GemmaForCausalLM": Row("gemma", (_GEMMA_ENDS, _GEMMA_NORMS, QKV, OUT, GATED), SILENT_BASE),
    "Gemma2ForCausalLM": Row("gemma2", (_GEMMA_ENDS, *_FOUR_NORMS, QKV, OUT, GATED), SILENT_BASE + _CAPS + WINDOW),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
}


# ---- norms after attention and feed-forward network, not before

_WIDE_QK_NORM: Final = layer("""
    self_attn.q_norm.weight    attn_q_norm.weight    heads*head_dim
    self_attn.k_norm.weight    attn_k_norm.weight    kv_heads*head_dim
""")
_OLMO2_TENSORS: Final = (ENDS, TIED_HEAD, QKV, OUT, _WIDE_QK_NORM, POST_NORMS, GATED)
_AFTER: Final[dict[str, Row]] = {
    "Olmo2ForCausalLM": Row("olmo2", _OLMO2_TENSORS, ALL),
    "Olmo3ForCausalLM": Row("olmo2", _OLMO2_TENSORS, ALL + WINDOW + SLIDES),
    "Exaone4ForCausalLM": Row("exaone4", (ENDS, QKV, OUT, QK_NORM, POST_NORMS, GATED), ALL + VOCAB + WINDOW + SLIDES),
}


# ---- convolutions between attention layers; latent attention


def _convolves(h: Hyperparameters, i: int) -> bool:
    return h.config.layer_types[i] == "conv"


def _attends(h: Hyperparameters, i: int) -> bool:
    return not _convolves(h, i)


def _lfm2_kv_heads(h: Hyperparameters) -> list[int]:
    return [h.config.kv_heads if _attends(h, i) else 0 for i in range(h.config.layers)]


def _value_length(h: Hyperparameters) -> int | None:
    usual = h.config.hidden_size // h.config.heads
    return h.size("v_head_dim") if h.size("v_head_dim") != usual else None


def _feed_forward(h: Hyperparameters) -> int:
    """What LFM2's class makes of the size in the config."""
    size = int(h.get("block_ff_dim") or h.size("intermediate_size"))
    factor, step = h.get("block_ffn_dim_multiplier"), max(h.size("block_multiple_of"), 1)
    if not h.get("block_auto_adjust_ff_dim"):
        return size
    size = int(2 * size / 3)
    return size if factor is None else -(-int(factor * size) // step) * step


_LFM2: Final = Row(
    "lfm2",
    (
        model("""
            embed_tokens.weight      token_embd.weight         vocab,hidden
            embedding_norm.weight    token_embd_norm.weight    hidden
            /lm_head.weight          output.weight             vocab,hidden    ?!tie_word_embeddings
        """),
        layer("""
            operator_norm.weight      attn_norm.weight    hidden
            ffn_norm.weight           ffn_norm.weight     hidden
            feed_forward.w1.weight    ffn_gate.weight     adjusted,hidden
            feed_forward.w3.weight    ffn_up.weight       adjusted,hidden
            feed_forward.w2.weight    ffn_down.weight     hidden,adjusted
        """).sized(adjusted=_feed_forward),
        QKV.on(_attends),
        layer("""
            self_attn.q_layernorm.weight    attn_q_norm.weight    head_dim
            self_attn.k_layernorm.weight    attn_k_norm.weight    head_dim
            self_attn.out_proj.weight       attn_output.weight    hidden,heads*head_dim
        """).on(_attends),
        layer("""
            conv.conv.weight        shortconv.conv.weight        hidden,1,conv_L_cache    squeeze
            conv.in_proj.weight     shortconv.in_proj.weight     3*hidden,hidden
            conv.out_proj.weight    shortconv.out_proj.weight    hidden,hidden
        """).on(_convolves),
    ),
    (
        *ALL,
        *VOCAB,
        *keys("shortconv.l_cache    u32    conv_L_cache"),
        *computed("feed_forward_length", "u32", _feed_forward),
        *computed("attention.head_count_kv", "u32", _lfm2_kv_heads),
    ),
)
_OTHERS: Final[dict[str, Row]] = {
    "Lfm2ForCausalLM": _LFM2,
    "LFM2ForCausalLM": _LFM2,
    "MiniCPM3ForCausalLM": Row(
        "minicpm3",
        (
            ENDS,
            NORMS,
            GATED,
            layer("""
                self_attn.q_a_proj.weight              attn_q_a.weight         q_lora_rank,hidden
                self_attn.q_a_layernorm.weight         attn_q_a_norm.weight    q_lora_rank
                self_attn.q_b_proj.weight              attn_q_b.weight         heads*qk_nope_head_dim+heads*qk_rope_head_dim,q_lora_rank
                self_attn.kv_a_proj_with_mqa.weight    attn_kv_a_mqa.weight    kv_lora_rank+qk_rope_head_dim,hidden
                self_attn.kv_a_layernorm.weight        attn_kv_a_norm.weight   kv_lora_rank
                self_attn.kv_b_proj.weight             attn_kv_b.weight        heads*qk_nope_head_dim+heads*v_head_dim,kv_lora_rank
                self_attn.o_proj.weight                attn_output.weight      hidden,heads*v_head_dim
            """),
        ),
        (
            *without(SILENT_BASE, "attention.value_length"),
            *VOCAB,
            *keys("""
                attention.q_lora_rank     u32    q_lora_rank
                attention.kv_lora_rank    u32    kv_lora_rank
                attention.key_length      u32    qk_nope_head_dim+qk_rope_head_dim
                rope.dimension_count      u32    qk_rope_head_dim
            """),
            *computed("attention.value_length", "u32", _value_length),
        ),
    ),
}

DENSE: Final[dict[str, Row]] = {**LAYER_NORMED, **_KIN, **_HALVES, **_GEMMA, **_AFTER, **_OTHERS}
