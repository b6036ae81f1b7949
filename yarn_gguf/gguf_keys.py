"""Typed, bounded access to a model's key/values: a wrong type or a number that no model has is an error naming the key.

The bounds come from who knows the keys (`metadata`); they keep a damaged or hostile file from costing memory and time
in whatever counts layers or dimensions later. Knows one key, the architecture, which prefixes all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.format import INTEGERS, ValueType
from yarn_gguf.gguf_file.shards import Model

POSITIVE: Final = "a positive number is needed"
MAX_ITEMS: Final = 10_000  # of an array that is decoded: one per layer


class Bound(NamedTuple):
    """What a number may be, and what to say of one that is less."""

    lower: float
    upper: float
    need: str = POSITIVE


_ANY: Final = Bound(-math.inf, math.inf)


class Keys:
    """A model's entries by the name behind the architecture's prefix; None for what is not there."""

    def __init__(self, model: Model, bounds: Mapping[str, Bound]) -> None:
        self.model = model
        self.bounds = bounds
        self.arch = self.text("general.architecture") or ""
        if not self.arch:
            raise self.fail("general.architecture is missing: not a model that llama.cpp can load")

    def fail(self, text: str, code: str = "bad_metadata") -> InputError:
        return InputError(text, file=self.model.path, code=code)

    def text(self, key: str) -> str | None:
        """The string of a key with its prefix."""
        found = self.model.entries.get(key)
        if found is None:
            return None
        if found.type is not ValueType.STRING:
            raise self.fail(f"{key} must be a string")
        return str(found.value())

    def _scalar(self, name: str, kinds: frozenset[ValueType], what: str) -> float | None:
        found = self.model.entries.get(f"{self.arch}.{name}")
        if found is None:
            return None
        if found.type not in kinds:
            raise self.fail(f"{self.arch}.{name} must be {what}, not {found.type.name.lower()}")
        value = found.value()
        assert isinstance(value, bool | int | float)  # what `kinds` leaves
        self._check(name, value)
        return value

    def _check(self, name: str, value: float, at: str = "") -> None:
        bound, key = self.bounds.get(name, _ANY), f"{self.arch}.{name}{at}"
        if not math.isfinite(value):
            raise self.fail(f"{key} is {value}, a finite number is needed")
        if value < bound.lower:
            raise self.fail(f"{key} is {value}, {bound.need}")
        if value > bound.upper:
            raise self.fail(f"{key} is {value}, at most {bound.upper} is supported")

    def integer(self, name: str) -> int | None:
        value = self._scalar(name, INTEGERS, "an integer")
        return None if value is None else int(value)

    def required(self, name: str) -> int:
        value = self.integer(name)
        if value is None:
            raise self.fail(f"{self.arch}.{name} is missing, {self.bounds.get(name, _ANY).need}")
        return value

    def number(self, name: str) -> float | None:
        value = self._scalar(name, INTEGERS | {ValueType.FLOAT32, ValueType.FLOAT64}, "a number")
        return None if value is None else float(value)

    def boolean(self, name: str) -> bool | None:
        value = self._scalar(name, frozenset({ValueType.BOOL}), "a boolean")
        return None if value is None else bool(value)

    def array(self, name: str) -> tuple[int, ...] | None:
        """An array of integers or booleans; None where the key is absent or a scalar."""
        key = f"{self.arch}.{name}"
        found = self.model.entries.get(key)
        if found is None or found.type is not ValueType.ARRAY:
            return None
        if found.count > MAX_ITEMS:
            raise self.fail(f"{key} has {found.count} items, at most {MAX_ITEMS} are supported")
        value = found.value()
        if found.item_type not in INTEGERS | {ValueType.BOOL} or not isinstance(value, np.ndarray):
            raise self.fail(f"{key} must hold integers")
        items = tuple(int(item) for item in value)
        for i, item in enumerate(items):
            self._check(name, item, f"[{i}]")
        return items

    def flags(self, name: str) -> tuple[bool, ...] | None:
        """An array of truths."""
        found = self.array(name)
        return None if found is None else tuple(map(bool, found))

    def per_layer(self, name: str, layers: int) -> tuple[int, ...]:
        """A number for each layer, or the one that all have; nothing where that is 0 or not there."""
        found = self.array(name)
        if found is None:
            return tuple(filter(None, [self.integer(name)]))
        if len(found) != layers:
            key, text = f"{self.arch}.{name}", f"llama.cpp wants one per layer, and block_count is {layers}"
            raise self.fail(f"{key} has {len(found)} items; {text}")
        return found
