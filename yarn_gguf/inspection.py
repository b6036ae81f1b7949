"""What a GGUF asks for, what llama.cpp will really compute, and everything between the two that a person should know.

Reads headers (and the RoPE tensors' few bytes), loads no model. Judges with `effective`; renders nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.before import read_before
from yarn_gguf.effective import (
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
from yarn_gguf.encoding import ENCODINGS
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, Level, error, note, warning
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.graphs import GRAPHS, Magnitude, RopeFreqs
from yarn_gguf.intent import Intent, RopeOptions, resolve
from yarn_gguf.metadata import (
    ALPHA,
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
from yarn_gguf.provenance import PREFIX, recorded_intent

EMBEDDING: Final = "token_embd.weight"


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` says of one model."""

    model: Model
    facts: Facts
    intent: Intent
    source: str  # where the intent comes from
    encoding: str
    meant: tuple[LayerRope, ...]
    effective: dict[Runtime, tuple[LayerRope, ...]]
    differences: dict[Runtime, Difference]
    findings: tuple[Finding, ...]

    @property
    def exact(self) -> bool:
        return self.differences[Runtime.STOCK].exact

    def exactness(self, runtime: Runtime, kind: LayerClass) -> bool:
        """Whether the layers of one class get what is meant."""
        pairs = zip(self.meant, self.effective[runtime], strict=True)
        return all(compare((a,), (b,), self.intent.context).exact for a, b in pairs if a.kind is kind)

    @property
    def verdict(self) -> str:
        if self.sound:
            return "stock llama.cpp computes exactly what this file asks for"
        if self.exact:
            return "RoPE is exact on stock llama.cpp, but there are errors in the file"
        remedy = "; a patched llama.cpp is exact" if self.differences[Runtime.PATCHED].exact else ""
        return f"stock llama.cpp computes something else than this file asks for{remedy}"

    @property
    def sound(self) -> bool:
        """Exact on stock, and nothing else that keeps the file from doing what it says."""
        return self.exact and not any(f.level is Level.ERROR for f in self.findings)


def inspect_gguf(path: Path, options: RopeOptions, *, strict: bool = False) -> Inspection:
    """Looks at a file or a split set. With options, what is held against the file is what they ask for."""
    before = read_before(path, strict=strict)
    model = before.model
    facts, tensors = read_facts(model), read_tensors(model)
    recorded = recorded_intent(model, before.own) if before.original.extended else None
    intent = recorded or own_intent(model, facts, tensors)
    source = f"{PREFIX}* keys" if recorded else "its keys"
    if options.given:
        try:
            intent, source = resolve(before.own, options).intent, "the options given"
        except (UsageError, InputError) as problem:
            raise type(problem)(problem.text, file=path, code=problem.code) from problem
    meant = meant_ropes(facts, intent)
    effective = {runtime: layer_ropes(facts, tensors, runtime) for runtime in Runtime}
    differences = {runtime: compare(meant, found, intent.context) for runtime, found in effective.items()}
    findings = tuple(_findings(model, facts, tensors, intent, differences))
    encoding = _encoding(model, facts, tensors)
    return Inspection(model, facts, intent, source, encoding, meant, effective, differences, findings)


def _encoding(model: Model, facts: Facts, tensors: Tensors) -> str:
    recorded = model.first.get(PREFIX + "encoding")
    if recorded in ENCODINGS:
        return str(recorded)
    baked = tensors.rope_freqs is not None and file_type(facts) == "none"
    return "baked" if baked and facts.attn_factor is not None else "keys"


