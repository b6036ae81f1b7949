"""What a person names, as shapes: a GGUF or a split set, or a checkpoint as `convert` would write it, type by type.

A quantization that does not exist yet has the types that llama.cpp's own quantizer gives (`quant_policy`). Reads
headers and config.json; no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from yarn_gguf.checkpoint.hub import locate
from yarn_gguf.conversion.wanted import AUTO
from yarn_gguf.conversion.wanted import Wanted as Conversion
from yarn_gguf.convert import planned
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.header import Header, TensorInfo
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.graphs import GRAPHS, Rope
from yarn_gguf.intent import Intent
from yarn_gguf.memory.needs import shape_of
from yarn_gguf.memory.quality import Measured, Prices
from yarn_gguf.memory.shape import Shape
from yarn_gguf.provenance import folded_magnitude
from yarn_gguf.quant_names import FLOATS
from yarn_gguf.quant_policy import Mix, choose
from yarn_gguf.sizes import size_text
from yarn_gguf.verification.sides import read_side

_LEFT_OUT: Final = ("needs_imatrix", "requantizing")  # what some types are refused for, and others not
VOCABULARY: Final = 32 << 20  # bytes; the largest are about half of it
USUAL: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")  # that are looked at where nothing else is asked for


@dataclass(frozen=True)
class Source:
    """The model with its weights in one type."""

    path: Path
    type: str
    shape: Shape
    own: Intent | None  # as its author set it
    now: Intent | None  # what it asks for as it is
    checkpoint: bool
    quantized: bool = False  # this type is yet to be made of the file
    file: tuple[str, int] | None = None  # the type of a GGUF as it is, and the bytes of its weights
    folded: float = 1.0  # what its weights hold of the magnitude of cos and sin
    findings: tuple[Finding, ...] = ()


def sources(path: Path, types: Sequence[str]) -> list[Source]:
    """The model in each of the types; without any, in its own and, where it is not quantized, in the usual ones."""
    if path.suffix == ".gguf" or path.is_file():
        return list(_of_gguf(path, types))
    located = locate(str(path))
    return _of_checkpoint(located.folder, path, types or (AUTO, *USUAL))


def _of_gguf(path: Path, types: Sequence[str]) -> Iterator[Source]:
    side = read_side(path)
    model = side.before.model
    turned = GRAPHS[side.before.facts.arch].rope is not Rope.NONE
    before, now = (side.before.own, side.intent) if turned else (None, None)
    shape = shape_of(model)
    facts = (side.type, shape.weights)
    own = Source(path, side.type, shape, before, now, checkpoint=False, file=facts, folded=folded_magnitude(model))
    asked = [name.upper() for name in types if name != AUTO]
    if not types or AUTO in types or own.type in asked:
        yield own
    others = [name for name in (asked if types else USUAL) if name != own.type]
    floating = side.type in FLOATS
    if types and others and not floating:
        text = f"is quantized already ({side.type}), and another type is made of its F16, BF16 or F32 file"
        raise UsageError(f"{text}; plan that one, or leave --type out", file=path, code="quantized")
    if floating and others:
        for name, shape in _quantized(model, others):
            yield replace(own, type=name, shape=shape, quantized=True)


def _quantized(model: Model, names: Sequence[str]) -> Iterator[tuple[str, Shape]]:
    """The shape of what llama.cpp's quantizer would make of the model."""
    infos = [tensor for _, tensor in model.tensors.values()]
    chosen = choose(model.entries.values(), infos, [Mix(name) for name in names], model.path)
    for name, choice in zip(names, chosen, strict=True):
        tensors = {info.name: replace(info, type=choice.types[info.name]) for info in infos}
        yield name, shape_of(Model((_with(model.first, tensors),)))


def _with(header: Header, tensors: dict[str, TensorInfo]) -> Header:
    return replace(header, tensors=tensors)


def _of_checkpoint(folder: Path, named: Path, types: Sequence[str]) -> list[Source]:
    try:
        return _converted(folder, named, types)
    except InputError as problem:
        if problem.code not in _LEFT_OUT or len(types) == 1:
            raise
    made: list[Source] = []
    refused: list[Finding] = []
    for name in types:
        try:
            made += _converted(folder, named, [name])
        except InputError as problem:
            if problem.code not in _LEFT_OUT:
                raise
            refused.append(warning("type_left_out", problem.text))
    if not made:
        raise InputError(refused[0].text, file=folder, code=refused[0].code)
    return [replace(made[0], findings=tuple(refused)), *made[1:]]


def _converted(folder: Path, named: Path, names: Sequence[str]) -> list[Source]:
    # sizes alone are wanted: the vocabulary, and settings that llama.cpp would not honour, are `convert`'s to judge
    wanted = Conversion(outtypes=tuple(names), tokenizer=False, force=True)
    with planned(folder, wanted) as conversion:
        meant = conversion.meant
        return [
            Source(named, version.kind, shape_of(version.blueprint.model), meant.own, meant.intent, checkpoint=True)
            for version in conversion.versions
        ]


def of_this_model(prices: Prices, found: Sequence[Source], needed: float) -> tuple[Prices, tuple[Finding, ...]]:
    """Without what was measured of another model; and for types, without what was measured at a factor that is neither
    the model's own nor the one that it needs."""
    now = found[0].now
    factors = (1.0 if now is None else now.factor, needed)
    own = Prices(tuple(each for each in prices.measured if not _foreign(each, found)))
    told = []
    for model in dict.fromkeys(each.model for each in prices.measured if each.model and each not in own.measured):
        text = f"a report is about another model ({model[0]}, {size_text(model[1])}), so its figures are left out"
        told.append(warning("other_model", text))
    kept = own.at(factors)
    if own.measured and all(each.kld is None for each in kept.measured):
        others = ", ".join(f"{factor:g}" for factor in dict.fromkeys(each.factor for each in own.measured))
        text = f"types were measured at a factor of {others}, which is neither the model's nor needed"
        told.append(note("other_factor", f"{text}; what they cost is estimated"))
    return kept, tuple(told)


def _foreign(each: Measured, found: Sequence[Source]) -> bool:
    """By architecture, and by the size of a type: a file has its weights, and a vocabulary of some MiB."""
    if each.model is None:
        return False
    arch, size = each.model
    alike = [source.shape for source in found if source.type.upper() == each.type.upper()]
    sizes = [shape.weights + shape.unused for shape in alike]
    near = all(weights * 0.95 <= size <= weights * 1.05 + VOCABULARY for weights in sizes)
    return arch != found[0].shape.arch or not near
