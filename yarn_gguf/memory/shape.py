"""What a model's memory depends on, out of its headers: layers with their tensors, their cache and their kind.

A layer is known by the tensors that it has, not by its architecture: keys and values where there is `attn_k`, a state
where there is `ssm_conv1d`, experts where there is `ffn_gate_inp`. Which layers slide is `graphs`' table. Reads
headers; no byte of a weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from yarn_gguf.effective import sliding_layers
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_keys import Bound, Keys
from yarn_gguf.metadata import Facts, read_facts
from yarn_gguf.quant_policy import EMBEDDING

_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)")
OUTPUT: Final = "output.weight"
_PER_LAYER: Final = "per_layer_token_embd.weight"
_WIDEST: Final = 1 << 24
_EXPERTS_USED: Final = "expert_used_count"
_COUNTS: Final = (
    "attention.value_length",
    "attention.value_length_swa",
    "attention.key_length_swa",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
    "nextn_predict_layers",
    _EXPERTS_USED,
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "shortconv.l_cache",
    "wkv.head_size",
    "token_shift_count",
    "kda.head_dim",
    "embedding_length",
)
_MOST_USED: Final = 1024  # twice llama.cpp's own bound on experts
_BOUNDS: Final = dict.fromkeys(_COUNTS, Bound(0, _WIDEST, "it cannot be negative"))
_BOUNDS[_EXPERTS_USED] = Bound(0, _MOST_USED, "it cannot be negative")
_RECURRENT: Final = ("ssm_conv1d", "ssm_conv1d_q", "shortconv.conv", "time_mix_key")
_ATTENDING: Final = ("attn_k", "attn_kv_a_mqa")
# architectures whose cache holds more, or other things, than keys, values and states
UNKNOWN_CACHES: Final = frozenset(
    [
        "deepseek32",
        "deepseek4",
        "glm-dsa",
        "glm5-next",
        "minimax-m3",
        "dots3note",
        "hy_v4",
        "qwen4exp",
        "gemma4-assistant",
        "eagle3",
        "dflash",
    ]
)
# without a cache: they look at a whole text at once
NO_CACHE: Final = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
        "wavtokenizer-dec",
    ]
)
# the number of layers with a cache of their own, where a table of llama.cpp has it; the others share the last ones'
_OWN_CACHES: Final = {"gemma3n": 20}


@dataclass(frozen=True, slots=True)
class Matrix:
    dims: tuple[int, ...]  # fastest first
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """`key`, `value`: numbers per token in the cache; 0 where there is none, as of values under MLA: K has both."""

    parts: Mapping[str, Matrix] = field(hash=False)  # by the name behind blk.N.
    heads: int
    heads_kv: int
    head_key: int
    head_value: int
    key: int
    value: int
    sliding: bool
    state: int  # bytes of a recurrent layer's state, for one sequence

    @property
    def weights(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    def rows(self, name: str) -> int:
        """Of a matrix: how many numbers come out of it; 0 where there is none."""
        part = self.parts.get(f"{name}.weight")
        return 0 if part is None else part.dims[1] if len(part.dims) > 1 else part.dims[0]

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.parts

    @property
    def attends(self) -> bool:
        return any(map(self.has, ("attn_q", "attn_qkv", "attn_kv_a_mqa")))

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers with the same graph have in common."""
        names = tuple((name, part.dims) for name, part in sorted(self.parts.items()))
        return (names, self.heads, self.heads_kv, self.head_key, self.head_value, self.sliding)


@dataclass(frozen=True)
class Shape:
    arch: str
    name: str
    context_length: int
    width: int
    vocabulary: int
    layers: tuple[Layer, ...]
    embedding: int  # bytes of the token embedding and its like, which stay on the CPU
    output: int  # bytes of the head and the last norm; without a head of its own, of the norm alone
    tied: int  # bytes of the embedding where it is the head too, else 0
    head_type: str  # of the head's weights, or of the embedding's in its place
    window: int
    latent: int  # MLA: of the cached latent, else 0
    experts_used: int
    soft_cap: bool  # of attention
    logit_cap: bool
    per_layer: int = 0  # numbers that a token's embedding has for all layers together, beside the one for the first
    unused: int = 0  # bytes of layers that llama.cpp does not load, such as those that foretell further tokens

    @property
    def weights(self) -> int:
        """Bytes that are loaded, each once."""
        return self.embedding + self.output + sum(layer.weights for layer in self.layers)

    @property
    def recurrent(self) -> bool:
        return any(layer.state for layer in self.layers)

    @property
    def value_largest(self) -> int:
        return max((layer.value for layer in self.layers), default=0)


