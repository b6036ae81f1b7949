"""A GGUF in another quantization, by llama.cpp's own quantizer in a child process: the bytes of `llama-quantize`.

What it would refuse after a while is refused before it begins, with what to do. The output has its name only when it is
whole. Knows headers; the numbers are llama.cpp's.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from yarn_gguf.children.process import Child
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.shards import Model, read_model
from yarn_gguf.gguf_file.writer import check_space, check_target, staged
from yarn_gguf.metadata import read_facts
from yarn_gguf.quant_names import FLOATS, FTYPES, quantization
from yarn_gguf.verification.sides import Side, read_side

MODULE: Final = "yarn_gguf.quantize_child"
Progress = Callable[[int], None]
# what llama.cpp makes only with an importance matrix
NEEDS_IMATRIX: Final = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K_S"})
BLOCK: Final = 32  # the smallest of any quantization: rows that are no multiple of it stay as they are, or are refused
_FLOAT_TYPES: Final = frozenset(FLOATS)
_FALLBACK: Final = re.compile(r"^warning: (?P<name>\S+) +- (?P<why>ncols .*)$", re.MULTILINE)
_TELLING: Final = re.compile(r"failed to quantize: (?P<why>.*)")


@dataclass(frozen=True)
class Quantized:
    source: Side
    made: Side
    path: Path
    type: str
    bytes: int
    seconds: float
    findings: tuple[Finding, ...]


def wanted_type(text: str) -> str:
    name = quantization(text)
    if name is None:
        raise UsageError(f"{text!r} is no type; there are {', '.join(FTYPES)}", code="unknown_type")
    return name


def quantize(
    source: Path,
    name: str,
    output: Path,
    *,
    imatrix: str | None = None,
    requantize: bool = False,
    pure: bool = False,
    jobs: int = 0,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Quantized:
    """`name`: of FTYPES. `progress` is told bytes of the source that are done."""
    started, side = time.monotonic(), read_side(source)
    check_target(output, [part.path for part in side.model.parts], overwrite=force)
    _refuse(side.model, name, imatrix is not None, requantize)
    check_space([(output, _least_size(side.model, name))])
    temporary = output.with_name(f".{output.name[:180]}.{secrets.token_hex(4)}.yarn-gguf-tmp")
    request = {"ftype": FTYPES[name], "imatrix": imatrix, "requantize": requantize, "pure": pure}
    request |= {"source": os.fspath(side.path.absolute()), "output": os.fspath(temporary.absolute())}
    try:
        said = _run(side, {**request, "threads": jobs or os.cpu_count() or 1}, progress)
        made = read_model(temporary)
        read_facts(made)
        findings = (*_fallbacks(said), *_kept_rope(side))
        with staged(overwrite=force) as stage:
            stage.adopt(output, temporary)
    finally:
        temporary.unlink(missing_ok=True)
    return Quantized(side, read_side(output), output, name, made.bytes, time.monotonic() - started, findings)


def _run(side: Side, request: dict[str, Any], progress: Progress) -> str:
    child = Child(MODULE, side.path, what="llama.cpp's quantizer", environment={"GGML_NO_BACKTRACE": "1"})
    sizes = [tensor.size for _, tensor in side.model.tensors.values()]
    done = 0

    def hear(number: int, total: int) -> None:
        nonlocal done
        now = sum(sizes) * number // max(total, 1)
        progress(now - done)
        done = now

    try:
        child.on_progress = hear
        return str(child.ask("quantize", **request)["said"])
    except BaseException:
        child.kill()
        raise
    finally:
        child.close()


def _types(model: Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, tensor in model.tensors.values():
        kind = TENSOR_TYPES[tensor.type].name
        found[kind] = found.get(kind, 0) + tensor.size
    return found


def _refuse(model: Model, name: str, importance: bool, requantize: bool) -> None:
    old = {kind: size for kind, size in _types(model).items() if kind not in (*_FLOAT_TYPES, "F64", "I32", "I16", "I8")}
    if old and not requantize:
        kind = max(old, key=lambda each: old[each])
        text = f"is quantized already, most of it as {kind}: doing it again loses more than its size says"
        text = f"{text}; quantize the F16, BF16 or F32 file, or insist with --allow-requantize"
        raise InputError(text, file=model.path, code="quantized")
    if name in NEEDS_IMATRIX and not importance:
        text = (
            f"{name} needs an importance matrix, or the result is useless; make one with llama-imatrix, give --imatrix"
        )
        raise UsageError(text, file=model.path, code="needs_imatrix")
    matrices = [
        tensor for _, tensor in model.tensors.values() if len(tensor.dims) > 1 and tensor.name.endswith("weight")
    ]
    odd = [tensor for tensor in matrices if tensor.dims[0] % BLOCK]
    if odd and len(odd) == len(matrices) and name not in _FLOAT_TYPES:
        text = f"no matrix has rows that are a multiple of {BLOCK}, as every quantization needs"
        raise InputError(f"{text}; {odd[0].name} has {odd[0].dims[0]} columns", file=model.path, code="block_size")


def _least_size(model: Model, name: str) -> int:
    """What the output takes at least: a bit per weight, or as much as it is."""
    weights = sum(tensor.elements for _, tensor in model.tensors.values())
    bits = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8}.get(name, 1)
    return weights * bits // 8


def _fallbacks(said: str) -> tuple[Finding, ...]:
    found = [(match["name"], " ".join(match["why"].split())) for match in _FALLBACK.finditer(said)]
    if not found:
        return ()
    names = ", ".join(each for each, _ in found[:3]) + (" and more" if len(found) > 3 else "")
    text = f"{len(found)} tensors have another type than the mix has for them, as their rows do not fit it"
    return (warning("fallback_types", f"{text}: {names} ({found[0][1]})"),)


def _kept_rope(side: Side) -> tuple[Finding, ...]:
    if side.before.recorded is None:
        return ()
    return (note("rope_kept", "the RoPE and its yarn_gguf.* record are those of the source"),)


def refusal(said: str) -> str:
    """Why the quantizer did not do it, as far as it said."""
    found = _TELLING.search(said)
    return found["why"] if found else " ".join(said.split())[-300:]
