"""The weights of a Hugging Face folder: which files hold them, whether all are there, and what lies in each.

    model.safetensors                                        one file
    model.safetensors.index.json + the shards that it names  every shard and every tensor must be where it says
    model-00001-of-00002.safetensors …, no index             every number must be there
    pytorch_model*.bin                                       the same three ways, only when pickles are allowed

Symbolic links are followed, as the hub's cache is made of them, but an index may name plain files of its own folder
only. Where two answers are possible (an index and a file that it does not list, say) nothing is guessed.
Knows files and names of tensors; renames nothing, converts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Final

from yarn_gguf.checkpoint.pickled import read_pickled
from yarn_gguf.checkpoint.safetensors_file import read_header, strict_json
from yarn_gguf.checkpoint.stored import Stored as Stored
from yarn_gguf.errors import InputError
from yarn_gguf.files import changed, open_regular, stamp_of
from yarn_gguf.json_file import LFS_POINTER

LARGEST_INDEX: Final = 100_000_000
_NUMBERED: Final = re.compile(r"(?P<stem>.*)-(?P<part>\d{1,6})-of-(?P<parts>\d{1,6})")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the files of one format are named."""

    stem: str
    suffix: str

    @property
    def single(self) -> str:
        return self.stem + self.suffix

    @property
    def index(self) -> str:
        return f"{self.single}.index.json"


_SAFETENSORS: Final = _Kind("model", ".safetensors")
_PICKLED: Final = _Kind("pytorch_model", ".bin")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """`listed` is what the index says: tensor → file name."""

    paths: tuple[Path, ...]
    listed: Mapping[str, str] | None
    pickled: bool


@dataclass(frozen=True)
class Checkpoint:
    """Tensors in the order of upstream's converter: shard by shard, and by name in each."""

    folder: Path
    tensors: Mapping[str, Stored]


def read_checkpoint(folder: Path, *, allow_pickle: bool = False) -> Checkpoint:
    files = weight_files(folder, allow_pickle=allow_pickle)
    read = read_pickled if files.pickled else read_header
    tensors: dict[str, Stored] = {}
    double: list[str] = []
    for path in files.paths:
        for tensor in read(path):
            if tensor.name in tensors:
                double.append(f"{tensor.name} ({tensors[tensor.name].file.name}, {path.name})")
            tensors[tensor.name] = tensor
    if double:
        raise InputError(f"tensors that lie in two shards: {some(double)}", file=folder, code="double_tensors")
    if not tensors:
        raise InputError("holds weight files without a single tensor", file=folder, code="no_weights")
    if files.listed is not None:
        _compare(files.listed, tensors, folder)
    return Checkpoint(folder, MappingProxyType(tensors))


def verify_unchanged(checkpoint: Checkpoint) -> None:
    """Raises ResourceError when a file is no longer the one whose header was read."""
    stamps = {tensor.file: tensor.stamp for tensor in checkpoint.tensors.values()}
    for path, stamp in stamps.items():
        with open_regular(path, "a shard of the checkpoint") as file:
            if stamp_of(file.fileno()) != stamp:
                raise changed(path)


def weight_files(folder: Path, *, allow_pickle: bool = False) -> WeightFiles:
    """What holds the weights, complete by the files' names; nothing but an index is opened."""
    names = _names(folder)
    for kind in (_SAFETENSORS, _PICKLED):
        present = sorted(name for name in names if name.startswith(kind.stem) and name.endswith(kind.suffix))
        if not present and kind.index not in names:
            continue
        if kind is _PICKLED and not allow_pickle:
            raise InputError(
                f"holds pickled weights only ({some(present or [kind.index])}), and a pickle can run code; "
                "save them as safetensors, or allow them with --allow-pickle, which reads them in a child process "
                "that builds nothing but tensors",
                file=folder,
                code="pickle",
            )
        listed = _index(folder / kind.index, kind) if kind.index in names else None
        chosen = _numbered(folder, present) if listed is None else _listed(folder, kind, listed, present, names)
        return WeightFiles(tuple(folder / name for name in chosen), listed, kind is _PICKLED)
    raise _no_weights(folder, names)


