"""A PEFT adapter, merged into the weights of a checkpoint while they are read: slice by slice, nothing held whole.

    linear       W + (B·A)·s
    embedding    W + (B·A)ᵀ·s
    DoRA         m / ‖W + (B·A)·s‖ₗ · (W + (B·A)·s), one norm for each row
    lora_bias    b + b_B·s
    what was trained in full (modules_to_save, biases) takes the place of what the model has

s is lora_alpha / r, or lora_alpha / √r under rsLoRA. All of it is computed in float32 and rounded once, to the weight's
own dtype (what is added to an embedding is so before, too): as PEFT's `merge_and_unload` does with a model in that
dtype, whose bits this gives. So that they are the
same, the product is left to torch, as there. A row of it does not depend on the others, as long as there are some: one
row alone is multiplied by another kernel, which sums in another order.

What an adapter may be beyond this is refused by name. Knows PEFT's files; nothing of GGUF.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from yarn_gguf.checkpoint.safetensors_file import read_header
from yarn_gguf.checkpoint.shards import some
from yarn_gguf.checkpoint.stored import Array, Files, Source, Stored, as_float32, source
from yarn_gguf.checkpoint.weights import AS_THEY_ARE, Weight
from yarn_gguf.config.fields import Fields, shown
from yarn_gguf.errors import InputError
from yarn_gguf.json_file import json_object, read_bounded

Floats: TypeAlias = npt.NDArray[np.float32]

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"
LARGEST_CONFIG: Final = 1 << 20
PREFIX: Final = "base_model.model."  # what PEFT wraps a model in

BLOCK: Final = 64  # entries of the first axis that are multiplied at a time, at least
READ: Final = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
# where the trained tensors are is told by their names; how they were trained matters no more
NOT_NEEDED: Final = {
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules"),
    *("fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias"),
    *("lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size"),
    *("revision", "runtime_config", "target_modules", "task_type", "use_dora", "velora_config"),
}
# other ways to initialise an adapter (pissa, olora, corda, loftq, lora_ga) change the model's weights beforehand
PLAIN_STARTS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
MOST_REPEATS: Final = 4  # `*`, `+` and `{` in a pattern: how long matching may take grows by a power with each
_REPEAT: Final = re.compile(r"[*+{]")
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")

# the end of a tensor's name in the adapter → what it is
ROLES: Final = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "b_bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.weight": "weight",
    ".base_layer.bias": "bias",
}
# the same tensor as a model class has it in memory and as a checkpoint of it was saved, in either direction
SPELLINGS: Final = (
    ("model.language_model.", "language_model.model."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("lm_head.", "language_model.lm_head."),
)


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to the tensor `name`: `held`, if there, replaces the model's; then s·B·A is added."""

    name: str
    held: Source | None = None
    a: Source | None = None
    b: Source | None = None
    magnitude: Source | None = None
    bias: Source | None = None
    scaling: float = 1.0
    embedding: bool = False

    def shape(self) -> tuple[int, ...]:
        """What the tensor of the model must have."""
        if self.a is not None and self.b is not None:
            return (self.a.shape[1], self.b.shape[0]) if self.embedding else (self.b.shape[0], self.a.shape[1])
        given = self.held or self.bias
        assert given is not None
        return given.shape


@dataclass(frozen=True)
class Adapter:
    """A context manager: its file stays open while weights are read."""

    folder: Path
    changes: Mapping[str, Change]  # by the name that PEFT has for the tensor
    files: Files

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.files.close()

    def verify(self) -> None:
        """Raises ResourceError when the adapter has changed since its header was read."""
        self.files.verify()


