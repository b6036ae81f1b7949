"""Which RoPE a model is opened with at a context, and what makes a library compute it without another file.

A file's own scaling is kept. Where it is dynamic, the factor is the smallest that covers the context; where the context
is longer than the file is meant for, likewise, as `extend --ctx` would write it. What that takes (nothing, parameters
of the context, overridden keys) is found and proven as for `flags`; here it is put in a session's terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from yarn_gguf.before import Before
from yarn_gguf.effective import TOLERANCE, Runtime
from yarn_gguf.errors import InputError, UsageError, YarnGgufError, about
from yarn_gguf.flags.choice import Chosen, Means
from yarn_gguf.flags.choice import choose as choose_start
from yarn_gguf.flags.start import Parameters, Start, facts_at_start, ropes_at_start
from yarn_gguf.flags.wanted import Wanted as Meant
from yarn_gguf.flags.wanted import wanted_of
from yarn_gguf.intent import Intent, RopeOptions
from yarn_gguf.metadata import read_facts
from yarn_gguf.runtime import Key

SESSION: Final = Means(caps=False)
SERVER: Final = Means()
_TYPES: Final = {"none": 0, "linear": 1, "yarn": 2}  # llama.h: LLAMA_ROPE_SCALING_TYPE_…
_NAMES: Final[Mapping[str, str]] = {  # fields of `Parameters` that llama_context_params has under another name
    "original": "yarn_orig_ctx",
    "base": "rope_freq_base",
    "attn_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


@dataclass(frozen=True)
class Scaling:
    """What a model is opened with."""

    context: int  # tokens
    intent: Intent  # at this context
    source: str  # where it comes from, for a person
    inside: bool  # the file itself asks for it
    arch: str
    start: Start  # what llama.cpp is given over the file
    magnitude: float  # the largest that multiplies cos and sin on any layer
    difference: str  # what the library computes otherwise than is meant; "" where nothing

    @property
    def text(self) -> str:
        if self.intent.method == "none":
            return "no scaling"
        return f"{self.intent.method} ×{self.intent.factor:.6g} over {self.intent.original}"

    @property
    def spoils_shifts(self) -> bool:
        """Whether a context shift of stock llama.cpp multiplies cached keys by something."""
        return abs(self.magnitude - 1) > TOLERANCE

    @property
    def keys(self) -> dict[str, Key]:
        """What the file's metadata are taken for, by their whole names."""
        return {f"{self.arch}.{name}": value for name, value in self.start.overrides.items()}

    @property
    def parameters(self) -> dict[str, float]:
        """Of the context, by llama.cpp's names; what is not there is as the file has it."""
        return context_parameters(self.start.parameters)


def context_parameters(given: Parameters) -> dict[str, float]:
    found: dict[str, float] = {}
    if given.scaling is not None:
        found["rope_scaling_type"] = _TYPES[given.scaling]
    if given.factor is not None:
        found["rope_freq_scale"] = 1 / given.factor
    for field, name in _NAMES.items():
        value = getattr(given, field)
        if value is not None:
            found[name] = value
    return found


def reach(before: Before) -> int:
    """The context that a file is meant for."""
    return max(before.current.context, read_facts(before.model).context_length)


def choose(before: Before, runtime: Runtime, context: int, means: Means = SESSION) -> Scaling:
    """What to open a model with for so many tokens. Raises where it cannot be made to hold them."""
    with about(before.model.path):
        meant = _meant(before, context, longer=context > reach(before))
        chosen = choose_start(meant, means, runtime)
        if not chosen.exact and not meant.inside:
            raise UsageError(_refusal(meant, runtime, context), code="no_override")
        return _scaling(meant, chosen, runtime, context)


def _meant(before: Before, context: int, *, longer: bool) -> Meant:
    try:
        return wanted_of(before, RopeOptions(), context)
    except YarnGgufError as error:
        if not longer:
            raise
        text = f"a context of {context} is beyond the {reach(before)} that it is meant for, and it {error.text}"
        raise InputError(text, code=error.code) from error


def _refusal(meant: Meant, runtime: Runtime, context: int) -> str:
    intent = meant.asked
    what = f"{intent.method} ×{intent.factor:.6g} over {intent.original}"
    text = f"a context of {meant.context} needs {what}, which nothing here makes {runtime.value} llama.cpp compute"
    return f"{text}; yarn-gguf extend --ctx {context} writes a file that has it"


def _scaling(meant: Meant, chosen: Chosen, runtime: Runtime, context: int) -> Scaling:
    read = facts_at_start(meant.before.model, meant.facts, chosen.start)
    got = ropes_at_start(read, meant.tensors, runtime, chosen.start.parameters, meant.context)
    magnitude = max((each.magnitude for each in got), key=lambda value: abs(value - 1), default=1.0)
    source = f"{meant.source}, as far as the context needs" if meant.intent.dynamic else meant.source
    difference = "" if chosen.exact else chosen.difference.text
    return Scaling(context, meant.asked, source, meant.inside, meant.facts.arch, chosen.start, magnitude, difference)