def _findings(
    model: Model, facts: Facts, tensors: Tensors, intent: Intent, differences: dict[Runtime, Difference]
) -> Iterator[Finding]:
    stock, patched = differences[Runtime.STOCK], differences[Runtime.PATCHED]
    if not stock.exact:
        remedy = "extend mends it, or says why not" + ("; a patched llama.cpp computes it" if patched.exact else "")
        yield error("not_exact_on_stock", f"stock llama.cpp differs in {stock.text}; {remedy}")
    yield from _dead_keys(facts)
    yield from _context(facts, intent)
    yield from _runtime_traps(facts, intent)
    yield from _tensor_faults(model, facts, tensors)
    yield from _tokenizer_faults(model)
    yield from _file_notes(model)


# a key that some graphs do not read: (name, its value, whether this graph reads it, the value that changes nothing)
_Unread = tuple[str, Callable[[Facts], float | bool | None], Callable[[Facts], bool], float | bool | None]
_SOMETIMES_READ: Final[tuple[_Unread, ...]] = (
    (BETA_FAST, lambda f: f.beta_fast, lambda f: GRAPHS[f.arch].beta_keys, 32.0),
    (BETA_SLOW, lambda f: f.beta_slow, lambda f: GRAPHS[f.arch].beta_keys, 1.0),
    (DEAD_ATTN_FACTOR, lambda f: f.dead_attn_factor, lambda f: GRAPHS[f.arch].magnitude is Magnitude.GROK, None),
    (EXT_FACTOR, lambda f: f.ext_factor, lambda f: GRAPHS[f.arch].magnitude is Magnitude.GROK, 1.0),
    (LOG_MULTIPLIER, lambda f: f.log_multiplier, lambda f: GRAPHS[f.arch].log_multiplier is not None, None),
    (TRUNCATE, lambda f: f.truncate, lambda f: False, True),
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
            yield note("dead_key", f"{key} = {value:g} is not read by stock llama.cpp; the value changes nothing")
        else:
            yield warning("dead_key", f"{key} = {value:g} is not read by stock llama.cpp for {facts.arch}")


def _context(facts: Facts, intent: Intent) -> Iterator[Finding]:
    if facts.context_length < intent.context:
        text = (
            f"context_length is {facts.context_length}, the scaling reaches {intent.context}: "
            "servers cap the context at the smaller one; yarn-gguf extend writes it scaled"
        )
        yield warning("context_unscaled", text)


def _runtime_traps(facts: Facts, intent: Intent) -> Iterator[Finding]:
    betas = (32.0, 1.0) if intent.yarn is None else (intent.yarn.beta_fast, intent.yarn.beta_slow)
    if betas != (32.0, 1.0) and file_type(facts) == "yarn":
        level, where = (warning, "") if GRAPHS[facts.arch].beta_keys else (note, "on a patched library, ")
        yield level(
            "llama_cpp_python_betas",
            f"{where}llama-cpp-python's Llama(...) passes betas 32/1 by default and so overrides "
            f"{betas[0]:g}/{betas[1]:g}; give yarn_beta_fast=-1.0, yarn_beta_slow=-1.0",
        )
    magnitude = intent.rope.magnitude()
    if abs(magnitude - 1) > 1e-6:
        yield warning(
            "context_shift",
            f"a context shift on stock llama.cpp multiplies cached keys by {magnitude:.4g} each time "
            "(--context-shift, --cache-reuse, self-extend): leave it off",
        )


def _tensor_faults(model: Model, facts: Facts, tensors: Tensors) -> Iterator[Finding]:
    graph = GRAPHS[facts.arch]
    if tensors.rope_freqs is not None and graph.rope_freqs is RopeFreqs.REFUSED:
        text = f"rope_freqs.weight is in the file, but llama.cpp's {facts.arch} does not take it and refuses to load"
        yield error("rope_freqs_refused", text)
    if tensors.rope_freqs is not None and graph.rope_freqs is RopeFreqs.IGNORED:
        yield warning("rope_freqs_ignored", f"rope_freqs.weight is loaded for {facts.arch}, and not used")


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
    version = model.first.get(PREFIX + "version")
    if version is not None:
        yield note("extended", f"extended by yarn-gguf {version}; `extend --restore` undoes it")
