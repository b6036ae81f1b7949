"""The memory of this computer and of its GPUs, as far as the system says.

GPUs as the driver's own program knows them, else as the installed llama.cpp libraries do; RAM from the system, and no
more than a container may have. Asks other processes; knows no model.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.errors import ChildError
from yarn_gguf.ggml import stock_folder
from yarn_gguf.llamacpp.libraries import abilities, built, current

SECONDS: Final = 10.0
MEBIBYTE: Final = 1 << 20
_QUERY: Final = ("--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits")
_CGROUPS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Devices:
    """`ram` is None where the system does not say. `usable`: whether an installed llama.cpp can compute on the GPUs;
    `unified`: they have no memory of their own."""

    gpus: tuple[Device, ...]
    ram: Device | None
    usable: bool
    unified: bool = False

    @property
    def vram(self) -> int:
        """Free, on all GPUs together."""
        return sum(gpu.free for gpu in self.gpus)


def devices() -> Devices:
    found, known = tuple(_nvidia()), tuple(_library_gpus())
    return Devices(found or known, memory(), bool(known), unified=sys.platform == "darwin" and not found)


def _nvidia() -> Iterator[Device]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines() if not done.returncode else ():
        name, *numbers = (part.strip() for part in line.rsplit(",", 2))
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            free, total = (int(number) * MEBIBYTE for number in numbers)
            yield Device(name, free, total)


def _library_gpus() -> Iterator[Device]:
    """What ggml has besides the CPU, by the first library that has anything."""
    folders = [library.path for library in built() if current(library) and library.backend != "cpu"]
    folders += filter(None, [stock_folder()])
    for folder in folders:
        try:
            listed = abilities(folder).devices
        except ChildError:
            continue
        found = [
            Device(str(one["description"] or one["name"]), int(one["free"]), int(one["total"]))
            for one in listed
            if not str(one["name"]).startswith(("CPU", "BLAS")) and one["total"]
        ]
        if found:
            yield from found
            return


def memory() -> Device | None:
    """The RAM: what could be had without pushing others out, and all of it."""
    found = _system_memory()
    if found is None:
        return None
    for limit, used in _CGROUPS:
        most, taken = _number(limit), _number(used)
        if most is not None and taken is not None and most < found.total:
            return Device(found.name, min(found.free, max(most - taken, 0)), most)
    return found


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _system_memory() -> Device | None:
    if sys.platform == "win32":
        return _windows_memory()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        return Device("RAM", sizes["MemAvailable"], sizes["MemTotal"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return Device("RAM", total, total)


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows_memory() -> Device | None:
    status = _Status(length=ctypes.sizeof(_Status))
    kernel = getattr(ctypes, "windll", None)
    if kernel is None or not kernel.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Device("RAM", int(status.free), int(status.total))
