"""Hugging Face checkpoint -> GGUF with the RoPE that was asked for, in one pass over the weights.

A composition: read the config and the shards' headers, find the row of the architecture, plan every tensor, decide how
the scaling is written, prove the tokenizer, lay out, write. What is decided is decided by the modules named in the
imports; no weight is read before the files are written, but for a head that must equal the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from yarn_gguf import __version__
from yarn_gguf.archs import ARCHITECTURES, Row
from yarn_gguf.archs.common import as_stored
from yarn_gguf.archs.tensor_plan import check_tied_head, plan_tensors
from yarn_gguf.checkpoint.lora import merged, read_adapter
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.weights import Weight, Weights, open_weights
from yarn_gguf.checkpoint_ropes import meant_ropes
from yarn_gguf.config.audit import audit
from yarn_gguf.config.fields import shown
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.config.model_config import ModelConfig, read_config
from yarn_gguf.conversion.decided import Conversion, Version
from yarn_gguf.conversion.file import Blueprint, shards, with_way_back
from yarn_gguf.conversion.folding import Fold, fold_magnitude, roundings, unfolded, with_mark
from yarn_gguf.conversion.general import count_parameters, default_name, read_general
from yarn_gguf.conversion.keys import Known, unscaled_keys, with_file_type
from yarn_gguf.conversion.rope import Written, rope_parts, write_rope
from yarn_gguf.conversion.variants import Variant, base_type, variants
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.effective import Tensors
from yarn_gguf.encoding import check_range
from yarn_gguf.errors import ChildError, InputError, about
from yarn_gguf.findings import Finding, Level, note, warning
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, entry
from yarn_gguf.metadata import read_facts
from yarn_gguf.provenance import PREFIX, settings_entries
from yarn_gguf.tokenizer.check import check_tokenizer
from yarn_gguf.tokenizer.reading import read_vocabulary
from yarn_gguf.tokenizer.vocabulary import Vocabulary

ELSEWHERE: Final = "--converter PATH/convert_hf_to_gguf.py has llama.cpp's own do it"


@contextmanager
def planned(folder: Path, wanted: Wanted) -> Iterator[Conversion]:
    """The conversion of a checkpoint; inside the block its weights can be read."""
    config = _config(folder)
    row = _row(config)
    checkpoint = read_checkpoint(folder, allow_pickle=wanted.allow_pickle)
    with open_weights(checkpoint, config.quantization) as stored, _adapted(stored, wanted.lora) as (weights, verify):
        yield replace(_plan(folder, config, row, weights, wanted), verify=verify)


@contextmanager
def _adapted(weights: Weights, lora: Path | None) -> Iterator[tuple[Mapping[str, Weight], Callable[[], None]]]:
    """The weights with an adapter merged into them, if there is one; and what raises if a file of theirs changed."""
    if lora is None:
        yield weights, weights.verify
        return
    with read_adapter(lora) as adapter:

        def verify() -> None:
            weights.verify()
            adapter.verify()

        yield merged(weights, adapter), verify


def knows(folder: Path) -> bool:
    """Whether there is a row for a checkpoint's architecture."""
    try:
        _row(read_config(folder))
    except InputError as problem:
        if problem.code in ("unknown_model", "unknown_architecture"):
            return False
        raise
    return True


def _config(folder: Path) -> ModelConfig:
    try:
        return read_config(folder)
    except InputError as problem:
        if problem.code != "unknown_model":
            raise
        raise InputError(f"{problem.text}; {ELSEWHERE}", file=problem.file, code=problem.code) from problem


def _row(config: ModelConfig) -> Row:
    if not config.architectures:
        raise InputError(f"names no class in architectures; {ELSEWHERE}", file=config.path, code="unknown_architecture")
    name = config.architectures[0]
    row = ARCHITECTURES.get(f"{name}/{config.model_type}") or ARCHITECTURES.get(name)
    if row is None:
        what = f"architecture {shown(name)} is not one of the {len(ARCHITECTURES)} that convert knows"
        raise InputError(f"{what}; {ELSEWHERE}", file=config.path, code="unknown_architecture")
    return row


