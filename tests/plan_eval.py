"""A plan of `tensor_plan` evaluated in memory, and what of it differs from a GGUF that upstream's converter wrote.

Knows whole tensors, small ones: no slices, no files written. Keys of RoPE scaling and the tensors of RoPE factors are
not a row's, so they are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yarn_gguf.archs import ARCHITECTURES, Row
from yarn_gguf.archs.common import as_stored
from yarn_gguf.archs.key_tables import entries
from yarn_gguf.archs.tensor_plan import plan_tensors
from yarn_gguf.archs.tensors import Part, Planned
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.config.model_config import read_config
from yarn_gguf.encode import encoded
from yarn_gguf.gguf_file.header import Entry
from yarn_gguf.gguf_file.shards import Model, read_model

Array = npt.NDArray[Any]
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8}
DTYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.uint16): "BF16",
    np.dtype(np.uint8): "U8",
}
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Held:
    """A tensor of a checkpoint, whole in memory, as the weight that plans read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    array: Array
    stored: None = None

    def read(self, begin: int, end: int) -> Array:
        return self.array[begin:end].copy()


def held(tensors: Mapping[str, Array]) -> dict[str, Held]:
    """Tensors by name as weights; uint16 are the bits of BF16."""
    return {name: Held(name, DTYPES[array.dtype], array.shape, array) for name, array in tensors.items()}


def held_weights(folder: Path) -> dict[str, Held]:
    """The tensors of a checkpoint's only safetensors file, read by safetensors' own code."""
    from safetensors.torch import load_file

    return held({name: _numpy(tensor) for name, tensor in load_file(folder / "model.safetensors").items()})


def _numpy(tensor: Any) -> Array:
    import torch

    bits = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
    array: Array = bits.numpy()
    return array


def planned(folder: Path, outtype: str = "f32") -> tuple[Row, Hyperparameters, tuple[Planned, ...]]:
    """The row of a checkpoint's class, its numbers and its plan."""
    config = read_config(folder)
    h, name = Hyperparameters(config), config.architectures[0]
    row = ARCHITECTURES.get(f"{name}/{config.model_type}") or ARCHITECTURES[name]
    weights = held_weights(folder)
    h = as_stored(h, weights)
    return row, h, plan_tensors(row, h, weights, TYPES[outtype])


def data_of(plan: Planned) -> bytes:
    """The bytes that the tensor has in a GGUF."""
    return b"".join(_part(plan, part) for part in plan.parts)


def _part(plan: Planned, part: Part) -> bytes:
    arrays = [weight.read(0, weight.shape[0] if weight.shape else 1) for weight in part.weights]
    made = part.transform.make(*arrays) if part.transform else arrays[0]
    dtype = part.weights[0].dtype
    return encoded(np.ascontiguousarray(made), dtype, plan.type, plan.shape[-1] if plan.shape else 1).tobytes()


def tensor_differences(plans: tuple[Planned, ...], theirs: Model) -> list[str]:
    """What is in one and not in the other, or not the same: names, shapes, types, bytes."""
    ours = {plan.name: plan for plan in plans}
    wanted = {name: info for name, (_, info) in theirs.tensors.items() if name not in ROPE_FACTORS}
    found = [f"-{name}" for name in wanted if name not in ours]
    found += [f"+{name}" for name in ours if name not in wanted]
    for name in wanted.keys() & ours.keys():
        plan, info = ours[name], wanted[name]
        if (plan.shape[::-1], plan.type) != (info.dims, info.type):
            found.append(f"{name} is {plan.shape} of type {plan.type}, {info.dims[::-1]} of type {info.type} expected")
        elif data_of(plan) != _data(theirs, name):
            found.append(f"{name} has other bytes")
    return sorted(found)


def _data(model: Model, name: str) -> bytes:
    part, info = model.tensors[name]
    header = model.parts[part]
    with header.path.open("rb") as file:
        file.seek(header.data_offset + info.offset)
        return file.read(info.size)


def key_differences(row: Row, h: Hyperparameters, theirs: Model) -> list[str]:
    """Keys of the architecture that only one has, or whose type or value differs, RoPE scaling's aside.

    Without `vocab_size` if only the other has it: the driver of upstream's converter adds it to every file.
    """
    ours = {entry.key: entry for entry in entries(row.arch, row.keys, h)}
    wanted = {key: entry for key, entry in theirs.entries.items() if key.startswith(f"{row.arch}.")}
    for key in tuple(wanted):
        if key not in ours and (".rope.scaling." in key or key == f"{row.arch}.vocab_size"):
            del wanted[key]
    return sorted(_differing(ours, wanted))


def _differing(ours: Mapping[str, Entry], wanted: Mapping[str, Entry]) -> Iterator[str]:
    for key in ours.keys() | wanted.keys():
        mine, other = ours.get(key), wanted.get(key)
        if mine is None or other is None or (mine.type, mine.raw) != (other.type, other.raw):
            yield f"{key} is {_text(mine)}, {_text(other)} expected"


def _text(entry: Entry | None) -> str:
    return "absent" if entry is None else f"{entry.value()} ({entry.type.name})"


def differences(folder: Path, upstream_gguf: Path, outtype: str = "f32") -> list[str]:
    """All of what a row makes of a checkpoint that is not as in upstream's file."""
    row, h, plans = planned(folder, outtype)
    theirs = read_model(upstream_gguf)
    arch = theirs.first.get("general.architecture")
    wrong = [] if arch == row.arch else [f"architecture is {row.arch}, {arch} expected"]
    return wrong + tensor_differences(plans, theirs) + key_differences(row, h, theirs)
