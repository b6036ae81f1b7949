"""`tokenizer.model`, SentencePiece's file: its pieces with score and kind, read from the protobuf wire itself.

Knows four fields of the format and skips the rest within bounds. Does not tokenize, and needs no protobuf.

    model   1: piece (repeated message)   2: trainer (message)   3: normalizer (message)
    piece   1: text   2: score (float32)   3: kind (enum)
    trainer 3: model_type (enum)           normalizer 3: add_dummy_prefix   4: remove_extra_whitespaces
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from yarn_gguf.errors import InputError

MOST_PIECES: Final = 1 << 24


class Kind(IntEnum):
    """Of a piece. The numbers are SentencePiece's own, and GGUF's token types too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Algorithm(IntEnum):
    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


class _Bad(Exception):
    """The bytes are no such message."""


def read_sentencepiece(found: bytes, path: Path) -> SentencePieceModel:
    try:
        return _model(found)
    except (_Bad, ValueError) as error:  # ValueError: a kind that does not exist, text that is not UTF-8
        raise InputError(f"is not a SentencePiece model: {error}", file=path, code="bad_tokenizer") from error


def _model(found: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    algorithm, prefix, extra = Algorithm.UNIGRAM, True, True
    for field, value in _fields(memoryview(found)):
        if field == 1:
            pieces.append(_piece(_message(value)))
        elif field == 2:
            algorithm = Algorithm(_number(_message(value), 3, Algorithm.UNIGRAM))
        elif field == 3:
            prefix, extra = bool(_number(_message(value), 3, 1)), bool(_number(_message(value), 4, 1))
    if not 0 < len(pieces) <= MOST_PIECES:
        raise _Bad(f"it has {len(pieces)} pieces")
    return SentencePieceModel(tuple(pieces), algorithm, prefix, extra)


def _piece(message: memoryview) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for field, value in _fields(message):
        if field == 1:
            text = str(_message(value), "utf-8")
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = Kind(value)
    return Piece(text, score, kind)


def _message(value: object) -> memoryview:
    if not isinstance(value, memoryview):
        raise _Bad("a number stands where a message should")
    return value


def _number(message: memoryview, wanted: int, default: int) -> int:
    """The last value of a field, as protobuf has it."""
    for field, value in _fields(message):
        if field == wanted and isinstance(value, int):
            default = value
    return default


def _fields(message: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield field, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = _varint(message, at)
        if length is None or field == 0:
            raise _Bad(f"byte {at} starts no field")
        if length > end - at:
            raise _Bad(f"the field at byte {at} needs {length} bytes, {end - at} are left")
        inside = message[at : at + length]
        at += length
        yield field, struct.unpack("<f", inside)[0] if wire == 5 else inside


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Bad("it ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Bad(f"the number before byte {at} is too long")
