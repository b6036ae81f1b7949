"""Rows of dense architectures whose norms are layer norms: most have biases, some have no weights.

As in `dense`, a bias that llama.cpp's loader has no place for is in no row.
"""

from __future__ import annotations

from typing import Final

from yarn_gguf.archs.common import (
    END_BIAS,
    ENDS,
    GATED,
    HEAD,
    NORM_BIAS,
    NORMS,
    OUT,
    OUT_BIAS,
    OUT_BIAS_IF,
    PAIRED,
    QKV,
    QKV_BIAS,
    QKV_BIAS_IF,
    ROTATED,
    TIED_HEAD,
    UNGATED,
    VOCAB,
    WINDOW,
    Row,
)
from yarn_gguf.archs.key_tables import ALL, SILENT_BASE, computed, keys, without
from yarn_gguf.archs.tensor_tables import layer, model
from yarn_gguf.config.hyperparameters import Hyperparameters

_NO_SCALING: Final = keys("""
    rope.scaling.type    str    "none"
""")

# ---- Cohere: attention and feed-forward network side by side, after one norm; no head but the embedding

_COHERE_TENSORS: Final = (ENDS.without("output"), NORMS.without("ffn_norm"), QKV, OUT, GATED)
_COHERE_KEYS: Final = (
    ALL
    + _NO_SCALING
    + keys("""
    logit_scale    f32    logit_scale
""")
)
_COHERE: Final[dict[str, Row]] = {
    "CohereForCausalLM": Row(
        "command-r",
        (
            *_COHERE_TENSORS,
            layer("""
                self_attn.q_norm.weight    attn_q_norm.weight    heads,head_dim       ?use_qk_norm
                self_attn.k_norm.weight    attn_k_norm.weight    kv_heads,head_dim    ?use_qk_norm
            """),
        ),
        # some say in a field of their own that they were trained on more than the positions that the config has
        _COHERE_KEYS + keys("context_length    u32    model_max_length|max_position_embeddings"),
    ),
    "Cohere2ForCausalLM": Row("cohere2", _COHERE_TENSORS, _COHERE_KEYS + WINDOW + VOCAB + ROTATED),
}

# ---- with a gate, or with one matrix up and one down

_STABLELM: Final = Row(
    "stablelm",
    (
        ENDS,
        END_BIAS,
        TIED_HEAD,
        QKV,
        OUT,
        GATED,
        layer("""
            input_layernorm.weight                         attn_norm.weight      hidden
            input_layernorm.bias                           attn_norm.bias        hidden
            post_attention_layernorm.weight                ffn_norm.weight       hidden               ?!use_parallel_residual
            post_attention_layernorm.bias                  ffn_norm.bias         hidden               ?!use_parallel_residual
            self_attn.q_proj.bias                          attn_q.bias           heads*head_dim       ?use_qkv_bias
            self_attn.k_proj.bias                          attn_k.bias           kv_heads*head_dim    ?use_qkv_bias
            self_attn.v_proj.bias                          attn_v.bias           kv_heads*head_dim    ?use_qkv_bias
            self_attn.q_layernorm.norms.{heads}.weight     attn_q_norm.weight    head_dim             ?qk_layernorm
            self_attn.k_layernorm.norms.{kv_heads}.weight  attn_k_norm.weight    head_dim             ?qk_layernorm
        """),
    ),
    SILENT_BASE + ROTATED + keys("use_parallel_residual    bool    use_parallel_residual"),
)
_UNGATED_BIAS: Final = layer("""
    mlp.up_proj.bias      ffn_up.bias      intermediate_size
    mlp.down_proj.bias    ffn_down.bias    hidden
""")
_NEMOTRON: Final = Row(
    "nemotron",
    (
        ENDS.but(output_norm="+1"),
        END_BIAS,
        TIED_HEAD,
        NORMS.but(attn_norm="+1", ffn_norm="+1"),
        NORM_BIAS,
        QKV,
        QKV_BIAS_IF,
        OUT,
        OUT_BIAS_IF,
        UNGATED,
        layer("""
            mlp.up_proj.bias      ffn_up.bias      intermediate_size    ?mlp_bias
            mlp.down_proj.bias    ffn_down.bias    hidden               ?mlp_bias
        """),
    ),
    (
        *ALL,
        *VOCAB,
        *ROTATED,
        *_NO_SCALING,
        *keys("attention.layer_norm_epsilon    f32    layer_norm_eps|layer_norm_epsilon|norm_epsilon|norm_eps"),
    ),
)
_UPDOWN: Final[dict[str, Row]] = {
    "StableLmForCausalLM": _STABLELM,
    "NemotronForCausalLM": _NEMOTRON,
    "OlmoForCausalLM": Row(
        "olmo",
        (ENDS.without("output_norm"), PAIRED, OUT, GATED),
        ALL
        + keys("""
            attention.layer_norm_epsilon    f32    "1e-05"
            attention.clamp_kqv             f32    clip_qkv
        """),
    ),
    "Jais2ForCausalLM": Row(
        "jais2",
        (ENDS, END_BIAS, NORMS, NORM_BIAS, QKV, QKV_BIAS, OUT, OUT_BIAS, UNGATED, _UNGATED_BIAS),
        ALL + HEAD,
    ),
    "Starcoder2ForCausalLM": Row(
        "starcoder2",
        (
            ENDS,
            END_BIAS,
            NORMS,
            NORM_BIAS,
            QKV,
            QKV_BIAS,
            OUT,
            OUT_BIAS,
            layer("""
                mlp.c_fc.weight      ffn_up.weight      intermediate_size,hidden
                mlp.c_fc.bias        ffn_up.bias        intermediate_size
                mlp.c_proj.weight    ffn_down.weight    hidden,intermediate_size
                mlp.c_proj.bias      ffn_down.bias      hidden
            """),
        ),
        ALL,
    ),
}

