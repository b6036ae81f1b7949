"""What was done to a file, kept inside it: the settings under `yarn_gguf.*`, and how to undo them byte for byte.

One string, `yarn_gguf.restore`, holds the way back as JSON: the original's key order, the raw bytes of every entry that
was changed or removed, the tensor that was added or replaced, and a digest of the original header, so `restore` can
tell whether what it made is the original. Another tool may edit the file in between: what can be put back then, is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from yarn_gguf.errors import InputError
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.format import MAX_SIZE, ValueType
from yarn_gguf.gguf_file.header import Entry, Header, entry
from yarn_gguf.gguf_file.layout import length_of
from yarn_gguf.gguf_file.reader import parse_entry
from yarn_gguf.gguf_file.shards import LISTED, Model
from yarn_gguf.intent import Intent
from yarn_gguf.rope import Linear, NtkAware, NtkByParts, Rope, Scaling, Unscaled, Yarn

T = TypeVar("T")
PREFIX: Final = "yarn_gguf."
RESTORE: Final = PREFIX + "restore"
PADDING: Final = PREFIX + "padding"
DYNAMIC: Final = PREFIX + "dynamic"
CONVERTED: Final = PREFIX + "convert."  # how the file was made: true of whatever is extended from it
FOLDED: Final = CONVERTED + "folded_magnitude"
_FORMAT: Final = 1
# the settings that are recorded, and how; each only where the method has it
_RECORDED: Final[dict[str, ValueType]] = {
    "factor": ValueType.FLOAT64,
    "original_context": ValueType.UINT32,
    "beta_fast": ValueType.FLOAT64,
    "beta_slow": ValueType.FLOAT64,
    "truncate": ValueType.BOOL,
    "attention_factor": ValueType.FLOAT64,
    "mscale": ValueType.FLOAT64,
    "mscale_all_dim": ValueType.FLOAT64,
}
_METHODS: Final[dict[str, type]] = {
    "none": Unscaled,
    "linear": Linear,
    "ntk": NtkAware,
    "ntk-by-parts": NtkByParts,
    "yarn": Yarn,
}


@dataclass(frozen=True)
class Original:
    """What a model was before we changed it: entries of part 1, and what became of its `rope_freqs.weight`."""

    entries: Mapping[str, Entry]
    digest: str  # sha256 of part 1's original header
    gap: bytes = b""  # what stood behind its header, where that was not zeros
    added: bool = False  # rope_freqs.weight is ours
    replaced: bytes | None = None  # the data it had before; also where it has that data again, in another part
    trailing: int = 0  # bytes behind the last tensor, which stand at the end of the file still
    body: int | None = None  # bytes of part 1's data region with its padding; None: as it is now
    parts: tuple[str, ...] = ()  # sha256 of the other parts' headers
    infos: tuple[str, ...] = ()  # `tensors_digest` of the other parts; older records lack it
    extended: bool = False  # whether the file has been through us at all


def header_bytes(header: Header) -> bytes:
    """All bytes before the data."""
    return _start(header, header.data_offset)


def _start(header: Header, size: int) -> bytes:
    with header.path.open("rb") as file:
        return file.read(size)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensors_digest(part: Header) -> str:
    """Of names, shapes and types, in whatever order and wherever in the file the tensors lie."""
    found = sorted(part.tensors.items())
    return digest_of(b"".join(replace(tensor, offset=0).encode() for _, tensor in found))


def original_of(model: Model) -> Original:
    """The model's original: itself, if it never was changed by us."""
    found = model.first.get(RESTORE)
    if found is None:
        return _untouched(model)
    try:
        record = json.loads(str(found))
        if record["format"] != _FORMAT:
            text = f"{RESTORE} has format {str(record['format'])[:20]}; another version of yarn-gguf wrote it"
            raise InputError(text, file=model.path, code="bad_restore")
        return _undone(model, _Record(record))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = f"{RESTORE} is damaged ({type(error).__name__}); the original settings cannot be told"
        raise InputError(text, file=model.path, code="bad_restore") from error


