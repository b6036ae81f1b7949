"""What the compute graph of every llama.cpp architecture does with rotary position embedding.

What it knows: llama.cpp 0c1e57098 as its source reads, one row per architecture: which keys and tensors a loader takes
and what each kind of layer then gets. What it does not know: any one file, any arithmetic (that is `rope`), whether a
graph's logits are right (`TESTED` lists those that a test compares), or what other versions and programs do.

Letters: s the factor, R the key `rope.scaling.attn_factor` (1), L what the key `yarn_log_multiplier` gives (0),
g(s, m) = 1 + 0.1·m·ln s, M what multiplies cos and sin. Under YaRN M = G·R, with G = g(s, 1) unless `Magnitude` says
otherwise; under the other types M = R, `none` included. For every row:

- The type defaults to linear. `none` makes s 1, except on sliding layers that are SCALED; longrope still divides by s.
- `yarn_attn_factor` is dead: computed anew whenever YaRN is on, and read by grok alone.
- The original context defaults to the context length.
- `rope.dimension_count` defaults to the key length, that to n_embd / n_head; `rope.dimension_count_swa` to the former.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LLAMA_CPP = "0c1e57098"
SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # any other aborts the process
DEFAULT_SCALING_TYPE = "linear"
DEFAULT_FREQ_BASE = 10000.0
DEFAULT_BETA_SLOW = 1.0
OLD_FACTOR_KEY = "rope.scale_linear"  # taken where rope.scaling.factor is missing


class Rope(StrEnum):
    """Which values of a head make a pair; `none` also where the graph never rotates."""

    NONE = "none"
    NORM = "norm"  # neighbours
    NEOX = "neox"  # half a rotation apart
    MROPE = "mrope"  # as neox, with a position per section
    IMROPE = "imrope"  # as mrope, sections interleaved


class RopeFreqs(StrEnum):
    """What becomes of a tensor `rope_freqs.weight`."""

    USED = "used"
    IGNORED = "ignored"  # loaded, and at most a context shift looks at it
    REFUSED = "refused"  # the loader stops: wrong number of tensors


class Sliding(StrEnum):
    """What YaRN does to a layer that slides."""

    NONE = "none"  # no layer ever slides
    SAME = "same"  # what it does to the full ones
    SCALED = "scaled"  # the same, but the file's factor holds whatever the type and the caller say
    UNSCALED = "unscaled"  # factor 1, and M = R
    PLAIN = "plain"  # factor 1, and M = 1


class Window(StrEnum):
    """When a model slides at all, as far as the key `attention.sliding_window` goes."""

    ALWAYS = "always"
    REQUIRED = "required"  # always, and the loader stops without the key
    POSITIVE = "positive"  # where the key is there and above 0
    NOT_ZERO = "not zero"  # unless the key says 0
    LAYERS_64 = "64 layers"  # only with 64 layers


class Pattern(StrEnum):
    """The key `attention.sliding_window_pattern`: an array with a truth per layer, or n as in `Windows.every`."""

    UNREAD = "unread"
    OPTIONAL = "optional"
    REQUIRED = "required"  # and an array it must be


class SlidingBase(StrEnum):
    """Where sliding layers have their base from; the key is `rope.freq_base_swa`."""

    FULL = "full"  # that of the full layers: the key is not read, or the graph passes it over
    KEY_OR_FULL = "key or full"
    KEY_OR_10000 = "key or 10000"
    KEY = "key"  # the loader stops without it


class Nope(StrEnum):
    """Which layers that attend have no RoPE."""

    NONE = "none"
    FIRST = "first"  # the first of every `nope_every`, whatever slides
    LAST = "last"  # the last of every `nope_every`, whatever slides
    FULL = "full"  # the full ones of a model that slides
    FLAG = "flag"  # all, if rope.scaling.finetuned is false
    KEY = "key"  # those that are false in the array attention.rope_pattern; none without it
    UNLESS_32 = "unless 32 layers"  # all, unless the model has 32 layers


class Dimensions(StrEnum):
    """How many dimensions of a head are rotated."""

    FIRST = "first"  # on all layers as on the first: where that slides, dimension_count_swa counts for the full ones
    EACH = "each"  # dimension_count_swa on sliding layers, dimension_count on full ones
    HALVED = "halved"  # as EACH, but full layers rotate half of dimension_count


class Magnitude(StrEnum):
    """How M comes about under YaRN, and what else changes. Under linear a softmax scale has g(s, 1) in place of G."""

    PLAIN = "plain"  # G = g(s, 1)
    ONE = "one"  # M = 1, and R has no effect
    NORMED = "normed"  # PLAIN, but q and k are normalised after RoPE, so that M cancels
    MISTRAL3 = "mistral3"  # G = g(s, 1) / g(s, L)
    MISTRAL4 = "mistral4"  # MISTRAL3; the softmax scale is multiplied by (G·R·g(s, L))²
    DEEPSEEK2 = "deepseek2"  # MISTRAL4, but G = 1 unless L is 0
    GLM_DSA = "glm-dsa"  # MISTRAL4 with an L that is never read
    OCR = "ocr"  # ONE, but the softmax scale is multiplied as under GLM_DSA
    GROK = "grok"  # e = yarn_ext_factor, under every type, if 0 or more. At e = 0 M = R · yarn_attn_factor, else PLAIN


@dataclass(frozen=True, slots=True)
class Windows:
    """Which layers slide, and their RoPE."""

    when: Window
    rope: Sliding
    every: int | None = None  # every n-th layer is full, 0 none, 1 all; None: only the pattern key says
    full_first: bool = False  # full is the first of n layers, not the last
    pattern: Pattern = Pattern.OPTIONAL
    base: SlidingBase = SlidingBase.FULL


@dataclass(frozen=True, slots=True)
class Graph:
    arch: str
    rope: Rope
    rope_freqs: RopeFreqs = RopeFreqs.REFUSED
    long_factors: bool = False  # takes and uses rope_factors_long and _short, most of them under longrope only
    sections: bool = False  # mrope instead, where rope.dimension_sections has two sections
    windows: Windows | None = None
    nope: Nope = Nope.NONE
    nope_every: int | None = None
    dimensions: Dimensions = Dimensions.FIRST
    alpha_key: bool = False  # base · alpha^(d/(d−2)), with alpha of rope.scaling.alpha if above 0, d the key length
    beta_keys: bool = False  # yarn_beta_fast and yarn_beta_slow are read
    beta_fast: float = 32.0
    log_multiplier: float | None = None  # L = this · yarn_log_multiplier; None: the key is not read
    magnitude: Magnitude = Magnitude.PLAIN
    yarn: bool = True  # False where YaRN cannot change any frequency
    note: str = ""

    @property
    def sliding(self) -> Sliding:
        return Sliding.NONE if self.windows is None else self.windows.rope


_ROWS = (
    Graph("clip", Rope.NONE, yarn=False, note="A stub that can be quantized but not run."),
    Graph("llama", Rope.NORM, RopeFreqs.USED, long_factors=True),
    Graph(
        "llama4",
        Rope.NORM,
        RopeFreqs.USED,
        windows=Windows(Window.NOT_ZERO, Sliding.SCALED, 4, base=SlidingBase.KEY_OR_FULL),
        nope=Nope.LAST,
        nope_every=4,
        magnitude=Magnitude.NORMED,
        note="With 128 experts M counts: nothing is normalised. With a window of 0 only the last layer has no RoPE.",
    ),
    Graph("deci", Rope.NORM, RopeFreqs.USED, long_factors=True),
    Graph("falcon", Rope.NEOX),
    Graph("grok", Rope.NEOX, beta_keys=True, beta_fast=8.0, magnitude=Magnitude.GROK),
    Graph("gpt2", Rope.NONE, yarn=False, note="The context length is the shape of its position table."),
    Graph("gptj", Rope.NONE, yarn=False, note="Known by name only: no loader."),
    Graph("gptneox", Rope.NEOX),
    Graph("mpt", Rope.NONE, yarn=False, note="ALiBi."),
    Graph("baichuan", Rope.NORM, nope=Nope.UNLESS_32),
    Graph("starcoder", Rope.NONE, yarn=False, note="Has a rope type, but its positions are a learned table."),
    Graph("refact", Rope.NONE, RopeFreqs.IGNORED, yarn=False, note="ALiBi."),
    Graph("bert", Rope.NONE, yarn=False, note="Has a rope type, but its positions are a learned table."),
    Graph(
        "modern-bert",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.UNSCALED, 3, full_first=True, base=SlidingBase.KEY_OR_10000),
    ),
    Graph("nomic-bert", Rope.NEOX),
    Graph("nomic-bert-moe", Rope.NEOX),
    Graph("neo-bert", Rope.NORM),
    Graph("jina-bert-v2", Rope.NONE, yarn=False, note="ALiBi."),
    Graph("jina-bert-v3", Rope.NEOX),
    Graph("eurobert", Rope.NEOX),
    Graph("bloom", Rope.NONE, yarn=False, note="ALiBi."),
    Graph("stablelm", Rope.NEOX),
    Graph("qwen", Rope.NEOX),
    Graph("qwen2", Rope.NEOX),
    Graph("qwen2moe", Rope.NEOX),
    Graph("qwen2vl", Rope.MROPE),
    Graph("qwen3", Rope.NEOX),
    Graph("qwen3moe", Rope.NEOX),
    Graph("qwen3next", Rope.NEOX),
    Graph("qwen3vl", Rope.IMROPE),
    Graph("qwen3vlmoe", Rope.IMROPE),
    Graph("qwen35", Rope.IMROPE),
    Graph("qwen35moe", Rope.IMROPE),
    Graph("qwen4exp", Rope.IMROPE),
    Graph("phi2", Rope.NEOX),
    Graph("phi3", Rope.NEOX, long_factors=True, note="Never slides, whatever its window. Takes the factors always."),
    Graph("phimoe", Rope.NEOX, long_factors=True, note="Takes the factors under every type."),
    Graph("plamo", Rope.NEOX),
    Graph("plamo2", Rope.NEOX),
    Graph(
        "plamo3",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.UNSCALED, 8, base=SlidingBase.KEY_OR_10000),
    ),
    Graph("codeshell", Rope.NEOX),
    Graph("orion", Rope.NEOX),
    Graph("internlm2", Rope.NORM),
    Graph("minicpm", Rope.NORM, RopeFreqs.USED, long_factors=True),
    Graph("minicpm3", Rope.NEOX, long_factors=True, note="Takes the factors under every type."),
    Graph("gemma", Rope.NEOX),
    Graph("gemma2", Rope.NEOX, windows=Windows(Window.ALWAYS, Sliding.SCALED, 2, base=SlidingBase.KEY_OR_FULL)),
    Graph("gemma3", Rope.NEOX, windows=Windows(Window.POSITIVE, Sliding.UNSCALED, 6, base=SlidingBase.KEY_OR_10000)),
    Graph("gemma3n", Rope.NEOX, windows=Windows(Window.REQUIRED, Sliding.UNSCALED, 5, base=SlidingBase.KEY_OR_10000)),
    Graph(
        "gemma4",
        Rope.NEOX,
        RopeFreqs.USED,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_10000),
        dimensions=Dimensions.EACH,
        note="The tensor is required, and used on full layers only.",
    ),
    Graph(
        "gemma4-assistant",
        Rope.NEOX,
        RopeFreqs.USED,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_10000),
        dimensions=Dimensions.EACH,
        note="As gemma4. A draft model: it only rotates q, for keys that the target has rotated.",
    ),
    Graph(
        "gemma-embedding",
        Rope.NEOX,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, 6, base=SlidingBase.KEY_OR_10000),
    ),
    Graph("starcoder2", Rope.NEOX),
    Graph("mamba", Rope.NONE, yarn=False),
    Graph("mamba2", Rope.NONE, yarn=False),
    Graph(
        "maple",
        Rope.NEOX,
        windows=Windows(Window.REQUIRED, Sliding.SCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_FULL),
        nope=Nope.FULL,
        dimensions=Dimensions.EACH,
    ),
    Graph("jamba", Rope.NONE, yarn=False),
    Graph("falcon-h1", Rope.NEOX, RopeFreqs.IGNORED),
    Graph("xverse", Rope.NORM),
    Graph("command-r", Rope.NORM),
    Graph("cohere2", Rope.NORM, windows=Windows(Window.REQUIRED, Sliding.SAME, 4), nope=Nope.FULL),
    Graph(
        "cohere2moe",
        Rope.NORM,
        windows=Windows(Window.REQUIRED, Sliding.SAME, 4, full_first=True),
        nope=Nope.FULL,
        note="The first leading_dense_block_count layers have RoPE even where they are full.",
    ),
    Graph("dbrx", Rope.NEOX),
    Graph("olmo", Rope.NORM),
    Graph("olmo2", Rope.NEOX, windows=Windows(Window.POSITIVE, Sliding.PLAIN, 4)),
    Graph("olmoe", Rope.NEOX),
    Graph(
        "muse-glimmer",
        Rope.NORM,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, 4, base=SlidingBase.KEY_OR_FULL),
        nope=Nope.FULL,
        yarn=False,
        note="RoPE only on layers that slide, and those stay unscaled.",
    ),
    Graph("openelm", Rope.NEOX),
    Graph("arctic", Rope.NORM),
    Graph("deepseek", Rope.NORM),
    Graph("deepseek2", Rope.NORM, log_multiplier=10.0, magnitude=Magnitude.DEEPSEEK2),
    Graph(
        "deepseek2-ocr",
        Rope.NEOX,
        magnitude=Magnitude.OCR,
        yarn=False,
        note="Factor 1 and base 10000 (any other aborts) on whole heads, yet YaRN keys change the softmax scale.",
    ),
    Graph("deepseek32", Rope.NORM, log_multiplier=10.0, magnitude=Magnitude.MISTRAL4),
    Graph(
        "deepseek4",
        Rope.NORM,
        windows=Windows(Window.REQUIRED, Sliding.SAME, 0, pattern=Pattern.UNREAD),
        magnitude=Magnitude.ONE,
        note="Unscaled where attention.compress_ratios is 0, else with the base attention.compress_rope_freq_base.",
    ),
    Graph("chatglm", Rope.NORM),
    Graph("glm4", Rope.NORM, sections=True),
    Graph("glm4moe", Rope.NEOX, sections=True),
    Graph(
        "glm-dsa",
        Rope.NORM,
        magnitude=Magnitude.GLM_DSA,
        note="Without attention.indexer_types, a context length from 1048576 on takes the indexer from some layers.",
    ),
    Graph("bitnet", Rope.NEOX),
    Graph("t5", Rope.NONE, yarn=False),
    Graph("t5encoder", Rope.NONE, yarn=False),
    Graph("jais", Rope.NONE, yarn=False, note="ALiBi."),
    Graph("jais2", Rope.NEOX),
    Graph("nemotron", Rope.NEOX),
    Graph("nemotron_h", Rope.NONE, yarn=False),
    Graph("nemotron_h_moe", Rope.NONE, yarn=False),
    Graph("exaone", Rope.NEOX, RopeFreqs.USED),
    Graph("exaone4", Rope.NEOX, RopeFreqs.USED, windows=Windows(Window.LAYERS_64, Sliding.SAME, 4), nope=Nope.FULL),
    Graph("exaone-moe", Rope.NEOX, RopeFreqs.USED, windows=Windows(Window.REQUIRED, Sliding.SAME, 4), nope=Nope.FULL),
    Graph("rwkv6", Rope.NONE, yarn=False),
    Graph("rwkv6qwen2", Rope.NONE, yarn=False),
    Graph("rwkv7", Rope.NONE, yarn=False),
    Graph("arwkv7", Rope.NONE, yarn=False),
    Graph("granite", Rope.NORM, RopeFreqs.USED, long_factors=True, nope=Nope.FLAG),
    Graph("granitemoe", Rope.NORM, RopeFreqs.USED, long_factors=True),
    Graph("granitehybrid", Rope.NORM, RopeFreqs.USED, nope=Nope.FLAG),
    Graph("graniteswitch", Rope.NORM, nope=Nope.FLAG),
    Graph(
        "granite_swa",
        Rope.NORM,
        RopeFreqs.USED,
        long_factors=True,
        windows=Windows(Window.REQUIRED, Sliding.SAME, pattern=Pattern.REQUIRED),
        nope=Nope.KEY,
    ),
    Graph("chameleon", Rope.NORM),
    Graph("wavtokenizer-dec", Rope.NONE, yarn=False),
    Graph("plm", Rope.NORM),
    Graph("bailingmoe", Rope.NORM),
    Graph("bailingmoe2", Rope.NEOX),
    Graph("bailingmoe3", Rope.NORM, sections=True),
    Graph("dots1", Rope.NEOX),
    Graph(
        "dots3note",
        Rope.NORM,
        windows=Windows(Window.REQUIRED, Sliding.SAME, pattern=Pattern.REQUIRED, base=SlidingBase.KEY),
    ),
    Graph("arcee", Rope.NORM, RopeFreqs.USED),
    Graph(
        "afmoe",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.SCALED, 4, base=SlidingBase.KEY_OR_FULL),
        nope=Nope.LAST,
        nope_every=4,
    ),
    Graph(
        "laguna",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.PLAIN, 4, full_first=True, base=SlidingBase.KEY_OR_FULL),
        dimensions=Dimensions.EACH,
    ),
    Graph("ernie4_5", Rope.NORM),
    Graph("ernie4_5-moe", Rope.NORM),
    Graph("hunyuan-moe", Rope.NEOX, magnitude=Magnitude.NORMED),
    Graph("hunyuan-dense", Rope.NEOX, alpha_key=True, magnitude=Magnitude.NORMED),
    Graph("hunyuan_vl", Rope.NEOX, sections=True, alpha_key=True, magnitude=Magnitude.NORMED),
    Graph("hy_v3", Rope.NEOX),
    Graph("hy_v4", Rope.NORM),
    Graph("smollm3", Rope.NORM, nope=Nope.LAST, nope_every=4),
    Graph("gpt-oss", Rope.NEOX, windows=Windows(Window.REQUIRED, Sliding.SCALED, 2, base=SlidingBase.KEY_OR_FULL)),
    Graph(
        "lfm2",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.SAME, 0, pattern=Pattern.UNREAD),
        note="With a window, every layer that attends slides.",
    ),
    Graph("lfm2moe", Rope.NEOX),
    Graph("dream", Rope.NEOX),
    Graph(
        "smallthinker",
        Rope.NEOX,
        windows=Windows(Window.POSITIVE, Sliding.SCALED, 4, full_first=True, base=SlidingBase.KEY_OR_FULL),
        nope=Nope.FIRST,
        nope_every=4,
        note="Where it does not slide, every layer has RoPE.",
    ),
    Graph("llada", Rope.NORM, RopeFreqs.IGNORED),
    Graph("llada-moe", Rope.NEOX),
    Graph("seed_oss", Rope.NEOX),
    Graph("grovemoe", Rope.NEOX),
    Graph("apertus", Rope.NEOX, RopeFreqs.USED, long_factors=True),
    Graph("minimax-01", Rope.NEOX),
    Graph("hrm_text", Rope.NEOX),
    Graph("minimax-m2", Rope.NEOX),
    Graph("minimax-m3", Rope.NEOX),
    Graph(
        "cogvlm",
        Rope.NEOX,
        RopeFreqs.IGNORED,
        magnitude=Magnitude.ONE,
        yarn=False,
        note="Base 10000 and factor 1, whatever the file says.",
    ),
    Graph("rnd1", Rope.NEOX),
    Graph("pangu-embedded", Rope.NEOX, RopeFreqs.IGNORED, note="Its longrope factors are loaded and not used either."),
    Graph(
        "mistral3",
        Rope.NORM,
        RopeFreqs.USED,
        long_factors=True,
        beta_keys=True,
        log_multiplier=1.0,
        magnitude=Magnitude.MISTRAL3,
        note="With attention.temperature_scale, q also grows by steps of the original context.",
    ),
    Graph("eagle3", Rope.NORM, RopeFreqs.USED, note="A draft model."),
    Graph(
        "dflash",
        Rope.NEOX,
        RopeFreqs.USED,
        sections=True,
        windows=Windows(Window.POSITIVE, Sliding.SAME, pattern=Pattern.REQUIRED),
        note="A draft model; mrope ignores the tensor. With hyper_connection.count: norm, unscaled, tensor refused.",
    ),
    Graph("mistral4", Rope.NORM, log_multiplier=10.0, magnitude=Magnitude.MISTRAL4),
    Graph("paddleocr", Rope.MROPE),
    Graph(
        "mimo2",
        Rope.NEOX,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_10000),
    ),
    Graph(
        "step35",
        Rope.NEOX,
        RopeFreqs.USED,
        long_factors=True,
        windows=Windows(Window.REQUIRED, Sliding.UNSCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_10000),
        dimensions=Dimensions.HALVED,
        note="The tensors are used on full layers only.",
    ),
    Graph(
        "spark2_5",
        Rope.NEOX,
        windows=Windows(Window.REQUIRED, Sliding.SCALED, pattern=Pattern.REQUIRED, base=SlidingBase.KEY_OR_FULL),
        dimensions=Dimensions.EACH,
    ),
    Graph("llama-embed", Rope.NORM, RopeFreqs.USED, long_factors=True),
    Graph("maincoder", Rope.NORM, magnitude=Magnitude.NORMED),
    Graph("kimi-linear", Rope.NONE, yarn=False),
    Graph("kimi-k3", Rope.NONE, yarn=False),
    Graph("glm5-next", Rope.NONE, yarn=False),
    Graph("talkie", Rope.NEOX, magnitude=Magnitude.NORMED),
    Graph("mellum", Rope.NEOX, windows=Windows(Window.POSITIVE, Sliding.PLAIN, 4)),
    Graph("nanbeige", Rope.NORM, RopeFreqs.USED),
    Graph("qwen3tts", Rope.IMROPE),
    Graph("pockettts", Rope.NORM),
)

# architectures whose row a logits test of ours holds against transformers, on a toy model (tests/test_exactness.py)
TESTED = frozenset(
    """
    afmoe apertus arcee chatglm cohere2 command-r deepseek2 dots1 ernie4_5 ernie4_5-moe exaone-moe
    exaone4 falcon gemma gemma2 gemma3 glm4 glm4moe gpt-oss gptneox granite granite_swa granitemoe
    hunyuan-dense hy_v3 jais2 laguna lfm2 llama mellum minicpm3 minimax-m2 mistral3 mistral4 nemotron
    olmo olmo2 olmoe phi2 phi3 qwen2 qwen2moe qwen3 qwen3moe seed_oss smollm3 stablelm starcoder2
    """.split()  # noqa: SIM905 - a name to a line would be a page
)

GRAPHS: dict[str, Graph] = {row.arch: row for row in _ROWS}
