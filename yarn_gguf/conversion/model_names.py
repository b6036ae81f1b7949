"""What the name of a model says by its usual make-up, `org/base-size-tuning-version`, as upstream reads it. A leaf."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_ENCODING: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(
    r"((A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE
)  # 8x7B, A3B, 1_5B, 7b1
_TUNED: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_AS_IT_IS: Final = re.compile(r"v\d+(\.\d+)*$|\d")  # words of a name that keep their letters: v0.1, 7b


class NameParts(NamedTuple):
    """What the name of a model says by its usual make-up, `org/base-size-tuning-version`."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def name_parts(model: str | None, total: int) -> NameParts:
    """What `org/name` or `name` says of a model with this many weights; little, where it is ambiguous."""
    if model is None:
        return NameParts()
    if " " in model:
        return NameParts(name=model)  # a title, not an identifier
    organization, name = model.split("/", 1) if "/" in model else (None, model)
    if organization and organization.startswith("."):  # a path
        organization = None
    words = [word for word in name.split("-") if word]
    kinds: list[str | None] = []
    for place, word in enumerate(words):
        words[place], kind = _word(word, place, total)
        kinds.append(kind)
    _drop_vague_sizes(words, kinds)
    base = _base_words(words, kinds)
    picked = {kind: [word for word, its in zip(words, kinds, strict=True) if its == kind] for kind in _PICKED}
    picked["version"] = [w for w, its in zip(words[base:], kinds[base:], strict=True) if its == "version"]
    picked["size_label"] = list(dict.fromkeys(picked["size_label"]))
    said = {kind: "-".join(its) or None for kind, its in picked.items()}
    basename = "-".join(words[:base]) or None if any(said.values()) else None
    return NameParts(name, organization, basename, **said)


_PICKED: Final = ("finetune", "version", "size_label")


def _word(word: str, place: int, total: int) -> tuple[str, str | None]:
    """A word of a name as it is written out, and what kind it is of, if it can be told by itself."""
    if _VERSION.fullmatch(word):
        return word, "version"
    if _ENCODING.fullmatch(word):
        return word.upper(), "encoding"
    if place and _SIZE.fullmatch(word):
        return _size(word, total)
    return word, "finetune" if place and _TUNED.fullmatch(word) else None


def _size(word: str, total: int) -> tuple[str, str]:
    """A size, or what only looks like one (a context length: 128k), which is far from what the model weighs."""
    word = word.replace("_", ".")
    if word[-1].isdecimal():  # 7b1
        word = f"{word[:-2]}.{word[-1]}{word[-2]}"
    if word[-2].isdecimal() and word[-1] in "kmbt":
        word = word[:-1] + word[-1].upper()
    try:
        claimed = float(word[:-1]) * 1000.0 ** " KMBT".find(word[-1])
    except ValueError:  # small, 8x7B, A3B
        return word, "size_label"
    if total and abs(claimed - total) > 7 * total // 8:
        return word[:-1] + word[-1].lower(), "finetune"
    return word, "size_label"


def _drop_vague_sizes(words: list[str], kinds: list[str | None]) -> None:
    """`small` is a size only where no figure is."""
    sizes = [place for place, kind in enumerate(kinds) if kind == "size_label"]
    if any(char.isdecimal() for place in sizes for char in words[place]):
        for place in sizes:
            if words[place].isalpha():
                kinds[place] = None


def _base_words(words: list[str], kinds: list[str | None]) -> int:
    """How many words the basename has; those after it that are of no kind are called fine-tuning, in `kinds`."""
    base = 0
    while base < len(words) and (kinds[base] == "version" or (kinds[base] is None and words[base][0].isalpha())):
        base += 1
    kinds[base:] = [kind or "finetune" for kind in kinds[base:]]
    if base == len(words):  # versions at the end of the name are versions of it
        while base and kinds[base - 1] == "version":
            base -= 1
    return base


def titled(parts: NameParts) -> NameParts:
    return parts._replace(name=title(parts.name), organization=title(parts.organization))


def title(identifier: str | None) -> str | None:
    """`tiny-llama-v1` as people write it: Tiny Llama v1."""
    if identifier is None:
        return None
    words = identifier.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _AS_IT_IS.match(word) else word for word in words)
