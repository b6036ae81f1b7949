"""Which tokens have a role, whether they are added around a text, and the chat templates: what upstream writes of them.

Knows how llama.cpp's converter reads roles out of `tokenizer.json`, `tokenizer_config.json` and `config.json`, in which
order, and which of them wins. Does not know GGUF's keys, nor any model class. A template is text, never rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from yarn_gguf.errors import InputError, about
from yarn_gguf.tokenizer.files import Json, TokenizerJson, id_of, is_id, json_object, refuse_surrogates, shown, text

ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
Templates = str | tuple[tuple[str, str], ...] | None  # one, or named ones in their order


@dataclass
class Roles:
    """Filled step by step: the first to name a role's token wins."""

    names: tuple[str, ...] = ROLES
    tokens: int | None = None  # ids from here on are passed over
    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)  # whether it is put around a text
    templates: Templates = None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    # roles of which tokenizer_config.json says the contrary of `added`, and what it says
    contradicted: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, role: str, token_id: object) -> None:
        found = id_of(token_id, f"{role}_token_id")
        if found is None:
            return
        if self.tokens is None or found < self.tokens:
            self.ids.setdefault(role, found)
        else:
            self.notes.append(f"the {role} token {found} is passed over: there are {self.tokens} tokens")


def read_roles(
    folder: Path, tokenizer: TokenizerJson | None, tokens: int | None = None, names: Iterable[str] = ROLES
) -> Roles:
    """`tokens`: how many there are, where the caller wants ids beyond them passed over."""
    roles = Roles(tuple(names), tokens)
    config = json_object(folder / "tokenizer_config.json")
    settings = dict(config) if config else None
    if tokenizer is not None:
        with about(tokenizer.path):
            _read_normalizer(roles, tokenizer.raw.get("normalizer"))
        _read_processors(roles, tokenizer, settings)
    if settings is not None:
        roles.templates = read_templates(folder, settings, roles)
        _read_settings(roles, settings, tokenizer)
    with about(folder / "config.json"):
        _read_config(roles, json_object(folder / "config.json") or {})
    return roles


def _read_normalizer(roles: Roles, found: object) -> None:
    if not isinstance(found, dict):
        return
    kind = found.get("type")
    if kind == "Lowercase":
        roles.lowercase = True
    elif kind == "StripAccents":
        roles.strip_accents = True
    elif kind == "BertNormalizer":
        roles.lowercase = _flag(found, "lowercase", roles.lowercase)
        roles.strip_accents = _flag(found, "strip_accents", roles.strip_accents)
    elif kind == "Sequence":
        for each in found.get("normalizers") or ():
            _read_normalizer(roles, each)


def _flag(found: Json, name: str, default: bool | None) -> bool | None:
    value = found.get(name, default)
    if value is None or isinstance(value, bool):
        return value
    raise InputError(f"normalizer.{name} is {shown(value)}, not true, false or null", code="bad_tokenizer")


def _read_processors(roles: Roles, tokenizer: TokenizerJson, settings: dict[str, Any] | None) -> None:
    """What the post-processor puts around a text. It may name tokens that the settings leave out, or overrule them."""
    values = settings if settings is not None else {}
    if not values.get("bos_token") and values.get("cls_token"):
        values["bos_token"] = values["cls_token"]
    if not values.get("eos_token") and values.get("sep_token"):
        values["eos_token"] = values["sep_token"]
    found = tokenizer.raw.get("post_processor")
    if not isinstance(found, dict):
        return
    processors = found.get("processors", [found])
    for each in processors if isinstance(processors, list) else ():
        kind = each.get("type") if isinstance(each, dict) else None
        if kind == "ByteLevel":
            roles.added.setdefault("bos", False)
            roles.added.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            roles.added.update(bos=True, eos=True, sep=True)
            for role in ("cls", "sep"):
                pair = each.get(role)
                if not values.get(f"{role}_token") and isinstance(pair, list) and pair:
                    values[f"{role}_token"] = pair[0]
        elif kind == "TemplateProcessing":
            _Template(roles, values, has_settings=bool(settings)).read(each)


def _special(piece: object, kind: str = "SpecialToken") -> Any:
    inside = piece.get(kind) if isinstance(piece, dict) else None
    return inside.get("id") if isinstance(inside, dict) else None


