"""The types of all tensors in each file that is wanted: upstream's converter's, or those of llama.cpp's quantizer.

What the converter writes (floats and Q8_0) is typed and encoded as it does; for everything else, and for types that
were asked for one by one, the installed llama.cpp is asked (`quant_policy`), about the float model that would be given
to `llama-quantize`. An importance matrix is held against the tensors here. Knows no bytes and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from yarn_gguf.archs.tensor_plan import MXFP4, NUMBERS, tensor_type
from yarn_gguf.archs.tensors import Planned
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.conversion.wanted import AUTO, CONVERTED, Wanted
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.header import Entry, TensorInfo
from yarn_gguf.imatrix import Imatrix, read_imatrix
from yarn_gguf.quant_names import FLOATS, FTYPES
from yarn_gguf.quant_policy import Choice, Mix, choose, needs_importance

LISTED: Final = 4  # names in a finding
OUTPUT: Final = "output.weight"
WITHOUT: Final = ("token_embd.weight", "per_layer_token_embd.weight")  # where llama-quantize lets an importance not fit
_UNTOUCHED: Final = frozenset(NUMBERS[name] for name in FLOATS)


@dataclass(frozen=True)
class Variant:
    """The tensors as one of the files, or sets, has them."""

    name: str  # as it was asked for: "f16", "Q4_K_M"
    kind: str  # what the file is then called: "F16", "MXFP4_MOE"
    tensors: tuple[Planned, ...]
    keys: tuple[Entry, ...] = ()  # about an importance matrix
    findings: tuple[Finding, ...] = ()

    @property
    def file_type(self) -> int:
        return FTYPES[self.kind]


def guessed_type(weights: Mapping[str, Weight]) -> str:
    """As upstream's converter guesses: by the first matrix that is 16 bits wide; else f16."""
    return _wide(weights, "F16")


def base_type(weights: Mapping[str, Weight]) -> int:
    """Of the float file that `llama-quantize` would be given: as wide as the checkpoint, so that nothing is rounded."""
    return NUMBERS[_wide(weights, "F32").upper()]


def _wide(weights: Mapping[str, Weight], default: str) -> str:
    wide = (w.dtype for w in weights.values() if len(w.shape) > 1 and w.dtype in ("BF16", "F16"))
    return next(wide, default).lower()


def variants(
    folder: Path, tensors: Sequence[Planned], keys: Sequence[Entry], weights: Mapping[str, Weight], wanted: Wanted
) -> tuple[Variant, ...]:
    """`tensors`: of the float model; `keys`: the unscaled model's, which the quantizer looks at."""
    names = [guessed_type(weights) if name == AUTO else name for name in wanted.outtypes]
    _check_options(names, wanted)
    _check_rows(folder, tensors, wanted)
    imatrix = None if wanted.imatrix is None else read_imatrix(wanted.imatrix)
    asked = [_mix(name, wanted) for name in names]
    mixes = [mix for mix in asked if mix is not None]
    infos = [TensorInfo(tensor.name, tuple(reversed(tensor.shape)), tensor.type, 0) for tensor in tensors]
    chosen = iter(choose(keys, infos, mixes, folder) if mixes else ())
    found = []
    for name, mix in zip(names, asked, strict=True):
        if mix is None:
            found.append(_with_importance(_converted(name, tensors), imatrix))
            continue
        choice = next(chosen)
        variant = _with_importance(_quantized(folder, name, tensors, mix, choice), imatrix)
        _check_importance(folder, variant, mix, choice, infos, keys)
        found.append(variant)
    return tuple(found)


def _mix(name: str, wanted: Wanted) -> Mix | None:
    """What llama.cpp's quantizer is asked; None for what the converter's rules decide."""
    types = wanted.types
    mix = Mix(name.upper(), types.overrides, types.output, types.embedding, types.pure, wanted.imatrix is not None)
    return None if name in CONVERTED and mix.plain else mix


def _check_options(names: Sequence[str], wanted: Wanted) -> None:
    """Refuses what `llama-quantize` would pass over in silence."""
    floats = [name for name in names if name.upper() in FLOATS]
    if floats and (wanted.types.overrides or wanted.types.pure):
        option = "--tensor-type" if wanted.types.overrides else "--pure"
        raise UsageError(f"{option} is about quantizations, and has no effect on {floats[0]}", code="usage")
    if wanted.imatrix is not None and len(floats) == len(names):
        raise UsageError(f"--imatrix is about quantizations, and has no effect on {floats[0]}", code="usage")


