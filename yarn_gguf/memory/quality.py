"""What a type of weights and of the cache costs in quality: measured where a report says it, else by what is published.

A price is a mean KL divergence in nats. Measured ones come out of `verify --json`. What nobody measured is a fifth of
`thresholds`' limits, which were set at five times the figures that llama.cpp publishes for Llama 3 8B; such a price
puts types in order and says no more. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from yarn_gguf.errors import InputError
from yarn_gguf.files import open_regular
from yarn_gguf.gguf_file.format import MAGIC
from yarn_gguf.json_file import json_object, read_bounded
from yarn_gguf.thresholds import default_limits, with_cache

LARGEST: Final = 64 << 20  # of a report
LIMIT_OVER_PUBLISHED: Final = 5.0
FLOAT_CACHES: Final = ("f32", "f16", "bf16")
_WANTED: Final = "give a report of `yarn-gguf verify --json`, or a record (.yref)"
_NO_REPORT: Final = "is no report of `yarn-gguf verify --json`"


@dataclass(frozen=True, slots=True)
class Price:
    kld: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One candidate of a report. `inside`: within the original context, None where nothing was scored there."""

    type: str
    kv: str
    factor: float
    kld: float | None  # None: not of use here
    inside: float | None
    model: tuple[str, int] | None = None  # its architecture and bytes, where a report says them


@dataclass(frozen=True, slots=True)
class Prices:
    measured: tuple[Measured, ...] = ()

    def at(self, factors: Iterable[float]) -> Prices:
        """For types, those that were measured with one of these; within the original context, those with any."""
        known = tuple(factors)

        def fits(each: Measured) -> bool:
            return any(math.isclose(each.factor, factor) for factor in known)

        return Prices(tuple(each if fits(each) else replace(each, kld=None) for each in self.measured))

    def of(self, kind: str, kv: tuple[str, str]) -> Price:
        """Of weights of a type with a cache of a type. Measured for the pair, else the parts are added."""
        cache = _worse(kv)
        exact = [each.kld for each in self.measured if _same(each, kind, cache) and each.kld is not None]
        if exact:
            return Price(min(exact), measured=True)
        weights = [each.kld for each in self.measured if _same(each, kind, "f16") and each.kld is not None]
        found = min(weights) if weights else published(kind)
        return Price(found + cache_price(kv), measured=bool(weights) and cache in FLOAT_CACHES)

    def inside(self, factor: float) -> float | None:
        """What was measured within the original context, at a factor; of the types with the least."""
        found = [each.inside for each in self.measured if each.inside is not None and math.isclose(each.factor, factor)]
        return min(found, default=None)


def _same(each: Measured, kind: str, cache: str) -> bool:
    close = each.kv == cache or (each.kv in FLOAT_CACHES and cache in FLOAT_CACHES)
    return each.type.upper() == kind.upper() and close


def _worse(kv: tuple[str, str]) -> str:
    return max(kv, key=lambda name: with_cache(default_limits("F32"), name).kld)


def published(kind: str) -> float:
    """Mean KL of a type's weights, as it is published for Llama 3 8B."""
    return 0.0 if kind.upper() == "F32" else default_limits(kind).kld / LIMIT_OVER_PUBLISHED


def cache_price(kv: tuple[str, str]) -> float:
    """The same of a cache: half of each of its types."""
    base = default_limits("F32")
    return sum((with_cache(base, name).kld - base.kld) / LIMIT_OVER_PUBLISHED for name in kv) / 2


def read_prices(path: Path) -> Prices:
    """Out of a report of `verify --json`."""
    with open_regular(path, "a report") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise InputError(f"is a GGUF; {_WANTED}", file=path, code="bad_report")
    document = json_object(read_bounded(path, LARGEST, "a report", "bad_report"), path, "bad_report")
    candidates = document.get("candidates")
    if not isinstance(candidates, list) or not isinstance(document.get("reference"), dict):
        raise InputError(_NO_REPORT, file=path, code="bad_report")
    settings = document.get("settings")
    kv = settings.get("kv") if isinstance(settings, dict) else None
    return Prices(tuple(_candidate(path, each, kv) for each in candidates))


def _candidate(path: Path, found: Any, kv: Any) -> Measured:
    try:
        kind, kld, inside, rope = str(found["type"]), found["kld"]["mean"], found["inside"], found["rope"]
        factor = 1.0 if rope is None else float(rope["factor"])
        known = None if inside is None else float(inside["kld"]["mean"])
        mean = math.inf if kld is None else float(kld)
        model = str(found["arch"]), int(found["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{_NO_REPORT}: a candidate lacks {error}", file=path, code="bad_report") from error
    return Measured(kind, _cache_of(kind, kv), factor, mean, known, model)


def _cache_of(kind: str, kv: Any) -> str:
    """The type of a candidate's cache: one for all, or by what `verify` takes by default."""
    if isinstance(kv, str) and kv != "auto":
        return kv
    return "f32" if kind == "F32" else "f16"
