"""What `convert` prints: for a person, and as JSON. Knows values; opens nothing but a finished file's header."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any, Final

import click

from yarn_gguf.archs.tensors import Planned
from yarn_gguf.cli.extend import extension_document, print_extension
from yarn_gguf.cli.render import (
    findings_json,
    line_width,
    print_findings,
    print_rows,
    rope_json,
    rope_text,
    shortened,
)
from yarn_gguf.conversion.folding import Scaled
from yarn_gguf.conversion.hand_over import HandedOver
from yarn_gguf.conversion.outputs import Beside
from yarn_gguf.conversion.slices import memory_of, size_of
from yarn_gguf.convert import Conversion, Outcome
from yarn_gguf.errors import printable
from yarn_gguf.extend import main_type
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.sizes import size_text

LEAST: Final = 8  # characters, below which what is left of a name tells nothing


def conversion_document(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    conversion = outcome.conversion
    encoded = conversion.written.encoded
    encoding = None if encoded is None else encoded.encoding
    document = {
        "outputs": [
            {
                "path": str(outcome.outputs[0][0]),
                "files": [{"path": str(path), "bytes": count, "how": "written"} for path, count in outcome.outputs],
                "bytes": conversion.bytes,
                "type": conversion.outtype.upper(),
            },
            *map(_beside_json, outcome.beside),
        ],
        "seconds": outcome.seconds,
        "dry_run": dry_run,
        "arch": conversion.row.arch,
        "rope": rope_json(conversion.written.intent, encoding),
        "encoding": encoding,
        "exact": {"stock": conversion.exact, "patched": encoded is None or encoded.patched.exact},
        "tensors": len(conversion.tensors),
        "findings": findings_json(outcome.findings),
    }
    return {**document, "plan": [_planned_json(each) for each in conversion.tensors]} if dry_run else document


def other_document(done: HandedOver) -> dict[str, Any]:
    """The same fields for what another converter wrote; of what was left as it is, nobody knows whether it is exact."""
    before, others = done.before, [_beside_json(each) for each in done.beside]
    if done.extended is not None:
        found = extension_document(done.extended, dry_run=False)
        del found["identical"]
        return {**found, "outputs": found["outputs"] + others, "arch": before.facts.arch}
    size = before.model.bytes
    files = [{"path": str(done.path), "bytes": size, "how": "written"}]
    return {
        "outputs": [{"path": str(done.path), "files": files, "bytes": size, "type": main_type(before.model)}, *others],
        "dry_run": False,
        "arch": before.facts.arch,
        "rope": rope_json(before.current, None),
        "encoding": None,
        "exact": None,
        "tensors": len(before.model.tensors),
        "findings": findings_json(done.findings),
    }


def _beside_json(beside: Beside) -> dict[str, Any]:
    path = str(beside.path)
    files = [{"path": path, "bytes": beside.bytes, "how": "written"}]
    return {"path": path, "files": files, "bytes": beside.bytes, "type": beside.type}


def print_other(done: HandedOver, name: str, converter: str) -> None:
    """`name`: of the checkpoint, as the file that the converter made is gone."""
    rows = _beside_rows(done.beside, converter)
    if done.extended is not None:
        print_extension(done.extended, dry_run=False, name=name, more=rows)
        return
    model, facts = done.before.model, done.before.facts
    wrote = ("wrote", f"{done.path}, {size_text(model.bytes)}, by {converter}, left as it is")
    title = f"{name}  {facts.arch}, {facts.layers} layers, {main_type(model)}"
    print_rows(title, [("is", rope_text(done.before.current)), wrote, *rows])
    print_findings(done.findings)


def _beside_rows(beside: tuple[Beside, ...], converter: str) -> list[tuple[str, str]]:
    """The vision tower, made or to be made."""
    sizes = [f"{size_text(each.bytes)}, by" if each.bytes is not None else "to be made by" for each in beside]
    return [("mmproj", f"{each.path}, {size} {converter}") for each, size in zip(beside, sizes, strict=True)]


def _planned_json(tensor: Planned) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "type": TENSOR_TYPES[tensor.type].name,
        "bytes": size_of(tensor),
        "sources": list(dict.fromkeys(weight.name for part in tensor.parts for weight in part.weights)),
        "transforms": _transforms(tensor),
    }


def _transforms(tensor: Planned) -> list[str]:
    named = (part.transform.name for part in tensor.parts if part.transform is not None)
    scaled = (weight.how for part in tensor.parts for weight in part.weights if isinstance(weight, Scaled))
    return list(dict.fromkeys((*scaled, *named)))


def print_conversion(outcome: Outcome, converter: str, *, dry_run: bool, jobs: int) -> None:
    conversion = outcome.conversion
    if dry_run:
        click.echo("\n".join(_plan_lines(conversion)))
    path, _ = outcome.outputs[0]
    count = len(outcome.outputs)
    done = f"{path}, {size_text(conversion.bytes)}" + (f" in {count} parts" if count > 1 else "")
    rows = [("was", rope_text(conversion.meant.own)), ("is", rope_text(conversion.written.intent))]
    rows += [("encoding", _encoding_text(conversion)), ("tokens", _vocabulary_text(conversion))]
    if dry_run:
        free = shutil.disk_usage(path.parent).free
        memory = size_text(memory_of(conversion.tensors, jobs or os.cpu_count() or 1))
        disk = f"{size_text(conversion.bytes)} of disk, {size_text(free)} are free"
        rows.append(("needs", f"{disk}; about {memory} of memory"))
        rows.append(("would be", done))
    else:
        rows.append(("wrote", f"{done}, {outcome.seconds:.1f} s"))
    rows += _beside_rows(outcome.beside, converter)
    title = f"{conversion.folder.resolve().name}  {conversion.row.arch}, {conversion.config.layers} layers"
    print_rows(f"{title}, {conversion.outtype.upper()}", rows)
    print_findings(outcome.findings)


def _plan_lines(conversion: Conversion) -> Iterator[str]:
    width, line = max(len(tensor.name) for tensor in conversion.tensors), line_width()
    for tensor in conversion.tensors:
        sources = list(dict.fromkeys(weight.name for part in tensor.parts for weight in part.weights))
        more = f" … {sources[-1]} ({len(sources)})" if len(sources) > 2 else f", {sources[1]}" if sources[1:] else ""
        how = f"  [{', '.join(_transforms(tensor))}]" if _transforms(tensor) else ""
        shape, size = "×".join(map(str, tensor.shape)), size_text(size_of(tensor))
        head = f"  {tensor.name:<{width}}  {TENSOR_TYPES[tensor.type].name:<5} {shape:<16} {size:>9}"
        yield printable(head + _fitting(f"  {sources[0]}{more}", how, None if line is None else line - len(head)))


def _fitting(sources: str, how: str, room: int | None) -> str:
    """Where a tensor comes from, in what room the line has left: what is done to it goes last."""
    if room is None:
        return sources + how
    rest = room - len(how)
    if rest >= LEAST:
        return shortened(sources, rest) + how
    return how if rest >= 0 else ""


def _encoding_text(conversion: Conversion) -> str:
    written = conversion.written
    verdict = "exact on stock llama.cpp" if conversion.exact else "not exact on stock llama.cpp"
    if written.encoded is None:
        return f"nothing to encode, {verdict}"
    what = {"keys": "standard keys", "baked": "baked into rope_freqs.weight"}[written.encoded.encoding]
    return f"{what}, {verdict}"


def _vocabulary_text(conversion: Conversion) -> str:
    vocabulary = conversion.vocabulary
    if vocabulary is None:
        return "none"
    pre = f", pre-tokenizer {vocabulary.pre}" if vocabulary.pre else ""
    return f"{len(vocabulary.tokens)}, {vocabulary.model}{pre}, {conversion.tokenizer_verdict}"
