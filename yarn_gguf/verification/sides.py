"""The models of a verification, by their headers alone: what they are, which RoPE is meant, that all can be compared.

The RoPE of a Hugging Face reference comes from the options; else from the intent in the candidates' `yarn_gguf.*` keys;
else from config.json. Never from a candidate's effective keys: that would hide a wrong one. Opens no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from yarn_gguf.before import Before, read_before
from yarn_gguf.checkpoint_ropes import meant_ropes as checkpoint_ropes
from yarn_gguf.config.model_config import ModelConfig, read_config
from yarn_gguf.effective import Runtime, compare, layer_ropes, meant_ropes
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.extend import main_type
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_intent import own_intent, read_tensors
from yarn_gguf.graphs import TESTED
from yarn_gguf.intent import Intent, RopeOptions
from yarn_gguf.metadata import read_facts
from yarn_gguf.opened import opened, padded
from yarn_gguf.quant_names import FTYPES
from yarn_gguf.runtime import vocabulary_size
from yarn_gguf.verification.recording import Record, is_record, read_record

TOKENS: Final = "tokenizer.ggml.tokens"
FILE_TYPE: Final = "general.file_type"
CLOSE: Final = 1e-6  # relative, of frequencies and magnitudes that are meant to be the same
_TYPES: Final = {number: name for name, number in FTYPES.items()}
SHOWN: Final = 40  # characters of a word


@dataclass(frozen=True)
class Side:
    """One GGUF."""

    path: Path
    before: Before
    intent: Intent  # what it asks for, by its record or its keys
    type: str  # as `general.file_type` names it, else the type that most bytes have

    @property
    def model(self) -> Model:
        return self.before.model

    @property
    def vocabulary(self) -> int:
        return vocabulary_size(self.model)

    @property
    def words(self) -> list[str] | None:
        """None where it has no vocabulary."""
        found = self.model.first.get(TOKENS)
        return found if isinstance(found, list) else None

    @property
    def context_length(self) -> int:
        return read_facts(self.model).context_length

    @property
    def identity(self) -> list[Any]:
        """What changes when the file does."""
        return [
            [str(part.path.resolve()), part.stamp.size, part.stamp.mtime_ns, part.stamp.inode]
            for part in self.model.parts
        ]


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder as the reference, with the RoPE that it is given."""

    path: Path
    config: ModelConfig
    intent: Intent
    source: str  # where that comes from
    given: Intent | None  # None: config.json is left as it is

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    @property
    def identity(self) -> list[Any]:
        files = sorted((*self.path.glob("*.safetensors"), self.path / "config.json"))
        return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


Reference = Checkpoint | Side | Record


@dataclass(frozen=True)
class Sides:
    reference: Reference
    candidates: tuple[Side, ...]
    original: int | None  # the context before any extension
    reach: int  # the context that all are meant for
    differing: Mapping[Path, str]  # whose keys say that llama.cpp computes another RoPE than the reference's

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What differs is a fault where the reference says what is meant; it may be the point where that is a GGUF."""
        return tuple(warning("rope_differs", f"{path.name}: {text}") for path, text in self.differing.items())

    def at(self, context: int) -> Sides:
        """With a reference that is scaled as a dynamic candidate is where so many tokens are opened."""
        found = self.reference
        if not isinstance(found, Checkpoint) or not found.intent.dynamic:
            return self
        meant = opened(found.intent, context)
        source = f"{found.source}, dynamic: as far as {padded(context)} tokens need"
        return replace(self, reference=replace(found, intent=meant, given=meant, source=source))

    def fault(self, side: Side) -> str | None:
        """Why a candidate cannot be what is meant, whatever the figures say."""
        known = isinstance(self.reference, Checkpoint) and read_facts(side.model).arch in TESTED
        return self.differing.get(side.path) if known else None


def read_side(path: Path) -> Side:
    before = read_before(path)
    number = before.model.first.get(FILE_TYPE)
    name = _TYPES.get(number) if isinstance(number, int) else None
    return Side(path, before, before.recorded or _own(before), name or main_type(before.model))


def _own(before: Before) -> Intent:
    return own_intent(before.model, read_facts(before.model), read_tensors(before.model))


def read_sides(reference: Path, candidates: Sequence[Path], options: RopeOptions, *, runtime: Runtime) -> Sides:
    """Everybody's header, proven; refuses what cannot be compared."""
    others = tuple(read_side(path) for path in candidates)
    found = _reference(reference, others, options)
    _check_vocabularies(found, others)
    intents = [found.intent] if isinstance(found, Checkpoint | Side) else []
    intents += [each.intent for each in others]
    differing = dict(_differing(found, others, runtime))
    reaches = [each.context for each in intents] + ([found.windows.context] if isinstance(found, Record) else [])
    return Sides(found, others, options.original_ctx or _original(found, others), min(reaches), differing)