@dataclass(frozen=True, slots=True)
class Merged:
    """A weight of the model with an adapter's change in it."""

    weight: Weight
    change: Change
    stored: Stored | None = None

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dtype(self) -> str:
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self, begin: int, end: int) -> Array:
        held = self.change.held
        if held is None:
            raw = self.weight.read(begin, end)
        elif held.stored.dtype == self.dtype:
            raw = held.raw(begin, end)
        else:
            raw = _rounded(held.numbers(begin, end), self.dtype)
        if self.change.a is None and self.change.bias is None:
            return raw
        total = as_float32(raw, self.dtype)
        delta = _delta(self.change, begin, end)
        if self.change.embedding:  # which PEFT rounds twice
            delta = as_float32(_rounded(delta, self.dtype), self.dtype)
        total += delta
        if self.change.magnitude is not None:
            total *= _factors(total, self.change.magnitude.numbers(begin, end))
        return _rounded(total, self.dtype)


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder that PEFT saved. Raises InputError for one that cannot be merged, and says why."""
    config = _config(folder / CONFIG)
    _refuse(config)
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLED).exists():
        text = f"holds {PICKLED}, and a pickle can run code; save the adapter as safetensors"
        raise InputError(text, file=folder, code="pickle")
    files = Files()
    try:
        tensors = {tensor.name: _source(tensor, files) for tensor in read_header(path)}
        changes = {change.name: change for change in _changes(tensors, config, path)}
    except BaseException:
        files.close()
        raise
    return Adapter(folder, MappingProxyType(changes), files)


def merged(weights: Mapping[str, Weight], adapter: Adapter) -> dict[str, Weight]:
    """The weights, those that the adapter changes wrapped. Raises InputError with all that it has and the model not."""
    found = {name: _spelled(name, weights) for name in adapter.changes}
    if missing := [name for name, its in found.items() if its is None]:
        text = f"changes tensors that the model does not have: {some(missing)}; is it another model's adapter?"
        raise InputError(text + _tied(missing, weights), file=adapter.folder, code="adapter_names")
    result, complaints = dict(weights), list[str]()
    for name, its in found.items():
        if its is None:
            continue
        weight, change = result[its], adapter.changes[name]
        if isinstance(weight, Merged):
            complaints.append(f"{its} is changed twice")
        elif weight.shape != change.shape():
            complaints.append(f"{its} has shape {_by(weight.shape)}, and for the adapter {_by(change.shape())}")
        elif weight.dtype not in AS_THEY_ARE:
            complaints.append(f"{its} is quantized in a way that nothing can be merged into")
        else:
            own = change.a is None and change.bias is None and change.held and change.held.stored.dtype == weight.dtype
            result[its] = Merged(weight, change, change.held.stored if own and change.held else None)
    if complaints:
        raise InputError(f"does not fit the model: {some(complaints)}", file=adapter.folder, code="adapter_shapes")
    return result


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _tied(missing: Iterable[str], weights: Mapping[str, Weight]) -> str:
    if any(name.endswith("lm_head.weight") for name in missing) and not any("lm_head" in name for name in weights):
        return "; its lm_head was trained apart from the embedding, but the model has one tensor for both"
    return ""


def _spelled(name: str, weights: Mapping[str, Weight]) -> str | None:
    candidates = [name]
    for one, other in SPELLINGS:
        candidates += [
            to + name.removeprefix(start) for start, to in ((one, other), (other, one)) if name.startswith(start)
        ]
    return next((each for each in candidates if each in weights), None)


# ---- arithmetic, as torch does it on a CPU


def _delta(change: Change, begin: int, end: int) -> Floats:
    """Entries [begin, end) of what is added."""
    import torch

    if change.bias is not None:
        return change.bias.numbers(begin, end) * np.float32(change.scaling)
    assert change.a is not None
    assert change.b is not None
    low, high = _widened(begin, end, change.shape()[0])
    if change.embedding:
        a = as_float32(change.a.columns(low, high), change.a.stored.dtype)
        b = change.b.numbers(0, change.b.shape[0])
    else:
        a, b = change.a.numbers(0, change.a.shape[0]), change.b.numbers(low, high)
    product = (torch.from_numpy(b) @ torch.from_numpy(a)).mul_(change.scaling)
    result: Floats = (product.T.contiguous() if change.embedding else product).numpy()
    return result[begin - low : end - low]


def _widened(begin: int, end: int, entries: int) -> tuple[int, int]:
    """Whole blocks, the last of them full: what stands at the edge of a product may be summed in another way."""
    high = min(-(-end // BLOCK) * BLOCK, entries)
    return max(0, min(begin // BLOCK * BLOCK, high - BLOCK)), high


def _factors(total: Floats, magnitude: Floats) -> Floats:
    import torch

    norms: Floats = torch.linalg.norm(torch.from_numpy(total), dim=1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros is one of NaN, as in PEFT
        return (magnitude / norms)[:, None]


def _rounded(values: Floats, dtype: str) -> Array:
    if dtype == "BF16":
        import torch

        bits: Array = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
        return bits
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if dtype == "F16" else np.float32, copy=False)


# ---- what PEFT wrote


def _source(tensor: Stored, files: Files) -> Source:
    if tensor.dtype not in AS_THEY_ARE:
        text = f"tensor {tensor.name} is {tensor.dtype}; {', '.join(AS_THEY_ARE)} can be merged"
        raise InputError(text, file=tensor.file, code="dtype")
    return source(tensor, files)


def _changes(tensors: Mapping[str, Source], config: Fields, path: Path) -> Iterator[Change]:
    """Every tensor of the file is used, or named in an error."""
    whole: dict[str, Source] = {}
    parts: dict[str, dict[str, Source]] = {}
    if strange := [name for name in tensors if not name.startswith(PREFIX)]:
        text = f"holds tensors whose names do not begin with {PREFIX}: {some(strange)}"
        raise InputError(text, file=path, code="adapter_names")
    for name, tensor in tensors.items():
        own = name.removeprefix(PREFIX)
        end = next((end for end in ROLES if own.endswith(end)), None)
        if end is None and ".lora_" in own:
            raise InputError(f"holds {own}, of a kind that is not known", file=path, code="adapter_names")
        if end is None or ROLES[end] in ("weight", "bias"):
            whole[f"{own.removesuffix(end)}.{ROLES[end]}" if end else own] = tensor
        else:
            parts.setdefault(own.removesuffix(end), {})[ROLES[end]] = tensor
    if not tensors:
        raise InputError("holds no tensor", file=path, code="adapter_names")
    for module, roles in parts.items():
        yield _product(module, roles, whole.pop(f"{module}.weight", None), config, path)
        if bias := roles.get("b_bias"):
            held = whole.pop(f"{module}.bias", None)
            yield Change(f"{module}.bias", held, bias=bias, scaling=_scaling(module, _rank(module, config), config))
    for name, tensor in whole.items():
        yield Change(name, tensor)


def _product(module: str, roles: Mapping[str, Source], held: Source | None, config: Fields, path: Path) -> Change:
    def bad(text: str) -> InputError:
        return InputError(f"{module} {text}", file=path, code="adapter_shapes")

    embedding = "embedding_a" in roles or "embedding_b" in roles
    kind = "embedding_" if embedding else ""
    a, b, magnitude = roles.get(f"{kind}a"), roles.get(f"{kind}b"), roles.get("magnitude")
    if a is None or b is None or (embedding and roles.keys() & {"a", "b"}):
        raise bad(f"needs a pair of lora_{kind}A and lora_{kind}B, and has {', '.join(sorted(roles))}")
    if embedding and magnitude is not None:
        raise bad("is an embedding under DoRA, which is not supported; merge it with PEFT and convert the result")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise bad(f"has factors of {_by(b.shape)} and {_by(a.shape)}; the product of two matrices is supported")
    if a.shape[0] != (rank := _rank(module, config)):
        raise bad(f"has rank {a.shape[0]}, but {CONFIG} says {rank}")
    if magnitude is not None and magnitude.shape != b.shape[:1]:
        raise bad(f"has {_by(magnitude.shape)} magnitudes for {b.shape[0]} rows")
    if (bias := roles.get("b_bias")) is not None and bias.shape != b.shape[:1]:
        raise bad(f"has {_by(bias.shape)} biases for {b.shape[0]} rows")
    scaling = _scaling(module, rank, config)
    return Change(f"{module}.weight", held, a, b, magnitude, scaling=scaling, embedding=embedding)


def _rank(module: str, config: Fields) -> int:
    pattern = Fields(config.settings("rank_pattern") or {}, config.path, [], "rank_pattern.")
    key = _matching(module, pattern)
    return config.count("r") if key is None else pattern.count(key)


def _scaling(module: str, rank: int, config: Fields) -> float:
    pattern = Fields(config.settings("alpha_pattern") or {}, config.path, [], "alpha_pattern.")
    key = _matching(module, pattern)
    alpha = config.need("lora_alpha") if key is None else pattern.need(key)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matching(module: str, patterns: Fields) -> str | None:
    """The first regular expression that matches the end of the module's name, from a dot on."""
    for key in patterns.values:
        if len(_REPEAT.findall(key)) > MOST_REPEATS or _REPEATED_GROUP.search(key):
            raise patterns.fail(shown(key), "is too complex a pattern to be matched safely")
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return key
        except (re.error, RecursionError, OverflowError) as error:
            raise patterns.fail(shown(key), f"is no regular expression: {error}") from error
    return None


def _config(path: Path) -> Fields:
    text = read_bounded(path, LARGEST_CONFIG, "the folder of a PEFT adapter", "bad_config")
    return Fields(json_object(text, path, "bad_config"), path, [])


def _refuse(config: Fields) -> None:
    """What is asked of an adapter beyond a plain merge, by name."""
    values = config.values
    if values.get("peft_type") != "LORA":
        text = f"is {shown(values.get('peft_type'))}; only LORA can be merged"
        raise InputError(f"peft_type {text}", file=config.path, code="adapter_kind")
    if not any(values.get("init_lora_weights", True) is start for start in PLAIN_STARTS[:3]) and (
        values["init_lora_weights"] not in PLAIN_STARTS[3:]
    ):
        text = f"init_lora_weights is {shown(values['init_lora_weights'])}, which changes the model before the training"
        way = "convert the adapter to a plain one with PEFT (path_initial_model_for_weight_conversion)"
        raise InputError(f"{text}; {way}", file=config.path, code="adapter_kind")
    if unsupported := sorted(key for key, value in values.items() if value and key not in READ | NOT_NEEDED):
        text = f"asks for {some(unsupported)}, which is not supported; merge it with PEFT and convert the result"
        raise InputError(text, file=config.path, code="adapter_kind")
