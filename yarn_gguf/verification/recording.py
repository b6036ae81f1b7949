"""`.yref`: one model's distributions over a text, small enough to hand on. A safetensors file of

    tokens             I32  [windows, context]
    wanted             U8   [windows, context]   1 where a position is recorded; these, in order, are the rows of
    counts             U32  [rows]               how many words a row has; k on average
    words              U16 or U32  [rows × k]    the most probable words, row by row, the most probable first
    log_probabilities  F32  [rows × k]           in nats
    rest               F64  [rows]               log-probability of all other words together, −inf where there are none
    following          F64  [rows]               log-probability of the token that follows, NaN where none does
    text               U8   [bytes]              the text, so that a candidate can show that it makes the same tokens

and, under `yarn_gguf` of its metadata, a JSON object with where all this comes from. Written through the page cache row
by row, so that a record of any length needs no memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.checkpoint.safetensors_file import read_header
from yarn_gguf.checkpoint.stored import Stored
from yarn_gguf.errors import InputError
from yarn_gguf.files import open_regular
from yarn_gguf.json_file import json_object
from yarn_gguf.metrics import Recorded
from yarn_gguf.verification.windows import Windows

SUFFIX: Final = ".yref"
VERSION: Final = 1
KEY: Final = "yarn_gguf"
_DTYPES: Final = {
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "F64": np.float64,
}
_ROW_TENSORS: Final = ("counts", "rest", "following")
_WORD_TENSORS: Final = ("words", "log_probabilities")


@dataclass(frozen=True)
class Record:
    """An opened file; its rows stay on disk until they are asked for."""

    path: Path
    provenance: Mapping[str, Any]
    windows: Windows
    text: bytes
    vocabulary: int
    tensors: Mapping[str, NDArray[Any]]
    starts: NDArray[np.int64]  # the first row of each window
    offsets: NDArray[np.int64]  # the first word of each row

    @property
    def top(self) -> int:
        return round(len(self.tensors["words"]) / max(len(self.tensors["counts"]), 1))

    @property
    def rest(self) -> float:
        """The probability of the words that are not recorded, averaged over all positions."""
        return float(np.exp(self.tensors["rest"]).mean())

    def rows(self, window: int, positions: NDArray[np.int64]) -> Recorded:
        """What is recorded of these positions, which must be wanted ones. The probabilities sum to one exactly:
        what rounding to float32 took is shared out, so that a divergence from them is never negative."""
        order = np.cumsum(self.windows.wanted[window]) - 1
        rows = self.starts[window] + order[positions]
        counts, rest, following = (np.asarray(self.tensors[name][rows]) for name in _ROW_TENSORS)
        counts = counts.astype(np.int64)
        row = np.repeat(np.arange(len(rows)), counts)
        places = self.offsets[rows][row] + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        words, logs = (np.asarray(self.tensors[name][places]) for name in _WORD_TENSORS)
        total = np.log(np.bincount(row, np.exp(logs.astype(np.float64)), len(rows)) + np.exp(rest))
        return Recorded(counts, words.astype(np.int64), logs - total[row], rest - total, following)


class Recorder:
    """Fills a record, in order. The file has its full size from the start; it is whole when the last row is in."""

    def __init__(
        self, path: Path, windows: Windows, top: int, vocabulary: int, text: bytes, about: Mapping[str, Any]
    ) -> None:
        self.path, self.top, rows = path, top, windows.scored
        words = "U16" if vocabulary <= 1 << 16 else "U32"
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "following": ("F64", (rows,)),
            "rest": ("F64", (rows,)),
            "log_probabilities": ("F32", (rows * top,)),
            "counts": ("U32", (rows,)),
            "tokens": ("I32", windows.tokens.shape),
            "words": (words, (rows * top,)),
            "wanted": ("U8", windows.wanted.shape),
            "text": ("U8", (len(text),)),
        }
        provenance = {"version": VERSION, "vocabulary": vocabulary, "top": top, **about}
        start, size = _write_header(path, shapes, provenance)
        self.tensors = _mapped(path, shapes, start, size)
        self.tensors["tokens"][:], self.tensors["wanted"][:] = windows.tokens, windows.wanted
        self.tensors["text"][:] = np.frombuffer(text, np.uint8)
        self.row, self.word = 0, 0

    def add(self, rows: Recorded) -> None:
        here = slice(self.row, self.row + len(rows.rest))
        inside = slice(self.word, self.word + len(rows.words))
        self.tensors["words"][inside] = rows.words
        self.tensors["log_probabilities"][inside] = rows.log_probabilities
        self.tensors["counts"][here] = rows.counts
        self.tensors["rest"][here], self.tensors["following"][here] = rows.rest, rows.following
        self.row, self.word = here.stop, inside.stop

    def close(self) -> None:
        self.tensors["words"].base.flush()  # type: ignore[union-attr]  # the one map that all are parts of
        self.tensors.clear()


def _write_header(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, Any]
) -> tuple[int, int]:
    """Leaves a file of the full size; returns where the data begin, and the size."""
    header: dict[str, Any] = {"__metadata__": {"format": "yref", KEY: json.dumps(about)}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        os.ftruncate(file.fileno(), 8 + len(text) + end)
    return 8 + len(text), 8 + len(text) + end


def _mapped(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], start: int, size: int
) -> dict[str, NDArray[Any]]:
    whole = np.memmap(path, np.uint8, "r+", shape=(size,))
    found, at = {}, start
    for name, (dtype, shape) in shapes.items():
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
        found[name] = whole[at : at + count].view(_DTYPES[dtype]).reshape(shape)
        at += count
    return found


def is_record(path: Path) -> bool:
    """By its name, or by a first header that says so."""
    if path.suffix == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return b'"format": "yref"' in file.read(256)
    except OSError:
        return False


def read_record(path: Path) -> Record:
    """Opens a record, and proves that its parts fit each other."""
    stored = {each.name: each for each in read_header(path)}
    provenance = _provenance(path)
    tensors = {
        name: _tensor(path, stored, name) for name in (*_ROW_TENSORS, *_WORD_TENSORS, "tokens", "wanted", "text")
    }
    tokens, wanted, words = tensors["tokens"], tensors["wanted"], tensors["words"]
    vocabulary = provenance.get("vocabulary")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise _bad(path, "does not say how large the vocabulary is")
    counts = np.asarray(tensors["counts"]).astype(np.int64)
    if tokens.ndim != 2 or wanted.shape != tokens.shape or words.ndim != 1 or not tokens.size:
        raise _bad(path, "has tensors whose shapes do not fit each other")
    mask = np.asarray(wanted) != 0
    rows = int(mask.sum())
    if any(tensors[name].shape != (rows,) for name in _ROW_TENSORS):
        raise _bad(path, f"has {len(counts)} rows for {rows} positions")
    if tensors["log_probabilities"].shape != words.shape or counts.sum() != len(words) or not counts.all():
        raise _bad(path, f"has {len(words)} words where its rows have {counts.sum()}")
    if not 0 <= tokens.min() <= tokens.max() < vocabulary or (rows and words.max() >= vocabulary):
        raise _bad(path, f"has words beyond its vocabulary of {vocabulary}")
    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])[:-1]
    windows = Windows(np.asarray(tokens), mask)
    text = np.asarray(tensors["text"]).tobytes()
    return Record(path, provenance, windows, text, vocabulary, tensors, starts, np.cumsum(counts) - counts)


def _tensor(path: Path, stored: Mapping[str, Stored], name: str) -> NDArray[Any]:
    found = stored.get(name)
    if found is None or found.dtype not in _DTYPES:
        raise _bad(path, f"lacks the tensor {name!r}")
    if not found.length:
        return np.zeros(found.shape, _DTYPES[found.dtype])
    return np.memmap(path, _DTYPES[found.dtype], "r", found.start, found.shape)


def _provenance(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json_object(file.read(length), path, "bad_record")
    text = (header.get("__metadata__") or {}).get(KEY)
    if not isinstance(text, str):
        raise _bad(path, "says nothing of where it comes from")
    found = json_object(text.encode(), path, "bad_record")
    if found.get("version") != VERSION:
        raise _bad(path, f"is of version {found.get('version')}, {VERSION} is read")
    return found


def _bad(path: Path, text: str) -> InputError:
    return InputError(f"{text}; make it again with yarn-gguf record", file=path, code="bad_record")
