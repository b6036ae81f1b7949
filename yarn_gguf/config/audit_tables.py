"""Every field of every config class that converts: what becomes of it in llama.cpp. Data, nothing else.

A rule is one of: honoured (a key or the tensors themselves carry it), harmless (and why), only (the values at which
llama.cpp's graph is right, and what it does at others), a check (a function of `audit_checks`, by name), or judged with
another field. `USUAL` holds where a row of `ROWS` says nothing else. Which fields a class has is in
defaults.json. All of it was found by moving one field at a time (benchmarks/config_fields.py), and
tests hold it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Honoured:
    """A key of the file, or the shapes and presence of the tensors, carry it."""


@dataclass(frozen=True, slots=True)
class Harmless:
    reason: str


@dataclass(frozen=True, slots=True)
class Only:
    values: tuple[Any, ...]
    instead: str  # what the graph does with any other: "… but llama.cpp's graph {instead}"


@dataclass(frozen=True, slots=True)
class Check:
    name: str  # a key of `audit_checks.CHECKS`


@dataclass(frozen=True, slots=True)
class With:
    field: str  # the field whose check looks at this one too


Rule: TypeAlias = Honoured | Harmless | Only | Check | With
Rules: TypeAlias = Mapping[str, Rule]

OF_ALL: Final = ("is_causal", "per_layer_config")  # transformers looks for them in the file of any class

HONOURED: Final = Honoured()
TRAINING: Final = Harmless("only training looks at it")
RUNNING: Final = Harmless("says how transformers runs the model, or what it returns besides logits")
LABEL: Final = Harmless("a name or a note of whoever wrote the file")
DRAFTING: Final = Harmless("only layers for multi-token prediction look at it")
UNREAD: Final = Harmless("this class of transformers does not look at it")
NO_WINDOW: Final = Check("window_ignored")


def _all(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def _no_bias(where: str) -> Only:
    return Only((False, None), f"takes no biases in {where}")


def _biased(where: str) -> Only:
    return Only((True,), f"demands biases in {where}")


ATTENTION, MLP = "attention", "the feed-forward layers"
SILU: Final = Only(("silu", "swish"), "always computes SiLU")
# erf or tanh: below what ggml's own float16 table of GELU loses
GELUS: Final = "gelu gelu_new gelu_fast gelu_accurate gelu_python gelu_python_tanh gelu_pytorch_tanh"
GELU: Final = Only(tuple(GELUS.split()), "always computes GELU")
RELU2: Final = Only(("relu2",), "always computes the square of ReLU")
TIED_HEAD: Final = Only((True,), "always multiplies by the embedding, and drops the output matrix")
NORMALISED: Final = Only((True,), "always divides the experts' weights by their sum")
AS_THEY_ARE: Final = Only((False,), "never divides the experts' weights by their sum")
EVERY_LAYER: Final = "takes every layer for a mixture of experts"
CAUSAL: Final = Only((False, None), "attends to earlier tokens only")

USUAL: Final[Rules] = {
    **_all(
        HONOURED,
        """
        vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
        max_position_embeddings original_max_position_embeddings rope_parameters rope_scaling rope_theta
        rope_local_base_freq partial_rotary_factor rotary_dim rotary_pct rotary_emb_base tie_word_embeddings
        bos_token_id eos_token_id pad_token_id rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon
        num_experts num_local_experts n_routed_experts moe_num_experts num_experts_per_tok moe_k moe_intermediate_size
        shared_intermediate_size shared_expert_intermediate_size moe_layer_start_index num_dense_layers
        first_k_dense_replace routed_scaling_factor router_scaling_factor moe_routed_scaling_factor route_scale
        n_group topk_group norm_topk_prob embedding_multiplier residual_multiplier attention_multiplier logits_scaling
        logit_scale final_logit_softcapping attn_logit_softcapping use_parallel_residual kv_lora_rank qk_nope_head_dim
        qk_rope_head_dim qk_head_dim v_head_dim num_nextn_predict_layers num_mtp_layers quantization_config
        """,
    ),
    **_all(
        TRAINING,
        """
        initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop residual_dropout embedding_dropout
        classifier_dropout router_aux_loss_coef router_jitter_noise pretraining_tp
        """,
    ),
    **_all(
        RUNNING,
        """
        use_cache output_router_logits output_attentions output_hidden_states return_dict return_dict_in_generate
        is_decoder is_encoder_decoder chunk_size_feed_forward enable_moe_fp32_combine dtype torch_dtype
        """,
    ),
    **_all(
        LABEL,
        """
        _name_or_path _aliases architectures model_type transformers_version problem_type id2label label2id auto_map
        eod_token_id
        """,
    ),
    "is_causal": Only((True, None), "attends to earlier tokens only"),
    "per_layer_config": Only((None, {}), "has the same settings in every layer"),
    "hidden_act": SILU,
    "attention_bias": _no_bias(ATTENTION),
    "mlp_bias": _no_bias(MLP),
    "use_bias": _no_bias("any layer"),
    "sliding_window": NO_WINDOW,
    **_all(With("sliding_window"), "layer_types use_sliding_window max_window_layers"),
    "decoder_sparse_step": Only((1,), EVERY_LAYER),
    "mlp_only_layers": Only(([], None), EVERY_LAYER),
}

# Read from config.json by converters and not by transformers' classes: it must say what transformers does anyway.
SCORING: Final = (
    "scoring_func score_func score_function expert_selection_fn moe_router_activation moe_router_activation_func"
)
SIGMOID: Final[Rules] = _all(Only((None, "sigmoid"), "and transformers' class score experts by sigmoid"), SCORING)
SOFTMAX: Final[Rules] = _all(Only((None, "softmax"), "and transformers' class score experts by softmax"), SCORING)
ONE_GROUP: Final[Rules] = _all(
    Only((None, 0, 1), "has groups of experts, which transformers' class has not"), "n_group"
)
ROUTE_NORM: Final = {
    "route_norm": Only((None, True), "and transformers' class divide the experts' weights by their sum")
}

# The file says which layers slide: upstream's converter writes it, or `audit_keys` does where the loader would differ.
WINDOWED: Final[Rules] = _all(HONOURED, "sliding_window layer_types sliding_window_pattern _sliding_window_pattern")
SOME_SLIDE: Final[Rules] = {**WINDOWED, "layer_types": Check("some_layer_slides")}
FILLED: Final[Rules] = {"head_dim": Check("heads_fill_hidden")}
EVERY_HEAD: Final[Rules] = {"num_key_value_heads": Check("every_head_has_keys")}
SHARING: Final[Rules] = {"n_shared_experts": Check("some_shared_expert")}
SHARING_NUM: Final[Rules] = {"num_shared_experts": Check("some_shared_expert")}
MLA: Final[Rules] = {**EVERY_HEAD, "q_lora_rank": Check("latent_queries"), "rms_norm_eps": Check("latent_norms")}
INTERLEAVED: Final[Rules] = {"rope_interleave": Only((True,), "rotates neighbouring dimensions in pairs")}
DENSE_FIRST: Final[Rules] = {"mlp_layer_types": Check("dense_layers_first")}
BIASED_ATTENTION: Final[Rules] = {"attention_bias": HONOURED}
BIASED: Final[Rules] = {**BIASED_ATTENTION, "mlp_bias": HONOURED}
MULTIPLIED: Final[Rules] = BIASED_ATTENTION
TIED: Final[Rules] = {"tie_word_embeddings": TIED_HEAD}

ROWS: Final[Mapping[str, Rules]] = {
    "llama": BIASED,
    "internlm3": BIASED,
    "arcee": {"hidden_act": RELU2},
    "apertus": {**BIASED_ATTENTION, "hidden_act": Only(("xielu",), "always computes xIELU")},
    "jais2": {"hidden_act": RELU2, "attention_bias": _biased(ATTENTION), "mlp_bias": _biased(MLP)},
    "seed_oss": {**BIASED_ATTENTION, "attention_out_bias": _no_bias("the output of attention")},
    "ernie4_5": {},
    "ernie4_5_moe": {
        **SOFTMAX,
        **ONE_GROUP,
        "moe_num_shared_experts": HONOURED,
        "moe_layer_interval": Only((1,), "has experts in every layer from moe_layer_start_index on"),
        "moe_layer_end_index": Check("experts_to_the_end"),
        "moe_norm_min": Check("small_sum"),
    },
    "hunyuan_v1_dense": {},
    "hy_v3": {**SIGMOID, **ROUTE_NORM, **ONE_GROUP, **SHARING_NUM, "mlp_layer_types": HONOURED},
    "mistral": {},
    "ministral3": {},
    "mixtral": ONE_GROUP,
    "qwen2": FILLED,
    "qwen2_moe": {**FILLED, **ONE_GROUP, "norm_topk_prob": AS_THEY_ARE, "qkv_bias": HONOURED},
    "qwen3": {},
    "qwen3_moe": {**ONE_GROUP, "norm_topk_prob": NORMALISED},
    "smollm3": {"no_rope_layers": Check("every_fourth_unrotated"), "no_rope_layer_interval": With("no_rope_layers")},
    "gemma": {**TIED, "hidden_act": GELU, "use_bidirectional_attention": CAUSAL},
    "gemma2": {
        **WINDOWED,
        **TIED,
        "hidden_activation": GELU,
        "use_bidirectional_attention": CAUSAL,
        "query_pre_attn_scalar": Check("query_scale"),
        "head_dim": With("query_pre_attn_scalar"),
    },
    "gemma3_text": {
        **WINDOWED,
        "hidden_activation": GELU,
        "use_bidirectional_attention": CAUSAL,
        "query_pre_attn_scalar": Check("query_scale"),
        "head_dim": With("query_pre_attn_scalar"),
    },
    "olmo": {**FILLED, "clip_qkv": HONOURED},
    "olmo2": {**FILLED},
    "olmo3": {**FILLED, **WINDOWED},
    "olmoe": {
        **FILLED,
        **ONE_GROUP,
        **EVERY_HEAD,
        "norm_topk_prob": AS_THEY_ARE,
        "clip_qkv": Only((None,), "does not clip queries, keys and values"),
    },
    "granite": {**MULTIPLIED, "mlp_bias": HONOURED},
    "granitemoe": {**MULTIPLIED, **ONE_GROUP},
    "granitemoeshared": {**MULTIPLIED, **ONE_GROUP},
    "granite_swa": {**MULTIPLIED, **WINDOWED, "mlp_bias": HONOURED, "layer_rope_theta": Check("some_layer_rotates")},
    "phi": {
        **FILLED,
        "hidden_act": GELU,
        "qk_layernorm": Only((False,), "has no norms of queries and keys"),
    },
    "phi3": FILLED,
    "gpt_neox": {**FILLED, "hidden_act": GELU, "attention_bias": _biased(ATTENTION)},
    "stablelm": {
        **FILLED,
        "use_qkv_bias": HONOURED,
        "qk_layernorm": HONOURED,
    },
    "falcon": {
        **FILLED,
        **_all(HONOURED, "ffn_hidden_size num_kv_heads multi_query new_decoder_architecture num_ln_in_parallel_attn"),
        "activation": GELU,
        "bias": _no_bias("any layer"),
        "alibi": Only((False,), "rotates, and knows no ALiBi here"),
        "parallel_attn": Only((True,), "computes attention and feed-forward side by side"),
    },
    "nemotron": {**BIASED, **FILLED, "hidden_act": RELU2},
    "starcoder2": {**FILLED, "hidden_act": GELU, "use_bias": _biased("every layer")},
    "glm": {**BIASED_ATTENTION, **FILLED},
    "glm4": BIASED_ATTENTION,
    "glm4_moe": {**SIGMOID, **SHARING, **BIASED_ATTENTION, "use_qk_norm": HONOURED},
    "gpt_oss": {
        **WINDOWED,
        **SOFTMAX,
        **ONE_GROUP,
        "hidden_act": UNREAD,
        "swiglu_alpha": Only((1.702,), "always takes 1.702"),
        "swiglu_limit": Only((7.0,), "always clamps at 7"),
        "attention_bias": _biased(ATTENTION),
    },
    "deepseek_v2": {
        **SOFTMAX,
        **MLA,
        **SHARING,
        "norm_topk_prob": UNREAD,  # and llama.cpp does: `extra_keys` says no
        "topk_method": Check("chosen_experts"),
        **_all(With("topk_method"), "n_group topk_group"),
    },
    "deepseek_v3": {**SIGMOID, **MLA, **SHARING, **INTERLEAVED},
    "mistral4": {**SOFTMAX, **MLA, **SHARING, **INTERLEAVED},
    "minicpm3": {
        **EVERY_HEAD,
        "q_lora_rank": Check("latent_queries"),
        "rms_norm_eps": Check("latent_norms"),
        "scale_emb": Only((12,), "always takes 12"),
        "scale_depth": Only((1.4,), "always takes 1.4"),
        "dim_model_base": Only((256,), "always takes 256"),
    },
    "dots1": {**SIGMOID, **EVERY_HEAD, **SHARING},
    "cohere": {**TIED, **FILLED, "use_qk_norm": Check("norms_by_depth")},
    "cohere2": {
        **TIED,
        **FILLED,
        **SOME_SLIDE,
        "rotary_pct": Only((None, 1.0), "and transformers' class rotate the whole head"),
    },
    "exaone4": {**FILLED, "sliding_window": Check("slides_at_64"), "sliding_window_pattern": With("sliding_window")},
    "exaone_moe": {
        **SIGMOID,
        **SOME_SLIDE,
        **SHARING_NUM,
        **DENSE_FIRST,
    },
    "afmoe": {
        **SIGMOID,
        **ROUTE_NORM,
        **ONE_GROUP,
        **SHARING_NUM,
        "sliding_window": HONOURED,
        "layer_types": Check("every_fourth_full"),
        "global_attn_every_n_layers": With("layer_types"),
        "mup_enabled": Only((True,), "always multiplies the embedding by the root of its size"),
    },
    "laguna": {
        **SIGMOID,
        **ONE_GROUP,
        **WINDOWED,
        **DENSE_FIRST,
        "num_attention_heads_per_layer": HONOURED,
        "gating": Only((True, "per-head", "per-element"), "always has a gate on attention"),
        "moe_apply_router_weight_on_input": Only((False,), "applies the experts' weights to what they give"),
        "moe_router_logit_softcapping": Only((0.0, None), "does not cap the router's scores"),
    },
    "mellum": {
        **SOFTMAX,
        **ONE_GROUP,
        **WINDOWED,
        "norm_topk_prob": NORMALISED,
        "mlp_layer_types": Check("sparse_layers"),
        **_all(DRAFTING, "mtp_layer_types mtp_mlp_layer_types"),
    },
    "minimax_m2": {**SIGMOID, **ONE_GROUP},
    "lfm2": {
        **FILLED,
        "layer_types": Check("some_layer_convolves"),
        "full_attn_idxs": With("layer_types"),
        "conv_bias": _no_bias("the convolution"),
        **_all(HONOURED, "conv_L_cache block_multiple_of block_ffn_dim_multiplier block_auto_adjust_ff_dim"),
    },
}
