"""What a GGUF asks for, what llama.cpp will really compute, and everything between the two that a person should know.

Reads headers (and the RoPE tensors' few bytes), loads no model. Judges with `effective`; renders nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from yarn_gguf.before import Before, read_before
from yarn_gguf.effective import (
    TOLERANCE,
    Difference,
    LayerClass,
    LayerRope,
    Runtime,
    Tensors,
    compare,
    file_type,
    layer_ropes,
    meant_ropes,
)
from yarn_gguf.encoding import ENCODINGS, dynamic_on_stock, encode
from yarn_gguf.errors import YarnGgufError, about
from yarn_gguf.findings import Finding, Level, error, note, warning
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.graphs import GRAPHS, Magnitude, SlidingBase
from yarn_gguf.intent import Intent, RopeOptions, resolve
from yarn_gguf.metadata import (
    ALPHA,
    ATTN_FACTOR,
    BASE_SWA,
    BETA_FAST,
    BETA_SLOW,
    DEAD_ATTN_FACTOR,
    EXT_FACTOR,
    FACTOR,
    LOG_MULTIPLIER,
    TRUNCATE,
    Facts,
    read_facts,
)
from yarn_gguf.provenance import PREFIX, RESTORE, besides_folded, folded_magnitude

EMBEDDING: Final = "token_embd.weight"
NOT_EXACT: Final = "not_exact_on_stock"


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` says of one model."""

    model: Model
    facts: Facts
    intent: Intent
    source: str  # where the intent comes from
    encoding: str | None
    meant: tuple[LayerRope, ...]
    effective: dict[Runtime, tuple[LayerRope, ...]]
    differences: dict[Runtime, Difference]
    findings: tuple[Finding, ...]

    def exact_on(self, runtime: Runtime) -> bool:
        """Whether a runtime computes what is asked for, at every context that is opened."""
        follows = runtime is Runtime.PATCHED or not self.intent.dynamic
        return follows and self.differences[runtime].exact

    def exactness(self, runtime: Runtime, kind: LayerClass) -> bool:
        """Whether the layers of one class get what is meant."""
        pairs = zip(self.meant, self.effective[runtime], strict=True)
        return all(compare((a,), (b,), self.intent.context).exact for a, b in pairs if a.kind is kind)

    def verdict(self, runtime: Runtime = Runtime.STOCK) -> str:
        if all(kind.rope is None for kind in self.effective[runtime]) or not GRAPHS[self.facts.arch].yarn:
            note = GRAPHS[self.facts.arch].note
            return f"no RoPE here that could be scaled{': ' + note if note else ''}"
        if self.sound(runtime):
            return f"{runtime.value} llama.cpp computes exactly what this file asks for"
        if self.exact_on(runtime):
            return f"RoPE is exact on {runtime.value} llama.cpp, but there are errors in the file"
        return f"{runtime.value} llama.cpp computes something else than this file asks for"

    def sound(self, runtime: Runtime = Runtime.STOCK) -> bool:
        """Exact, and nothing else that keeps the file from doing what it says."""
        errors = {finding.code for finding in self.findings if finding.level is Level.ERROR}
        return self.exact_on(runtime) and not errors - {NOT_EXACT}


def inspect_gguf(path: Path, options: RopeOptions, *, strict: bool = False) -> Inspection:
    """Looks at a file or a split set. With options, what is held against the file is what they ask for."""
    before = read_before(path, strict=strict)
    model = before.model
    with about(path):
        facts, tensors = read_facts(model), read_tensors(model)
        intent, source = _intent(before, facts, tensors, options)
        meant = meant_ropes(facts, intent)
        effective = {runtime: layer_ropes(facts, tensors, runtime) for runtime in Runtime}
        differences = {runtime: compare(meant, found, intent.context) for runtime, found in effective.items()}
        remedy = "" if differences[Runtime.STOCK].exact else _remedy(before, intent)
    found = Inspection(
        *(model, facts, intent, source, _encoding(before, facts, intent)),
        *(meant, effective, differences, (*before.findings, *_wrong(differences, remedy))),
    )
    findings = sorted((*found.findings, *_findings(found)), key=lambda f: list(Level).index(f.level))
    return replace(found, findings=tuple(findings))


