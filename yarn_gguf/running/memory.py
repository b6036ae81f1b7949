"""What llama.cpp says that it has taken, read from its own log: weights, KV cache and buffers, by device.

    load_tensors:        CUDA0 model buffer size =  4455.34 MiB
    llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB

A log is no interface; what is not found is left out. Knows text only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_LINE: Final = re.compile(
    r"\w+:\s+(?P<where>\S+)\s+(?P<what>model|KV|RS|compute|output)\s+buffer size =\s*(?P<size>[\d.]+) (?P<unit>[KM]iB)"
)
_PARTS: Final = ("KV", "RS")  # there may be several on a device: of full and of sliding layers
_UNITS: Final = {"KiB": 1024, "MiB": 1024**2}


@dataclass(frozen=True, slots=True)
class Buffer:
    where: str  # a device or a kind of memory: CPU, CPU_Mapped, CUDA0, RPC0[HOST:PORT]
    what: str  # model, KV, RS (recurrent state), compute, output
    bytes: int


def buffers(lines: Iterable[str]) -> tuple[Buffer, ...]:
    """One of each kind on each device; what is told again replaces what was told before."""
    found: dict[tuple[str, str], Buffer] = {}
    for line in lines:
        match = _LINE.match(line.strip())
        if match is not None:
            key = match["where"], match["what"]
            size = round(float(match["size"]) * _UNITS[match["unit"]])
            before = found[key].bytes if key in found and match["what"] in _PARTS else 0
            found[key] = Buffer(*key, before + size)
    return tuple(found.values())
