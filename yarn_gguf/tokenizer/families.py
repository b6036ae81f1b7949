"""How each Hugging Face class has its vocabulary written: the table behind `tokenizer`.

One row of data per class whose ways differ; a class without a row has byte-level BPE and nothing else. Follows
llama.cpp's converter. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Route(StrEnum):
    """Where tokens come from. A class tries its routes in order and takes the first whose file is there."""

    PIECES = "tokenizer.model"
    PIECES_PHI3 = "tokenizer.model, and the added tokens of tokenizer.json"
    SPACED = "tokenizer.json with spaces as ▁, given as pieces with scores"
    SPACED_GEMMA4 = "tokenizer.json with spaces as ▁, given with its merges"
    BYTES = "tokenizer.json with byte-level BPE"


class Prefix(StrEnum):
    """When `add_space_prefix` is written."""

    NO = "not"
    FIRST = "before all else, if tokenizer_config.json has add_prefix_space"
    LAST = "after all else, if tokenizer_config.json has add_prefix_space"
    FALSE = "after all else, as false"
    FALSE_WITH_PIECES = "after all else, as false, if there is a tokenizer.model"


@dataclass(frozen=True)
class Family:
    routes: tuple[Route, ...] = (Route.BYTES,)
    prefix: Prefix = Prefix.NO
    by_text: Mapping[str, str] = field(default_factory=dict)  # a role that nothing gave yet → the token that has it
    first: Mapping[str, bool] = field(default_factory=dict)  # keys before the tokenizer's own
    last: Mapping[str, int | bool] = field(default_factory=dict)  # keys that are overwritten, or come last
    control: frozenset[str] = frozenset()  # added tokens that are control tokens, whatever the file says
    visible: frozenset[str] = frozenset()  # tokens that are always shown
    quirk: str = ""  # names a function of `tokenizer_quirks`


_PIECES_OR_BYTES: Final = (Route.PIECES, Route.BYTES)
_SPM: Final = (Route.PIECES, Route.SPACED)
_GLM: Final = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
_GLM4: Final = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>", "bos": "<|endoftext|>"}
_CHATGLM: Final = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
_SOLAR: Final = {"eos": "<|endoftext|>", "eot": "<|endoftext|>", "unk": "<unk>", "bos": "<|startoftext|>"}
_GEMMA4_VISIBLE: Final = [
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
]

BYTES: Final = Family()
LLAMA: Final = Family((Route.PIECES, Route.SPACED, Route.BYTES), Prefix.FIRST, quirk="llama")
QWEN2: Final = Family(_PIECES_OR_BYTES)
PHI3: Final = Family((Route.PIECES_PHI3,), quirk="phi3")
ERNIE: Final = Family(_SPM, Prefix.LAST)
GLM4: Final = Family(by_text=_GLM4)
GLM_MOE: Final = Family(by_text=_GLM)
GEMMA3: Final = Family(_PIECES_OR_BYTES, Prefix.FALSE_WITH_PIECES)
GEMMA4: Final = Family((Route.SPACED_GEMMA4,), Prefix.FALSE, last={"add_bos": True}, visible=frozenset(_GEMMA4_VISIBLE))

_CLASSES: Final[tuple[tuple[Family, str], ...]] = (
    (
        LLAMA,
        "LlamaForCausalLM LLaMAForCausalLM LlamaModel MistralForCausalLM MixtralForCausalLM IQuestCoderForCausalLM"
        " VLlama3ForCausalLM LlavaForConditionalGeneration VoxtralForConditionalGeneration"
        " ArceeForCausalLM SmolLM3ForCausalLM ApertusForCausalLM AfmoeForCausalLM GraniteForCausalLM"
        " GraniteSWAForCausalLM GraniteMoeSWAForCausalLM GraniteMoeForCausalLM GraniteMoeSharedForCausalLM"
        " Ministral3ForCausalLM Mistral3ForConditionalGeneration",
    ),
    (QWEN2, "Qwen2ForCausalLM Qwen2Model Qwen2AudioForConditionalGeneration Qwen3ForCausalLM Qwen3Model"),
    (QWEN2, "KORMoForCausalLM DeepseekForCausalLM AudioFlamingo3ForConditionalGeneration DotsOCRForCausalLM"),
    (PHI3, "Phi3ForCausalLM PhiMoEForCausalLM PhimoeForCausalLM"),
    (Family(first={"add_bos": False}), "PhiForCausalLM"),
    (ERNIE, "Ernie4_5_ForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM PanguEmbeddedForCausalLM"),
    (Family(_SPM, quirk="internlm3"), "InternLM3ForCausalLM"),
    (Family(_SPM), "MiniCPMForCausalLM MiniCPM3ForCausalLM BaiChuanForCausalLM BaichuanForCausalLM OrionForCausalLM"),
    (Family(_SPM), "BitnetForCausalLM BitNetForCausalLM"),
    (Family(_SPM, last={"pad": 0, "unk": 1}), "NemotronForCausalLM"),
    (Family(_SPM, Prefix.FALSE, quirk="gemma"), "GemmaForCausalLM"),
    (Family(_SPM, Prefix.FALSE), "Gemma2ForCausalLM"),
    (GEMMA3, "Gemma3ForCausalLM Gemma3ForConditionalGeneration"),
    (GEMMA4, "Gemma4ForCausalLM Gemma4ForConditionalGeneration"),
    (GLM4, "Glm4ForCausalLM Glm4vForConditionalGeneration"),
    (GLM_MOE, "Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM"),
    (Family(by_text=_CHATGLM), "GlmForCausalLM"),
    (Family(by_text=_SOLAR), "SolarOpenForCausalLM"),
    (Family(quirk="hunyuan"), "HunYuanDenseV1ForCausalLM"),
    (Family(control=frozenset(("</assistant>",)), quirk="laguna"), "LagunaForCausalLM"),
    (Family(last={"add_bos": True}), "LLaDAModelLM"),
)
FAMILIES: Final[Mapping[str, Family]] = {name: family for family, names in _CLASSES for name in names.split()}


def family_of(model_class: str, model_type: str = "") -> Family:
    """A class's row; byte-level BPE for one without a row."""
    if model_class == "Mistral3ForConditionalGeneration" and model_type == "mistral4":
        return BYTES
    return FAMILIES.get(model_class, BYTES)