def _intent(before: Before, facts: Facts, tensors: Tensors, options: RopeOptions) -> tuple[Intent, str]:
    """What the file is held against, and where that comes from."""
    if options.given:
        return besides_folded(resolve(before.own, options).intent, before.model), "the options given"
    if before.recorded is not None:
        return before.recorded, f"{PREFIX}* keys"
    return own_intent(before.model, facts, tensors), "its keys"


def _encoding(before: Before, facts: Facts, intent: Intent) -> str | None:
    recorded = before.model.first.get(PREFIX + "encoding")
    if recorded in ENCODINGS:
        return str(recorded)
    if before.tensors.rope_freqs is not None and facts.type == "none":
        return "baked"
    return None if intent.method == "none" else "keys"


def _remedy(before: Before, intent: Intent) -> str:
    """What `extend` could do about a file that is not exact: tried, not guessed."""
    try:
        encoded = encode(before.undone, before.facts, before.tensors, intent, "auto", typed=False)
    except YarnGgufError:
        return "nothing here mends it"
    if encoded.stock.exact:
        return "yarn-gguf extend mends it"
    return "the patched one of `yarn-gguf build` is exact" if encoded.patched.exact else "nothing here mends it"


def _wrong(differences: dict[Runtime, Difference], remedy: str) -> Iterator[Finding]:
    stock = differences[Runtime.STOCK]
    if not stock.exact:
        yield error(NOT_EXACT, f"stock llama.cpp differs in {stock.text}; {remedy}")


def _findings(found: Inspection) -> Iterator[Finding]:
    yield from _dead_keys(found.facts)
    yield from _context(found.facts, found.intent)
    yield from _runtime_traps(found)
    yield from _lost_before(found)
    yield from _tokenizer_faults(found.model)
    yield from _file_notes(found.model)


_NO_MAGNITUDE: Final = (Magnitude.ONE, Magnitude.NORMED, Magnitude.OCR)


def _reads_sliding_base(facts: Facts) -> bool:
    windows = GRAPHS[facts.arch].windows
    return windows is not None and windows.base is not SlidingBase.FULL


# a key that some graphs do not read: (name, its value, whether this graph reads it, the value that changes nothing)
_Unread = tuple[str, Callable[[Facts], float | bool | None], Callable[[Facts], bool], float | bool | None]
_SOMETIMES_READ: Final[tuple[_Unread, ...]] = (
    (BETA_FAST, lambda f: f.beta_fast, lambda f: GRAPHS[f.arch].beta_keys, 32.0),
    (BETA_SLOW, lambda f: f.beta_slow, lambda f: GRAPHS[f.arch].beta_keys, 1.0),
    (DEAD_ATTN_FACTOR, lambda f: f.dead_attn_factor, lambda f: GRAPHS[f.arch].magnitude is Magnitude.GROK, None),
    (EXT_FACTOR, lambda f: f.ext_factor, lambda f: GRAPHS[f.arch].magnitude is Magnitude.GROK, 1.0),
    (LOG_MULTIPLIER, lambda f: f.log_multiplier, lambda f: GRAPHS[f.arch].log_multiplier is not None, None),
    (TRUNCATE, lambda f: f.truncate, lambda f: False, True),
    (ATTN_FACTOR, lambda f: f.attn_factor, lambda f: GRAPHS[f.arch].magnitude not in _NO_MAGNITUDE, 1.0),
    (BASE_SWA, lambda f: f.base_swa, _reads_sliding_base, None),
    (ALPHA, lambda f: f.alpha, lambda f: GRAPHS[f.arch].alpha_key, 0.0),
    (FACTOR, lambda f: f.factor, lambda f: file_type(f) != "none", 1.0),
)


def _dead_keys(facts: Facts) -> Iterator[Finding]:
    for name, value_of, read, harmless in _SOMETIMES_READ:
        value = value_of(facts)
        if value is None or read(facts):
            continue
        key = f"{facts.arch}.{name}"
        if value == harmless:
            yield note("dead_key", f"{key} = {_shown(value)} is not read by stock llama.cpp; the value changes nothing")
        else:
            yield warning("dead_key", f"{key} = {_shown(value)} is not read by stock llama.cpp for {facts.arch}")


