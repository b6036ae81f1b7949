"""The tables by model type: what each class of transformers 5.23 takes a field for that the file leaves out.

What it knows: sizes (`DEFAULTS`), and where a class goes another way than Llama's (`RULES`): which layers slide, which
rotate, how its fields are called, whose settings it reads. What it does not know: files, and how a rope is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from yarn_gguf.config.fields import HEADS, KV_HEADS, LAYERS, LENGTH, ORIGINAL, PARTIAL, Fields, Json
from yarn_gguf.config.ropes import BUILDERS, Builder, dynamic_alpha

LARGEST_DEPTH: Final = 10_000  # layers
WINDOW: Final = "sliding_window"
FULL, SLIDING, CONV = "full_attention", "sliding_attention", "conv"
LOCAL_BASE, LAYER_BASES, PATTERN = "rope_local_base_freq", "layer_rope_theta", "sliding_window_pattern"

COLUMNS: Final = (LAYERS, "hidden_size", HEADS, KV_HEADS, "head_dim", "vocab_size", LENGTH, "rope_theta", WINDOW)
SIZES: Final = """
afmoe             32  2048   16    -  128  200192    16384     10000  1024
apertus           32  4096   32    -    -  131072    65536  12000000     -
arcee             32  2560   32    -    -   32000     4096     10000     -
bloom              2    64    8    -    -  250880        0         -     -
cohere            40  8192   64    -    -  256000     8192    500000     -
cohere2           40  8192   64    -    -  256000     8192     10000  4096
deepseek_v2       32  4096   32    -    -  102400     2048     10000     -
deepseek_v3       61  7168  128  128    -  129280     4096     10000     -
dots1             62  4608   32   32    -  152064     2048     10000  4096
ernie4_5          18  1024   16    2  128  103424   131072    500000     -
ernie4_5_moe      28  2560   20    4    -  103424   131072    500000     -
exaone4           32  4096   32   32    -  102400     2048     10000  4096
exaone_moe        32  4096   32   32    -  102400     2048     10000  4096
falcon            32  4544   71    -    -   65024     2048     10000     -
gemma             28  3072   16   16  256  256000     8192     10000     -
gemma2            26  2304    8    4  256  256000     8192     10000  4096
gemma3_text       26  2304    8    4  256  262208   131072   1000000  4096
glm               40  4096   32    2  128  151552   131072     10000     -
glm4              40  4096   32    2  128  151552   131072     10000     -
glm4_moe          46  4096   96    8    -  151552   131072     10000     -
gpt2              12   768   12    -    -   50257     1024         -     -
gpt_neox          44  6144   64    -    -   50432     2048     10000     -
gpt_oss           36  2880   64    8   64  201088   131072    150000   128
granite           32  4096   32    -    -   32000     2048     10000     -
granite_swa       24  2560   20    4    -  100352     8192     10000   128
granitemoe        32  4096   32    -    -   32000     2048     10000     -
granitemoeshared  32  4096   32    -    -   32000     2048     10000     -
hunyuan_v1_dense  32  4096   32    -    -  290943     2048     10000     -
hy_v3             80  4096   64    8  128  120832   131072  11158840     -
internlm3         48  4096   32    2  128  128512    32768     10000     -
jais2             32  3328   26    -    -  150272     8192     10000     -
laguna            40  2048   48    8  128  100352   131072         -   512
lfm2              32  2560   32    8    -   65536   128000   1000000     -
llama             32  4096   32    -    -   32000     2048     10000     -
mellum            28  2304   32    4  128   98304   131072         -  1024
minicpm3          62  2560   40   40    -   73448    32768     10000     -
minimax_m2        62  3072   48    8  128  200064   196608   5000000     -
ministral3        34  4096   32    8  128  131072   262144     10000     -
mistral           32  4096   32    8    -   32000   131072     10000  4096
mistral4          36  4096   32   32    -  131072  1048576     10000     -
mixtral           32  4096   32    8    -   32000   131072   1000000     -
mpt               24  2048   16    -    -   50368     2048         -     -
nemotron          32  6144   48    -    -  256000     4096     10000     -
olmo              32  4096   32    -    -   50304     2048     10000     -
olmo2             32  4096   32    -    -   50304     2048     10000     -
olmo3             32  4096   32    -    -   50304     2048    500000  4096
olmoe             16  2048   16    -    -   50304     4096     10000     -
phi               24  2048   32    -    -   51200     2048     10000     -
phi3              32  3072   32    -    -   32064     4096     10000     -
phimoe            32  4096   32    8    -   32064   131072   1000000     -
qwen2             32  4096   32   32    -  151936    32768     10000  4096
qwen2_moe         24  2048   16   16    -  151936    32768     10000  4096
qwen3             32  4096   32   32  128  151936    32768     10000  4096
qwen3_moe         24  2048   32    4    -  151936    32768     10000  4096
seed_oss          64  4096   80    8  128  155136   524288     10000     -
smollm3           36  2048   16    4    -  128256    32768   2000000     -
stablelm          32  2560   32   32    -   50304     4096     10000     -
starcoder2        30  3072   24    2    -   49152     4096     10000     -
"""
DEFAULTS: Final[Mapping[str, Mapping[str, int | None]]] = {
    name: {column: None if size == "-" else int(size) for column, size in zip(COLUMNS, sizes, strict=True)}
    for name, *sizes in map(str.split, SIZES.strip().splitlines())
}

Layout: TypeAlias = Callable[[Fields], list[str]]
Rotation: TypeAlias = Callable[[Fields, list[str]], list[bool]]


# Which layers slide, and which rotate.
def layers(model: Fields) -> range:
    return range(model.count(LAYERS, most=LARGEST_DEPTH))


def _has_window(model: Fields) -> bool:
    return bool(model.number(WINDOW))


def _sliding_where(flags: Iterable[bool]) -> list[str]:
    return [SLIDING if flag else FULL for flag in flags]


def _all_alike(model: Fields) -> list[str]:
    """For the classes that know no kinds of layers."""
    return _sliding_where(_has_window(model) for _ in layers(model))


def _all_full(model: Fields) -> list[str]:
    return _sliding_where(False for _ in layers(model))


def _every(period: int | str, full: int = -1) -> Layout:
    """One layer of every `period` is full, the last unless told; a field of this name says how many, 0 for none."""

    def layout(model: Fields) -> list[str]:
        n = model.count(period, least=0) if isinstance(period, str) else period
        return _sliding_where(n > 0 and i % n != full % n for i in layers(model))

    return layout


def _above(model: Fields) -> list[str]:
    first = model.count("max_window_layers", least=0) if _has_window(model) else LARGEST_DEPTH
    return _sliding_where(i >= first for i in layers(model))


def _even_below(model: Fields) -> list[str]:
    end = model.count("max_window_layers", least=0) if _has_window(model) else 0
    return _sliding_where(i % 2 == 0 and i < end for i in layers(model))


def _where_no_rope(model: Fields) -> list[str]:
    return _sliding_where(_has_window(model) and not rotates for rotates in _listed(model, []))


def _some_convolve(model: Fields) -> list[str]:
    attend = None if model.get("full_attn_idxs") is None else set(model.numbers("full_attn_idxs"))
    return [FULL if attend is None or i in attend else CONV for i in layers(model)]


def _attending(model: Fields, types: list[str]) -> list[bool]:
    return [each != CONV for each in types]


def _sliding(model: Fields, types: list[str]) -> list[bool]:
    return [each == SLIDING for each in types]


def _windowed(model: Fields, types: list[str]) -> list[bool]:
    return [each == SLIDING and _has_window(model) for each in types]


def _sliding_if_any(model: Fields, types: list[str]) -> list[bool]:
    return [each == SLIDING or not _has_window(model) for each in types]


def _listed(model: Fields, types: list[str]) -> list[bool]:
    if model.get("no_rope_layers") is None:
        interval = model.count("no_rope_layer_interval")
        return [(i + 1) % interval != 0 for i in layers(model)]
    return [each != 0 for each in per_layer(model, "no_rope_layers")]


def _with_base(model: Fields, types: list[str]) -> list[bool]:
    if model.get(LAYER_BASES) is None:
        return _attending(model, types)
    return [each != 0 for each in per_layer(model, LAYER_BASES)]


def per_layer(model: Fields, key: str) -> tuple[float, ...]:
    numbers, depth = model.numbers(key), len(layers(model))
    if len(numbers) != depth:
        raise model.fail(key, f"has {len(numbers)} entries for {depth} layers")
    return numbers


# What follows for the class from other fields.
def _window_switch(model: Fields) -> Json:
    return {} if model.get("use_sliding_window") else {WINDOW: None}


def _pattern_needs_window(model: Fields) -> Json:
    return {} if _has_window(model) else {PATTERN: 0}


def _multi_query(model: Fields) -> Json:
    shared = model.get("multi_query") and not model.get("new_decoder_architecture")
    return {KV_HEADS: 1} if shared else {}


def _rotary_dim(model: Fields) -> Json:
    if model.number("rotary_dim") is None or model.number(PARTIAL) is not None:
        return {}
    return {PARTIAL: model.need("rotary_dim") / model.count("head_dim")}


@dataclass(frozen=True, slots=True)
class Rules:
    """Where a class departs from Llama's."""

    more: Mapping[str, Any] = field(default_factory=dict)  # defaults of fields that are not in SIZES
    rope: Mapping[str, Any] | None = None  # the settings where the file has none
    dicts: Literal["one", "merged", "each"] = "one"  # for all layers; per kind, with defaults; per kind, complete
    builders: Mapping[str, Builder] = field(default_factory=lambda: BUILDERS)
    partial: bool = False  # plain RoPE honours partial_rotary_factor, as scaled RoPE always does
    latent: tuple[str, ...] = ()  # latent attention: what adds up to head_dim; qk_rope_head_dim rotates
    layout: Layout = _all_alike
    rotation: Rotation = _attending
    adjust: Callable[[Fields], Json] = lambda model: {}
    spelled: Mapping[str, str] = field(
        default_factory=dict
    )  # a name for a field in this class → the usual one, which it replaces
    unread: tuple[str, ...] = ()  # fields that others look at, and this class does not
    no_rope: str | None = None

    @property
    def knows_kinds(self) -> bool:
        """The class has kinds of layers, and a file may list them."""
        return self.layout is not _all_alike