# ---- whose names are all their own


def _kv_heads(h: Hyperparameters) -> int:
    return h.config.kv_heads


_OWN_NAMES: Final[dict[str, Row]] = {
    "PhiForCausalLM": Row(
        "phi2",
        (
            QKV,
            QKV_BIAS,
            TIED_HEAD,
            model("""
                embed_tokens.weight        token_embd.weight     vocab,hidden
                final_layernorm.weight     output_norm.weight    hidden
                final_layernorm.bias       output_norm.bias      hidden
                /lm_head.weight            output.weight         vocab,hidden    ?!tie_word_embeddings
                /lm_head.bias              output.bias           vocab
            """),
            layer("""
                input_layernorm.weight    attn_norm.weight      hidden
                input_layernorm.bias      attn_norm.bias        hidden
                self_attn.dense.weight    attn_output.weight    hidden,heads*head_dim
                self_attn.dense.bias      attn_output.bias      hidden
                mlp.fc1.weight            ffn_up.weight         intermediate_size,hidden
                mlp.fc1.bias              ffn_up.bias           intermediate_size
                mlp.fc2.weight            ffn_down.weight       hidden,intermediate_size
                mlp.fc2.bias              ffn_down.bias         hidden
            """),
        ),
        SILENT_BASE + computed("attention.head_count_kv", "u32", _kv_heads) + ROTATED,
    ),
    "GPTNeoXForCausalLM": Row(
        "gptneox",
        (
            model(
                """
                embed_in.weight            token_embd.weight     vocab,hidden
                final_layer_norm.weight    output_norm.weight    hidden
                final_layer_norm.bias      output_norm.bias      hidden
                /embed_out.weight          output.weight         vocab,hidden    ?!tie_word_embeddings
                embed_in.weight            output.weight         vocab,hidden    ?tie_word_embeddings
            """,
                "gpt_neox.",
            ),
            layer(
                """
                input_layernorm.weight              attn_norm.weight      hidden
                input_layernorm.bias                attn_norm.bias        hidden
                post_attention_layernorm.weight     ffn_norm.weight       hidden
                post_attention_layernorm.bias       ffn_norm.bias         hidden
                attention.query_key_value.weight    attn_qkv.weight       3*heads*head_dim,hidden     neox_qkv
                attention.query_key_value.bias      attn_qkv.bias         3*heads*head_dim            neox_qkv
                attention.dense.weight              attn_output.weight    hidden,heads*head_dim
                attention.dense.bias                attn_output.bias      hidden
                mlp.dense_h_to_4h.weight            ffn_up.weight         intermediate_size,hidden
                mlp.dense_h_to_4h.bias              ffn_up.bias           intermediate_size
                mlp.dense_4h_to_h.weight            ffn_down.weight       hidden,intermediate_size
                mlp.dense_4h_to_h.bias              ffn_down.bias         hidden
            """,
                "gpt_neox.layers.{i}.",
            ),
        ),
        (
            *without(SILENT_BASE, "attention.head_count_kv"),
            *ROTATED,
            *keys("use_parallel_residual    bool    use_parallel_residual"),
        ),
    ),
}

