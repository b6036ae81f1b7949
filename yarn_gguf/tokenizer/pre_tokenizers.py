"""Which `tokenizer.ggml.pre` of llama.cpp cuts a text as a `tokenizer.json` does, told by structure.

A structure is what stands before the merges: the normalizer, and the steps of the pre-tokenizer, each written as the
one regular expression that it is equal to, in their order. Not one token is looked at, so a model with tokens of its
own is known as well as the one that it was made from. Knows no vocabulary and proves nothing:
`check` does that.

In every step, what the expression matches becomes a piece, and so does what lies between two matches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from yarn_gguf.errors import InputError
from yarn_gguf.tokenizer.files import TokenizerJson

NFC: Final = "NFC"
SPACES: Final = "▁"  # spaces become U+2581, and the merges see plain UTF-8 with tokens <0xXX> for single bytes

_S: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
_EXPANDED: Final = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT: Final = r"\p{N}"
DIGITS: Final = r"\p{N}+"
PUNCTUATION: Final = "<punctuation>"  # ASCII's, and every \p{P}; runs stay together
LLAMA3: Final = rf"{_S}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_TAIL}"
QWEN2: Final = rf"{_S}|{_LEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|{_TAIL}"
QWEN35: Final = rf"{_S}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
O200K: Final = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_S}?|{_LEAD}{_UPPER}+{_LOWER}*{_S}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
TEKKEN: Final = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
DEEPSEEK_WORDS: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}"
)
DEEPSEEK_LATIN: Final = (
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80"
    "-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
DEEPSEEK_SIGNS: Final = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
HAN_KANA: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
EAST_ASIAN: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LLM: Final = ("[\\r\\n]", DEEPSEEK_LATIN, DEEPSEEK_SIGNS, "\\s+$", EAST_ASIAN)
BLOOM: Final = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
GROUPED_DIGITS: Final = r"\d{1,3}(?=(?:\d{3})*\b)"

# Kinds of text on which llama.cpp's own implementation of a structure is known to differ from the original, measured;
# the names are those of `probe`. There a difference is a warning, everywhere else it is an error.
CLASSES: Final = frozenset(
    ("case", "marks")
)  # letters told from others, but not large from small, nor marks from letters
GROUPS: Final = CLASSES | {"contractions", "cjk"}  # and digits right behind letters that are not Latin


@dataclass(frozen=True)
class PreTokenizer:
    """One implementation in llama.cpp, under the name that is written when nothing tells its other names apart."""

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is taken whole
    spaces: bool = False  # see SPACES
    names: Mapping[str, str] = field(default_factory=dict)  # for some model classes, and for a normalizer
    deviates: frozenset[str] = frozenset()


_GLM: Final = ("Glm4ForCausalLM", "GlmForCausalLM", "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "ChatGLMModel")
_GRANITE: Final = (
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "GraniteSWAForCausalLM",
)
_OLMO: Final = ("Olmo2ForCausalLM", "Olmo3ForCausalLM", "DbrxForCausalLM")

PRE_TOKENIZERS: Final = (
    PreTokenizer(
        "gpt-2",
        (GPT2,),
        names={
            NFC: "olmo",
            "PhiForCausalLM": "phi-2",
            "MPTForCausalLM": "mpt",
            "JAISLMHeadModel": "jais",
            "Exaone4ForCausalLM": "exaone4",
        },
    ),
    PreTokenizer(
        "starcoder",
        (DIGIT, GPT2),
        names={
            NFC: "command-r",
            **dict.fromkeys(_GRANITE, "refact"),
            "LlamaForCausalLM": "smollm",
            "MistralForCausalLM": "minerva-7b",
            "ExaoneForCausalLM": "exaone",
            "MellumForCausalLM": "mellum2",
            "GPTRefactForCausalLM": "refact",
            "CodeShellForCausalLM": "codeshell",
            "Starcoder2ForCausalLM": "starcoder",
        },
    ),
    PreTokenizer(
        "llama-bpe",
        (LLAMA3,),
        ignore_merges=True,
        names={
            **dict.fromkeys(_GLM, "glm4"),
            "FalconH1ForCausalLM": "falcon-h1",
            "Lfm2ForCausalLM": "lfm2",
            "Lfm2MoeForCausalLM": "lfm2",
        },
    ),
    PreTokenizer(
        "smaug-bpe",
        (LLAMA3,),
        names={**dict.fromkeys(_GLM, "chatglm-bpe"), **dict.fromkeys(_OLMO, "dbrx")},
    ),
    PreTokenizer(
        "qwen2",
        (QWEN2,),
        names={
            "StableLmForCausalLM": "stablelm2",
            "HunYuanMoEV1ForCausalLM": "hunyuan",
            "SolarOpenForCausalLM": "solar-open",
            "Grok1ForCausalLM": "grok-2",
        },
    ),
    PreTokenizer("qwen35", (QWEN35,)),
    # llama.cpp keeps runs of digits together here, the original does not: alike only without tokens of several digits
    PreTokenizer("deepseek-llm", (*DEEPSEEK_LLM, DIGIT)),
    PreTokenizer("deepseek-llm", (*DEEPSEEK_LLM, DIGITS)),
    PreTokenizer("deepseek-coder", ("[\\r\\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, DIGIT)),
    PreTokenizer(
        "deepseek-v3",
        (r"\p{N}{1,3}", HAN_KANA, DEEPSEEK_WORDS),
        names={"HunYuanDenseV1ForCausalLM": "hunyuan-dense", "HYV4ForCausalLM": "hy_v4"},
    ),
    PreTokenizer("falcon", (PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]")),
    PreTokenizer(
        "gpt-4o",
        (O200K,),
        names={
            "Llama4ForCausalLM": "llama4",
            "Llama4ForConditionalGeneration": "llama4",
            "MiniMaxM2ForCausalLM": "minimax-m2",
            "DeepseekV3ForCausalLM": "kanana2",
        },
        deviates=CLASSES,
    ),
    PreTokenizer("granite-embed-multi-97m", (O200K,), ignore_merges=True, deviates=CLASSES),
    PreTokenizer("tekken", (TEKKEN,), ignore_merges=True, deviates=CLASSES),
    PreTokenizer("tiny_aya", (GROUPED_DIGITS, O200K), names={"Cohere2MoeForCausalLM": "cohere2moe"}, deviates=GROUPS),
    PreTokenizer(
        "bailingmoe",
        (rf"'(?i:[sdmt]|ll|ve|re)|{_LEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",),
        names={"BailingMoeV2ForCausalLM": "bailingmoe2", "LLaDAMoEModel": "llada-moe", "LLaDAMoEModelLM": "llada-moe"},
    ),
    PreTokenizer(
        "seed-coder",
        (rf"{_S}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_TAIL}",),
    ),
    PreTokenizer(
        "exaone-moe",
        (
            rf"{_S}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        "minicpm5",
        (r"\p{N}{1,3}", rf"{_S}|{_LEAD}\p{{L}}+|\p{{N}}+|{_SIGNS}|{_TAIL}"),
        ignore_merges=True,
    ),
    PreTokenizer(
        "jais-2",
        (
            rf"{_S}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
            + r"|\s{1}",
        ),
    ),
    PreTokenizer("ufakzeka", (rf"{_LEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|{_TAIL}",)),
    PreTokenizer("laguna", ("[^\\n]+|[\\n]+", QWEN2)),
    PreTokenizer("poro-chat", (BLOOM,), names={"BloomForCausalLM": "bloom", "BloomModel": "bloom"}),
    PreTokenizer("viking", (BLOOM, DIGIT)),
    PreTokenizer("gemma4", (), spaces=True),
)

# Steps written otherwise in some files, that cut every text alike.
SPELLINGS: Final = (
    (_EXPANDED, _S),
    ("(?i:'s|'t|'re|'ve|'m|'d|'ll)", _S),
    ("?+", "?"),  # possessive, before a class that shares nothing with the optional one
    ("++", "+"),
    (r"\p{N}{1}", r"\p{N}"),
)


@dataclass(frozen=True)
class Structure:
    """What stands before the merges. `steps` is None where a step has no equal in llama.cpp; `problem` says which."""

    normalizer: str  # "", NFC or SPACES
    steps: tuple[str, ...]
    ignore_merges: bool
    problem: str = ""


@dataclass(frozen=True)
class Match:
    pre_tokenizer: PreTokenizer | None  # None: a name that the user gave
    name: str
    nfc: bool
    exhaustive: bool = False  # merges alone must give every token, which only trying each one can tell


class _Unknown(Exception):
    """A step that no pre-tokenizer of llama.cpp has."""


def structure(tokenizer: TokenizerJson) -> Structure:
    try:
        normalizer = _normalizer(tokenizer.raw.get("normalizer"))
        found = tuple(_steps(tokenizer.raw.get("pre_tokenizer")))
        bytes_too = tokenizer.raw.get("pre_tokenizer") is not None and "<bytes>" in found
        if (normalizer == SPACES) == bytes_too:
            raise _Unknown("byte-level encoding is missing" if not bytes_too else "spaces become ▁ and then bytes")
        _plain_model(tokenizer.model)
    except _Unknown as error:
        return Structure("", (), tokenizer.ignore_merges, str(error))
    return Structure(normalizer, tuple(step for step in found if step != "<bytes>"), tokenizer.ignore_merges)


def match(tokenizer: TokenizerJson, model_class: str) -> Match:
    """The name for a tokenizer's structure, or an error that shows the structure."""
    found = structure(tokenizer)
    alike = [each for each in PRE_TOKENIZERS if not found.problem and _same(each, found)]
    chosen = next((each for each in alike if each.ignore_merges == found.ignore_merges), None)
    if not alike:
        raise InputError(
            f"no pre-tokenizer of llama.cpp is known to cut a text as this one does ({_shown(tokenizer, found)});"
            " if you know one that does, give it with --pre NAME",
            file=tokenizer.path,
            code="unknown_pre_tokenizer",
        )
    best = chosen or alike[0]
    name = best.names.get(model_class) or best.names.get(found.normalizer) or best.name
    return Match(best, name, found.normalizer == NFC, exhaustive=chosen is None)


