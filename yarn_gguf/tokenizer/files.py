"""The files of a tokenizer in a checkpoint's folder, read within bounds and checked for their shape.

Knows what lies where in `tokenizer.json` and its neighbours. Does not know GGUF, llama.cpp, or what any model class
makes of it. Nothing of a checkpoint is ever run or rendered: a template is text, a tokenizer class is a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from yarn_gguf.errors import InputError
from yarn_gguf.json_file import json_object as parsed
from yarn_gguf.json_file import read_bounded

Json = Mapping[str, Any]

LARGEST_FILE: Final = 256 << 20  # the largest known tokenizer.json, of 262144 tokens, has 33 MiB
SHOWN: Final = 60  # characters of a value that is wrong
LARGEST_ID: Final = (1 << 31) - 1
PIPELINE: Final = (
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
)  # of tokenizer.json, each a tree of steps
INSIDE: Final = ("normalizers", "pretokenizers", "processors", "decoders")  # where a step holds others
SURROGATES: Final = "holds half of a surrogate pair, which no UTF-8 can spell"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of a text before anything else looks at it."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerJson:
    """`tokenizer.json`, as far as its shape is known to be right; the rest as it is."""

    path: Path
    raw: Json
    model: Json
    vocab: Mapping[str, int]
    merges: tuple[str, ...]  # "left right", a space inside a part spelled Ġ
    added: tuple[AddedToken, ...]

    @property
    def byte_fallback(self) -> bool:
        return bool(self.model.get("byte_fallback"))

    @property
    def ignore_merges(self) -> bool:
        return bool(self.model.get("ignore_merges"))


def content(path: Path, wanted: str = "the folder of a checkpoint") -> bytes | None:
    """A file's bytes, or None where there is none."""
    if not path.exists():
        return None
    return read_bounded(path, LARGEST_FILE, wanted, "too_large")


def text(path: Path) -> str | None:
    """A file's text as Python reads it, with line ends as \\n."""
    found = content(path)
    if found is None:
        return None
    try:
        return found.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error}", file=path, code="bad_tokenizer") from error


def json_object(path: Path) -> Json | None:
    """A file's JSON object, or None where there is no such file."""
    found = content(path)
    return None if found is None else parsed(found, path, "bad_tokenizer")


def refuse_surrogates(texts: Iterator[str], path: Path) -> None:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"a token {SURROGATES}", file=path, code="bad_tokenizer") from error


def read_tokenizer_json(folder: Path) -> TokenizerJson | None:
    path = folder / "tokenizer.json"
    raw = json_object(path)
    if raw is None:
        return None
    model = raw.get("model")
    if not isinstance(model, dict):
        raise InputError("has no model object", file=path, code="bad_tokenizer")
    _refuse_shapes(raw, path)
    vocab = _vocab(model.get("vocab"), path) if model.get("type", "BPE") == "BPE" else {}
    added = tuple(added_token(each, path) for each in _list(raw, "added_tokens", path))
    merges = tuple(_merges(_list(model, "merges", path), path))
    refuse_surrogates(iter(each.content for each in added), path)
    refuse_surrogates(iter(merges), path)
    return TokenizerJson(path, raw, model, MappingProxyType(vocab), merges, added)


def _refuse_shapes(raw: Json, path: Path) -> None:
    """Every step of the pipeline is an object with the name of its type, and steps inside it are a list."""
    left = [(name, raw.get(name)) for name in PIPELINE]
    while left:
        name, step = left.pop()
        if step is None:
            continue
        if not isinstance(step, dict):
            raise InputError(f"{name} holds {shown(step)}, not an object", file=path, code="bad_tokenizer")
        if not isinstance(step.get("type"), str | None):
            text = f"{name} has the type {shown(step['type'])}, not a name"
            raise InputError(text, file=path, code="bad_tokenizer")
        left.extend((f"{name}.{each}", inside) for each in INSIDE for inside in _list(step, each, path))


def shown(value: object) -> str:
    """A JSON value for an error, cut short."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _list(within: Json, name: str, path: Path) -> list[Any]:
    found = within.get(name)
    if found is None or found == {}:
        return []
    if not isinstance(found, list):
        raise InputError(f"{name} is a JSON {type(found).__name__}, not a list", file=path, code="bad_tokenizer")
    return found


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID


def id_of(value: object, name: str) -> int | None:
    """A number as the id that it must be; None for all else, which names no token."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if not is_id(value):
        raise InputError(f"{name} is {value}, which no token has", code="bad_tokenizer")
    return value


def _vocab(found: object, path: Path) -> dict[str, int]:
    if not isinstance(found, dict) or not all(is_id(each) for each in found.values()):
        raise InputError("model.vocab is not an object of token ids", file=path, code="bad_tokenizer")
    if len(set(found.values())) != len(found):
        raise InputError("model.vocab gives one id to two tokens", file=path, code="bad_tokenizer")
    refuse_surrogates(iter(found), path)
    return found


def added_token(found: object, path: Path, number: object = None) -> AddedToken:
    """One entry of added_tokens, or of added_tokens_decoder with its id given as `number`."""
    if not isinstance(found, dict):
        raise InputError("an added token is not an object", file=path, code="bad_tokenizer")
    token_id, token = found.get("id") if number is None else number, found.get("content")
    if not is_id(token_id) or not isinstance(token, str):
        raise InputError("an added token lacks its id or content", file=path, code="bad_tokenizer")
    special = bool(found.get("special", False))
    flags = {name: bool(found.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    normalized = bool(found.get("normalized", not special))
    return AddedToken(int(str(token_id)), token, special, normalized, **flags)


def _merges(found: list[Any], path: Path) -> Iterator[str]:
    """Old files hold "left right", new ones ["left", "right"]; a space in a part becomes Ġ."""
    for pair in found:
        if isinstance(pair, str):
            yield pair
        elif isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str):
            yield f"{pair[0].replace(' ', 'Ġ')} {pair[1].replace(' ', 'Ġ')}"
        else:
            raise InputError("model.merges holds something that is no pair", file=path, code="bad_tokenizer")


def read_merges(folder: Path) -> tuple[str, ...]:
    """`merges.txt`, the older spelling of the merges; empty where there is none."""
    lines = (text(folder / "merges.txt") or "").split("\n")
    if lines[0].strip().startswith("#"):
        del lines[0]
    pairs = (line.strip().split(None, 3) for line in lines)
    return tuple(" ".join(pair) for pair in pairs if len(pair) == 2)
