"""The `general.*` keys and the default file name: who made a model, of what, how large it is, how to sample from it.

All of it is hearsay: the front matter of the model card (README.md), generation_config.json, `_name_or_path` of
config.json, and what the names of models and folders look like. It is read as llama.cpp's own converter reads it, so
that a file is called the same whoever made it. What that converter would stumble over (a field of the wrong type, a
card that is no YAML, a file of any size) is passed over, with a note.

Knows nothing of architectures, vocabularies and RoPE; computes nothing that a runtime needs.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from yarn_gguf.config.fields import Json, shown
from yarn_gguf.conversion.model_card import Notes, read_card, read_json
from yarn_gguf.conversion.model_names import name_parts, titled
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, Scalar, array_entry, entry

if TYPE_CHECKING:
    pass

Related: TypeAlias = tuple[Mapping[str, str], ...]  # models or datasets, each by the last part of its keys

CARD: Final = "README.md"
MOST_RELATED: Final = 1024
LONGEST_NAME: Final = 255  # bytes that a file name may have

TEXTS: Final = {  # field → key, in the order of the file; the rest of the keys comes after
    "name": "name",
    "author": "author",
    "version": "version",
    "organization": "organization",
    "finetune": "finetune",
    "basename": "basename",
    "description": "description",
    "size_label": "size_label",
    "license": "license",
    "license_name": "license.name",
    "license_link": "license.link",
    "source_url": "source.url",
    "source_doi": "source.doi",
    "source_uuid": "source.uuid",
    "source_repo_url": "source.repo_url",
}
# where the model card may hold each: the first that is there and not null
CARD_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (name, f"model_{name}") for name in ("name", "version", "organization", "description", "finetune")},
    "author": ("author", "model_author", "model_creator"),
    "basename": ("basename", "model_basename", "model_type"),
    "size_label": ("size_label", "model_size_label"),
    **{f"source_{name}": (name, f"model_{name}") for name in ("url", "doi", "uuid", "repo_url")},
    **{name: (name,) for name in ("license", "license_name", "license_link")},
}
BASE_MODELS: Final = ("base_model", "base_models", "base_model_sources")
DATASETS: Final = ("datasets", "dataset", "dataset_sources")
RELATED: Final = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
LISTS: Final = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
SAMPLING: Final[Mapping[str, tuple[tuple[str, ...], ValueType]]] = {  # key → fields of generation_config.json, type
    "sequence": (("sequence",), ValueType.STRING),
    "top_k": (("top_k",), ValueType.INT32),
    "top_p": (("top_p",), ValueType.FLOAT32),
    "min_p": (("min_p",), ValueType.FLOAT32),
    "xtc_probability": (("xtc_probability",), ValueType.FLOAT32),
    "xtc_threshold": (("xtc_threshold",), ValueType.FLOAT32),
    "temp": (("temperature",), ValueType.FLOAT32),
    "penalty_last_n": (("penalty_last_n",), ValueType.INT32),
    "penalty_repeat": (("penalty_repeat", "repetition_penalty"), ValueType.FLOAT32),
    "mirostat": (("mirostat",), ValueType.INT32),
    "mirostat_tau": (("mirostat_tau",), ValueType.FLOAT32),
    "mirostat_eta": (("mirostat_eta",), ValueType.FLOAT32),
}
ITEMS: Final = {str: ValueType.STRING, float: ValueType.FLOAT32, bool: ValueType.BOOL, int: ValueType.INT32}

_HUB: Final = re.compile(r"https?://huggingface.co/([^/]+/[^/]+)$")
_LINK: Final = ("http://", "https://", "ssh://")
_NO_FILE_NAME: Final = re.compile("[/\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Weights of a model; those of an expert are summed over the layers, for one expert of each."""

    total: int
    shared: int
    expert: int
    experts: int  # of a layer; the mean, where layers differ


@dataclass(frozen=True, slots=True)
class General:
    """What is known of a model. A text that is empty is known to be empty, and is not written."""

    texts: Mapping[str, str]
    sampling: Mapping[str, Scalar]
    base_models: Related | None
    datasets: Related | None
    lists: Mapping[str, tuple[Scalar, ...]]
    notes: tuple[str, ...] = field(default=())