def read_shape(model: Model, facts: Facts | None = None) -> Shape:
    """The shape of a model by its headers; refuses a model whose cache is of a kind that is not known here."""
    facts = facts or read_facts(model)
    keys = Keys(model, _BOUNDS)
    if facts.arch in UNKNOWN_CACHES:
        text = f"{facts.arch} keeps more than keys and values in its cache; how much is not known here"
        raise InputError(text, file=model.path, code="unknown_cache")
    nextn = keys.integer("nextn_predict_layers") or 0
    layers = _layers(model, facts, keys)
    kept = layers[: max(len(layers) - nextn, 1)] if nextn else layers
    loose = {name: tensor for name, (_, tensor) in model.tensors.items() if _LAYER.fullmatch(name) is None}
    output = sum(tensor.size for name, tensor in loose.items() if name.startswith("output"))
    head, table = loose.get(OUTPUT), loose.get(EMBEDDING)
    words = head or table
    if words is None or len(words.dims) < 2:
        raise InputError(f"has no {EMBEDDING}, so it is not a language model", file=model.path, code="no_embedding")
    mla = bool(keys.integer("attention.key_length_mla"))
    return Shape(
        arch=facts.arch,
        name=facts.name,
        context_length=facts.context_length,
        width=keys.required("embedding_length"),
        vocabulary=words.dims[-1],
        layers=kept,
        embedding=sum(tensor.size for name, tensor in loose.items() if not name.startswith("output")),
        output=output,
        tied=words.size if head is None else 0,
        head_type=TENSOR_TYPES[words.type].name,
        window=facts.window or 0,
        latent=(keys.integer("attention.kv_lora_rank") or 0) if mla else 0,
        experts_used=max(keys.per_layer(_EXPERTS_USED, facts.layers) or (0,)),
        soft_cap=f"{facts.arch}.attn_logit_softcapping" in model.entries,
        logit_cap=f"{facts.arch}.final_logit_softcapping" in model.entries,
        per_layer=loose[_PER_LAYER].dims[0] if _PER_LAYER in loose else 0,
        unused=sum(layer.weights for layer in layers[len(kept) :]),
    )


def _layers(model: Model, facts: Facts, keys: Keys) -> tuple[Layer, ...]:
    parts: list[dict[str, Matrix]] = [{} for _ in range(facts.layers)]
    for name, (_, tensor) in model.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        if number >= facts.layers:
            text = f"{name} belongs to no layer: {facts.arch}.block_count is {facts.layers}"
            raise InputError(text, file=model.path, code="bad_metadata")
        parts[number][match[2]] = Matrix(tensor.dims, tensor.size)
    slides, own = sliding_layers(facts), _own_caches(facts, keys)
    return tuple(_layer(i, parts[i], facts, keys, slides[i], cached=i < own) for i in range(facts.layers))


def _own_caches(facts: Facts, keys: Keys) -> int:
    """How many layers have a cache of their own."""
    shared = keys.integer("attention.shared_kv_layers") or 0
    return min(_OWN_CACHES.get(facts.arch, facts.layers), facts.layers - shared)


def _layer(number: int, parts: dict[str, Matrix], facts: Facts, keys: Keys, sliding: bool, *, cached: bool) -> Layer:
    heads, heads_kv = _of(facts.head_count, number), _of(facts.head_count_kv or facts.head_count, number)
    recurrent = any(f"{name}.weight" in parts for name in _RECURRENT)
    attends = any(f"{name}.weight" in parts for name in _ATTENDING) or ("attn_qkv.weight" in parts and not recurrent)
    key = (sliding and keys.integer("attention.key_length_swa")) or facts.head_dim
    plain = keys.integer("attention.value_length") or _default_value(facts, keys)
    value = (sliding and keys.integer("attention.value_length_swa")) or plain
    latent = bool(keys.integer("attention.key_length_mla"))
    stored = (attends or not recurrent) and cached and facts.arch not in NO_CACHE
    return Layer(
        parts=parts,
        heads=heads,
        heads_kv=heads_kv,
        head_key=key,
        head_value=value,
        key=key * heads_kv if stored else 0,
        value=value * heads_kv if stored and not latent else 0,
        sliding=sliding,
        state=4 * (_rolling(keys, heads) + _running(keys, heads)) if recurrent else 0,
    )


def _of(numbers: tuple[int, ...], layer: int) -> int:
    """A layer's own number, or the one that all have."""
    return 0 if not numbers else numbers[layer] if len(numbers) > 1 else numbers[0]


def _default_value(facts: Facts, keys: Keys) -> int:
    return keys.required("embedding_length") // max(_of(facts.head_count, 0), 1)


def _rolling(keys: Keys, heads: int) -> int:
    """Numbers that a convolution or a shift of tokens looks back at (llama.cpp's n_embd_r)."""
    width = keys.required("embedding_length")
    if keys.integer("wkv.head_size"):
        return (keys.integer("token_shift_count") or 2) * width
    if back := keys.integer("shortconv.l_cache"):
        return width * (back - 1)
    kernel = keys.integer("ssm.conv_kernel") or 0
    if dims := keys.integer("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads * dims
    inner, groups = keys.integer("ssm.inner_size") or 0, keys.integer("ssm.group_count") or 0
    return max(kernel - 1, 0) * (inner + 2 * groups * (keys.integer("ssm.state_size") or 0))


def _running(keys: Keys, heads: int) -> int:
    """Numbers of the running state itself (llama.cpp's n_embd_s)."""
    if size := keys.integer("wkv.head_size"):
        return size * keys.required("embedding_length")
    if dims := keys.integer("kda.head_dim"):
        return dims * dims * heads
    return (keys.integer("ssm.state_size") or 0) * (keys.integer("ssm.inner_size") or 0)
