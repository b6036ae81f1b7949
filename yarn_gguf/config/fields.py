"""A JSON object of a config.json, read field by field and by type, and the names of fields that many classes share.

What it knows: what a number, a count, a list must be; a complaint names the file and the field. It remembers what was
asked for. What it does not know: what any field means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from yarn_gguf.errors import InputError

Json: TypeAlias = dict[str, Any]

LARGEST_COUNT: Final = 1 << 40
LAYERS, HEADS, KV_HEADS = "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
LENGTH, ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
PARTIAL: Final = "partial_rotary_factor"


def shown(value: object) -> str:
    """A value of the file, in a message of one line."""
    short = repr(value) if value is None or isinstance(value, str | int | float) else f"a JSON {type(value).__name__}"
    return short if len(short) <= 60 else f"{short[:60]}…"


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object, read field by field; complaints name the file and the field."""

    values: Json
    path: Path
    notes: list[str]
    where: str = ""
    outer: Fields | None = None  # what these were taken from
    used: set[str] = field(default_factory=set)

    def fail(self, key: str, text: str) -> InputError:
        return InputError(f"{self.where}{key} {text}", file=self.path, code="bad_config")

    def note(self, key: str, text: str) -> None:
        self.notes.append(f"{self.where}{key} {text}")

    def get(self, key: str) -> Any:
        self.used.add(key)
        return self.values.get(key)

    def number(self, key: str) -> float | None:
        value = self.get(key)
        return None if value is None else self._number(key, value)

    def need(self, key: str) -> float:
        if (number := self.number(key)) is None:
            raise self.fail(key, f"is {'null' if key in self.values else 'missing'}, but must be a number")
        return number

    def count(self, key: str, least: int = 1, most: int = LARGEST_COUNT) -> int:
        number = self.need(key)
        if not least <= number <= most or number != int(number):
            raise self.fail(key, f"is {number:g}, but must be a whole number from {least} to {most}")
        return int(number)

    def settings(self, key: str) -> Json | None:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, f"is {shown(value)} where an object must be")
        return value

    def entries(self, key: str) -> list[Any]:
        listed = self.get(key)
        if not isinstance(listed, list):
            raise self.fail(key, "is missing" if listed is None else "is not a list")
        return listed

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(self._number(key, each) for each in self.entries(key))

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"is {shown(value)} where a number must be")
        try:
            return float(value)
        except OverflowError:
            raise self.fail(key, "is larger than any number that we can hold") from None