def count_parameters(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> ParameterCounts:
    """GGUF tensors by name and shape (slowest axis first); stacked experts are known by `_exps.` in the name."""
    total = shared = expert = experts = stacks = 0
    for name, shape in tensors:
        size = math.prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            here = shape[-2 if ".bias" in name else -3]
            expert, experts, stacks = expert + size // here, experts + here, stacks + 1
        else:
            shared += size
    return ParameterCounts(total, shared, expert, experts // stacks if stacks else 0)


def read_general(
    folder: Path, parameters: ParameterCounts, name: str | None = None, called: str | None = None
) -> General:
    """What the files beside the weights say, and the folder's name; `name` is written in the place of what they say.

    `called` stands for the folder's name where that says nothing: the folder of a commit in the hub's cache.
    """
    notes: Notes = []
    card, config = read_card(folder / CARD, notes), read_json(folder / "config.json", notes)
    texts = {field: found for field in CARD_FIELDS if (found := _from_card(card, field, notes)) is not None}
    for model in (_name_of_config(config, notes), called or _own_name(folder)):
        for field_name, said in titled(name_parts(model, parameters.total))._asdict().items():
            if said is not None:
                texts.setdefault(field_name, said)
    if name is not None:
        texts["name"] = _utf8(name)
    if parameters.total > 0:
        texts.setdefault("size_label", _size_label(parameters))
    lists = {key: _list(card, key, notes) for key in LISTS}
    sampling = _sampling(read_json(folder / "generation_config.json", notes), notes)
    return General(
        texts=MappingProxyType(texts),
        sampling=MappingProxyType(sampling),
        base_models=_related(card, BASE_MODELS, parameters.total, notes),
        datasets=_related(card, DATASETS, parameters.total, notes),
        lists=MappingProxyType({key: values for key, values in lists.items() if values}),
        notes=tuple(dict.fromkeys(notes)),
    )


def entries(general: General) -> list[Entry]:
    """`general.type` and what comes before the architecture's own keys, in upstream's order."""
    made = [entry("general.type", ValueType.STRING, "model")]
    made += [entry(f"general.sampling.{key}", SAMPLING[key][1], value) for key, value in general.sampling.items()]
    known = ((key, general.texts.get(name)) for name, key in TEXTS.items())
    made += [entry(f"general.{key}", ValueType.STRING, text) for key, text in known if text]
    for kind, related in (("base_model", general.base_models), ("dataset", general.datasets)):
        if related is not None:
            made.append(entry(f"general.{kind}.count", ValueType.UINT32, len(related)))
        for number, each in enumerate(related or ()):
            texts = ((key, each[key]) for key in RELATED if each.get(key))
            made += [entry(f"general.{kind}.{number}.{key}", ValueType.STRING, text) for key, text in texts]
    made += [array_entry(f"general.{key}", ITEMS[type(values[0])], values) for key, values in general.lists.items()]
    return made


def default_name(general: General, outtype: str) -> str:
    """The name of a GGUF that nobody gave one, `base-size-tuning-version-TYPE.gguf`: one that stays in its folder."""
    texts = general.texts
    spelled = {name: _NO_FILE_NAME.sub("-", text.strip().replace(" ", "-")) for name, text in texts.items()}
    if "size_label" in texts:  # upstream keeps its spaces
        spelled["size_label"] = _NO_FILE_NAME.sub("-", texts["size_label"])
    stem = spelled.get("basename", spelled.get("name", ""))
    parts = [spelled[name] for name in ("size_label", "finetune", "version") if name in spelled]
    tail = "".join(f"-{part}" for part in [*parts, outtype.upper()]) + ".gguf"
    room = LONGEST_NAME - len(tail.encode())
    if room < 0:
        return f"{_cut(stem, LONGEST_NAME // 2)}-{outtype.upper()}.gguf"
    return _cut(stem, room) + tail


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _size_label(parameters: ParameterCounts) -> str:
    """135M, 1.2B, 8x7B: two digits at least, of the weights that one expert of each layer and all the others have."""
    if parameters.experts:
        return f"{parameters.experts}x{_rounded(parameters.shared + parameters.expert)}"
    return _rounded(parameters.total)


_SCALES: Final = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1, 1e-3, "K"))


def _rounded(count: int) -> str:
    scale, letter = next(((scale, letter) for least, scale, letter in _SCALES if count > least))
    scaled = count * scale
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{letter}"