def named(name: str, tokenizer: TokenizerJson) -> Match:
    """The pre-tokenizer that the user asks for, whatever the structure."""
    kinds = json.dumps(tokenizer.raw.get("normalizer") or {})
    return Match(None, name, '"NFC"' in kinds)


def _same(each: PreTokenizer, found: Structure) -> bool:
    return each.steps == found.steps and each.spaces == (found.normalizer == SPACES)


def _shown(tokenizer: TokenizerJson, found: Structure) -> str:
    shape = {name: tokenizer.raw.get(name) for name in ("normalizer", "pre_tokenizer")}
    text = json.dumps(shape, ensure_ascii=False)
    why = f"{found.problem}: " if found.problem else ""
    return why + (text if len(text) <= 900 else text[:900] + "…")


def _plain_model(model: Mapping[str, Any]) -> None:
    """Settings of the merges that llama.cpp has no counterpart for."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _Unknown(f"model.{name} is {model[name]!r}")


def _normalizer(found: object) -> str:
    if found is None:
        return ""
    kind = found.get("type") if isinstance(found, dict) else found
    if kind == "Sequence" and isinstance(found, dict):
        kinds = [each for each in map(_normalizer, _inside(found, "normalizers")) if each]
        if len(kinds) <= 1:
            return kinds[0] if kinds else ""
    if kind == "NFC":
        return NFC
    if isinstance(found, dict) and found == {"type": "Replace", "pattern": {"String": " "}, "content": SPACES}:
        return SPACES
    raise _Unknown(f"the normalizer {kind} is none of llama.cpp's")


def _steps(found: object) -> Iterator[str]:
    if found is None:
        return
    kind = found.get("type") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(kind, str) or kind not in _STEPS:
        raise _Unknown(f"the pre-tokenizer {kind} is none of llama.cpp's")
    yield from _STEPS[kind](found)


def _sequence(found: Mapping[str, Any]) -> Iterator[str]:
    for each in _inside(found, "pretokenizers"):
        yield from _steps(each)


def _inside(found: Mapping[str, Any], name: str) -> list[Any]:
    """The steps of a sequence."""
    steps = found.get(name) or []
    if not isinstance(steps, list):
        raise _Unknown(f"{name} is {steps!r}, not a list")
    return steps


def _byte_level(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("add_prefix_space", True):
        raise _Unknown("ByteLevel adds a space before the text, which no pre-tokenizer of llama.cpp does")
    if found.get("use_regex", True):
        yield GPT2
    yield "<bytes>"


def _digits(found: Mapping[str, Any]) -> Iterator[str]:
    yield DIGIT if found.get("individual_digits", False) else DIGITS


def _punctuation(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("behavior") != "Contiguous":
        raise _Unknown(f"Punctuation is {found.get('behavior', 'Isolated')}")
    yield PUNCTUATION


def _split(found: Mapping[str, Any]) -> Iterator[str]:
    pattern, behavior, invert = found.get("pattern"), found.get("behavior"), bool(found.get("invert"))
    if pattern == {"String": " "} and behavior == "MergedWithPrevious" and not invert:
        return  # gemma's: its normalizer has left no space to split at
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise _Unknown(f"a Split at {pattern}")
    regex = spelled(regex)
    # matches kept and the rest removed is the same only where the expression matches every character of every text
    whole = regex.endswith((r"|\s+", r"|\s")) and behavior == "Removed" and invert
    if not whole and (behavior != "Isolated" or invert):
        raise _Unknown(f"a Split with behavior {behavior}, invert {invert}")
    yield regex


def spelled(regex: str) -> str:
    """A regular expression in the table's spelling."""
    for character, escape in (("\r", "\\r"), ("\n", "\\n"), ("\t", "\\t")):
        regex = regex.replace(character, escape)
    for one, other in SPELLINGS:
        regex = regex.replace(one, other)
    return regex


_STEPS: Final = {
    "Sequence": _sequence,
    "ByteLevel": _byte_level,
    "Digits": _digits,
    "Punctuation": _punctuation,
    "Split": _split,
}