def _shown(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _context(facts: Facts, intent: Intent) -> Iterator[Finding]:
    if facts.context_length < intent.context:
        text = (
            f"context_length is {facts.context_length}, the scaling reaches {intent.context}: "
            "servers cap the context at the smaller one; yarn-gguf extend writes it scaled"
        )
        yield warning("context_unscaled", text)


def _runtime_traps(found: Inspection) -> Iterator[Finding]:
    facts, yarn = found.facts, found.intent.yarn
    betas = (32.0, 1.0) if yarn is None else (yarn.beta_fast, yarn.beta_slow)
    if betas != (32.0, 1.0) and file_type(facts) == "yarn":
        level, where = (warning, "") if GRAPHS[facts.arch].beta_keys else (note, "on a patched llama.cpp too, ")
        yield level(
            "llama_cpp_python_betas",
            f"{where}llama-cpp-python's Llama(...) passes betas 32/1 by default and so overrides "
            f"{betas[0]:g}/{betas[1]:g}; give yarn_beta_fast=-1.0, yarn_beta_slow=-1.0",
        )
    if facts.dynamic and file_type(facts) == "yarn":
        yield dynamic_on_stock(facts.arch, found.intent.factor)
    magnitudes = [layers.magnitude for layers in found.effective[Runtime.STOCK]]
    shifted = [magnitude for magnitude in magnitudes if abs(magnitude - 1) > TOLERANCE]
    if shifted:
        yield warning(
            "context_shift",
            f"a context shift on stock llama.cpp multiplies cached keys by {shifted[0]:.4g} each time "
            "(--context-shift, --cache-reuse, self-extend): leave it off",
        )


# settings of published checkpoints that no key of a GGUF from upstream's converter can say
_LOST_BEFORE: Final = {"gpt-oss": "the published gpt-oss checkpoints have truncate false"}


def _lost_before(found: Inspection) -> Iterator[Finding]:
    lost, facts = _LOST_BEFORE.get(found.facts.arch), found.facts
    if lost is None or facts.truncate is not None or found.intent.yarn is None or found.source != "its keys":
        return
    text = f"{lost}, which this file does not say; if it comes from one, inspect it with --no-truncate"
    yield warning("lost_before", text)


def _tokenizer_faults(model: Model) -> Iterator[Finding]:
    tokens = model.entries.get("tokenizer.ggml.tokens")
    if tokens is None:
        yield note("no_tokenizer", "no vocabulary inside")
        return
    if EMBEDDING in model.tensors:
        rows = model.tensors[EMBEDDING][1].dims[-1]
        if rows != tokens.count:
            level = error if tokens.count > rows else warning
            yield level("vocabulary_size", f"{tokens.count} tokens, but {rows} embedding rows")
    for name in ("bos", "eos", "padding", "unknown", "eot"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = model.first.get(key)
        if isinstance(value, int) and not 0 <= value < tokens.count:
            yield error("token_id", f"{key} is {value}, but there are {tokens.count} tokens")
    if model.first.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in model.entries:
        yield warning("no_pre_tokenizer", "tokenizer.ggml.pre is missing: llama.cpp splits text in a default way")


def _file_notes(model: Model) -> Iterator[Finding]:
    if model.trailing:
        yield warning("trailing_bytes", f"{model.trailing} bytes behind the last tensor")
    strange = [e.key for e in model.entries.values() if not e.utf8]
    if strange:
        yield warning("not_utf8", f"text that is not UTF-8 in {', '.join(map(ascii, strange[:3]))}")
    if (folded := folded_magnitude(model)) != 1:
        text = f"a magnitude of {folded:.6g} is in its weights (--fold-magnitude), beside what its keys say"
        yield note("folded", text)
    version = model.first.get(PREFIX + "version")
    if version is not None:
        undone = "; `extend --restore` undoes it" if model.first.get(RESTORE) is not None else ""
        yield note("extended", f"written by yarn-gguf {version}{undone}")
