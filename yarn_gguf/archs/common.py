"""What a row is, and what many rows share: groups of tensors, groups of keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from yarn_gguf.archs.key_tables import Key, computed, keys, without
from yarn_gguf.archs.tensor_tables import Choice, Group, Line, further_layers, is_further, layer, model
from yarn_gguf.config.hyperparameters import Hyperparameters

LeftOut: TypeAlias = Callable[[Hyperparameters, str], bool]


def nothing(h: Hyperparameters, name: str) -> bool:
    return False


@dataclass(frozen=True)
class Row:
    """One class of transformers: llama.cpp's architecture, its tensors, and its keys without the RoPE scaling's."""

    arch: str
    tensors: tuple[Group | Choice, ...]
    keys: tuple[Key, ...]
    left_out: LeftOut = nothing  # tensors of the checkpoint that the file is to go without


# ---- tensors

ENDS = model("""
    embed_tokens.weight     token_embd.weight     vocab,hidden
    norm.weight             output_norm.weight    hidden
    /lm_head.weight         output.weight         vocab,hidden    ?!tie_word_embeddings
""")
NORMS = layer("""
    input_layernorm.weight             attn_norm.weight    hidden
    post_attention_layernorm.weight    ffn_norm.weight     hidden
""")
QKV = layer("""
    self_attn.q_proj.weight    attn_q.weight    heads*head_dim,hidden
    self_attn.k_proj.weight    attn_k.weight    kv_heads*head_dim,hidden
    self_attn.v_proj.weight    attn_v.weight    kv_heads*head_dim,hidden
""")
QKV_BIAS = layer("""
    self_attn.q_proj.bias      attn_q.bias      heads*head_dim
    self_attn.k_proj.bias      attn_k.bias      kv_heads*head_dim
    self_attn.v_proj.bias      attn_v.bias      kv_heads*head_dim
""")
OUT = layer("""
    self_attn.o_proj.weight    attn_output.weight    hidden,heads*head_dim
""")
OUT_BIAS = layer("""
    self_attn.o_proj.bias      attn_output.bias      hidden
""")
QK_NORM = layer("""
    self_attn.q_norm.weight    attn_q_norm.weight    head_dim
    self_attn.k_norm.weight    attn_k_norm.weight    head_dim
""")
GATED = layer("""
    mlp.gate_proj.weight    ffn_gate.weight    intermediate_size,hidden
    mlp.up_proj.weight      ffn_up.weight      intermediate_size,hidden
    mlp.down_proj.weight    ffn_down.weight    hidden,intermediate_size
""")
GATED_BIAS = layer("""
    mlp.gate_proj.bias      ffn_gate.bias      intermediate_size
    mlp.up_proj.bias        ffn_up.bias        intermediate_size
    mlp.down_proj.bias      ffn_down.bias      hidden
""")
GATED_BIAS_IF = layer("""
    mlp.gate_proj.bias      ffn_gate.bias      intermediate_size    ?mlp_bias
    mlp.up_proj.bias        ffn_up.bias        intermediate_size    ?mlp_bias
    mlp.down_proj.bias      ffn_down.bias      hidden               ?mlp_bias
""")
QKV_BIAS_IF = layer("""
    self_attn.q_proj.bias      attn_q.bias      heads*head_dim       ?attention_bias
    self_attn.k_proj.bias      attn_k.bias      kv_heads*head_dim    ?attention_bias
    self_attn.v_proj.bias      attn_v.bias      kv_heads*head_dim    ?attention_bias
""")
OUT_BIAS_IF = layer("""
    self_attn.o_proj.bias      attn_output.bias      hidden    ?attention_bias
""")
NORM_BIAS = layer("""
    input_layernorm.bias             attn_norm.bias    hidden
    post_attention_layernorm.bias    ffn_norm.bias     hidden
""")
POST_NORMS = layer("""
    post_attention_layernorm.weight      post_attention_norm.weight    hidden
    post_feedforward_layernorm.weight    post_ffw_norm.weight          hidden
""")
END_BIAS = model("""
    norm.bias    output_norm.bias    hidden
""")
TIED_HEAD = model("""
    embed_tokens.weight    output.weight    vocab,hidden    ?tie_word_embeddings
""")  # for graphs that look for a head of its own
UNGATED = layer("""
    mlp.up_proj.weight      ffn_up.weight      intermediate_size,hidden
    mlp.down_proj.weight    ffn_down.weight    hidden,intermediate_size
""")
FUSED_GATED = layer("""
    mlp.gate_up_proj.weight    ffn_up.weight      2*intermediate_size,hidden
    mlp.down_proj.weight       ffn_down.weight    hidden,intermediate_size
""")
ATTENTION = (NORMS, QKV, OUT)
PAIRED = QKV.but(attn_q="permute", attn_k="permute")  # llama.cpp turns neighbours, transformers halves
PAIRED_BIAS = layer("""
    self_attn.q_proj.bias      attn_q.bias         heads*head_dim       permute    ?attention_bias
    self_attn.k_proj.bias      attn_k.bias         kv_heads*head_dim    permute    ?attention_bias
    self_attn.v_proj.bias      attn_v.bias         kv_heads*head_dim               ?attention_bias
    self_attn.o_proj.bias      attn_output.bias    hidden                          ?attention_bias
