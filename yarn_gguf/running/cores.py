"""How many threads llama.cpp's programs compute with by themselves: one for each core, not for each of its threads.

Its threads wait by spinning (`--poll`), so one that has no core to itself keeps the others from theirs. Counts only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
FEW: Final = 4  # up to so many are taken for cores, where the system does not say


def usual_threads() -> int:
    """Cores where Linux tells them, else half of the threads where there are many; of those that we may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = set()
    for file in _CPUS.glob("cpu[0-9]*/topology/thread_siblings"):
        try:
            cores.add(file.read_text(encoding="ascii"))
        except OSError:  # one that is switched off
            continue
    count = len(cores) or (allowed if allowed <= FEW else allowed // 2)
    return max(min(count, allowed), 1)