def _half(partial: float = 0.5, **rules: Any) -> Rules:
    return Rules(partial=True, more={PARTIAL: partial}, **rules)


def _mla(plain: int, rotated: int, *more: str, rope: Json | None = None) -> Rules:
    sizes = {"qk_nope_head_dim": plain, "qk_rope_head_dim": rotated}
    return Rules(more=sizes, latent=("qk_rope_head_dim", *more), rope=rope)


def _each(**rope: Json) -> Rules:
    unread = ("rope_theta", ORIGINAL)
    return Rules(dicts="each", layout=_all_full, partial=True, unread=unread, rope=rope)


_MISTRAL: Final = {"type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}
_GPT_OSS: Final = {"type": "yarn", "factor": 32.0, "truncate": False, ORIGINAL: 4096}
_APERTUS: Final = {"type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_EXAONE: Final = Rules({PATTERN: 4}, layout=_every(PATTERN), rotation=_sliding_if_any, adjust=_pattern_needs_window)
_PHI3: Final = {"default": BUILDERS["default"], **dict.fromkeys(("longrope", "yarn", "su"), BUILDERS["longrope"])}

RULES: Final[Mapping[str, Rules]] = {
    "apertus": Rules(rope={**_APERTUS, ORIGINAL: 8192}),
    "hunyuan_v1_dense": Rules(builders={**BUILDERS, "dynamic": dynamic_alpha}),
    "ministral3": Rules(rope={**_MISTRAL, "rope_theta": 1e6, "factor": 16.0, ORIGINAL: 16384}),
    "qwen2": Rules({"max_window_layers": 28}, layout=_above, adjust=_window_switch),
    "qwen3": Rules({"max_window_layers": 28}, layout=_above, adjust=_window_switch),
    "dots1": Rules({"max_window_layers": 62}, layout=_above),
    "qwen2_moe": Rules({"max_window_layers": 28}, layout=_even_below, adjust=_window_switch),
    "qwen3_moe": Rules(adjust=_window_switch),
    "smollm3": Rules({"no_rope_layer_interval": 4}, layout=_where_no_rope, rotation=_listed, adjust=_window_switch),
    "gemma2": Rules(layout=_every(2)),
    "gemma3_text": Rules({LOCAL_BASE: 1e4, PATTERN: 6}, dicts="merged", layout=_every(PATTERN)),
    "olmo3": Rules({LOCAL_BASE: 5e5}, dicts="merged", layout=_every(4), unread=(LOCAL_BASE,)),
    "granite_swa": Rules({LAYER_BASES: None}, layout=_every(4, full=0), rotation=_with_base),
    "phi": _half(),
    "phi3": Rules({ORIGINAL: 4096}, partial=True, builders=_PHI3),
    "phimoe": Rules(builders={"default": BUILDERS["default"]}),
    "gpt_neox": _half(
        0.25, unread=("rope_theta", PARTIAL), spelled={"rotary_emb_base": "rope_theta", "rotary_pct": PARTIAL}
    ),
    "stablelm": _half(0.25),
    "falcon": Rules(
        {"multi_query": True, "alibi": False},
        adjust=_multi_query,
        unread=("head_dim", KV_HEADS),
        spelled={"n_embed": "hidden_size", "num_kv_heads": KV_HEADS},
    ),
    "nemotron": _half(),
    "glm": _half(),
    "glm4": _half(),
    "glm4_moe": _half(),
    "gpt_oss": Rules(layout=_every(2), rope=_GPT_OSS),
    "deepseek_v2": _mla(128, 64),
    "deepseek_v3": _mla(128, 64),
    "minicpm3": _mla(64, 32),
    "mistral4": _mla(64, 64, "qk_nope_head_dim", rope={**_MISTRAL, "rope_theta": 1e4, "factor": 128.0, ORIGINAL: 8192}),
    "cohere2": Rules({PATTERN: 4}, layout=_every(PATTERN), rotation=_windowed),
    "exaone4": _EXAONE,
    "exaone_moe": _EXAONE,
    "afmoe": Rules({"global_attn_every_n_layers": 4}, layout=_every("global_attn_every_n_layers"), rotation=_sliding),
    "laguna": _each(full_attention={"rope_theta": 5e5, PARTIAL: 0.5}, sliding_attention={"rope_theta": 1e4}),
    "mellum": _each(full_attention={"rope_theta": 5e5}, sliding_attention={"rope_theta": 1e4}),
    "minimax_m2": Rules(partial=True, adjust=_rotary_dim),
    "lfm2": Rules(
        layout=_some_convolve,
        spelled={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
    ),
    "gpt2": Rules(
        no_rope="learned positions",
        spelled={"n_layer": LAYERS, "n_embd": "hidden_size", "n_head": HEADS, "n_positions": LENGTH},
    ),
    "bloom": Rules(no_rope="ALiBi", spelled={"n_layer": LAYERS, "n_embed": "hidden_size", "n_head": HEADS}),
    "mpt": Rules(
        no_rope="ALiBi",
        spelled={"n_layers": LAYERS, "d_model": "hidden_size", "n_heads": HEADS, "max_seq_len": LENGTH},
    ),
}