def _reference(path: Path, others: Sequence[Side], options: RopeOptions) -> Reference:
    folder = path.parent if path.name == "config.json" else path
    if folder.is_dir():
        return read_checkpoint(folder, options, others)
    unfit = [name for name in options.given if name != "original_ctx"]
    if unfit:
        flag = "--" + unfit[0].replace("_", "-")
        text = f"{flag} is for a Hugging Face reference; the RoPE of a GGUF or a record is its own"
        raise UsageError(text, file=path, code="unused_option")
    return read_record(path) if is_record(path) else read_side(path)


def read_checkpoint(folder: Path, options: RopeOptions, others: Sequence[Side] = ()) -> Checkpoint:
    config = read_config(folder)
    recorded = [(each.path, each.before.recorded) for each in others if each.before.recorded is not None]
    if options.given or not recorded:
        meant = checkpoint_ropes(config, options)
        source = "the options given" if options.given else "config.json"
        return Checkpoint(folder, config, meant.intent, source, meant.intent if options.given else None)
    (first_path, first), *more = recorded
    for path, intent in more:
        if intent is not None and first is not None and not _same(first, intent):
            text = f"asks for another RoPE than {first_path}: {_short(intent)}, not {_short(first)}"
            raise InputError(
                f"{text}; verify them one by one, or give the rope options", file=path, code="intents_differ"
            )
    assert first is not None
    own = checkpoint_ropes(config, RopeOptions()).own  # refuses a class without RoPE
    given = replace(first, rope=replace(first.rope, dim=own.rope.dim, base=own.rope.base, under=own.rope.under))
    return Checkpoint(folder, config, given, f"the yarn_gguf.* keys of {first_path.name}", given)


def _short(intent: Intent) -> str:
    scaling = intent.yarn
    betas = "" if scaling is None else f", betas {scaling.beta_fast:g}/{scaling.beta_slow:g}"
    return f"{intent.short}{betas}, magnitude {intent.rope.magnitude(intent.context):.5g}"


def _same(one: Intent, other: Intent) -> bool:
    a, b = one.rope.inverse_frequencies(one.context), other.rope.inverse_frequencies(other.context)
    if a.shape != b.shape or not np.allclose(a, b, rtol=CLOSE, atol=0):
        return False
    m, n = one.rope.magnitude(one.context), other.rope.magnitude(other.context)
    return bool(np.isclose(m, n, rtol=CLOSE)) and one.context == other.context


def _original(reference: Reference, others: Sequence[Side]) -> int | None:
    """Of whoever is scaled: the reference first."""
    if isinstance(reference, Record):
        found = reference.provenance.get("original_context")
        if isinstance(found, int):
            return found
    else:
        others = (reference, *others) if isinstance(reference, Side) else others
        if isinstance(reference, Checkpoint) and reference.intent.method != "none":
            return reference.intent.original
    scaled = [each.intent.original for each in others if each.intent.method != "none"]
    return next((each for each in scaled if each is not None), None)


# ---- that they can be compared


def _check_vocabularies(reference: Reference, others: Sequence[Side]) -> None:
    known = [*([reference] if isinstance(reference, Side) else []), *others]
    if not known:
        return
    first = known[0]
    size = reference.vocabulary if isinstance(reference, Record) else first.vocabulary
    for each in known:
        if each.vocabulary != size:
            text = f"has a vocabulary of {each.vocabulary} words, {_name(reference)} one of {size}"
            raise InputError(f"{text}; they cannot be compared", file=each.path, code="vocabularies_differ")
        _check_words(first, each)


def _name(reference: Reference) -> str:
    return "the record" if isinstance(reference, Record) else reference.path.name


def _check_words(first: Side, other: Side) -> None:
    if other is first or first.model.entries.get(TOKENS) is None or other.model.entries.get(TOKENS) is None:
        return
    if first.model.entries[TOKENS].raw == other.model.entries[TOKENS].raw:
        return
    pairs = zip(first.words or [], other.words or [], strict=False)
    at, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    text = f"word {at} of its vocabulary is {two[:SHOWN]!r}, that of {first.path.name} is {one[:SHOWN]!r}"
    raise InputError(f"{text}; they cannot be compared", file=other.path, code="vocabularies_differ")


def _differing(reference: Reference, others: Sequence[Side], runtime: Runtime) -> Iterator[tuple[Path, str]]:
    """What the keys say already of who computes something else than is meant."""
    for each in others:
        facts = read_facts(each.model)
        got = layer_ropes(facts, read_tensors(each.model), runtime)
        if isinstance(reference, Checkpoint):
            meant = meant_ropes(facts, reference.intent)
        elif isinstance(reference, Side):
            their = read_facts(reference.model)
            meant = layer_ropes(their, read_tensors(reference.model), runtime)
        else:
            continue
        if [(rope.kind, rope.layers) for rope in meant] != [(rope.kind, rope.layers) for rope in got]:
            continue
        difference = compare(meant, got, each.intent.context)
        if not difference.exact:
            text = f"by its keys {runtime.value} llama.cpp differs from the reference in {difference.text}"
            yield each.path, text