# ---- Falcon: one, some or all heads with keys of their own; one norm before both halves of a layer, or two


def _has_two_norms(h: Hyperparameters, i: int) -> bool:
    count = h.get("num_ln_in_parallel_attn")
    return bool(h.get("new_decoder_architecture")) if count is None else count == 2


def _has_one_norm(h: Hyperparameters, i: int) -> bool:
    return not _has_two_norms(h, i)


def _ffn_is_stated(h: Hyperparameters, i: int = 0) -> bool:
    """The class's default follows from the hidden size, so only what the file says counts."""
    return h.config.raw.get("ffn_hidden_size") is not None


def _ffn_is_usual(h: Hyperparameters, i: int) -> bool:
    return not _ffn_is_stated(h)


_IN_FALCON: Final = "transformer.h.{i}."
_FALCON: Final = Row(
    "falcon",
    (
        model(
            """
            word_embeddings.weight    token_embd.weight     vocab,hidden
            ln_f.weight               output_norm.weight    hidden
            ln_f.bias                 output_norm.bias      hidden
            /lm_head.weight           output.weight         vocab,hidden    ?!tie_word_embeddings
        """,
            "transformer.",
        ),
        layer(
            """
            self_attention.query_key_value.weight    attn_qkv.weight       heads*head_dim+2*kv_heads*head_dim,hidden    falcon_qkv
            self_attention.dense.weight              attn_output.weight    hidden,heads*head_dim
        """,
            _IN_FALCON,
        ),
        layer(
            """
            ln_attn.weight    attn_norm_2.weight    hidden
            ln_attn.bias      attn_norm_2.bias      hidden
            ln_mlp.weight     attn_norm.weight      hidden
            ln_mlp.bias       attn_norm.bias        hidden
        """,
            _IN_FALCON,
        ).on(_has_two_norms),
        layer(
            """
            input_layernorm.weight    attn_norm.weight    hidden
            input_layernorm.bias      attn_norm.bias      hidden
        """,
            _IN_FALCON,
        ).on(_has_one_norm),
        layer(
            """
            mlp.dense_h_to_4h.weight    ffn_up.weight      ffn_hidden_size,hidden
            mlp.dense_4h_to_h.weight    ffn_down.weight    hidden,ffn_hidden_size
        """,
            _IN_FALCON,
        ).on(_ffn_is_stated),
        layer(
            """
            mlp.dense_h_to_4h.weight    ffn_up.weight      4*hidden,hidden
            mlp.dense_4h_to_h.weight    ffn_down.weight    hidden,4*hidden
        """,
            _IN_FALCON,
        ).on(_ffn_is_usual),
    ),
    (
        *SILENT_BASE,
        *computed(
            "feed_forward_length", "u32", lambda h: h.size("ffn_hidden_size" if _ffn_is_stated(h) else "4*hidden")
        ),
        *computed("attention.head_count_kv", "u32", _kv_heads),
        *keys("""
            tensor_data_layout    str    "jploski"
        """),
    ),
)

LAYER_NORMED: Final[dict[str, Row]] = {**_COHERE, **_UPDOWN, **_OWN_NAMES, "FalconForCausalLM": _FALCON}
