"""The numbers of a config.json by name, completed with what its class in transformers takes for those left out.

`size("2*intermediate_size")` is what the tables of architectures write for the length of an axis. Knows names and
arithmetic; no tensors, no GGUF keys. The defaults lie in defaults.json, which a script makes of transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from yarn_gguf.config.families import RULES, Rules
from yarn_gguf.config.fields import shown
from yarn_gguf.config.model_config import ModelConfig
from yarn_gguf.errors import InputError

_ANYTHING: Final = ("_token_id", "_pattern", "gating")  # lists, patterns spelled out, a switch or a name
_NEEDED: Final = ("_eps", "_epsilon")  # may not be null
_KINDS: Final[dict[type, tuple[tuple[type, ...], str]]] = {
    bool: ((bool, int), "true or false"),
    int: ((int, float), "a number"),
    float: ((int, float), "a number"),
    list: ((list,), "a list"),
}
_FORBIDDEN: Final = 1 << 40  # no axis is as long


@cache
def class_defaults() -> dict[str, dict[str, Any]]:
    """model type -> field -> default, as transformers' config classes have them."""
    found: dict[str, dict[str, Any]] = json.loads(files("yarn_gguf.config").joinpath("defaults.json").read_bytes())
    return found


@dataclass(frozen=True)
class Hyperparameters:
    """Fields of one model. An explicit null counts as given, as it does in transformers."""

    config: ModelConfig

    def __post_init__(self) -> None:
        """What is a number, a switch or a list in the class must be one: it reaches comparisons everywhere."""
        for name, value in self.config.raw.items():
            default = self._class.get(self._spelled.get(name, name))
            if default is None or name.endswith(_ANYTHING) or (value is None and not name.endswith(_NEEDED)):
                continue
            kinds, wanted = _KINDS.get(type(default), ((), ""))
            fits = isinstance(value, kinds) and (not isinstance(value, bool) or isinstance(default, bool))
            if kinds and not (fits and (not isinstance(value, float) or math.isfinite(value))):
                raise self.fail(f"{name} is {shown(value)}, {wanted} is needed")

    def get(self, *names: str) -> Any:
        """The first of these fields that says something; None where none does."""
        return next((value for name in names if (value := self._field(name)) is not None), None)

    @property
    def _class(self) -> dict[str, Any]:
        return class_defaults().get(self.config.model_type, {})

    @property
    def _spelled(self) -> Mapping[str, str]:
        return RULES.get(self.config.model_type, Rules()).spelled

    def _names(self, name: str) -> list[str]:
        """All that the class takes for this field, the one that comes before the others first."""
        aliases: dict[str, str] = self._class.get("_aliases", {})
        names = [own for own, usual in self._spelled.items() if usual == name]
        names += [name, *(stored for usual, stored in aliases.items() if usual == name)]
        return names + [usual for usual, stored in aliases.items() if stored == name]

    def _field(self, name: str) -> Any:
        """The file's value, under any name that the class has for the field; else the class's own."""
        names = self._names(name)
        for values in (self.config.raw, self._class):
            for each in names:
                if each in values:
                    return values[each]
        return None

    def states(self, name: str) -> bool:
        """Whether the file itself has the field, under any name."""
        return any(each in self.config.raw for each in self._names(name))

    def other_names(self) -> set[str]:
        """Names that the class takes for fields which are called otherwise."""
        return {*self._spelled, *(self._class.get("_aliases") or {})}

    def has(self, name: str) -> bool:
        """Whether a condition of a table holds: `name`, `name=value`, or with `!` before it, the contrary."""
        if name.startswith("!"):
            return not self.has(name[1:])
        field, _, wanted = name.partition("=")
        value = self.get(field)
        return str(value) == wanted if wanted else bool(value)

    def knows(self, field: str) -> bool:
        """Whether the class or the file has such a field at all."""
        return field in self.config.raw or field in self._class

    @property
    def tied(self) -> bool:
        return bool(self.get("tie_word_embeddings"))

    def size(self, expression: str) -> int:
        """Sums of products of field names and numbers; `hidden/32` divides."""
        return sum(self._product(term) for term in expression.split("+"))

    def _product(self, term: str) -> int:
        product = 1
        for factor in term.split("*"):
            name, _, divisor = factor.partition("/")
            product *= int(name) if name.isdecimal() else self._number(name)
            product //= int(divisor or 1)
        if not 0 <= product < _FORBIDDEN:
            raise self.fail(f"{term} comes to {product}")
        return product

    def _number(self, name: str) -> int:
        derived = _DERIVED.get(name)
        value = self.get(name) if derived is None else getattr(self.config, derived)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(f"{name} is {shown(value)}, a whole number is needed")
        return value

    def fail(self, text: str) -> InputError:
        return InputError(text, file=self.config.path, code="bad_config")


# names of the tables -> what `ModelConfig` calls them, where it has resolved them already
_DERIVED: Final = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "layers",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "head_dim": "head_dim",
}
