"""What llama.cpp makes of every field of every config class: one field at a time, toy by toy, measured.

    python -m benchmarks.config_fields [TOY…]     prints the moves that do not come out as transformers has it
    python -m benchmarks.config_fields --serve    answers lines "TOY FILE" with "done" when FILE has the results as JSON

For each move: the toy's config with the field at another value, transformers' logits, `convert` (forced, and asked
whether it would do it unforced), llama.cpp's logits. Each move is a child that is forked from a process which has
everything imported, so that a move takes a fifth of a second, and an abort of llama.cpp costs one move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests import llama_logits, toys
from tests.conversions import convert_folder
from tests.toys import FULL, SLIDES, TOYS, Toy
from yarn_gguf.config.audit import audit, extra_keys
from yarn_gguf.config.model_config import read_config
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Level

TOKENS = 120
SECONDS = 90  # for one move
IDS = toys.tokens(TOKENS)

# Other values of a field by its name; what is not here moves by its type. None where it must not be moved.
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "relu2")
OTHERS: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation"), ACTIVATIONS),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), (0.05,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (5.0, None)),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts", "moe_num_shared_experts"), (2, 0)),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), (0, 2)),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), (1, 4)),
    **dict.fromkeys(("n_group", "topk_group"), ()),
    "num_hidden_layers": [],
    "num_attention_heads": [8],
    "head_dim": [16, 48],
    "sliding_window": [16, None],
    "moe_router_logit_softcapping": [2.0],
    "query_pre_attn_scalar": [64],
    "clip_qkv": [1.0],
    "swiglu_limit": [1.0],
    "decoder_sparse_step": [2],
    "return_dict": [],
    "dtype": [],
    "mlp_only_layers": [[0]],
    "q_lora_rank": [None, 32],
    "topk_method": ["group_limited_greedy"],
    "no_rope_layer_interval": [2],
    "max_window_layers": [1],
    "sliding_window_pattern": [3],
    "global_attn_every_n_layers": [2],
    "conv_L_cache": [4],
    "block_ffn_dim_multiplier": [1.5],
    "gating": ["per-head", "per-element", False],
}
UNMOVED = {"vocab_size", "max_position_embeddings", "rope_parameters"} | {
    f"{each}_token_id" for each in ("bos", "eos", "pad")
}
BESIDE = ("head_dim", "is_causal")  # no field of every class, and read all the same
WITH_GENERIC = "llama"  # the toy that moves what every class has from the one that they all are made of
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 16}
DEEP: dict[str, Any] = {"hidden_size": 64}

# More than one field, where one alone says nothing.
TOGETHER: dict[str, list[dict[str, Any]]] = {
    **{name: [{**WINDOW, "max_window_layers": n} for n in (0, 1, 28)] for name in ("qwen2", "qwen3", "qwen2moe")},
    "qwen3moe": [WINDOW],
    "smollm3": [WINDOW],
    "dots1": [
        {"sliding_window": 16, "max_window_layers": 1},
        {"n_group": 4, "topk_group": 2},
        {"num_attention_heads": 8, "num_key_value_heads": 8},
    ],
    "ernie45moe": [{"moe_num_shared_experts": 2, "moe_intermediate_size": 32}, {"moe_layer_end_index": -1}],
    "gemma2": [
        {"head_dim": 64, "query_pre_attn_scalar": 64},
        {"num_hidden_layers": 46, "num_attention_heads": 2, "query_pre_attn_scalar": 64},
        {"num_hidden_layers": 46, "num_attention_heads": 2, "query_pre_attn_scalar": 32},
    ],
    "gemma3": [{"num_hidden_layers": 62, "num_attention_heads": 2, "query_pre_attn_scalar": n} for n in (64, 32)],
    "cohere": [{"num_hidden_layers": 64, **DEEP, "use_qk_norm": norms} for norms in (True, False)],
    "exaone4": [
        {"sliding_window": 16, "sliding_window_pattern": 4, "layer_types": [SLIDES, SLIDES, FULL]},
        *({"num_hidden_layers": 64, **DEEP, **more, "layer_types": None} for more in ({"sliding_window": 16},)),
        {"num_hidden_layers": 64, **DEEP, "sliding_window_pattern": 4, "layer_types": [FULL] * 64},
    ],
    "exaonemoe": [{"n_group": 4, "topk_group": 2}, {"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}],
    "glm4moe": [{"n_group": 4, "topk_group": 2}],
    "deepseek2": [
        {"n_group": 4, "topk_group": 2},
        {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
        {"n_group": 4, "topk_group": 1, "topk_method": "group_limited_greedy"},
        *({"num_hidden_layers": 27, **DEEP, "q_lora_rank": rank} for rank in (None, 48)),
    ],
    "deepseek3": [{"n_group": 4, "topk_group": 2}, {"num_hidden_layers": 27, **DEEP, "q_lora_rank": None}],
    "mistral4": [{"n_group": 4, "topk_group": 2}, {"num_hidden_layers": 27, **DEEP, "q_lora_rank": None}],
    "falcon": [
        *({"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": n} for n in (1, None)),
        {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4},
        {"num_ln_in_parallel_attn": 1},
    ],
    "laguna": [{"mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}],
    "lfm2": [{"layer_types": ["conv"] * 4}, {"full_attn_idxs": [0, 1], "layer_types": None}],
}


def moves(toy: Toy, config: Any) -> Iterator[dict[str, Any]]:
    """Nothing first; then each field of the class by itself; then some together."""
    yield {}
    for name in _names(toy, config):
        was = getattr(config, name, None)
        yield from ({name: other} for other in _others(name, was, config.num_hidden_layers) if other != was)
    yield from TOGETHER.get(toy.name, [])


def _names(toy: Toy, config: Any) -> list[str]:
    from transformers import PreTrainedConfig

    generic = {each.name for each in dataclasses.fields(PreTrainedConfig)} if toy.name != WITH_GENERIC else set()
    own = [each.name for each in dataclasses.fields(config)]
    return [name for name in dict.fromkeys([*own, *BESIDE]) if name not in UNMOVED | generic]


def _others(name: str, was: Any, layers: int) -> Sequence[Any]:
    if name == "is_causal":
        return [False]
    if name in OTHERS:
        return OTHERS[name]
    if "layer" in name and name.endswith("types") and was:
        return _layer_types(was, layers)
    if name == "layer_rope_theta":
        return [([10000.0, 0.0] * layers)[:layers], [0.0] * layers]
    if name in ("no_rope_layers", "num_attention_heads_per_layer"):
        return [([was[0], {4: 8}.get(was[0], 0)] * layers)[:layers]]
    if isinstance(was, bool):
        return [not was]
    if isinstance(was, int):
        return [was // 2 if was > 1 else was + 1]
    return [was * 1.7 + 0.1] if isinstance(was, float) else []


def _layer_types(was: list[str], layers: int) -> list[list[str]]:
    if set(was) <= {FULL, SLIDES}:
        patterns: list[list[str]] = [[FULL], [SLIDES], [FULL, SLIDES], [SLIDES, SLIDES, FULL]]
    else:
        patterns = [[FULL]] if "conv" in was else [["sparse"], ["sparse", "dense"]]
    found = [was[::-1], *((pattern * layers)[:layers] for pattern in patterns)]
    return [each for i, each in enumerate(found) if each not in found[:i]]


def measure(toy: Toy) -> Iterator[dict[str, Any]]:
    """A result for each move: what moved, how far transformers and llama.cpp went, what the audit says."""
    config = _warm(toy)
    base = None
    for changes in moves(toy, config):
        with tempfile.TemporaryDirectory() as folder:
            result = _in_child(toy, changes, Path(folder))
            file = Path(folder, "reference.npy")
            logits = np.load(file) if file.exists() else None
        base = logits if base is None else base
        if logits is not None and base is not None and logits.shape == base.shape:
            result["moved"] = float(llama_logits.kl(base, logits).mean())
        yield {"toy": toy.name, "changes": changes, **result}


def _in_child(toy: Toy, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    results = folder / "result.json"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _become_child(toy, changes, folder, results)
    _, status = os.waitpid(child, 0)
    result: dict[str, Any] = json.loads(results.read_text())
    if status:
        said = (folder / "said").read_text(errors="replace").splitlines()
        result["error"] = next((line for line in reversed(said) if "rror" in line or "ASSERT" in line), "")[-300:]
    return result


def _become_child(toy: Toy, changes: Mapping[str, Any], folder: Path, results: Path) -> None:
    """Never returns. What is known is written at every stage: llama.cpp may end the process."""
    import signal

    signal.alarm(SECONDS)
    said = os.open(folder / "said", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    result: dict[str, Any] = {}
    try:
        for result in _stages(toy, changes, folder):
            results.write_text(json.dumps(result))
    except BaseException as error:  # noqa: BLE001  (SystemExit of the converter included: all of it is a result)
        print(f"Error: {type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)


def _stages(toy: Toy, changes: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    import torch

    result: dict[str, Any] = {"stage": "transformers", "errors": [], "keys": {}}
    yield result
    checkpoint = folder / toy.name
    model = toys._model(toy, None, changes)
    with torch.inference_mode():
        ids = torch.from_numpy(IDS.astype(np.int64))[None]
        logits = model(ids, use_cache=False).logits[0].float().numpy()
    np.save(folder / "reference.npy", logits)
    model.save_pretrained(checkpoint)
    result |= _audited(checkpoint) | {"stage": "convert"}
    yield result
    gguf = folder / "f32.gguf"
    try:
        convert_folder(checkpoint, gguf, outtype="f32", force=True)
    except InputError as refusal:
        yield result | {"errors": [*result["errors"], str(refusal)], "unreadable": True}
        raise
    yield result | {"stage": "load"}
    settings: dict[str, float] = {**llama_logits.BATCHES, **llama_logits.EXACT, "n_ctx": TOKENS}
    with llama_logits._model(str(gguf)) as loaded:
        found = llama_logits._logits(loaded, IDS, settings)
    yield result | {"stage": "done", "kl": float(llama_logits.kl(logits, found).mean())}


def _audited(checkpoint: Path) -> dict[str, Any]:
    try:
        config = read_config(checkpoint)
    except InputError as error:
        return {"errors": [str(error)], "keys": {}, "unreadable": True}
    name = config.architectures[0]
    errors = [each.text for each in audit(config, name) if each.level is Level.ERROR]
    return {"errors": errors, "keys": extra_keys(config, name)}


_READY: list[Any] = []


def _warm(toy: Toy) -> Any:
    """Everything imported that a child will need, so that it is imported once. Returns the toy's config."""
    if not _READY:
        _READY.append(_llama_cpp())
    import transformers

    model = toys._model(toy, None, {})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        transformers.AutoConfig.from_pretrained(folder)
    return model.config


def _llama_cpp() -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from llama_cpp import llama_cpp

    llama_cpp.llama_backend_init()
    return llama_cpp


def serve() -> None:
    for line in sys.stdin:
        name, file = line.split(maxsplit=1)
        results = list(measure(TOYS[name]))
        Path(file.strip()).write_text(json.dumps(results))
        print("done", flush=True)


def main(names: list[str]) -> None:
    for name in names:
        for each in measure(TOYS[name]):
            kl = each.get("kl")
            outcome = f"{kl:.1e}" if kl is not None else f"{each['stage']}: {each.get('error', '')[:80]}"
            if kl is None or kl > 1e-8 or each["errors"]:
                moved = f"{each['moved']:.1e}" if "moved" in each else "-"
                said = "; ".join(each["errors"])[:100]
                print(f"{name:12} {json.dumps(each['changes'])[:70]:70} {moved:8} {outcome:30} {said}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve() if sys.argv[1:] == ["--serve"] else main(sys.argv[1:] or list(TOYS))
