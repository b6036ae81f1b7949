"""What an evaluation is called, and the lines that any picture of it is made of. Knows values; draws nothing."""

from __future__ import annotations

from typing import Final

import numpy as np

from yarn_gguf.evaluate import Cell, Change, Entropy, Perplexity
from yarn_gguf.evaluation import Evaluated

TITLES: Final = {
    "passkey": "passkey: texts whose key was found",
    "copy": "copy: words of the list that were right",
    "ppl": "perplexity by context",
    "entropy": "entropy of attention, in nats, by layer and position",
    "sensitivity": "largest change of a last logit, by distance of the changed token",
}
AXES: Final = {  # across, up
    "passkey": ("tokens", "passkey: right"),
    "copy": ("tokens", "copy: right"),
    "ppl": ("context", "perplexity"),
    "entropy": ("position", "entropy of attention (nats)"),
    "sensitivity": ("distance of the changed token", "largest logit change"),
}


def lines(each: Evaluated) -> list[tuple[str, list[float], list[float]]]:
    """What is drawn of a model: by length; by distance or position at its longest text, a line for each layer."""
    longest = max(result.length for result in each.results)
    layers: dict[int, list[Entropy]] = {}
    changes, found = [], dict[int, list[float]]()
    for result in each.results:
        match result:
            case Entropy() if result.length == longest:
                layers.setdefault(result.layer, []).append(result)
            case Change() if result.length == longest:
                changes.append(result)
            case Perplexity():
                found.setdefault(result.length, []).append(result.ppl)
            case Cell():
                found.setdefault(result.length, []).append(result.score)
    found_lines = [(f", layer {n}", [float(e.end) for e in es], [e.entropy for e in es]) for n, es in layers.items()]
    if changes:
        found_lines.append(("", [float(c.distance) for c in changes], [c.change for c in changes]))
    if found:
        found_lines.append(("", [float(n) for n in found], [float(np.mean(values)) for values in found.values()]))
    return found_lines