def _plan(folder: Path, config: ModelConfig, row: Row, weights: Mapping[str, Weight], wanted: Wanted) -> Conversion:
    h, meant = as_stored(Hyperparameters(config), weights), meant_ropes(config, wanted.rope)
    with about(folder):
        check_range(meant.intent)
    findings = [note("config", text) for text in config.notes] + _audited(
        config, meant.intent.context, force=wanted.force
    )
    check_tied_head(h, weights)
    tensors = plan_tensors(row, h, weights, base_type(weights))
    fold = fold_magnitude(row.arch, h, meant, tensors) if wanted.fold else unfolded(meant, tensors)
    parts = rope_parts(row.arch, meant)
    called = None if wanted.origin is None else wanted.origin[0].rpartition("/")[2]
    general = read_general(folder, count_parameters((t.name, t.shape) for t in tensors), wanted.name, called)
    vocabulary = _vocabulary(folder, config, wanted)
    findings += [note("general", text) for text in general.notes]
    findings += [] if vocabulary is None else list(vocabulary.notes)
    known = Known(row, h, weights, meant, general, vocabulary)
    keys = unscaled_keys(known, parts.keys, wanted)
    all_tensors = (*fold.tensors, *parts.vectors)
    found = variants(folder, all_tensors, keys, weights, wanted)
    findings += [finding for variant in found for finding in (*variant.findings, *roundings(fold, variant.tensors))]
    versions, written = _versions(folder, keys, found, parts.rope_freqs, fold, wanted)
    verdict, proven = _proven(folder, vocabulary, keys, wanted)
    all_findings = tuple(dict.fromkeys((*findings, *fold.findings, *written.findings, *proven)))
    return Conversion(folder, config, row, general, vocabulary, meant, written, versions, all_findings, verdict)


def _versions(
    folder: Path,
    keys: Sequence[Entry],
    found: Sequence[Variant],
    rope_freqs: tuple[float, ...] | None,
    fold: Fold,
    wanted: Wanted,
) -> tuple[tuple[Version, ...], Written]:
    """The RoPE is written into each; it is the same decision for all, as it depends on no tensor's type."""
    versions: list[Version] = []
    for variant in found:
        entries = {e.key: e for e in (*with_file_type(keys, variant.file_type), *variant.keys)}
        base = Blueprint(folder, entries, shards(variant.tensors, wanted.split), rope_freqs)
        written, blueprint = _scaled(base, fold, wanted)
        versions.append(Version(variant.name, variant.kind, blueprint))
    return tuple(versions), written


def _proven(
    folder: Path, vocabulary: Vocabulary | None, keys: Sequence[Entry], wanted: Wanted
) -> tuple[str, tuple[Finding, ...]]:
    """What is known of the tokenizer after asking llama.cpp, and what a person should be told."""
    if vocabulary is None:
        return "", ()
    if not wanted.check_tokenizer:
        text = "nothing proves that llama.cpp makes the tokens of the original tokenizer: --skip-tokenizer-check"
        return "not checked", (warning("tokenizer_unchecked", text),)
    try:
        findings = check_tokenizer(folder, vocabulary, [e for e in keys if e.key.startswith("general.")])
    except ChildError as problem:
        if wanted.pre is None:
            raise
        text = f"with --pre {wanted.pre}, {problem.text}; give a name that llama.cpp knows"
        raise InputError(text, file=folder, code="unknown_pre") from problem
    unchecked = any(f.code == "tokenizer_not_checked" for f in findings)
    return "not checked" if unchecked else "same ids as the original", findings


def _audited(config: ModelConfig, context: int, *, force: bool) -> list[Finding]:
    """Refuses settings that llama.cpp's graph would not honour; forced, they are warnings."""
    found = audit(config, config.architectures[0], context)
    faults = [f.text for f in found if f.level is Level.ERROR]
    if faults and not force:
        text = f"{'; '.join(faults)}. --force converts all the same, to a file that computes something else"
        raise InputError(text, file=config.path, code="not_honoured")
    return [replace(f, level=Level.WARNING) if f.level is Level.ERROR else f for f in found]


def _vocabulary(folder: Path, config: ModelConfig, wanted: Wanted) -> Vocabulary | None:
    if not wanted.tokenizer:
        return None
    return read_vocabulary(folder, config.vocab_size, config.architectures[0], config.model_type, wanted.pre)


def _scaled(base: Blueprint, fold: Fold, wanted: Wanted) -> tuple[Written, Blueprint]:
    """The unscaled model with the scaling written into it, and the way back."""
    base, meant = with_mark(base, fold), fold.meant
    model = base.model
    facts, typed = read_facts(model), bool(wanted.rope.given)
    tensors = Tensors(base.rope_freqs, *rope_parts(facts.arch, meant).lists)
    written = write_rope(model, facts, tensors, meant, wanted.encoding, typed=typed, force=wanted.force)
    version = entry(PREFIX + "version", ValueType.STRING, __version__)
    if written.encoded is None:
        return written, replace(base, entries={**base.entries, version.key: version})
    changes = written.encoded.changes
    entries = changes.apply(facts.arch, base.entries)
    entries |= {e.key: e for e in settings_entries(written.intent, written.encoded.encoding, __version__)}
    scaled = replace(base, entries=entries, rope_freqs=changes.rope_freqs or base.rope_freqs)
    return written, with_way_back(base, scaled)


def output_name(conversion: Conversion, version: Version, wanted: Wanted) -> str:
    """Upstream's default name, with the scaling in it where one was asked for."""
    name = default_name(conversion.general, version.kind)
    intent = conversion.written.intent
    if not wanted.rope.given or conversion.written.encoded is None:
        return name
    return f"{name.removesuffix('.gguf')}-{intent.short}.gguf"
