"""One model out of one file or of a split set (`NAME-00001-of-0000N.gguf`), each part proven, and all together.

Part 1 carries the metadata; the others repeat only their number. A part that is missing, stands twice or belongs to
another model is an error that lists them. Knows the `split.*` keys and no others.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo
from yarn_gguf.gguf_file.reader import read_header

SPLIT_NO: Final = "split.no"
SPLIT_COUNT: Final = "split.count"
SPLIT_TENSORS: Final = "split.tensors.count"
MAX_PARTS: Final = 99_999  # what five digits can name
LISTED: Final = 8  # of what is wrong, in one line
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_path(path: Path, number: int, count: int) -> Path:
    """The name of part `number` (from 1) of the set that `path` is a part of, or the stem of."""
    match = _PART_NAME.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".gguf")
    return path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf")


@dataclass(frozen=True)
class Model:
    """The headers of all parts, in order."""

    parts: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.parts[0]

    @property
    def path(self) -> Path:
        return self.first.path

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self.first.entries

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, TensorInfo]]:
        """Every tensor, with the index of the part that holds it."""
        return {name: (i, t) for i, part in enumerate(self.parts) for name, t in part.tensors.items()}

    @property
    def bytes(self) -> int:
        return sum(part.stamp.size for part in self.parts)

    @property
    def trailing(self) -> int:
        return sum(part.trailing for part in self.parts)


def read_model(path: str | os.PathLike[str], *, strict: bool = False) -> Model:
    """Reads a file, or the whole set that it is a part of. `strict` refuses bytes behind the last tensor."""
    where = Path(path)
    header = read_header(where)
    count = _split_number(header, SPLIT_COUNT) or 1
    if not 0 < count <= MAX_PARTS:
        raise InputError(f"{SPLIT_COUNT} is {count}; sets of up to {MAX_PARTS} are read", file=where, code="bad_split")
    model = Model((header,)) if count == 1 else _read_set(where, header, count)
    if strict and model.trailing:
        raise InputError(f"{model.trailing} bytes behind the last tensor", file=where, code="trailing_bytes")
    return model


def _split_number(header: Header, key: str) -> int | None:
    value = header.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{key} must be an integer", file=header.path, code="bad_split")
    return value


def _read_set(where: Path, header: Header, count: int) -> Model:
    match = _PART_NAME.fullmatch(where.name)
    if match is None or int(match["count"]) != count or not 0 < int(match["number"]) <= count:
        text = f"is one of {count} parts, so its name must end in -00001-of-{count:05d}.gguf; give it that name again"
        raise InputError(text, file=where, code="bad_split")
    paths = [part_path(where, number, count) for number in range(1, count + 1)]
    missing = list(islice((p.name for p in paths if not p.exists()), LISTED + 1))
    if missing:
        raise InputError(f"parts missing beside it: {_list(missing)}", file=where, code="split_missing")
    parts = tuple(header if p == where else read_header(p) for p in paths)
    _check_set(where, parts)
    return Model(parts)


def _list(names: Sequence[str]) -> str:
    """As many names as fit a line."""
    return ", ".join(names[:LISTED]) + (" and more" if len(names) > LISTED else "")


def _check_set(where: Path, parts: tuple[Header, ...]) -> None:
    wrong = []
    for number, part in enumerate(parts):
        found, count = _split_number(part, SPLIT_NO), _split_number(part, SPLIT_COUNT)
        if found != number or count not in (None, len(parts)):
            wrong.append(f"{part.path.name} says {SPLIT_NO} {found} of {count}, not {number} of {len(parts)}")
    names = [name for part in parts for name in part.tensors]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        wrong.append(f"tensors that stand twice: {_list(twice)}")
    declared = _split_number(parts[0], SPLIT_TENSORS)
    if declared is not None and declared != len(names):
        wrong.append(f"{SPLIT_TENSORS} is {declared}, the parts hold {len(names)}")
    if len({part.alignment for part in parts}) > 1:
        wrong.append("the parts have different alignments")
    if wrong:
        text = f"the parts do not belong together: {'; '.join(wrong[:LISTED])}; download the set again"
        raise InputError(text, file=where, code="split_mixed")
