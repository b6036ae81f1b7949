"""GGUFs with the shapes of published models and no weights: a header, and a hole where the data would be.

llama.cpp opens them as it opens the models themselves, and says what memory they take; they cost a few kilobytes of
disk. Tensors are named and sized as in the files that llama.cpp's converter makes. Nothing of `yarn_gguf` is imported.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests import gguf_bytes as g

TYPES: Final = {  # ggml's number, numbers in a block, bytes of one
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "q4_0": (2, 32, 18),
    "q8_0": (8, 32, 34),
    "q4_K": (12, 256, 144),
    "mxfp4": (39, 32, 17),
}
LOOSE: Final = ("per_layer_", "rope_freqs")  # tensors that belong to no layer
Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Model:
    arch: str
    keys: Mapping[str, object]
    layers: int
    width: int
    words: int
    layer: Callable[[Model, int], Iterable[Tensor]]
    type: str = "q4_K"
    tied: bool = False
    experts: str | None = None  # the type of experts, where it is another one
    norm: str = "output_norm"

    def tensors(self) -> Iterator[Tensor]:
        yield "token_embd.weight", (self.width, self.words), self.type
        yield f"{self.norm}.weight", (self.width,), "f32"
        if not self.tied:
            yield "output.weight", (self.width, self.words), self.type
        for number in range(self.layers):
            for name, dims, kind in self.layer(self, number):
                yield name if name.startswith(LOOSE) else f"blk.{number}.{name}", dims, kind

    def __getitem__(self, key: str) -> int:
        value = self.keys[key]
        assert isinstance(value, int)
        return value


def write(model: Model, path: Path) -> Path:
    infos, end = [], 0
    for name, dims, kind in model.tensors():
        number, block, size = TYPES[kind]
        elements = 1
        for dim in dims:
            elements *= dim
        infos.append(g.tensor(name.encode(), dims, number, end))
        end += -(-(elements // block * size) // 32) * 32
    arch = model.arch.encode()
    pairs = [g.text(b"general.architecture", arch), g.text(b"tokenizer.ggml.model", b"none")]
    keys = {"block_count": model.layers, "embedding_length": model.width, "vocab_size": model.words, **model.keys}
    pairs += [_pair(arch + b"." + key.encode(), value) for key, value in keys.items()]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    header = header.ljust(-(-len(header) // 32) * 32, b"\0")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + end)
    return path


def _pair(key: bytes, value: object) -> bytes:
    match value:
        case bool():
            return g.pair(key, g.BOOL, struct.pack("<?", value))
        case int():
            return g.u32(key, value)
        case float():
            return g.pair(key, g.FLOAT32, struct.pack("<f", value))
        case str():
            return g.text(key, value.encode())
        case list():
            return g.pair(key, g.ARRAY, g.array(g.I32, len(value), struct.pack(f"<{len(value)}i", *value)))
    raise TypeError(type(value))


def _attention(m: Model, *, head: int, bias: bool = False, norms: bool = False) -> Iterator[Tensor]:
    heads, heads_kv = m["attention.head_count"], m["attention.head_count_kv"]
    yield "attn_norm.weight", (m.width,), "f32"
    for name, rows in (("q", heads * head), ("k", heads_kv * head), ("v", heads_kv * head)):
        yield f"attn_{name}.weight", (m.width, rows), m.type
        if bias:
            yield f"attn_{name}.bias", (rows,), "f32"
    yield "attn_output.weight", (heads * head, m.width), m.type
    if norms:
        yield "attn_q_norm.weight", (head,), "f32"
        yield "attn_k_norm.weight", (head,), "f32"


def _dense(m: Model, inner: int, suffix: str = "") -> Iterator[Tensor]:
    yield f"ffn_gate{suffix}.weight", (m.width, inner), m.type
    yield f"ffn_up{suffix}.weight", (m.width, inner), m.type
    yield f"ffn_down{suffix}.weight", (inner, m.width), m.type


def _experts(m: Model, inner: int, *, bias: bool = False) -> Iterator[Tensor]:
    count, kind = m["expert_count"], m.experts or m.type
    yield "ffn_gate_inp.weight", (m.width, count), "f32"
    yield "ffn_gate_exps.weight", (m.width, inner, count), kind
    yield "ffn_up_exps.weight", (m.width, inner, count), kind
    yield "ffn_down_exps.weight", (inner, m.width, count), kind
    if bias:
        yield "ffn_gate_inp.bias", (count,), "f32"
        yield "ffn_gate_exps.bias", (inner, count), "f32"
        yield "ffn_up_exps.bias", (inner, count), "f32"
        yield "ffn_down_exps.bias", (m.width, count), "f32"


def _llama(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m.width // m["attention.head_count"])
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _dense(m, m["feed_forward_length"])


def _mixtral(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m.width // m["attention.head_count"])
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _experts(m, m["feed_forward_length"])


def _qwen2(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m.width // m["attention.head_count"], bias=True)
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _dense(m, m["feed_forward_length"])


def _qwen3(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m["attention.key_length"], norms=True)
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _dense(m, m["feed_forward_length"])


def _qwen3moe(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m["attention.key_length"], norms=True)
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _experts(m, m["expert_feed_forward_length"])


def _phi3(m: Model, _: int) -> Iterator[Tensor]:
    yield "attn_norm.weight", (m.width,), "f32"
    yield "attn_qkv.weight", (m.width, 3 * m.width), m.type
    yield "attn_output.weight", (m.width, m.width), m.type
    yield "ffn_norm.weight", (m.width,), "f32"
    yield "ffn_up.weight", (m.width, 2 * m["feed_forward_length"]), m.type
    yield "ffn_down.weight", (m["feed_forward_length"], m.width), m.type


def _gemma3(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m["attention.key_length"], norms=True)
    yield "post_attention_norm.weight", (m.width,), "f32"
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _dense(m, m["feed_forward_length"])
    yield "post_ffw_norm.weight", (m.width,), "f32"


def _gemma2(m: Model, number: int) -> Iterator[Tensor]:
    for name, dims, kind in _gemma3(m, number):
        if name not in ("attn_q_norm.weight", "attn_k_norm.weight"):
            yield name, dims, kind


def _gemma4(m: Model, number: int) -> Iterator[Tensor]:
    slides = m.keys["attention.sliding_window_pattern"]
    assert isinstance(slides, list)
    head = m["attention.key_length_swa"] if slides[number] else m["attention.key_length"]
    heads, heads_kv, small = (
        m["attention.head_count"],
        m["attention.head_count_kv"],
        m["embedding_length_per_layer_input"],
    )
    for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        yield f"{name}.weight", (m.width,), "f32"
    yield "attn_q.weight", (m.width, heads * head), m.type
    yield "attn_output.weight", (heads * head, m.width), m.type
    yield "attn_q_norm.weight", (head,), "f32"
    if number < m.layers - m["attention.shared_kv_layers"]:
        yield "attn_k.weight", (m.width, heads_kv * head), m.type
        yield "attn_v.weight", (m.width, heads_kv * head), m.type
        yield "attn_k_norm.weight", (head,), "f32"
    if not number:
        yield "rope_freqs.weight", (m["attention.key_length"] // 2,), "f32"
        yield "per_layer_model_proj.weight", (m.width, small * m.layers), m.type
        yield "per_layer_proj_norm.weight", (small,), "f32"
        yield "per_layer_token_embd.weight", (small * m.layers, m.words), m.type
    yield from _dense(m, m["feed_forward_length"])
    yield "inp_gate.weight", (m.width, small), m.type
    yield "proj.weight", (small, m.width), m.type
    yield "post_norm.weight", (m.width,), "f32"


def _gpt_oss(m: Model, _: int) -> Iterator[Tensor]:
    yield from _attention(m, head=m["attention.key_length"], bias=True)
    yield "attn_output.bias", (m.width,), "f32"
    yield "attn_sinks.weight", (m["attention.head_count"],), "f32"
    yield "post_attention_norm.weight", (m.width,), "f32"
    yield from _experts(m, m["expert_feed_forward_length"], bias=True)


def _deepseek2(m: Model, number: int) -> Iterator[Tensor]:
    heads, rank, turned = m["attention.head_count"], m["attention.kv_lora_rank"], m["rope.dimension_count"]
    key, value = m["attention.key_length_mla"], m["attention.value_length_mla"]
    yield "attn_norm.weight", (m.width,), "f32"
    if "attention.q_lora_rank" in m.keys:
        low = m["attention.q_lora_rank"]
        yield "attn_q_a.weight", (m.width, low), m.type
        yield "attn_q_a_norm.weight", (low,), "f32"
        yield "attn_q_b.weight", (low, heads * key), m.type
    else:
        yield "attn_q.weight", (m.width, heads * key), m.type
    yield "attn_kv_a_mqa.weight", (m.width, rank + turned), "f16"
    yield "attn_kv_a_norm.weight", (rank,), "f32"
    yield "attn_k_b.weight", (key - turned, rank, heads), "f16"
    yield "attn_v_b.weight", (rank, value, heads), "f16"
    yield "attn_output.weight", (heads * value, m.width), m.type
    yield "ffn_norm.weight", (m.width,), "f32"
    if number < m["leading_dense_block_count"]:
        yield from _dense(m, m["feed_forward_length"])
        return
    yield from _experts(m, m["expert_feed_forward_length"])
    yield from _dense(m, m["expert_feed_forward_length"] * m["expert_shared_count"], "_shexp")


def _lfm2(m: Model, number: int) -> Iterator[Tensor]:
    heads = m.keys["attention.head_count_kv"]
    assert isinstance(heads, list)
    yield "attn_norm.weight", (m.width,), "f32"
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _dense(m, m["feed_forward_length"])
    if not heads[number]:
        yield "shortconv.conv.weight", (m["shortconv.l_cache"], m.width), "f32"
        yield "shortconv.in_proj.weight", (m.width, 3 * m.width), m.type
        yield "shortconv.out_proj.weight", (m.width, m.width), m.type
        return
    head = m.width // m["attention.head_count"]
    for name, rows in (("q", m.width), ("k", heads[number] * head), ("v", heads[number] * head)):
        yield f"attn_{name}.weight", (m.width, rows), m.type
    yield "attn_output.weight", (m.width, m.width), m.type
    yield "attn_q_norm.weight", (head,), "f32"
    yield "attn_k_norm.weight", (head,), "f32"


def _granite_hybrid(m: Model, number: int) -> Iterator[Tensor]:
    heads = m.keys["attention.head_count_kv"]
    assert isinstance(heads, list)
    inner, state, ranks = m["ssm.inner_size"], m["ssm.state_size"], m["ssm.time_step_rank"]
    yield "attn_norm.weight", (m.width,), "f32"
    yield "ffn_norm.weight", (m.width,), "f32"
    yield from _experts(m, m["feed_forward_length"])
    yield from _dense(m, m["expert_shared_feed_forward_length"], "_shexp")
    if heads[number]:
        head = m.width // m["attention.head_count"]
        for name, rows in (("q", m.width), ("k", heads[number] * head), ("v", heads[number] * head)):
            yield f"attn_{name}.weight", (m.width, rows), m.type
        yield "attn_output.weight", (m.width, m.width), m.type
        return
    convolved = inner + 2 * m["ssm.group_count"] * state
    yield "ssm_in.weight", (m.width, inner + convolved + ranks), m.type
    yield "ssm_conv1d.weight", (m["ssm.conv_kernel"], convolved), "f32"
    yield "ssm_conv1d.bias", (convolved,), "f32"
    yield "ssm_dt.bias", (ranks,), "f32"
    yield "ssm_a", (1, ranks), "f32"
    yield "ssm_d", (1, ranks), "f32"
    yield "ssm_norm.weight", (inner, 1), "f32"
    yield "ssm_out.weight", (inner, m.width), m.type


def _qwen3next(m: Model, number: int) -> Iterator[Tensor]:
    yield "attn_norm.weight", (m.width,), "f32"
    yield "post_attention_norm.weight", (m.width,), "f32"
    yield from _experts(m, m["expert_feed_forward_length"])
    yield "ffn_gate_inp_shexp.weight", (m.width,), "f32"
    yield from _dense(m, m["expert_shared_feed_forward_length"], "_shexp")
    if (number + 1) % 4 == 0:
        head, heads, heads_kv = m["attention.key_length"], m["attention.head_count"], m["attention.head_count_kv"]
        for name, rows in (("q", 2 * heads * head), ("k", heads_kv * head), ("v", heads_kv * head)):
            yield f"attn_{name}.weight", (m.width, rows), m.type
        yield "attn_output.weight", (heads * head, m.width), m.type
        yield "attn_q_norm.weight", (head,), "f32"
        yield "attn_k_norm.weight", (head,), "f32"
        return
    inner, state, ranks = m["ssm.inner_size"], m["ssm.state_size"], m["ssm.time_step_rank"]
    convolved = inner + 2 * m["ssm.group_count"] * state
    yield "attn_qkv.weight", (m.width, convolved), m.type
    yield "attn_gate.weight", (m.width, inner), m.type
    yield "ssm_conv1d.weight", (m["ssm.conv_kernel"], convolved), "f32"
    yield "ssm_dt.bias", (ranks,), "f32"
    yield "ssm_a", (ranks,), "f32"
    yield "ssm_ba.weight", (m.width, 2 * ranks), m.type
    yield "ssm_norm.weight", (inner // ranks,), "f32"
    yield "ssm_out.weight", (inner, m.width), m.type


EPS: Final = {"attention.layer_norm_rms_epsilon": 1e-5}


def _heads(heads: int, heads_kv: int, **more: int) -> dict[str, int]:
    lengths = {f"attention.{name}": value for name, value in more.items()}
    return {"attention.head_count": heads, "attention.head_count_kv": heads_kv, **lengths}


HEAD_128: Final = {"key_length": 128, "value_length": 128}
HEAD_256: Final = {"key_length": 256, "value_length": 256}

MODELS: Final[dict[str, Model]] = {
    "llama-2-7b": Model(
        "llama",
        {"context_length": 4096, "feed_forward_length": 11008, **_heads(32, 32), **EPS},
        32,
        4096,
        32000,
        _llama,
    ),
    "llama-3.1-8b": Model(
        "llama",
        {"context_length": 131072, "feed_forward_length": 14336, **_heads(32, 8), **EPS},
        32,
        4096,
        128256,
        _llama,
    ),
    "llama-3.1-70b": Model(
        "llama",
        {"context_length": 131072, "feed_forward_length": 28672, **_heads(64, 8), **EPS},
        80,
        8192,
        128256,
        _llama,
    ),
    "mixtral-8x7b": Model(
        "llama",
        {"context_length": 32768, "feed_forward_length": 14336, "expert_count": 8, "expert_used_count": 2}
        | {**_heads(32, 8), **EPS},
        32,
        4096,
        32000,
        _mixtral,
    ),
    "qwen2.5-7b": Model(
        "qwen2",
        {"context_length": 32768, "feed_forward_length": 18944, **_heads(28, 4), **EPS},
        28,
        3584,
        152064,
        _qwen2,
    ),
    "qwen3-8b": Model(
        "qwen3",
        {
            "context_length": 40960,
            "feed_forward_length": 12288,
            **_heads(32, 8, **HEAD_128),
            **EPS,
        },
        36,
        4096,
        151936,
        _qwen3,
    ),
    "qwen3-0.6b": Model(
        "qwen3",
        {
            "context_length": 40960,
            "feed_forward_length": 3072,
            **_heads(16, 8, **HEAD_128),
            **EPS,
        },
        28,
        1024,
        151936,
        _qwen3,
        tied=True,
    ),
    "qwen3-30b-a3b": Model(
        "qwen3moe",
        {"context_length": 40960, "feed_forward_length": 6144, "expert_count": 128, "expert_used_count": 8}
        | {"expert_feed_forward_length": 768, **_heads(32, 4, **HEAD_128), **EPS},
        48,
        2048,
        151936,
        _qwen3moe,
    ),
    "phi-3-mini": Model(
        "phi3",
        {"context_length": 4096, "feed_forward_length": 8192, "rope.dimension_count": 96, **_heads(32, 32), **EPS}
        | {"rope.scaling.original_context_length": 4096},
        32,
        3072,
        32064,
        _phi3,
    ),
    "gemma-2-9b": Model(
        "gemma2",
        {"context_length": 8192, "feed_forward_length": 14336, **_heads(16, 8, **HEAD_256), **EPS}
        | {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        42,
        3584,
        256000,
        _gemma2,
        tied=True,
    ),
    "gemma-3-12b": Model(
        "gemma3",
        {
            "context_length": 131072,
            "feed_forward_length": 15360,
            **_heads(16, 8, **HEAD_256),
            **EPS,
        }
        | {"attention.sliding_window": 1024},
        48,
        3840,
        262208,
        _gemma3,
        tied=True,
    ),
    "gpt-oss-20b": Model(
        "gpt-oss",
        {"context_length": 131072, "feed_forward_length": 2880, "expert_count": 32, "expert_used_count": 4}
        | {"expert_feed_forward_length": 2880, "attention.sliding_window": 128, "rope.dimension_count": 64}
        | {**_heads(64, 8, key_length=64, value_length=64), **EPS},
        24,
        2880,
        201088,
        _gpt_oss,
        type="q8_0",
        experts="mxfp4",
    ),
    "deepseek-v2-lite": Model(
        "deepseek2",
        {"context_length": 163840, "feed_forward_length": 10944, "expert_count": 64, "expert_used_count": 6}
        | {"expert_feed_forward_length": 1408, "expert_shared_count": 2, "leading_dense_block_count": 1}
        | {"expert_weights_scale": 1.0, "attention.kv_lora_rank": 512, "rope.dimension_count": 64}
        | {**_heads(16, 1, key_length=576, value_length=512, key_length_mla=192, value_length_mla=128), **EPS},
        27,
        2048,
        102400,
        _deepseek2,
        type="q8_0",
    ),
    "deepseek-v3": Model(
        "deepseek2",
        {"context_length": 163840, "feed_forward_length": 18432, "expert_count": 256, "expert_used_count": 8}
        | {"expert_feed_forward_length": 2048, "expert_shared_count": 1, "leading_dense_block_count": 3}
        | {"expert_weights_scale": 2.5, "attention.kv_lora_rank": 512, "attention.q_lora_rank": 1536}
        | {"rope.dimension_count": 64, "expert_gating_func": 2, "expert_weights_norm": True}
        | {**_heads(128, 1, key_length=576, value_length=512, key_length_mla=192, value_length_mla=128), **EPS},
        61,
        7168,
        129280,
        _deepseek2,
    ),
    "lfm2-1.2b": Model(
        "lfm2",
        {"context_length": 128000, "feed_forward_length": 8192, "shortconv.l_cache": 3, "attention.head_count": 32}
        | {"attention.head_count_kv": [8 if i in (2, 5, 8, 10, 12, 14) else 0 for i in range(16)], **EPS},
        16,
        2048,
        65536,
        _lfm2,
        tied=True,
        norm="token_embd_norm",
    ),
    "granite-4.0-h-tiny": Model(
        "granitehybrid",
        {"context_length": 131072, "feed_forward_length": 512, "expert_count": 64, "expert_used_count": 6}
        | {"expert_shared_feed_forward_length": 1024, "ssm.conv_kernel": 4, "ssm.inner_size": 3072}
        | {"ssm.state_size": 128, "ssm.time_step_rank": 48, "ssm.group_count": 1, "attention.head_count": 12}
        | {"attention.head_count_kv": [4 if i in (5, 15, 25, 35) else 0 for i in range(40)], **EPS},
        40,
        1536,
        100352,
        _granite_hybrid,
        tied=True,
    ),
    "qwen3-next-80b-a3b": Model(
        "qwen3next",
        {"context_length": 262144, "feed_forward_length": 5120, "expert_count": 512, "expert_used_count": 10}
        | {"expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512, "ssm.conv_kernel": 4}
        | {"ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.time_step_rank": 32, "ssm.group_count": 16}
        | {"rope.dimension_count": 64, **_heads(16, 2, **HEAD_256), **EPS},
        48,
        2048,
        151936,
        _qwen3next,
    ),
    "gemma-4-e4b": Model(
        "gemma4",
        {"context_length": 131072, "feed_forward_length": 10240, "final_logit_softcapping": 30.0}
        | {"attention.sliding_window": 512, "attention.shared_kv_layers": 18, "embedding_length_per_layer_input": 256}
        | {"attention.sliding_window_pattern": [int((i + 1) % 6 != 0) for i in range(42)], "rope.dimension_count": 512}
        | {"rope.dimension_count_swa": 256, "attention.key_length_swa": 256, "attention.value_length_swa": 256}
        | {**_heads(8, 2, key_length=512, value_length=512), **EPS},
        42,
        2560,
        262144,
        _gemma4,
        tied=True,
    ),
}