@dataclass
class _Template:
    """A TemplateProcessing: `single` is for one text, `pair` for two, each a list of special tokens and sequences."""

    roles: Roles
    values: dict[str, Any]
    has_settings: bool

    def read(self, found: Json) -> None:
        single, pair = found.get("single"), found.get("pair")
        first = last = None
        if isinstance(single, list) and len(single) > 1:
            first, last = _special(single[0]), _special(single[-1])
            if first:
                self._first(first)
            if last:
                self._last(last)
        if isinstance(pair, list) and pair:
            self._pair(pair, first, last)

    def _first(self, token: str) -> None:
        known = (self.values.get("bos_token"), self.values.get("cls_token"))
        if token not in known:
            for role in ("bos", "cls"):
                if not self.values.get(f"{role}_token") and (self.has_settings or role == "bos"):
                    self.values[f"{role}_token"] = token
            if not self.has_settings:
                self.values["bos_token"] = token
        self.roles.added["bos"] = token in (self.values.get("bos_token"), self.values.get("cls_token"))

    def _last(self, token: str) -> None:
        """Another last token than the eos of the settings becomes the eos, and the eos becomes eot or eom."""
        before = self.values.get("eos_token")
        if self.has_settings and token != before:
            spare = next((role for role in ("eot", "eom") if role not in self.roles.names), None)
            if spare is not None:
                self.roles.names = (*self.roles.names, spare)
                self.values[f"{spare}_token"] = before
        self.values["eos_token"] = token
        self.roles.added["eos"] = True

    def _pair(self, pair: list[Any], first: object, last: object) -> None:
        begin = 1 if first and _special(pair[0]) == first else 0
        middle = pair[begin : -1 if last and _special(pair[-1]) == last else None]
        if len(middle) < 3 or _special(middle[0], "Sequence") != "A" or _special(middle[-1], "Sequence") != "B":
            return
        between = middle[1:-1]
        separators = [each for each in (self.values.get("sep_token"), self.values.get("eos_token")) if each is not None]
        add = _special(between[0]) in separators and not last
        if len(between) == 2 and _special(between[1]) in separators:
            add = True
        self.roles.added["sep"] = add
        if add and not self.values.get("sep_token") and self.has_settings:
            self.values["sep_token"] = self.values.get("eos_token")


def _read_settings(roles: Roles, settings: Mapping[str, Any], tokenizer: TokenizerJson | None) -> None:
    ids: dict[str, int] = {}
    for token in tokenizer.added if tokenizer is not None else ():
        ids.setdefault(token.content, token.id)
    for role in roles.names:
        adds = settings.get(f"add_{role}_token")
        if isinstance(adds, bool) and roles.added.setdefault(role, adds) != adds:
            roles.contradicted[role] = adds
        found = settings.get(f"{role}_token")
        name = found.get("content") if isinstance(found, dict) else found
        if isinstance(name, str):
            roles.set(role, ids.get(name))


def _read_config(roles: Roles, config: Json) -> None:
    nested = config.get("text_config")
    for role in roles.names:
        token_id = config.get(f"{role}_token_id")
        if token_id is None and isinstance(nested, dict):
            token_id = nested.get(f"{role}_token_id")
        roles.set(role, token_id)


def read_templates(folder: Path, settings: Json, roles: Roles) -> Templates:
    """tokenizer_config.json wins over chat_template.jinja, and that over chat_template.json."""
    other: object = None
    jinja = text(folder / "chat_template.jinja")
    if jinja is not None:
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        named = [{"name": path.stem, "template": text(path) or ""} for path in more]
        other = [{"name": "default", "template": jinja}, *named] if named else jinja
    else:
        other = (json_object(folder / "chat_template.json") or {}).get("chat_template")
    found = settings.get("chat_template", other)
    path = folder / "tokenizer_config.json"
    if isinstance(found, str):
        refuse_surrogates(iter((found,)), path)
        return found
    if isinstance(found, list):
        return tuple(_named(found, path))
    if found is not None:
        roles.notes.append("the chat template is neither text nor a list of named ones, and is left out")
    return None


def _named(found: list[Any], path: Path) -> Iterable[tuple[str, str]]:
    for each in found:
        name, template = (each.get("name"), each.get("template")) if isinstance(each, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise InputError("a named chat template lacks its name or its text", file=path, code="bad_tokenizer")
        refuse_surrogates(iter((template,)), path)
        if name:
            yield name, template


def token_id_of(tokenizer: TokenizerJson | None, token: str) -> int:
    for each in tokenizer.added if tokenizer is not None else ():
        if each.content == token and is_id(each.id):
            return each.id
    raise InputError(
        f"the tokenizer has no added token {token!r}, which every model of this class has",
        file=None if tokenizer is None else tokenizer.path,
        code="bad_tokenizer",
    )
