"""GGUF -> GGUF with another RoPE: the header is new, the tensor bytes are the old ones. And the way back.

A composition: read, undo (in memory) what an earlier extension did, resolve the options, encode, lay out, write.
Nothing is decided here that `intent`, `encoding` and `provenance` do not decide.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from yarn_gguf import __version__
from yarn_gguf.before import Before
from yarn_gguf.encoding import Encoded, Encoding, check_range, dynamic_on_stock, encode
from yarn_gguf.errors import InputError, UsageError, about
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.fill import Progress
from yarn_gguf.gguf_file.format import F32, TENSOR_TYPES, ValueType
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, entry
from yarn_gguf.gguf_file.layout import Edit, Layout, length_of, rearranged
from yarn_gguf.gguf_file.shards import SPLIT_TENSORS, Model, part_path
from yarn_gguf.gguf_file.writer import Stage, check_target, staged
from yarn_gguf.gguf_intent import read_tensors
from yarn_gguf.intent import METHODS, Intent, Resolved, RopeOptions, resolve
from yarn_gguf.metadata import ROPE_FREQS, Facts
from yarn_gguf.provenance import (
    RESTORE,
    besides_folded,
    digest_of,
    folded_magnitude,
    header_bytes,
    padding_entry,
    restore_record,
    settings_entries,
    without_ours,
)

_OUR_SUFFIX: Final = re.compile(rf"-({'|'.join(METHODS)})[\d.e]+x$|-unscaled$")
How = Literal["written", "shared", "hard-linked", "copied", "kept"]


@dataclass(frozen=True)
class Extension:
    """What will be written, decided and laid out; no byte of it is on disk yet."""

    before: Before
    intent: Intent | None  # None: a restoration
    encoded: Encoded | None
    layouts: Mapping[int, Layout]  # part -> its new bytes; the other parts stay as they are
    findings: tuple[Finding, ...]
    identical: bool = False  # of a restoration: the header is the original's, byte for byte


@dataclass(frozen=True)
class Outcome:
    """What was done (or would be, on a dry run)."""

    extension: Extension
    outputs: tuple[tuple[Path, int, How], ...]
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size, _ in self.outputs)

    @property
    def tensors(self) -> int:
        parts = enumerate(self.extension.before.model.parts)
        layouts = self.extension.layouts
        return sum(layouts[i].tensors if i in layouts else len(part.tensors) for i, part in parts)


def plan_extension(before: Before, options: RopeOptions, encoding: Encoding = "auto") -> Extension:
    """Decides keys, tensor and layout. Raises where the result would not be what was asked for."""
    with about(before.model.path):
        resolved = _resolved(before, options)
        intent = resolved.intent
        check_range(intent)
        encoded = encode(before.undone, before.facts, before.tensors, intent, encoding, typed=bool(options.given))
    findings = [*before.findings, *(warning("resolved", text) for text in resolved.notes)]
    findings += _inexact(encoded, before.facts, intent)
    if before.model.trailing:
        text = f"{before.model.trailing} bytes behind the last tensor are kept; --strict refuses such a file"
        findings.append(warning("trailing_bytes", text))
    return Extension(before, intent, encoded, _layouts(before, intent, encoded), tuple(findings))


def _resolved(before: Before, options: RopeOptions) -> Resolved:
    """Options are laid over the original's own settings; without any, what the file asks for now is kept."""
    current = before.current
    if options.given:
        extent = (options.factor, options.ctx, options.method)
        if before.recorded is not None and extent == (None, None, None):
            text = (
                f"was extended by {current.factor:g}; options start from the original, so give --factor or --ctx again"
            )
            raise UsageError(text, code="no_factor")
        found = resolve(before.own, options)
        return replace(found, intent=besides_folded(found.intent, before.model))
    if current.method in ("none", "factors"):
        raise UsageError("is not scaled, so there is nothing to keep; give --factor or --ctx", code="no_factor")
    return Resolved(current)


def _inexact(encoded: Encoded, facts: Facts, intent: Intent) -> list[Finding]:
    dynamic = [dynamic_on_stock(facts.arch, intent.factor)] if intent.dynamic else []
    if encoded.stock.exact:
        return dynamic
    remedy = "the patched one of `yarn-gguf build` is exact" if encoded.patched.exact else "our patches do not mend it"
    return [warning("not_exact_on_stock", f"stock llama.cpp differs in {encoded.stock.text}; {remedy}")]


