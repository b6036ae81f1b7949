"""Words of a program's own that would change what was asked for: refused behind --, whatever stands there else.

What is said to be exact is said of the words that are printed; a second --rope-scale behind them would win. Knows the
names of options; judges no value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from yarn_gguf.errors import UsageError

_ROPE_KEY: Final = re.compile(r"(^|,)[^=,]*\.(rope\.|context_length)")
_KEYS: Final = ("--override-kv", "--overridekv")
# what a program calls it -> what `flags` calls it; "" where it has no such thing
_LLAMA: Final[Mapping[str, str]] = {
    "--rope-scaling": "--method",
    "--rope-scale": "--factor",
    "--rope-freq-scale": "--factor",
    "--rope-freq-base": "--method ntk",
    "--yarn-orig-ctx": "--original-ctx",
    "--yarn-ext-factor": "",
    "--yarn-attn-factor": "--attention-factor",
    "--yarn-beta-fast": "--beta-fast",
    "--yarn-beta-slow": "--beta-slow",
    "-gan": "",
    "--grp-attn-n": "",
    "-c": "--ctx",
    "--ctx-size": "--ctx",
    "-m": "MODEL",
    "--model": "MODEL",
}
_REFUSED: Final[Mapping[str, Mapping[str, str]]] = {
    "llama-server": _LLAMA,
    "llama-cli": _LLAMA,
    "koboldcpp": {"--ropeconfig": "", "--contextsize": "--ctx", "--model": "MODEL"},
    "vllm": {
        "--hf-overrides": "--factor",
        "--max-model-len": "--ctx",
        "--rope-scaling": "--factor",
        "--rope-theta": "",
    },
}
# on a library that does not shift exactly, each of these makes cached keys longer
SHIFTING: Final = ("--context-shift", "--cache-reuse")


def check(name: str, more: Sequence[str]) -> None:
    """Raises for what would overrule the words that are printed, and where nothing can be passed on at all."""
    if more and name not in _REFUSED:
        raise UsageError(
            f"{name} is not started with words of its own; leave out what is behind --", code="unused_option"
        )
    refused = _REFUSED.get(name, MappingProxyType({}))
    for word, value in _options(more):
        if word in refused or (word in _KEYS and _ROPE_KEY.search(value)):
            way = f"; ask for it with {refused[word]}" if refused.get(word) else ""
            text = f"{word} behind -- would overrule the RoPE and the context that are asked for{way}"
            raise UsageError(text, code="overruled")


def _options(more: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word, and the one that may be its value."""
    for word, after in pairwise((*more, "")):
        name, equals, value = word.partition("=")
        yield (name, value) if equals and name.startswith("--") else (word, after)