""")
LLAMA = (ENDS, NORMS, PAIRED, OUT)
EXPERTS = layer("""
    mlp.experts.{num_experts}.gate_proj.weight    ffn_gate_exps.weight    moe_intermediate_size,hidden
    mlp.experts.{num_experts}.up_proj.weight      ffn_up_exps.weight      moe_intermediate_size,hidden
    mlp.experts.{num_experts}.down_proj.weight    ffn_down_exps.weight    hidden,moe_intermediate_size
""")
STACKED = layer("""
    mlp.experts.gate_up_proj    ffn_gate_exps.weight    num_experts,2*moe_intermediate_size,hidden    upper
    mlp.experts.gate_up_proj    ffn_up_exps.weight      num_experts,2*moe_intermediate_size,hidden    lower
    mlp.experts.down_proj       ffn_down_exps.weight    num_experts,hidden,moe_intermediate_size
""")
ROUTER = layer("""
    mlp.gate.weight    ffn_gate_inp.weight    num_experts,hidden
""")
STACKED_WEIGHT = layer("""
    mlp.experts.gate_up_proj.weight    ffn_gate_exps.weight    num_experts,2*moe_intermediate_size,hidden    upper
    mlp.experts.gate_up_proj.weight    ffn_up_exps.weight      num_experts,2*moe_intermediate_size,hidden    lower
    mlp.experts.down_proj.weight       ffn_down_exps.weight    num_experts,hidden,moe_intermediate_size
""")
QWEN_MOE = (ROUTER, Choice((EXPERTS, STACKED, STACKED_WEIGHT)))
CORRECTION = layer("""
    mlp.gate.e_score_correction_bias    exp_probs_b.bias    num_experts
""")
SHARED = layer("""
    mlp.shared_experts.gate_proj.weight    ffn_gate_shexp.weight    moe_intermediate_size*n_shared_experts,hidden
    mlp.shared_experts.up_proj.weight      ffn_up_shexp.weight      moe_intermediate_size*n_shared_experts,hidden
    mlp.shared_experts.down_proj.weight    ffn_down_shexp.weight    hidden,moe_intermediate_size*n_shared_experts
""")
NEXT_TOKEN = layer("""
    eh_proj.weight    nextn.eh_proj.weight    hidden,2*hidden
    enorm.weight      nextn.enorm.weight      hidden
    hnorm.weight      nextn.hnorm.weight      hidden
""").beyond()


def optional(group: Group) -> Choice:
    return Choice((group, replace(group, lines=())))


def renamed(group: Group, **fields: str) -> Group:
    """With other names of config fields in sources and shapes."""

    def other(text: str) -> str:
        return re.sub(r"[a-z_]+", lambda match: fields.get(match[0], match[0]), text)

    def line(each: Line) -> Line:
        counts = tuple(re.sub(r"\{\w+\}", lambda match: other(match[0]), source) for source in each.sources)
        return replace(each, sources=counts, shape=tuple(other(axis) for axis in each.shape))

    return replace(group, lines=tuple(line(each) for each in group.lines))


# ---- which layers have experts


def has_experts(h: Hyperparameters, i: int) -> bool:
    return i >= (h.size("first_k_dense_replace") if h.get("first_k_dense_replace") is not None else 0)


def is_dense(h: Hyperparameters, i: int) -> bool:
    return not has_experts(h, i)


def _of_further_layer(h: Hyperparameters, name: str) -> bool:
    match = re.search(r"(?:^|\.)(mtp|layers)\.(\d*)", name)
    return match is not None and (match[1] == "mtp" or is_further(h, int(match[2] or 0)))


def as_stored(h: Hyperparameters, names: Iterable[str]) -> Hyperparameters:
    """Without the layers beyond the model where no tensor belongs to one: who trains a model on may lose them."""
    if not further_layers(h) or any(_of_further_layer(h, name) for name in names):
        return h
    raw = MappingProxyType({**h.config.raw, "num_nextn_predict_layers": 0})
    return Hyperparameters(replace(h.config, raw=raw))


# ---- what many share: keys

HEAD = keys("""
    rope.dimension_count    u32    head_dim
""")
VOCAB = keys("""
    vocab_size              u32    vocab
""")
EXPERT_FFN = keys("""
    expert_feed_forward_length    u32    moe_intermediate_size
""")
WINDOW = keys("""
    attention.sliding_window    u32    sliding_window
""")
SIGMOID = keys("""
    expert_gating_func    u32    "2"
""")
SCALED_EXPERTS = keys("""
    expert_weights_scale    f32     routed_scaling_factor
    expert_weights_norm     bool    norm_topk_prob
""")


def _rotated(h: Hyperparameters) -> int | None:
    """None where no layer rotates."""
    return h.config.rope.rope.dim if h.config.rope is not None else None


def _slides(h: Hyperparameters) -> list[bool] | None:
    """Which layers slide, of models that have a window."""
    return [kind == "sliding_attention" for kind in h.config.layer_types] if h.get("sliding_window") else None


def _unusual_head(h: Hyperparameters) -> int | None:
    return h.config.head_dim if h.config.head_dim * h.config.heads != h.config.hidden_size else None


ROTATED = computed("rope.dimension_count", "u32", _rotated)
SLIDES = computed("attention.sliding_window_pattern", "bool", _slides)


def headless(table: tuple[Key, ...]) -> tuple[Key, ...]:
    """With the length of a head only where it is not hidden / heads, which llama.cpp takes for it."""
    lengths = ("attention.key_length", "attention.value_length")
    return without(table, *lengths) + tuple(key for name in lengths for key in computed(name, "u32", _unusual_head))
