"""A vocabulary as a GGUF holds it: frozen values, and the key/values that they become.

Knows the names and types of the `tokenizer.*` keys. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from string import ascii_letters, digits
from typing import Final

from yarn_gguf.findings import Finding
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, array_entry, entry
from yarn_gguf.tokenizer.files import AddedToken
from yarn_gguf.tokenizer.special_tokens import Roles, Templates


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MODEL: Final = "tokenizer.ggml.model"
PRE: Final = "tokenizer.ggml.pre"
TOKENS: Final = "tokenizer.ggml.tokens"
SCORES: Final = "tokenizer.ggml.scores"
TYPES: Final = "tokenizer.ggml.token_type"
MERGES: Final = "tokenizer.ggml.merges"
TEMPLATE: Final = "tokenizer.chat_template"
TEMPLATES: Final = "tokenizer.chat_templates"
PREFIX: Final = "tokenizer.ggml.add_space_prefix"
LOWERCASE: Final = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS: Final = "tokenizer.ggml.normalizer.strip_accents"
_SPELLED: Final = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
# roles that have a key in a GGUF; others (cls, the text infill ones of some converters) have none
ID_ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom")
ADD_ROLES: Final = ("bos", "eos", "sep")


def id_key(role: str) -> str:
    return f"tokenizer.ggml.{_SPELLED.get(role, role)}_token_id"


def add_key(role: str) -> str:
    return f"tokenizer.ggml.add_{role}_token"


_KINDS: Final[Mapping[type, ValueType]] = {bool: ValueType.BOOL, int: ValueType.UINT32, str: ValueType.STRING}
Value = bool | int | str | tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    model: str  # llama.cpp's tokenizer: gpt2, llama or gemma4
    pre: str | None
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    # everything else, and where the lists above stand among it (None), in the order of the file
    keys: Mapping[str, Value | None]
    nfc: bool = False  # the original normalizes to NFC, which llama.cpp never does
    deviates: frozenset[str] = frozenset()  # kinds of text on which llama.cpp is known to differ
    exhaustive: bool = False  # the proof must try every token
    notes: tuple[Finding, ...] = ()
    original: Path | None = None  # tokenizer.json, where there is one, and for the proof of what llama.cpp makes of it:
    added: tuple[AddedToken, ...] = ()  # its added tokens, as transformers has them
    late: tuple[AddedToken, ...] = ()  # those of them that only tokenizer_config.json has

    def id(self, role: str) -> int | None:
        found = self.keys.get(id_key(role))
        return None if found is None else int(str(found))

    @property
    def special_ids(self) -> dict[str, int]:
        return {role: found for role in ID_ROLES if (found := self.id(role)) is not None}

    def adds(self, role: str) -> bool | None:
        """Whether a bos, eos or sep is put around a text; None where the runtime decides."""
        found = self.keys.get(add_key(role))
        return None if found is None else bool(found)

    @property
    def templates(self) -> dict[str, str]:
        """Every chat template by its name, as text."""
        start = f"{TEMPLATE}."
        named = {key.removeprefix(start): str(text) for key, text in self.keys.items() if key.startswith(start)}
        return {**({"default": str(self.keys[TEMPLATE])} if TEMPLATE in self.keys else {}), **named}


@dataclass
class Keys:
    """What upstream's writer holds: a key written again keeps its place, and takes the new value."""

    found: dict[str, Value | None] = field(default_factory=dict)

    def add_roles(self, roles: Roles, merges: bool) -> None:
        if merges:
            self.found[MERGES] = None
        self.found.update((id_key(role), token) for role, token in roles.ids.items() if role in ID_ROLES)
        self.found.update((add_key(role), adds) for role, adds in roles.added.items() if role in ADD_ROLES)
        self.add_templates(roles.templates)
        normalizers = ((LOWERCASE, roles.lowercase), (STRIP_ACCENTS, roles.strip_accents))
        self.found.update((key, value) for key, value in normalizers if value is not None)

    def add_templates(self, templates: Templates) -> None:
        if isinstance(templates, str):
            self.found[TEMPLATE] = templates
            return
        default, names = None, []
        for name, template in templates or ():
            plain = "".join(c if c in ascii_letters + digits else "_" for c in name)
            if plain == "default":
                default = template
                continue
            names.append(plain)
            self.found[f"{TEMPLATE}.{plain}"] = template
        if names:
            self.found[TEMPLATES] = tuple(dict.fromkeys(names))
        if default is not None:
            self.found[TEMPLATE] = default


def entries(vocabulary: Vocabulary) -> list[Entry]:
    """The tokenizer's key/values, in upstream's order."""
    return list(_entries(vocabulary))


def _entries(vocabulary: Vocabulary) -> Iterator[Entry]:
    lists: dict[str, tuple[ValueType, Sequence[str | int | float]]] = {
        TOKENS: (ValueType.STRING, vocabulary.tokens),
        SCORES: (ValueType.FLOAT32, vocabulary.scores or ()),
        TYPES: (ValueType.INT32, vocabulary.types),
        MERGES: (ValueType.STRING, vocabulary.merges or ()),
    }
    for key, value in vocabulary.keys.items():
        if value is None:
            kind, items = lists[key]
            yield array_entry(key, kind, items)
        elif isinstance(value, tuple):
            yield array_entry(key, ValueType.STRING, value)
        else:
            yield entry(key, _KINDS[type(value)], value)