def _own_name(folder: Path) -> str:
    """The folder's name, also where it was given as a dot; bytes that are no text are replaced."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return _utf8(name)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _name_of_config(config: Json, notes: Notes) -> str | None:
    given = config.get("_name_or_path")
    model = _text(given, "config.json: _name_or_path", notes)
    if model is None or not isinstance(given, str) or model.count("/") > 1:  # a path on somebody's disk
        return None
    return model


# ---- the model card


def _from_card(card: Json, name: str, notes: Notes) -> str | None:
    for key in CARD_FIELDS[name]:
        value = card.get(key)
        if name == "license" and isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        if (text := _text(value, f"{CARD}: {key}", notes)) is not None:
            return text
    return None


def _text(value: object, where: str, notes: Notes) -> str | None:
    """The text; none, with a note, where it is something else. What is empty in any way is an empty text."""
    if value is None:
        return None
    if isinstance(value, str) and _encodable(value):
        return value
    if not value:
        return ""
    notes.append(f"{where} is {_shown(value)} where text must be, and is passed over")
    return None


def _shown(value: object) -> str:
    """YAML can spell, in base 16 or 60, numbers that Python does not print."""
    return "a huge number" if isinstance(value, int) and value.bit_length() > 128 else shown(value)


def _encodable(text: str) -> bool:
    """No lone surrogate, which JSON and YAML can spell and UTF-8 cannot."""
    return text.isascii() or not re.search("[\\ud800-\\udfff]", text)


def _list(card: Json, name: str, notes: Notes) -> tuple[Scalar, ...]:
    """All that the fields hold, as values of one type; a text counts as a list of one."""
    held: list[Any] = []
    for key in LISTS[name]:
        value = card.get(key)
        held += [value] if isinstance(value, str) else value if isinstance(value, list) else []
    kind = next((type(each) for each in held if type(each) in ITEMS), str)
    fitting = [type(each) is kind and _fits(ITEMS[kind], each) for each in held]
    if not all(fitting):
        notes.append(f"{CARD}: {name} hold {_shown(held[fitting.index(False)])}, which is passed over")
    return tuple(each for each, fits in zip(held, fitting, strict=True) if fits)


def _fits(kind: ValueType, value: Any) -> bool:
    if kind is ValueType.STRING:
        return isinstance(value, str) and _encodable(value)
    try:
        entry("", kind, value)
    except (struct.error, OverflowError):
        return False
    return True


def _related(card: Json, keys: tuple[str, ...], total: int, notes: Notes) -> Related | None:
    """The models or datasets under the first of these keys that is there."""
    key = next((key for key in keys if key in card), None)
    if key is None:
        return None
    value = card[key]
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if len(listed) > MOST_RELATED:
        notes.append(f"{CARD}: {key} lists {len(listed)} of them, of which the first {MOST_RELATED} are kept")
    return tuple(_relative(each, f"{CARD}: {key}", total, notes) for each in listed[:MOST_RELATED])


def _relative(value: object, where: str, total: int, notes: Notes) -> Mapping[str, str]:
    """A link, an identifier, or an object that has the keys already."""
    if isinstance(value, dict):
        told = {key: _text(value[key], f"{where}.{key}", notes) for key in RELATED if key in value}
        return {key: text for key, text in told.items() if text}
    text = _text(value, where, notes)
    if not text:
        return {}
    link = text.startswith(_LINK)
    found = _HUB.match(text) if link else None
    parts = name_parts(found[1] if found else None if link else text, total)
    repository = f"https://huggingface.co/{parts.organization}/{parts.name}" if parts.organization is not None else None
    said = titled(parts)
    known = {"name": said.name, "version": said.version, "organization": said.organization}
    known["repo_url"] = text if link else repository
    return {key: its for key, its in known.items() if its}


def _sampling(config: Json, notes: Notes) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for key, (names, kind) in SAMPLING.items():
        name = next((name for name in names if name in config), names[0])
        value = config.get(name)
        if value is None or (kind is ValueType.STRING and not value):
            continue
        if _fits(kind, value):
            found[key] = cast("Scalar", value)
        else:
            notes.append(f"generation_config.json: {name} is {_shown(value)}, which the key cannot hold; passed over")
    return found
