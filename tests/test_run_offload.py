"""What `run` decides on where nobody says: layers on a GPU, a server's context; by `plan`'s figures.

(That those are right is tests/test_memory.py's.) Here the machine is made smaller than it is; what is chosen must fit
it, and the next larger must not.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from yarn_gguf.errors import ResourceError
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.logits import piece_length
from yarn_gguf.memory.devices import Device, Devices
from yarn_gguf.memory.needs import RESERVE, Setting, needs
from yarn_gguf.memory.shape import read_shape
from yarn_gguf.running import offload
from yarn_gguf.running.wanted import Wanted

from .test_run import File, file

__all__ = ["file"]  # the fixture
MEBIBYTE = 1 << 20


def with_memory(monkeypatch: pytest.MonkeyPatch, ram: int, vram: int | None = None) -> None:
    gpus = () if vram is None else (Device("GPU", vram, vram),)
    monkeypatch.setattr(offload, "memory", lambda: Device("RAM", ram, ram))
    monkeypatch.setattr(offload, "devices", lambda: Devices(gpus, Device("RAM", ram, ram), usable=True))


def test_a_servers_context_is_the_longest_that_the_memory_holds(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ram = read_model(file("yarn8")), 64 * MEBIBYTE
    with_memory(monkeypatch, ram)
    found = offload.fitting_context(model, Wanted(), 1 << 20, gpu=False)
    shape = read_shape(model)
    setting = Setting(found, ubatch=piece_length(1280))
    assert found % 256 == 0 and found > 4096
    assert needs(shape, setting).cpu.total <= ram < needs(shape, replace(setting, context=found + 256)).cpu.total
    assert offload.fitting_context(model, Wanted(), 2048, gpu=False) == 2048  # what the file is meant for
    assert offload.fitting_context(model, Wanted(rpc=("a:1",)), 1 << 20, gpu=False) == 1 << 20


def test_a_context_that_the_memory_does_not_hold_is_refused(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(file("yarn8"))
    with_memory(monkeypatch, 32 * MEBIBYTE)
    offload.check_room(model, Wanted(), 2048, 0)
    with pytest.raises(ResourceError, match=r"takes .* of memory, 32\.0 MiB are free"):
        offload.check_room(model, Wanted(), 1 << 20, 0)
    offload.check_room(model, Wanted(rpc=("a:1",)), 1 << 20, -1)


def test_a_gpu_gets_the_layers_that_fit(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two layers and a head: all, some, none; as -ngl counts."""
    model = read_model(file("yarn8"))
    shape, setting = read_shape(model), Setting(65536, ubatch=piece_length(1280), swa_full=True)
    totals = [needs(shape, replace(setting, gpu_layers=count)).gpu.total for count in range(4)]
    assert totals == sorted(totals)
    for count, expected in ((3, -1), (2, 2), (1, 1), (0, 0)):
        with_memory(monkeypatch, 1 << 40, RESERVE + totals[count])
        assert offload.fitting_layers(model, Wanted(), 65536, gpu=True) == expected
    assert offload.fitting_layers(model, Wanted(), 65536, gpu=False) == 0
    assert offload.fitting_layers(model, Wanted(gpu_layers=1), 65536, gpu=True) == 1
    assert offload.fitting_layers(model, Wanted(rpc=("a:1",)), 65536, gpu=False) == -1
