"""Up to where a candidate counts as the model that was meant, by the type that its weights are stored in.

The limit on the mean KL is about five times what is published for Llama 3 8B (llama.cpp's tools/perplexity/README.md):
small models lose more than large ones; for floats, for which almost nothing may change, it has grounds of its own. The
limit on the most probable word is far below what is published: texts on which a model is undecided flip it, and it is
there for what is broken. `docs/verify.md` has the table with its sources. A leaf.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """`kld`: most mean KL, in nats. `top1`: least agreement on the most probable word. `growth`: KL beyond the original
    context over KL inside it."""

    kld: float
    top1: float
    growth: float


GROWTH: Final = 4.0
# growth of what is smaller than this is the growth of rounding
GROWS_FROM: Final = 1e-3
_TABLE: Final[Mapping[str, tuple[float, float]]] = {
    "F32": (1e-4, 0.99),
    "F16": (2e-3, 0.95),
    "BF16": (5e-3, 0.92),
    "Q8_0": (0.01, 0.85),
    "Q6_K": (0.03, 0.75),
    "Q5_K": (0.08, 0.65),
    "Q5_1": (0.09, 0.65),
    "Q5_0": (0.11, 0.65),
    "Q4_K": (0.2, 0.5),
    "IQ4_NL": (0.2, 0.5),
    "IQ4_XS": (0.2, 0.5),
    "Q4_1": (0.36, 0.45),
    "Q4_0": (0.36, 0.45),
    "MXFP4": (0.36, 0.45),
    "NVFP4": (0.36, 0.45),
    "Q3_K": (0.8, 0.35),
    "IQ3_S": (0.6, 0.35),
    "IQ3_M": (0.6, 0.35),
    "IQ3_XS": (0.7, 0.35),
    "IQ3_XXS": (0.9, 0.3),
    "Q2_K": (2.2, 0.25),
    "IQ2_M": (1.7, 0.25),
    "IQ2_S": (2.2, 0.2),
    "IQ2_XS": (2.8, 0.2),
    "IQ2_XXS": (4.0, 0.15),
    "Q2_0": (4.0, 0.15),
    "TQ2_0": (4.0, 0.15),
    "TQ1_0": (4.0, 0.15),
    "IQ1_M": (7.0, 0.1),
    "IQ1_S": (11.0, 0.05),
    "Q1_0": (11.0, 0.05),
}


def default_limits(kind: str) -> Limits:
    """By the name of a mix or of a tensor's type: Q4_K_M has those of Q4_K, what is not in the table as well."""
    name = kind.upper()
    while name not in _TABLE and "_" in name:
        name = name.rpartition("_")[0]
    kld, top1 = _TABLE.get(name, _TABLE["Q4_K"])
    return Limits(kld, top1, GROWTH)


# a cache of these types adds its own share, whatever the weights are
_CACHE: Final[Mapping[str, float]] = {"q8_0": 0.01, "q5_1": 0.05, "q5_0": 0.05, "q4_1": 0.2, "q4_0": 0.2, "iq4_nl": 0.2}


def with_cache(limits: Limits, kv: str) -> Limits:
    """What a quantized KV cache is allowed besides."""
    more = _CACHE.get(kv, 0.0)
    return Limits(limits.kld + more, max(0.0, limits.top1 - more), limits.growth)
