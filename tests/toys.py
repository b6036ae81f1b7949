"""Tiny transformers models with random weights, one or more for each kind of graph that llama.cpp has.

Knows configs, weights and transformers' logits. Does not know GGUF keys, and nothing of `yarn_gguf` is imported.

Every number of a toy's weights is drawn from its own name and the tensor's, so each process makes the same toy. Norms,
biases and sinks are moved away from their initial values: a bias that somebody drops would not show otherwise.
A new toy is one row in `TOYS`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Settings: TypeAlias = dict[str, Any]
RopeParameters: TypeAlias = Mapping[str, Any]
Frequencies: TypeAlias = tuple[npt.ArrayLike, float]

CONTEXT = 128  # what every toy was "trained" at
FACTOR = 8.0
LENGTH = int(CONTEXT * FACTOR)
VOCABULARY = 320
HEAD = 32
ROPE: Settings = {"rope_type": "default", "rope_theta": 10000.0}
YARN: Settings = {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": CONTEXT}
LLAMA3: Settings = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
GAIN = 1.3  # of every matrix: attention scores of a few units, so that positions matter

COMMON: Settings = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rope_parameters": ROPE,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

# What several rows share.
TIED: Settings = {"tie_word_embeddings": True}
WIDE: Settings = {"intermediate_size": 512}  # four times the hidden size, which some graphs take for granted
ALL_HEADS: Settings = {"num_key_value_heads": 4}
HEADS_OF_32: Settings = {"head_dim": HEAD}
HALF: Settings = {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}
QUARTER: Settings = {
    "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25},
    "num_attention_heads": 2,
}  # of 64: 8 pairs turn
SLIDING: Settings = {"num_hidden_layers": 4, "sliding_window": 64}
MOE: Settings = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
EXPERTS: Settings = {"num_experts": 8, **MOE}
LOCAL: Settings = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED: Settings = {"n_routed_experts": 8, **MOE, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
ONE_DENSE: Settings = {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
SIGMOID: Settings = {"scoring_func": "sigmoid"}  # what transformers does anyway, and the converter asks for
LATENT: Settings = {
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD,
    "v_head_dim": HEAD,
}
MLA: Settings = {**ALL_HEADS, **LATENT, "head_dim": HEAD}
GEMMA: Settings = {**HEADS_OF_32, "query_pre_attn_scalar": HEAD, "sliding_window": 64, **TIED}
GRANITE: Settings = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 1.5,
    "attention_multiplier": 0.2,
}
# YaRN by 1, which is none: upstream's converter takes this class with YaRN only. The scores of late tokens are scaled.
MINISTRAL: Settings = {**ROPE, "rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": CONTEXT}
MINISTRAL |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
MISTRAL4: Settings = {
    **MINISTRAL,
    "partial_rotary_factor": 0.5,
    "llama_4_scaling_beta": 0.0,
}  # the converter drops the beta
AS_MISTRAL3: Settings = {"architectures": ["Ministral3ForCausalLM"]}
RAW_NEOX: Settings = {"rotary_pct": 0.25, "model_type": "raw"}  # a type unknown to transformers is read as it stands
TOP_PHI3: Settings = {"original_max_position_embeddings": CONTEXT}
FALCON: Settings = {"ffn_hidden_size": 512}
FULL, SLIDES = "full_attention", "sliding_attention"
DOTS: Settings = {**HEADS_OF_32, **SIGMOID}
EXAONE4: Settings = {"sliding_window": None, "sliding_window_pattern": 4}
EXAONE_MOE: Settings = {**SIGMOID, "n_group": 1, "topk_group": 1, "num_shared_experts": 1, "first_k_dense_replace": 1}
ERNIE_EXPERTS: Settings = {"moe_k": 2, "moe_num_experts": 8, "moe_num_shared_experts": 1, "moe_intermediate_size": 64}
ERNIE_MOE: Settings = {"intermediate_size": 128, **ERNIE_EXPERTS, "moe_layer_start_index": 1, "moe_layer_end_index": 2}
AFMOE: Settings = {"num_shared_experts": 1, "num_dense_layers": 1, "mup_enabled": True, "route_norm": True}
LAGUNA: Settings = {"shared_expert_intermediate_size": 64, "layer_types": [FULL, SLIDES, SLIDES, SLIDES]}
MELLUM: Settings = {"layer_types": [SLIDES, SLIDES, SLIDES, FULL]}

UNSCALED = "sliding layers stay unscaled"
NOT_TURNING = "full layers do not turn"
SCORES = "latent attention; YaRN scales the scores once more"


def _nested(sliding_theta: float) -> dict[str, Any]:
    return {"rope_parameters": {FULL: ROPE, SLIDES: {**ROPE, "rope_theta": sliding_theta}}}


@dataclass(frozen=True, eq=False)
class Toy:
    """`settings` are laid over `COMMON` to make the config without scaling. `note` says what is particular.

    `gelu`: ggml's CPU takes GELU from a float16 table, which no file can repair. `yarn`: whether transformers' own
    YaRN can be the reference, which it cannot where it rewrites the config or where YaRN lies over llama3.
    `keys`: whether type, factor and original length in the file are enough to make llama.cpp compute that YaRN.
    `json` is laid over the config.json that transformers writes, for what upstream's converter wants to find there.
    """

    name: str
    config_class: str
    settings: Mapping[str, Any]
    note: str = ""
    gelu: bool = False
    yarn: bool = True
    keys: bool = True
    json: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rope(self) -> dict[str, Any]:
        """The rope parameters without scaling."""
        return dict(self.settings.get("rope_parameters", ROPE))

    def scaled(self, **scaling: Any) -> dict[str, Any]:
        """The rope parameters with these laid over them; over those of the full layers where kinds of layers differ."""
        rope = self.rope
        if FULL in rope:
            return {**rope, FULL: {**rope[FULL], **scaling}}
        return {**rope, **scaling}


def _toy(name: str, config_class: str, /, note: str = "", **settings: Any) -> Toy:
    own = {key: settings.pop(key) for key in ("gelu", "yarn", "keys", "json") if key in settings}
    return Toy(name, config_class, settings, note, **own)


_ROWS = (
    _toy("llama", "LlamaConfig"),
    _toy("llama-llama3", "LlamaConfig", "rope_freqs.weight is there", rope_parameters={**ROPE, **LLAMA3}, yarn=False),
    _toy("arcee", "ArceeConfig", **HEADS_OF_32),
    _toy("apertus", "ApertusConfig"),
    _toy("jais2", "Jais2Config", **HEADS_OF_32),
    _toy("seedoss", "SeedOssConfig", attention_dropout=0.0, residual_dropout=0.0, **HEADS_OF_32),
    _toy("ernie45", "Ernie4_5Config", **HEADS_OF_32),
    _toy("ernie45moe", "Ernie4_5_MoeConfig", "one dense layer", **ERNIE_MOE),
    _toy("hunyuan", "HunYuanDenseV1Config", **HEADS_OF_32),
    _toy("hyv3", "HYV3Config", num_shared_experts=1, **HEADS_OF_32, **EXPERTS),
    _toy("mistral", "MistralConfig", sliding_window=None, **HEADS_OF_32),
    _toy("ministral3", "Ministral3Config", "the file's betas count", rope_parameters=MINISTRAL, **HEADS_OF_32),
    _toy("mixtral", "MixtralConfig", sliding_window=None, **HEADS_OF_32, **LOCAL),
    _toy("qwen2", "Qwen2Config", "biases on q, k, v"),
    _toy("qwen2moe", "Qwen2MoeConfig", shared_expert_intermediate_size=96, **EXPERTS),
    _toy("qwen3", "Qwen3Config", "head_dim is not hidden/heads; QK norms", head_dim=48),
    _toy("qwen3moe", "Qwen3MoeConfig", norm_topk_prob=True, **HEADS_OF_32, **EXPERTS),
    _toy("smollm3", "SmolLM3Config", "every fourth layer does not turn", num_hidden_layers=4),
    _toy("gemma", "GemmaConfig", hidden_act="gelu_pytorch_tanh", gelu=True, **HEADS_OF_32, **TIED),
    # with four layers, YaRN's sharper attention makes GELU's table 2.01 times as bad as it is unscaled
    _toy("gemma2", "Gemma2Config", "sliding layers are scaled too", num_hidden_layers=2, gelu=True, **GEMMA),
    _toy("gemma3", "Gemma3TextConfig", UNSCALED, num_hidden_layers=6, gelu=True, **_nested(3000.0), **GEMMA),
    _toy("olmo", "OlmoConfig", clip_qkv=None),
    _toy("olmo2", "Olmo2Config", "norms after, QK norms over all heads"),
    _toy("olmo3", "Olmo3Config", UNSCALED, **_nested(10000.0), **SLIDING),
    _toy("olmoe", "OlmoeConfig", **ALL_HEADS, **EXPERTS),
    _toy("granite", "GraniteConfig", **GRANITE),
    _toy("granitemoe", "GraniteMoeConfig", **GRANITE, **LOCAL),
    _toy("granitemoeshared", "GraniteMoeSharedConfig", shared_intermediate_size=96, **GRANITE, **LOCAL),
    _toy("graniteswa", "GraniteSWAConfig", **GRANITE, **SLIDING),
    _toy("phi", "PhiConfig", "half of each head turns", gelu=True, **HALF, **WIDE, **ALL_HEADS),
    _toy("phi3", "Phi3Config", "transformers turns yarn into longrope", yarn=False, **TOP_PHI3),
    _toy("phi3-partial", "Phi3Config", "and half of each head turns", yarn=False, **HALF, **TOP_PHI3),
    _toy("gptneox", "GPTNeoXConfig", "a quarter turns", json=RAW_NEOX, gelu=True, **QUARTER, **WIDE),
    _toy("stablelm", "StableLmConfig", "a quarter of each head turns", use_qkv_bias=True, **QUARTER),
    _toy("falcon", "FalconConfig", new_decoder_architecture=True, num_kv_heads=2, gelu=True, **FALCON, **ALL_HEADS),
    _toy("nemotron", "NemotronConfig", "half of each head turns", **HALF, **HEADS_OF_32),
    _toy("starcoder2", "Starcoder2Config", gelu=True, **TIED),
    _toy("glm", "GlmConfig", "half of each head turns", rms_norm_eps=1e-5, **HALF, **HEADS_OF_32),
    _toy("glm4", "Glm4Config", "half of each head turns", **HALF, **HEADS_OF_32),
    _toy("glm4moe", "Glm4MoeConfig", "half of each head turns", **HALF, **HEADS_OF_32, **ONE_DENSE, **ROUTED),
    _toy(
        "gptoss",
        "GptOssConfig",
        "sinks, float experts; sliding layers are scaled too",
        **HEADS_OF_32,
        **SLIDING,
        **LOCAL,
    ),
    _toy("deepseek2", "DeepseekV2Config", SCORES, keys=False, **ONE_DENSE, **MLA, **ROUTED),
    _toy("deepseek3", "DeepseekV3Config", SCORES, keys=False, **SIGMOID, **ONE_DENSE, **MLA, **ROUTED),
    _toy("mistral4", "Mistral4Config", json=AS_MISTRAL3, rope_parameters=MISTRAL4, **{**MLA, "head_dim": 64}, **ROUTED),
    _toy("minicpm3", "MiniCPM3Config", "latent attention", **MLA),
    _toy("dots1", "Dots1Config", norm_topk_prob=True, sliding_window=None, **DOTS, **ONE_DENSE, **ALL_HEADS, **ROUTED),
    _toy("cohere", "CohereConfig", logit_scale=0.6, **TIED),
    _toy("cohere2", "Cohere2Config", NOT_TURNING, logit_scale=0.6, rotary_pct=1.0, **HEADS_OF_32, **SLIDING, **TIED),
    _toy("exaone4", "Exaone4Config", layer_types=[FULL] * 3, **EXAONE4),
    _toy("exaonemoe", "ExaoneMoeConfig", NOT_TURNING, **EXAONE_MOE, **SLIDING, **EXPERTS),
    _toy("afmoe", "AfmoeConfig", NOT_TURNING, **AFMOE, **HEADS_OF_32, **SLIDING, **EXPERTS),
    _toy("laguna", "LagunaConfig", UNSCALED, **LAGUNA, **_nested(3000.0), **HEADS_OF_32, **SLIDING, **EXPERTS),
    _toy("mellum", "MellumConfig", UNSCALED, **MELLUM, **_nested(10000.0), **HEADS_OF_32, **SLIDING, **EXPERTS),
    _toy("minimaxm2", "MiniMaxM2Config", rotary_dim=HEAD, **SIGMOID, **HEADS_OF_32, **LOCAL),
    _toy("lfm2", "Lfm2Config", "half of the layers attend", num_hidden_layers=4, layer_types=["conv", FULL] * 2),
)
TOYS: Settings = {toy.name: toy for toy in _ROWS}


def tokens(length: int = LENGTH) -> npt.NDArray[np.int32]:
    """The text of every test: random, so that attention has nothing to go by but content and position."""
    return np.random.default_rng(20_240_601).integers(3, VOCABULARY, length, dtype=np.int32)


def toy_key(toy: Toy) -> str:
    """Changes when the toy would come out differently."""
    makers = [inspect.getsource(maker) for maker in (_config, _model, _draw, _state, save_checkpoint)]
    definition = [toy.config_class, COMMON, dict(toy.settings), dict(toy.json), GAIN, makers, version("transformers")]
    return hashlib.sha256(json.dumps(definition).encode()).hexdigest()[:16]


def save_checkpoint(toy: Toy, folder: Path, rope_parameters: RopeParameters | None = None, **config: Any) -> Path:
    """config.json and model.safetensors, without a tokenizer; unscaled unless rope parameters are given."""
    _model(toy, rope_parameters, config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **toy.json}))
    return folder


def reference_logits(
    toy: Toy,
    rope_parameters: RopeParameters | None,
    ids: npt.NDArray[np.int32],
    frequencies: Frequencies | None = None,
    **config: Any,
) -> npt.NDArray[np.float32]:
    """[tokens, vocabulary]: what transformers computes with these rope parameters, in float32, attention in full.

    `frequencies` puts inverse frequencies and a magnitude in the place of those that the config leads to, for what
    transformers has no name for. `config` are further changes to the config.
    """
    import torch

    model = _model(toy, rope_parameters, config)
    if frequencies is not None:
        _set_frequencies(model, *frequencies)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
    array: npt.NDArray[np.float32] = logits.float().numpy()
    return array


def yarn_frequencies(toy: Toy, **scaling: Any) -> Frequencies:
    """Inverse frequencies and magnitude by transformers' own functions, on a Llama with the toy's head and rope.

    For models whose config class will not take YaRN. Over llama3 it composes: the ramp comes from the base and the
    original context, and acts on the llama3 frequencies.
    """
    base: Settings = {key: toy.rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in toy.rope}
    inverse, magnitude = _frequencies(toy, {**base, **scaling})
    if toy.rope["rope_type"] == "llama3":
        inverse = inverse * _frequencies(toy, toy.rope)[0] / _frequencies(toy, ROPE)[0]
    return inverse, magnitude


def _frequencies(toy: Toy, rope: RopeParameters) -> tuple[npt.NDArray[np.float32], float]:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    llama = Toy(toy.name, "LlamaConfig", {"head_dim": toy.settings.get("head_dim", HEAD)})
    rotary = LlamaRotaryEmbedding(_config(llama, rope, {}))
    return rotary.inv_freq.numpy(), float(rotary.attention_scaling)


def _set_frequencies(model: torch.nn.Module, inverse: npt.ArrayLike, magnitude: float) -> None:
    import torch

    rotary: list[Any] = [module for module in model.modules() if hasattr(module, "inv_freq")]
    for module in rotary:
        given = torch.tensor(np.asarray(inverse), dtype=torch.float32)
        if given.shape != module.inv_freq.shape:
            raise ValueError(f"{tuple(given.shape)} frequencies given, {tuple(module.inv_freq.shape)} wanted")
        module.inv_freq = given
        module.attention_scaling = magnitude
    if not rotary:
        raise ValueError("this model keeps its frequencies somewhere else")


def _config(toy: Toy, rope_parameters: RopeParameters | None, changes: Mapping[str, Any]) -> Any:
    import transformers

    settings = {**COMMON, **toy.settings, **changes}
    settings["rope_parameters"] = json.loads(json.dumps(rope_parameters or toy.rope))  # configs change it in place
    return getattr(transformers, toy.config_class)(**settings)


def _model(toy: Toy, rope_parameters: RopeParameters | None, changes: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    config = _config(toy, rope_parameters, changes)
    torch.manual_seed(0)
    family = toy.config_class.removesuffix("Config").removesuffix("Text")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    model = model_class._from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for name, tensor in _state(model):
            tensor.copy_(torch.from_numpy(_draw(f"{toy.name}/{name}", tensor.numpy())))
    return model.eval()


def _state(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that is saved, each storage once: a tied head is the embedding."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def _draw(name: str, initial: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Matrices anew; vectors that start as one constant (norms, most biases) around it; other vectors anew.

    Apertus' eps stays: with another, its activation jumps at 0, and a sum that is rounded the other way jumps with it.
    """
    if name.endswith(".eps"):
        return initial
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    noise = np.asarray(np.random.default_rng(seed).standard_normal(initial.shape, dtype=np.float32))
    if initial.ndim > 1:
        return noise * np.float32(GAIN / np.sqrt(initial.shape[-1]))
    constant = initial.min() == initial.max()
    return np.asarray(noise * np.float32(0.2) + (initial if constant else 0))