def _untouched(model: Model) -> Original:
    first = model.first
    raw = header_bytes(first) if first.tensors else _start(first, first.padded_end)
    gap = raw[length_of(list(first.entries.values()), list(first.tensors.values())) :]
    others = tuple(digest_of(header_bytes(part)) for part in model.parts[1:])
    return Original(
        first.entries,
        digest_of(raw[: first.data_offset]),
        gap if gap.strip(b"\0") else b"",
        trailing=first.trailing,
        body=first.padded_end - first.data_offset,
        parts=others,
        infos=tuple(map(tensors_digest, model.parts[1:])),
    )


class _Record:
    """Typed access to the record: a file's own text is believed no more than the rest of the file."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def _of(self, name: str, kind: type[T]) -> T:
        value = self.values[name]
        if type(value) is not kind:
            raise TypeError(name)
        return value

    def truth(self, name: str) -> bool:
        return self._of(name, bool)

    def text(self, name: str) -> str:
        return self._of(name, str)

    def size(self, name: str) -> int:
        value = self._of(name, int)
        if not 0 <= value <= MAX_SIZE:
            raise ValueError(name)
        return value

    def texts(self, name: str) -> list[str]:
        found = self._of(name, list)
        if not all(isinstance(item, str) for item in found):
            raise TypeError(name)
        return found

    def data(self, name: str) -> bytes:
        return base64.b64decode(self.text(name), validate=True)

    def entries(self, name: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for key, raw in self._of(name, dict).items():
            try:
                found[key] = parse_entry(base64.b64decode(raw, validate=True))
            except InputError as error:
                raise ValueError(key) from error
            if found[key].key != key:
                raise ValueError(key)
        return found


def _undone(model: Model, record: _Record) -> Original:
    """The entries in their old order with their old bytes; what another tool added since comes last."""
    old, ours = record.entries("entries"), set(record.texts("added"))
    kept = {key: e for key, e in model.entries.items() if not key.startswith(PREFIX) and key not in ours}
    entries = {key: old[key] if key in old else kept[key] for key in record.texts("order") if key in old or key in kept}
    entries |= {key: e for key, e in kept.items() if key not in entries}
    return Original(
        entries,
        record.text("header"),
        record.data("gap"),
        record.truth("tensor_added"),
        None if record.values["replaced"] is None else record.data("replaced"),
        record.size("trailing"),
        record.size("body"),
        tuple(record.texts("parts")),
        tuple(record.texts("infos")) if "infos" in record.values else (),
        extended=True,
    )


def check_parts(model: Model, original: Original) -> tuple[Finding, ...]:
    """Whether the other parts of a set are those that part 1 was written for, where it says which.

    Another tool may have edited their metadata, which is said; other tensors are another model's, which is refused.
    """
    others = model.parts[1:]
    if not original.extended or len(original.parts) != len(others):
        return ()
    changed = [i for i, part in enumerate(others) if digest_of(header_bytes(part)) != original.parts[i]]
    if len(original.infos) == len(others):
        strange = [others[i] for i in changed if tensors_digest(others[i]) != original.infos[i]]
        if strange:
            text = f"the parts do not belong together: {_names(strange)} is from another model or was changed"
            text = f"{text}, since its tensors have other names, shapes or types; put the right one in its place"
            raise InputError(text, file=model.path, code="split_mixed")
    if not changed:
        return ()
    text = (
        f"another tool has changed {_names([others[i] for i in changed])} since this set was extended: the settings "
        "can still be told and restored, but not every byte; for that, put back the part as it was"
    )
    return (warning("parts_changed", text),)


def _names(parts: Sequence[Header]) -> str:
    """As many as fit a line."""
    return ", ".join(part.path.name for part in parts[:LISTED]) + (" and more" if len(parts) > LISTED else "")


def restore_record(original: Original, entries: Mapping[str, Entry], *, added: bool, replaced: bytes | None) -> str:
    """The way back from a file with `entries` to the original, as one line of JSON."""
    changed = {
        key: e
        for key, e in original.entries.items()
        if key not in entries or entries[key].raw != e.raw or key.startswith(PREFIX)  # the way back drops those of ours
    }
    record = {
        "format": _FORMAT,
        "order": list(original.entries),
        "entries": {key: base64.b64encode(e.raw).decode() for key, e in changed.items()},
        "added": [key for key in entries if key not in original.entries],
        "tensor_added": added,
        "replaced": None if replaced is None else base64.b64encode(replaced).decode(),
        "gap": base64.b64encode(original.gap).decode(),
        "trailing": original.trailing,
        "body": original.body,
        "header": original.digest,
        "parts": list(original.parts),
        "infos": list(original.infos),
    }
    return json.dumps(record, separators=(",", ":"))


def settings_entries(intent: Intent, encoding: str, version: str) -> list[Entry]:
    """What was asked for, in full, for whoever reads the file later."""
    scaling = intent.rope.scaling
    found = [
        entry(PREFIX + "version", ValueType.STRING, version),
        entry(PREFIX + "method", ValueType.STRING, intent.method),
        entry(PREFIX + "encoding", ValueType.STRING, encoding),
        entry(PREFIX + "context_length", ValueType.UINT32, intent.context),
        entry(PREFIX + "magnitude", ValueType.FLOAT64, intent.rope.magnitude()),
    ]
    for name, kind in _RECORDED.items():
        value = getattr(scaling, name, None)
        if value is not None:
            found.append(entry(PREFIX + name, kind, value))
    if intent.dynamic:
        found.append(entry(DYNAMIC, ValueType.BOOL, True))
    return found


def recorded_intent(model: Model, own: Intent) -> Intent | None:
    """What the file's settings ask for, on top of its original's own intent; None where they are not all there."""
    method = model.first.get(PREFIX + "method")
    context = model.first.get(PREFIX + "context_length")
    make = _METHODS.get(str(method))
    if make is None or not isinstance(context, int):
        return None
    values = {name: model.first.get(PREFIX + name) for name in _RECORDED}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        scaling: Scaling = make(**given)
        original = getattr(scaling, "original_context", own.original)
        rope = Rope(own.rope.dim, own.rope.base, scaling, own.rope.under)
        return Intent(rope, original, context, model.first.get(DYNAMIC) is True)
    except (TypeError, ValueError) as error:
        text = f"its {PREFIX}* keys make no RoPE: {error}"
        raise InputError(text, file=model.path, code="bad_restore") from error


def folded_magnitude(model: Model) -> float:
    """What the weights have been multiplied by, for what the keys need not say; 1 for most files."""
    found = model.first.get(FOLDED)
    if found is None:
        return 1.0
    if not isinstance(found, float) or not 0 < found < math.inf:
        raise InputError(f"{FOLDED} is {str(found)[:20]}, a positive number is needed", file=model.path, code="folded")
    return found


def besides_folded(intent: Intent, model: Model) -> Intent:
    """What is left to be written of a wish, where the weights hold a part of it already."""
    folded, scaling = folded_magnitude(model), intent.rope.scaling
    if folded == 1:
        return intent
    if not isinstance(scaling, Yarn):
        text = f"a magnitude of {folded:g} is in its weights, which {intent.method} has no key to undo"
        raise InputError(f"{text}; convert the checkpoint again", file=model.path, code="folded")
    rest = replace(scaling, attention_factor=intent.rope.magnitude() / folded)
    return replace(intent, rope=replace(intent.rope, scaling=rest))


def padding_entry(size: int) -> Entry:
    """An entry whose text is `size` bytes long, to move the data where it can share extents with its source."""
    return entry(PADDING, ValueType.STRING, " " * size)


def without_ours(entries: Iterable[Entry]) -> Sequence[Entry]:
    return [e for e in entries if not e.key.startswith(PREFIX) or e.key.startswith(CONVERTED)]
