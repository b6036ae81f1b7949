"""`convert` against llama.cpp's own converter: the same tensors, byte for byte, and the same keys.

Every toy to every float type and q8_0, in whole files as the command writes them. What may differ is `ALLOWED`, each
with its reason; nothing else is compared loosely.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from yarn_gguf.gguf_file.shards import Model, read_model

from .conftest import OUTTYPES
from .conversions import convert_toy
from .toys import TOYS

Folders = Callable[[str], Path]

# key, without the architecture -> why it may differ from upstream's in a file without scaling
ALLOWED: Final = {
    "yarn_gguf.version": "ours",
    "general.name": "upstream is given a copy of the checkpoint",
}
# the same for one toy
ALLOWED_OF: Final[dict[str, dict[str, str]]] = {
    "falcon": {"context_length": "upstream writes 2048 whatever the config says"},
    "gptneox": {"general.file_type": "upstream leaves it out"},
    "phi": {"tokenizer.ggml.add_bos_token": "upstream writes it with the sizes; ours is the vocabulary's"},
    "glm": {"tokenizer.ggml.add_bos_token": "as in phi"},
}
# toys that are never without scaling, which upstream's converter asks for
SCALED: Final = ("ministral3", "mistral4")


def allowed(name: str, key: str, arch: str) -> bool:
    short = key.removeprefix(f"{arch}.")
    scaling = short.startswith(("rope.scaling.", "yarn_gguf."))
    return short in ALLOWED or short in ALLOWED_OF.get(name, {}) or (name in SCALED and scaling)


def differing_keys(ours: Model, theirs: Model) -> dict[str, tuple[object, object]]:
    """key -> (ours, theirs), for what is not there on one side or has other bytes."""
    keys = [*ours.entries, *(key for key in theirs.entries if key not in ours.entries)]
    found: dict[str, tuple[object, object]] = {}
    for key in keys:
        a, b = ours.entries.get(key), theirs.entries.get(key)
        if a is None or b is None or a.raw != b.raw:
            found[key] = (None if a is None else a.value(), None if b is None else b.value())
    return found


def data_of(model: Model, name: str) -> npt.NDArray[np.uint8]:
    part, tensor = model.tensors[name]
    header = model.parts[part]
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        return np.frombuffer(file.read(tensor.size), np.uint8)


def differing_tensors(ours: Model, theirs: Model) -> list[str]:
    names = sorted({*ours.tensors, *theirs.tensors})
    found = []
    for name in names:
        if name not in ours.tensors or name not in theirs.tensors:
            found.append(f"{name}: only {'ours' if name in ours.tensors else 'theirs'}")
            continue
        a, b = ours.tensors[name][1], theirs.tensors[name][1]
        if (a.dims, a.type) != (b.dims, b.type):
            found.append(f"{name}: {a.dims} {a.type}, not {b.dims} {b.type}")
        elif name == "rope_freqs.weight":
            values, others = data_of(ours, name).view("<f4"), data_of(theirs, name).view("<f4")
            if np.abs(values / others - 1).max() > 4e-6:  # theirs is float32 all the way: up to 1.9e-6 off
                found.append(f"{name}: other values")
        elif not np.array_equal(data_of(ours, name), data_of(theirs, name)):
            found.append(f"{name}: other bytes")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("name", TOYS)
def test_every_architecture_has_the_tensors_and_keys_of_upstreams_converter(
    name: str, outtype: str, toy_folder: Folders, tmp_path: Path
) -> None:
    folder = toy_folder(name)
    ours = read_model(convert_toy(folder, tmp_path / "ours.gguf", outtype=outtype))
    theirs = read_model(folder / f"{outtype}.gguf")
    assert differing_tensors(ours, theirs) == []
    arch, keys = str(theirs.first.get("general.architecture")), differing_keys(ours, theirs)
    assert {key: pair for key, pair in keys.items() if not allowed(name, key, arch)} == {}
