"""The key/values of the unscaled model, in the order of llama.cpp's own converter.

Puts together what `archs`, `general`, `config.audit_keys` and `tokenizer` say. Knows no RoPE scaling but that of the
model's own vectors, and no tensor data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from yarn_gguf.archs import Row
from yarn_gguf.archs.key_tables import entries as key_entries
from yarn_gguf.archs.key_tables import typed_entry
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.checkpoint_ropes import MeantRopes
from yarn_gguf.config.audit import extra_keys
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.conversion.general import General
from yarn_gguf.conversion.general import entries as general_entries
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, entry
from yarn_gguf.metadata import CONTEXT
from yarn_gguf.provenance import CONVERTED
from yarn_gguf.quant_names import FTYPES
from yarn_gguf.tokenizer.vocabulary import MODEL, Vocabulary
from yarn_gguf.tokenizer.vocabulary import entries as vocabulary_entries

FILE_TYPE: Final = "general.file_type"
QUANTIZATION_VERSION: Final = 2


@dataclass(frozen=True)
class Known:
    """What is known of a checkpoint before its RoPE is written."""

    row: Row
    h: Hyperparameters
    weights: Mapping[str, Weight]
    meant: MeantRopes
    general: General
    vocabulary: Vocabulary | None


def unscaled_keys(known: Known, more: Mapping[str, str | int | float], wanted: Wanted) -> list[Entry]:
    """Of the model in float32. `more`: keys that go with vectors of the model's own RoPE."""
    row, config = known.row, known.h.config
    extra = {**more, **extra_keys(config, config.architectures[0])}
    vocabulary = known.vocabulary
    return [
        entry("general.architecture", ValueType.STRING, row.arch),
        *general_entries(known.general),
        *_own_keys(known),
        *(typed_entry(f"{row.arch}.{name}", value) for name, value in extra.items()),
        entry(FILE_TYPE, ValueType.UINT32, FTYPES["F32"]),
        entry("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
        *(_no_vocabulary(known) if vocabulary is None else vocabulary_entries(vocabulary)),
        *_origin(wanted, vocabulary),
    ]


def with_file_type(entries: Sequence[Entry], number: int) -> list[Entry]:
    """The same keys, of a model in another type."""
    return [entry(FILE_TYPE, ValueType.UINT32, number) if e.key == FILE_TYPE else e for e in entries]


# what llama.cpp's loader or graphs stop at, or divide by
RANGES: Final = {
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "feed_forward_length": (1, 1 << 31),
}


def _refuse_ranges(known: Known, entries: Mapping[str, Entry]) -> None:
    def value(name: str) -> float | None:
        found = entries.get(f"{known.row.arch}.{name}")
        return None if found is None or found.item_type is not None else float(str(found.value()))

    for name, (least, most) in RANGES.items():
        given = value(name)
        if given is not None and not least <= given <= most:
            raise known.h.fail(f"{name} would be {given:g}, {least:g} to {most:g} is possible")
    experts, used = value("expert_count"), value("expert_used_count")
    if experts and used is not None and not 1 <= used <= experts:
        raise known.h.fail(f"{used:g} of {experts:g} experts for a token: at least one, and no more than there are")


def _own_keys(known: Known) -> list[Entry]:
    """The architecture's keys; the context is the unscaled model's."""
    row, own = known.row, known.meant.own
    name = f"{row.arch}.{CONTEXT}"
    context = own.context if own.method in ("none", "longrope") else own.original
    found = {e.key: e for e in key_entries(row.arch, row.keys, known.h, known.weights)}
    if context is not None and name in found:
        found[name] = entry(name, ValueType.UINT32, context)
    _refuse_ranges(known, found)
    return list(found.values())


def _no_vocabulary(known: Known) -> list[Entry]:
    """What llama.cpp wants to know where there are no tokens."""
    model = entry(MODEL, ValueType.STRING, "none")
    return [entry(f"{known.row.arch}.vocab_size", ValueType.UINT32, known.h.config.vocab_size), model]


def _origin(wanted: Wanted, vocabulary: Vocabulary | None) -> Iterator[Entry]:
    """How the file was made, where that is not to be seen in it."""
    said = {} if wanted.origin is None else {"repository": wanted.origin[0], "revision": wanted.origin[1]}
    if wanted.pre is not None:
        said["pre_tokenizer"] = wanted.pre
    if wanted.lora is not None:
        said["lora"] = wanted.lora.resolve().name
    if vocabulary is not None and not wanted.check_tokenizer:
        said["tokenizer_check"] = "skipped"
    for name, text in said.items():
        yield entry(CONVERTED + name, ValueType.STRING, text)