def _layouts(before: Before, intent: Intent, encoded: Encoded) -> dict[int, Layout]:
    """Part 1 with its new header; and, where its data changes, the other part that holds `rope_freqs.weight`."""
    original, data = before.original, _data(encoded.changes.rope_freqs)
    holder, old = _holder(before), _data(before.tensors.rope_freqs)
    add = data is not None and holder is None
    entries = encoded.changes.apply(before.facts.arch, {e.key: e for e in without_ours(original.entries.values())})
    if add:
        entries = _one_more_tensor(entries)
    entries |= {e.key: e for e in settings_entries(intent, encoded.encoding, __version__)}
    # part 1 knows the data that another part has lost or, should power fail before its rename, will not have lost
    replaced = old if holder is not None and (data is not None or holder > 0) else None
    entries[RESTORE] = entry(RESTORE, ValueType.STRING, restore_record(original, entries, added=add, replaced=replaced))
    edit = _edit(before, list(entries.values()))
    if add and data is not None:
        edit = replace(edit, added=((TensorInfo(ROPE_FREQS, (len(data) // 4,), F32, 0), data),))
    return _parts(before, edit, data or old, padding_entry)


def _data(factors: Sequence[float] | None) -> bytes | None:
    return None if factors is None else np.array(factors, "<f4").tobytes()


def _holder(before: Before) -> int | None:
    """The part that holds the model's own `rope_freqs.weight`."""
    return None if before.original.added else before.model.tensors.get(ROPE_FREQS, (None,))[0]


def _edit(before: Before, entries: Sequence[Entry]) -> Edit:
    """What becomes of part 1, but for the data of a tensor."""
    original, first = before.original, before.model.first
    return Edit(
        entries,
        dropped=frozenset({ROPE_FREQS}) if original.added else frozenset(),
        body=original.body,
        trailing=min(original.trailing, first.trailing),  # another tool may have dropped them
    )


def _parts(
    before: Before, edit: Edit, rope_freqs: bytes | None, padding: Callable[[int], Entry] | None = None
) -> dict[int, Layout]:
    """The new part 1; and the part that holds `rope_freqs.weight`, where that is another and has other data."""
    model, holder = before.model, _holder(before)
    if holder == 0 and rope_freqs is not None:
        edit = replace(edit, overlaid={ROPE_FREQS: rope_freqs})
    layouts = {0: rearranged(model.first, edit, padding)}
    if holder and rope_freqs is not None and rope_freqs != _data(read_tensors(model).rope_freqs):
        layouts[holder] = _overlaid(model.parts[holder], {ROPE_FREQS: rope_freqs})
    return layouts


def _overlaid(part: Header, data: Mapping[str, bytes]) -> Layout:
    """Another part with the same header and other data of one tensor."""
    entries, tensors = list(part.entries.values()), list(part.tensors.values())
    gap = header_bytes(part)[length_of(entries, tensors) :]
    return rearranged(part, Edit(entries, overlaid=data, trailing=part.trailing, gap=gap))


def _one_more_tensor(entries: dict[str, Entry]) -> dict[str, Entry]:
    count = entries.get(SPLIT_TENSORS)
    if count is None:
        return entries
    value = count.value()
    assert isinstance(value, int)  # `read_model` has refused anything else
    return {**entries, SPLIT_TENSORS: entry(SPLIT_TENSORS, count.type, value + 1)}


def plan_restoration(before: Before) -> Extension:
    """The way back to the original header, and to the original tensor data where that was replaced."""
    model, original = before.model, before.original
    if not original.extended:
        text = f"has no {RESTORE}, so yarn-gguf did not extend it; there is nothing to restore"
        raise InputError(text, file=model.path, code="not_extended")
    if folded_magnitude(model) != 1 and before.facts.attn_factor is None:
        text = "a magnitude is in its weights that no key undoes on this architecture; convert the checkpoint again"
        raise InputError(text, file=model.path, code="folded")
    edit = replace(_edit(before, list(original.entries.values())), gap=original.gap)
    layouts = _parts(before, edit, _data(before.tensors.rope_freqs))
    same_end = edit.trailing == original.trailing and layouts[0].size == _original_size(before, layouts[0])
    others_same = not any(found.code == "parts_changed" for found in before.findings)
    identical = digest_of(layouts[0].header) == original.digest and same_end and others_same
    text = "another tool has changed the file since: the original settings are back, but it is not byte-identical"
    findings = () if identical else (warning("not_identical", text),)
    return Extension(before, None, None, layouts, (*before.findings, *findings), identical)


def _original_size(before: Before, layout: Layout) -> int:
    return len(layout.header) + (before.original.body or 0) + before.original.trailing


def default_output(extension: Extension) -> Path:
    """`NAME-yarn8x.gguf` beside the input; of a set, the name of its first part."""
    path = extension.before.model.path
    stem = path.name.removesuffix(".gguf")
    count = len(extension.before.model.parts)
    if count > 1:
        stem = stem[: -len("-00001-of-00001")]
    if extension.before.original.extended:
        stem = _OUR_SUFFIX.sub("", stem)
    intent = extension.intent
    suffix = "restored" if intent is None else intent.short
    if intent is not None and intent.method == "none":
        suffix = "unscaled"
    name = path.with_name(f"{stem}-{suffix}.gguf")
    return part_path(name, 1, count) if count > 1 else name


def write_extension(
    extension: Extension,
    output: Path | None,
    *,
    in_place: bool = False,
    force: bool = False,
    dry_run: bool = False,
    jobs: int = 0,
    progress: Progress = lambda _: None,
    beside: Sequence[tuple[Path, Path]] = (),
) -> Outcome:
    """Writes all parts and gives them their names together; on a dry run only checks that it could.

    `beside`: names of finished files, and where these are now: they take their names with the parts.
    """
    began = time.monotonic()
    sources = [part.path for part in extension.before.model.parts]
    finals = sources if in_place else _finals(output or default_output(extension), len(sources))
    findings = extension.findings
    try:
        _check(finals, sources, in_place=in_place, force=force)
    except UsageError as problem:
        if not dry_run or problem.code != "output_exists":
            raise
        findings += (warning(problem.code, str(problem)),)
    if in_place and any(source.stat().st_nlink > 1 for source in sources):
        findings += (note("hard_links", "the file has other names (hard links); those keep the old content"),)
    if dry_run:
        sizes = [_new_size(extension, i) for i in range(len(sources))]
        hows: list[How] = ["written" if i in extension.layouts else "kept" for i in range(len(sources))]
        return Outcome(extension, tuple(zip(finals, sizes, hows, strict=True)), 0.0, findings)
    outputs: list[tuple[Path, int, How]] = []
    # over its own input a set keeps, whenever power fails, a part 1 that knows the way back of the other parts' data
    leads = extension.intent is not None and any(final in sources for final in finals)
    with staged(overwrite=force or in_place, jobs=jobs, progress=progress, first_leads=leads) as stage:
        for i, (final, source) in enumerate(zip(finals, sources, strict=True)):
            how = _write_part(stage, extension, i, final, in_place=in_place)
            if in_place and how != "kept":
                stage.keep_mode(final, source)
            outputs.append((final, _new_size(extension, i), how))
        for name, made in beside:
            stage.adopt(name, made)
    return Outcome(extension, tuple(outputs), time.monotonic() - began, findings + _told(outputs, extension))


def _new_size(extension: Extension, part: int) -> int:
    layout = extension.layouts.get(part)
    return extension.before.model.parts[part].stamp.size if layout is None else layout.size


def _finals(output: Path, count: int) -> list[Path]:
    return [output] if count == 1 else [part_path(output, number, count) for number in range(1, count + 1)]


def _check(finals: Sequence[Path], sources: Sequence[Path], *, in_place: bool, force: bool) -> None:
    for final in finals:
        if in_place and final.is_symlink():
            text = "is a symbolic link; give the file it points to, or write another with -o"
            raise UsageError(text, file=final, code="output_is_link")
        if not in_place:
            check_target(final, sources, overwrite=force)


def _write_part(stage: Stage, extension: Extension, part: int, final: Path, *, in_place: bool) -> How:
    layout, header = extension.layouts.get(part), extension.before.model.parts[part]
    if layout is not None:
        return "shared" if stage.write(final, layout.size, layout.pieces) else "written"
    return "kept" if in_place else stage.duplicate(final, header.path, header.stamp)


def _told(outputs: Sequence[tuple[Path, int, How]], extension: Extension) -> tuple[Finding, ...]:
    """What happened to the other parts of a set."""
    hows = Counter(how for i, (_, _, how) in enumerate(outputs) if i not in extension.layouts)
    return tuple(note("parts", f"{count} other part{'s' * (count > 1)} {how}") for how, count in hows.items())


def main_type(model: Model) -> str:
    """The tensor type that most of the model's bytes have."""
    sizes: Counter[str] = Counter()
    for _, tensor in model.tensors.values():
        sizes[TENSOR_TYPES[tensor.type].name] += tensor.size
    return max(sizes, key=lambda name: sizes[name], default="F32")
