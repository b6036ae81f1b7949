"""The files beside a model's weights that people wrote: the front matter of a model card, and JSON that may be there.

All of it is hearsay, and none of it is trusted: what is no YAML, no JSON, no text, too large or nested too deeply is
passed over with a note. Knows no field by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from yarn_gguf.config.fields import Json
from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.files import open_regular

if TYPE_CHECKING:
    import yaml

Notes: TypeAlias = list[str]

LARGEST_CARD: Final = 4 << 20  # cards with thousands of benchmark results have 0.5 MiB
LARGEST_JSON: Final = 16 << 20
DEEPEST_CARD: Final = 50
SLOWEST_CARD: Final = 256 << 10  # what the parser without libyaml is given at most: 3 s


def read_card(path: Path, notes: Notes) -> Json:
    """The front matter of a model card, between its first line and the next of three dashes."""
    text = _decoded(path, LARGEST_CARD, notes)
    lines = text.splitlines() if text else []
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    # `no` is the language, not false; tabs, which YAML forbids, do occur
    front = ("\n".join(lines[1:end]) + "\n").replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        whole = _yaml(front)
    except (_Refused, RecursionError) as error:
        notes.append(f"{path.name}: its front matter is passed over: {error}")
        return {}
    if whole is not None and not isinstance(whole, dict):
        notes.append(f"{path.name}: its front matter is no table of fields, and is passed over")
    return whole if isinstance(whole, dict) else {}


class _Refused(Exception):
    """Why the front matter of a card is not taken."""


# what PyYAML raises on tags that do not fit their values (!!int "", !!bool x), beside its own errors
_YAML_FAILURES: Final = (ValueError, LookupError, TypeError, AttributeError)


def _yaml(text: str) -> object:
    """Through libyaml, ten times as fast as PyYAML's own parser, which has the last word where it refuses."""
    import yaml

    try:
        if hasattr(yaml, "CSafeLoader"):
            _refuse_depth(text, yaml.CSafeLoader)
            return yaml.load(text, _without_merging(yaml.CSafeLoader))
    except (yaml.YAMLError, *_YAML_FAILURES) as error:
        if len(text) > SLOWEST_CARD:
            raise _Refused(_reason(error)) from error
    if len(text) > SLOWEST_CARD:
        raise _Refused("it is too large to be parsed without libyaml")
    try:
        _refuse_depth(text, yaml.SafeLoader)
        return yaml.load(text, _without_merging(yaml.SafeLoader))
    except (yaml.YAMLError, *_YAML_FAILURES) as error:
        raise _Refused(_reason(error)) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refuse_depth(text: str, loader: Any) -> None:
    """Before anything is built: libyaml's builder recurses without a bound, and crashes."""
    import yaml

    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_CARD:
            raise _Refused(f"it is nested more than {DEEPEST_CARD} deep")


def _without_merging(loader: Any) -> Any:
    """The loader without `<<`: objects merged into objects can double in size with every line."""

    def flatten_mapping(self: Any, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise _Refused("it merges tables with <<, which is not supported")

    return type("Loader", (loader,), {"flatten_mapping": flatten_mapping})


def read_json(path: Path, notes: Notes) -> Json:
    text = _decoded(path, LARGEST_JSON, notes)
    try:
        whole = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is not JSON that we can read, and is passed over: {_reason(error)}")
        return {}
    return whole if isinstance(whole, dict) else {}


def _decoded(path: Path, most: int, notes: Notes) -> str | None:
    """The text of a file that need not be there; none, with a note, of one that is not what it must be."""
    problem: Callable[[str], None] = lambda text: notes.append(f"{path.name} {text}, and is passed over")  # noqa: E731
    try:
        with open_regular(path, "a text file") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            problem(f"is larger than {most >> 20} MiB")
            return None
        return raw.decode()
    except UnicodeDecodeError:
        problem("is not UTF-8")
    except (InputError, ResourceError) as error:
        if error.code != "not_found":
            problem(error.text)
    except OSError as error:
        problem(f"cannot be read ({error.strerror})")
    return None
