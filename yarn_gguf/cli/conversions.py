"""What `convert` prints: for a person, and as JSON. Knows values; opens nothing but a finished file's header."""

from __future__ import annotations

import os
import shutil
from collections import Counter
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
from yarn_gguf.conversion.decided import Conversion, Outcome, Output, Version
from yarn_gguf.conversion.folding import Scaled
from yarn_gguf.conversion.hand_over import HandedOver
from yarn_gguf.conversion.outputs import Beside
from yarn_gguf.conversion.slices import memory_of, size_of
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
        "outputs": [*map(_output_json, outcome.outputs), *map(_beside_json, outcome.beside)],
        "seconds": outcome.seconds,
        "dry_run": dry_run,
        "arch": conversion.row.arch,
        "rope": rope_json(conversion.written.intent, encoding),
        "encoding": encoding,
        "exact": {"stock": conversion.exact, "patched": encoded is None or encoded.patched.exact},
        "tensors": len(conversion.versions[0].tensors),
        "findings": findings_json(outcome.findings),
    }
    plan = [_planned_json(each, version) for version in conversion.versions for each in version.tensors]
    return {**document, "plan": plan} if dry_run else document


def _output_json(output: Output) -> dict[str, Any]:
    return {
        "path": str(output.path),
        "files": [{"path": str(path), "bytes": count, "how": "written"} for path, count in output.files],
        "bytes": output.version.bytes,
        "type": output.version.outtype.upper(),
        "tensor_types": [{"type": name, "tensors": n} for name, n in tensor_types(output.version).items()],
    }


def tensor_types(version: Version) -> dict[str, int]:
    """How many tensors have each type, the most frequent first."""
    return dict(Counter(TENSOR_TYPES[tensor.type].name for tensor in version.tensors).most_common())


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


def _planned_json(tensor: Planned, version: Version) -> dict[str, Any]:
    return {
        "outtype": version.outtype.upper(),
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
        for version in conversion.versions:
            click.echo("\n".join(_plan_lines(version, several=len(conversion.versions) > 1)))
    rows = [("was", rope_text(conversion.meant.own)), ("is", rope_text(conversion.written.intent))]
    rows += [("encoding", _encoding_text(conversion)), ("tokens", _vocabulary_text(conversion))]
    rows += [("types", _types_text(output.version)) for output in outcome.outputs if _is_mixed(output.version)]
    if dry_run:
        rows.append(("needs", _needs_text(outcome, jobs or os.cpu_count() or 1)))
    said, took = ("would be", "") if dry_run else ("wrote", f", {outcome.seconds:.1f} s")
    rows += [(said, f"{_written_text(output)}{took}") for output in outcome.outputs]
    rows += _beside_rows(outcome.beside, converter)
    title = f"{conversion.folder.resolve().name}  {conversion.row.arch}, {conversion.config.layers} layers"
    print_rows(f"{title}, {', '.join(version.outtype.upper() for version in conversion.versions)}", rows)
    print_findings(outcome.findings)


def _is_mixed(version: Version) -> bool:
    """Whether the type does not say it all: besides itself and float32 there are others."""
    return bool(tensor_types(version).keys() - {version.outtype.upper(), "F32"})


def _types_text(version: Version) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in tensor_types(version).items())
    return f"{version.outtype.upper()}: {counts}"


def _needs_text(outcome: Outcome, jobs: int) -> str:
    conversion, folder = outcome.conversion, outcome.outputs[0].path.parent
    memory = max(memory_of(version.tensors, jobs) for version in conversion.versions)
    disk = f"{size_text(conversion.bytes)} of disk, {size_text(shutil.disk_usage(folder).free)} are free"
    return f"{disk}; about {size_text(memory)} of memory"


def _written_text(output: Output) -> str:
    parts = f" in {len(output.files)} parts" if len(output.files) > 1 else ""
    return f"{output.path}, {size_text(output.version.bytes)}{parts}"


def _plan_lines(version: Version, *, several: bool) -> Iterator[str]:
    width, line = max(len(tensor.name) for tensor in version.tensors), line_width()
    if several:
        yield f"{version.outtype.upper()}:"
    for tensor in version.tensors:
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
