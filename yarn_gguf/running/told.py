"""What a person should know of how a model was opened, and of context shifts; the same for `run` and for a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from yarn_gguf.effective import Runtime
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.flags.remarks import large
from yarn_gguf.running.scaling import Scaling
from yarn_gguf.running.wanted import Wanted

PATCHED_HINT: Final = "--runtime patched (of `yarn-gguf build`) shifts exactly"


def spoiling(scaling: Scaling) -> str:
    return f"a context shift of this llama.cpp multiplies cached keys by {scaling.magnitude:.4g} each time"


def without_effect(wanted: Wanted, *, gpu: bool) -> Iterator[Finding]:
    """What was given and changes nothing: this library computes on no GPU here, and there is no other machine."""
    given = {"-ngl": bool(wanted.gpu_layers), "-ts": bool(wanted.tensor_split)}
    names = [name for name, there in given.items() if there]
    if names and not gpu and not wanted.rpc:
        verb = "has" if len(names) == 1 else "have"
        text = f"{' and '.join(names)} {verb} no effect: this llama.cpp computes on no GPU here, and there is no --rpc"
        yield warning("no_effect", text)


def findings(scaling: Scaling, runtime: Runtime, *, shifts_spoil: bool) -> Iterator[Finding]:
    """`shifts_spoil`: shifts were allowed, and this library's are not exact."""
    if not scaling.inside:
        yield from large(scaling.intent)
    if scaling.difference:
        text = f"{runtime.value} llama.cpp differs from what the file asks for in {scaling.difference}"
        yield warning("not_exact", f"{text}; yarn-gguf inspect says what helps")
    elif not scaling.start.nothing:
        names = ", ".join((*scaling.keys, *scaling.parameters))
        yield note("overridden", f"opened with {scaling.text} ({scaling.source}), by {names}; no file changed")
    if shifts_spoil:
        yield warning("context_shift", f"{spoiling(scaling)}; what comes after one is worth less. {PATCHED_HINT}")