def _check_rows(folder: Path, tensors: Sequence[Planned], wanted: Wanted) -> None:
    """A type for the output or embeddings is taken as it is: where rows do not fit it, llama.cpp ends the process."""
    asked = {OUTPUT: wanted.types.output, **dict.fromkeys(WITHOUT, wanted.types.embedding)}
    for tensor in tensors:
        number = asked.get(tensor.name)
        if number is not None and tensor.shape[-1] % TENSOR_TYPES[number].block:
            kind = TENSOR_TYPES[number]
            text = f"has rows of {tensor.shape[-1]}, which are no whole blocks of {kind.name} ({kind.block})"
            raise InputError(f"{tensor.name} {text}; use another type for it", file=folder, code="rows_do_not_fit")


def _converted(name: str, tensors: Sequence[Planned]) -> Variant:
    """As upstream's converter has it. Experts in MXFP4 stay, and come before the floats of the rest in the name."""
    number = NUMBERS[name.upper()]
    packed = any(tensor.type == NUMBERS[MXFP4] for tensor in tensors)
    made = tuple(_of_type(tensor, tensor_type(tensor.name, tensor.shape, number)) for tensor in tensors)
    return Variant(name, "MXFP4_MOE" if packed and name != "q8_0" else name.upper(), made)


def _of_type(tensor: Planned, type: int) -> Planned:
    return tensor if tensor.type == NUMBERS[MXFP4] else replace(tensor, type=type)


def _quantized(folder: Path, name: str, tensors: Sequence[Planned], mix: Mix, choice: Choice) -> Variant:
    for tensor in tensors:
        if tensor.type == NUMBERS[MXFP4] and choice.types[tensor.name] != tensor.type:
            kind = TENSOR_TYPES[choice.types[tensor.name]].name
            text = f"{tensor.name} is {MXFP4} in the checkpoint and would become {kind}, but nothing is quantized twice"
            raise InputError(
                f"{text}; --outtype MXFP4_MOE or --tensor-type exps=mxfp4 keeps it", file=folder, code="requantizing"
            )
    made = tuple(replace(tensor, type=choice.types[tensor.name]) for tensor in tensors)
    return Variant(name, mix.name, made, findings=tuple(_told(mix, choice)))


def _told(mix: Mix, choice: Choice) -> Iterator[Finding]:
    if choice.fallbacks:
        text = f"{mix.name}: {_listed(choice.fallbacks)} got another type, as llama.cpp chooses it: rows of that length"
        yield note("fallback_types", f"{text} do not fit the one meant")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


# ---- importance


def _with_importance(variant: Variant, imatrix: Imatrix | None) -> Variant:
    """The same with each quantized tensor's importance, where there is one; the checks are `llama-quantize`'s."""
    if imatrix is None or variant.kind in FLOATS:
        return variant
    made, missing = [], []
    for tensor in variant.tensors:
        quantized = tensor.type not in _UNTOUCHED and tensor.type != NUMBERS[MXFP4]
        fits = quantized and _fits(tensor, imatrix)
        if quantized and not fits and tensor.name not in WITHOUT:
            missing.append(tensor.name)
        made.append(replace(tensor, importance=partial(imatrix.weights, tensor.name)) if fits else tensor)
    text = f"{variant.name}: the importance matrix has nothing about {_listed(missing)}"
    told = (warning("imatrix_lacks", text),) if missing else ()
    return replace(variant, tensors=tuple(made), keys=tuple(imatrix.keys()), findings=(*variant.findings, *told))


def _fits(tensor: Planned, imatrix: Imatrix) -> bool:
    """One number for each column of each matrix; of another size is an error, but of an embedding."""
    size = imatrix.size_of(tensor.name)
    matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
    if size is None or size == tensor.shape[-1] * matrices:
        return size is not None
    if tensor.name in WITHOUT:
        return False
    text = f"has {size} numbers for {tensor.name}, which has {tensor.shape[-1]} columns"
    text += f" in each of {matrices} matrices" if matrices > 1 else ""
    raise InputError(f"{text}; it was made of another model", file=imatrix.path, code="imatrix_mismatch")


def _check_importance(
    folder: Path, variant: Variant, mix: Mix, choice: Choice, infos: Sequence[TensorInfo], keys: Sequence[Entry]
) -> None:
    """Refuses what comes out as garbage without an importance, by llama.cpp's own rule."""
    offender = choice.unweighted
    if mix.importance:
        lacking = {t.name for t in variant.tensors if t.importance is None and t.type not in _UNTOUCHED}
        offender = needs_importance(keys, infos, choice, lacking, mix, folder)
    if offender is not None:
        name, kind = offender
        text = f"{name} would become {kind.upper()}, which is garbage without an importance matrix that has the tensor"
        remedy = "give one with --imatrix" if not mix.importance else "make one of this model"
        raise InputError(f"{mix.name}: {text}; {remedy}, or use a larger type", file=folder, code="needs_imatrix")
