"""Fields of published config.json files that no class of transformers reads and that need no word either.

Which value each may have to say nothing: any; one of a few, at which it says what the class does anyway; or that of
another field, which it repeats. At other values the audit names the field. Does not know what classes read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from yarn_gguf.config.audit_checks import Model
from yarn_gguf.config.audit_tables import GELUS


@dataclass(frozen=True, slots=True)
class Whatever:
    """Whatever it says."""


@dataclass(frozen=True, slots=True)
class One:
    values: tuple[Any, ...]  # of a list, every entry is one of them


@dataclass(frozen=True, slots=True)
class Same:
    field: str


Silent: TypeAlias = Whatever | One | Same


def _any(names: str) -> dict[str, Silent]:
    return dict.fromkeys(names.split(), Whatever())


def _at(values: Iterable[Any], names: str) -> dict[str, Silent]:
    return dict.fromkeys(names.split(), One(tuple(values)))


def _same(pairs: str) -> dict[str, Silent]:
    return {name: Same(other) for name, other in (pair.split("=") for pair in pairs.split())}


YES: Final = (True, None)
NO: Final = (False, None)
ONCE: Final = (1, None)

EVERYWHERE: Final[Mapping[str, Silent]] = {
    **_any(  # of generation, of training, of other parts of the model, of tools
        """
        text_config vision_config temperature top_p top_k typical_p do_sample num_beams num_beam_groups max_length
        min_length max_new_tokens repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        early_stopping bad_words_ids begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id
        diversity_penalty exponential_decay_length_penalty num_return_sequences output_scores remove_invalid_values
        decoder_start_token_id sep_token_id unk_token_id mask_token_id cls_token_id image_token_id image_token_index
        tokenizer_class prefix task_specific_params finetuning_task add_cross_attention cross_attention_hidden_size
        tie_encoder_decoder tf_legacy_loss torchscript pruned_heads use_bfloat16 bf16 fp16 fp32 use_flash_attn
        use_flash_attention use_flash_attention_2 attn_implementation experts_implementation unsloth_fixed
        unsloth_version gradient_checkpointing use_mem_eff_path cache_implementation ep_size aux_loss_alpha seq_aux
        model_max_length max_sequence_length max_seq_length max_seq_len max_model_len seq_length
        is_llama_config transformers.js_config name_or_path num_labels license trust_remote_code
        attention_probs_dropout_prob hidden_dropout_prob neftune_noise_alpha
        """
    ),
    **_at(NO, "rope_interleaved lm_head_bias use_mrope use_logn_attn use_dynamic_ntk"),
    **_at(ONCE, "moe_layer_freq"),
    **_at(("noaux_tc", None), "topk_method"),
}

BY_CLASS: Final[Mapping[str, Mapping[str, Silent]]] = {
    "gemma": _at((None, *GELUS.split()), "hidden_activation"),
    "gemma2": _same("sliding_window_size=sliding_window"),
    "gpt_oss": {**_any("initial_context_length"), **_same("experts_per_token=num_experts_per_tok")},
    "phi3": _at(ONCE, "full_attn_mod interpolate_factor"),
    "starcoder2": {
        **_any("attention_softmax_in_fp32 scale_attention_softmax_in_fp32"),
        **_at(YES, "scale_attn_weights"),
        **_at(("layer_norm",), "norm_type"),
        **_at(("default",), "mlp_type"),
        **_at(GELUS.split(), "activation_function"),
    },
    "lfm2": {
        **_any("block_mlp_init_scale block_out_init_scale block_use_xavier_init conv_use_xavier_init"),
        **_at(YES, "block_use_swiglu use_pos_enc"),
        **_same("block_dim=hidden_size conv_dim=hidden_size conv_dim_out=hidden_size block_norm_eps=norm_eps"),
        **_same("num_heads=num_attention_heads theta=rope_theta"),
    },
    "hunyuan_v1_dense": {
        **_any(
            """
            add_classification_head class_num cla_share_factor dense_list im_end_id im_newline_id im_start_id
            mask_init_id org_vocab_size pad_id pool_type text_end_id text_start_id skip_cls_token
            """
        ),
        **_at(NO, "use_cla use_mla use_mixed_mlp_moe"),
        **_at((None,), "q_lora_rank"),
        **_at(YES, "use_qk_norm use_rotary_pos_emb"),
        **_at(("rms", "hf_rms"), "norm_type"),
        **_at(ONCE, "num_experts"),
        **_same("attention_head_dim=head_dim"),
    },
    "cohere": _at(NO, "layer_norm_bias"),
    "cohere2": {
        **_any("use_parallel_embedding"),
        **_at(YES, "use_embedding_sharing use_gated_activation use_parallel_block"),
        **_at(NO, "use_qk_norm layer_norm_bias"),
        **_at(("local_attn_first",), "order_of_interleaved_layers"),
        **_at(("rope_gptj",), "position_embedding_type"),
        **_at((4,), "layer_switch"),
    },
    "falcon": _at(NO, "apply_residual_connection_post_layernorm"),
    "apertus": {**_at(YES, "qk_norm"), **_at(NO, "post_norm")},
    "afmoe": {
        **_any("load_balance_coeff use_grouped_mm"),
        **_at((0, 1, None), "num_expert_groups num_limited_groups"),
    },
    "ernie4_5": _at(ONCE, "compression_ratio"),
    "ernie4_5_moe": {
        **_any("moe_capacity"),
        **_at(ONCE, "compression_ratio"),
        **_at(("topk",), "moe_gate"),
        **_at(YES, "moe_use_aux_free"),
    },
    "minimax_m2": {
        **_any("mtp_transformer_layers num_mtp_modules use_mtp"),
        **_at(ONCE, "attn_type_list"),
        **_at(YES, "use_qk_norm use_routing_bias"),
        **_at(("per_layer",), "qk_norm_type"),
    },
}

# Read by neither side, though the published model is meant to compute it.
UNCOMPUTED: Final = {"dual_chunk_attention_config": "dual chunk attention"}


def says_nothing(model: Model, name: str) -> bool:
    """Whether this field of the file, which the class does not read, is without meaning here."""
    rule = BY_CLASS.get(model.config.model_type, {}).get(name) or EVERYWHERE.get(name)
    value = model.config.raw[name]
    if isinstance(rule, One):
        return all(each in rule.values for each in (value if isinstance(value, list) else [value]))
    if isinstance(rule, Same):
        return bool(value == model.get(rule.field))
    return isinstance(rule, Whatever)