def some(names: Iterable[str], most: int = 8) -> str:
    """The first of a list that may be long, and how many more there are."""
    whole = [name[:200] for name in names]
    more = f" and {len(whole) - most} more" if len(whole) > most else ""
    return ", ".join(whole[:most]) + more


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError("no such folder; give the folder of a checkpoint", file=folder, code="not_found") from error


def _no_weights(folder: Path, names: set[str]) -> InputError:
    if foreign := sorted(name for name in names if name.startswith("consolidated")):
        text = f"holds Mistral's or Meta's own format ({some(foreign)}); give the Hugging Face one (model.safetensors)"
    else:
        text = "holds no weights: there is no model.safetensors and no model.safetensors.index.json"
    return InputError(text, file=folder, code="no_weights")


def _index(path: Path, kind: _Kind) -> dict[str, str]:
    """weight_map: tensor → file, every file a plain name with the right ending."""

    def bad(text: str) -> InputError:
        return InputError(text, file=path, code="bad_index")

    with open_regular(path, "an index") as file:
        content = file.read(LARGEST_INDEX + 1)
    if content.startswith(LFS_POINTER):
        raise InputError(
            "a git-LFS pointer, not the file it stands for; run `git lfs pull`", file=path, code="lfs_pointer"
        )
    if len(content) > LARGEST_INDEX:
        raise bad(f"is larger than {LARGEST_INDEX} bytes, which no index is")
    try:
        whole = strict_json(content)
    except ValueError as error:
        raise bad(f"is not JSON: {error}") from error
    listed = whole.get("weight_map") if isinstance(whole, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise bad("has no weight_map of tensor names and files")
    if strange := sorted({name for name in listed.values() if not _is_plain(name, kind)}):
        raise bad(f"names {some(map(repr, strange))}; only {kind.suffix} files beside it can be shards")
    return listed


def _is_plain(name: str, kind: _Kind) -> bool:
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return plain and name.isprintable() and name.endswith(kind.suffix)


def _listed(folder: Path, kind: _Kind, listed: Mapping[str, str], present: list[str], names: set[str]) -> list[str]:
    """The files that the index names; it must be all that there are."""
    chosen = sorted(set(listed.values()))
    if missing := [name for name in chosen if name not in names]:
        text = f"shards that {kind.index} names are missing: {some(missing)}; fetch them again"
        raise InputError(text, file=folder, code="missing_shards")
    if extra := [name for name in present if name not in set(chosen)]:
        text = f"{kind.index} does not list {some(extra)}; remove what does not belong to the checkpoint"
        raise InputError(text, file=folder, code="unlisted_shards")
    return chosen


def _numbered(folder: Path, present: list[str]) -> list[str]:
    """Without an index: one file, or all of NNNNN-of-NNNNN."""
    found = {name: _NUMBERED.fullmatch(name.rsplit(".", 1)[0]) for name in present}
    if len(present) == 1 and not found[present[0]]:
        return present
    sets = {(match["stem"], int(match["parts"])) for match in found.values() if match}
    if len(sets) != 1 or None in found.values():
        text = f"holds weights that do not belong together: {some(present)}; remove what does not belong"
        raise InputError(text, file=folder, code="unlisted_shards")
    ((_, parts),) = sets
    numbers = [int(match["part"]) for match in found.values() if match]
    if parts > 100_000 or sorted(numbers) != list(range(1, parts + 1)):
        lacking = sorted(set(range(1, min(parts, 100_000) + 1)) - set(numbers))
        text = f"has {some(present)}, but of {parts} shards there must be each once; missing: {some(map(str, lacking))}"
        raise InputError(text, file=folder, code="missing_shards")
    return present


def _compare(listed: Mapping[str, str], tensors: Mapping[str, Stored], folder: Path) -> None:
    """Refuses when the index and the shards disagree, and lists every way in which they do."""
    complaints = {
        "listed but not there": [f"{name} ({file})" for name, file in listed.items() if name not in tensors],
        "there but not listed": [f"{name} ({at.file.name})" for name, at in tensors.items() if name not in listed],
        "in another shard than listed": [
            f"{name} ({at.file.name})" for name, at in tensors.items() if listed.get(name, at.file.name) != at.file.name
        ],
    }
    if told := "; ".join(f"{what}: {some(names)}" for what, names in complaints.items() if names):
        raise InputError(f"the index and the shards disagree: tensors {told}", file=folder, code="index_mismatch")
