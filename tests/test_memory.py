"""The memory that we foretell, held against what llama.cpp itself reports for the same model and context.

The models have the shapes of published ones and no weights (`real_shapes`); llama.cpp opens them as it opens any, and
its own breakdown is read: weights and cache within 1 %, compute buffers within 15 %.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import real_shapes
from tests.built import patched
from tests.llama_memory import Bytes, breakdown
from tests.offloading import offloading_device
from tests.toys import TOYS
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.memory.needs import Needs, Setting, needs
from yarn_gguf.memory.shape import Shape, read_shape

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads a std::map of libstdc++")
EXACT = 0.01
LOADED_TWICE = "gemma-4-e4b"  # whose embedding is, as the head first: for nothing where the file is mapped
FORETOLD = 0.15
UBATCH = 512


@dataclass(frozen=True)
class Case:
    model: str
    context: int
    kv: str = "f16"
    flash: bool = True
    ubatch: int = UBATCH
    swa_full: bool = False
    repack: bool = False
    outputs: int = 0

    def __str__(self) -> str:
        flags = {"no-flash": not self.flash, "swa-full": self.swa_full, "repacked": self.repack, "one": self.outputs}
        return "-".join(
            [self.model, str(self.context), self.kv, str(self.ubatch), *(n for n, on in flags.items() if on)]
        )

    @property
    def question(self) -> dict[str, Any]:
        return {
            "n_ctx": self.context,
            "n_batch": max(self.ubatch, 2048),
            "n_ubatch": self.ubatch,
            "flash_attn_type": int(self.flash),
            "type_k": self.kv.partition("/")[0],
            "type_v": self.kv.rpartition("/")[2],
            "swa_full": self.swa_full,
            "n_outputs_max": self.outputs,
        }


def cases() -> Iterator[Case]:
    for name in real_shapes.MODELS:
        for context in (4096, 32768, 131072):
            for kv, flash in (("f16", True), ("q8_0", True), ("q4_0", True), ("f16", False)):
                yield Case(name, context, kv, flash)
        yield Case(name, 16384, ubatch=64)
        yield Case(name, 16384, ubatch=2048)
        yield Case(name, 16384, outputs=1)
        if not name.startswith("deepseek"):  # whose keys and values are one
            yield Case(name, 16384, "q8_0/q4_0")
    for name in ("gemma-3-12b", "gpt-oss-20b"):
        yield Case(name, 32768, swa_full=True)
        yield Case(name, 32768, repack=True)
    yield Case("qwen3-0.6b", 4096, repack=True)
    yield Case("llama-3.1-8b", 4096, repack=True)


CASES = tuple(sorted(cases(), key=str))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Bytes]:
    """What llama.cpp says of all of them, in one process."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = {name: real_shapes.write(model, folder / f"{name}.gguf") for name, model in real_shapes.MODELS.items()}
    answers = breakdown(
        [{"path": str(paths[case.model]), "repack": case.repack, "context": case.question} for case in CASES]
    )
    return {case: total(answer.values()) for case, answer in zip(CASES, answers, strict=True)}


def total(parts: Any) -> Bytes:
    return Bytes(*(sum(column) for column in zip(*parts, strict=True)))


@cache
def shape_of(name: str, folder: Path) -> Shape:
    return read_shape(read_model(real_shapes.write(real_shapes.MODELS[name], folder / f"{name}.gguf")))


def foretold(case: Case, folder: Path) -> Needs:
    setting = Setting(
        case.context,
        (case.kv.partition("/")[0], case.kv.rpartition("/")[2]),
        flash=case.flash,
        ubatch=case.ubatch,
        swa_full=case.swa_full,
        repack=case.repack,
        outputs=case.outputs or None,
    )
    return needs(shape_of(case.model, folder), setting)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_cache_and_buffers_are_those_that_llama_cpp_reports(
    case: Case, reported: dict[Case, Bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found, theirs = foretold(case, tmp_path_factory.getbasetemp()), reported[case]
    twice = shape_of(case.model, tmp_path_factory.getbasetemp()).tied if case.model == LOADED_TWICE else 0
    assert found.weights == pytest.approx(theirs.weights - twice, rel=EXACT)
    assert found.kv == pytest.approx(theirs.kv, rel=EXACT)
    assert found.compute == pytest.approx(theirs.compute, rel=FORETOLD)  # the most that was seen is 9.3 %


# ---- two devices

DIVIDED = (
    "llama-3.1-8b",
    "qwen3-0.6b",
    "phi-3-mini",
    "mixtral-8x7b",
    "gemma-3-12b",
    "gpt-oss-20b",
    "deepseek-v2-lite",
    "lfm2-1.2b",
)
SEPARATE = 0.10  # of each device's compute buffer; the most that was seen is 7.3 %


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An RPC server of llama.cpp: a device with a memory of its own, that weights and layers can lie on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(patched() / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the RPC server does not answer")


@pytest.mark.parametrize("name", DIVIDED)
def test_what_lies_on_each_of_two_devices_is_what_llama_cpp_reports(
    name: str, server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From no layer on the other device to all of them, with the head as the first that goes there."""
    shape = shape_of(name, tmp_path_factory.getbasetemp())
    path = tmp_path_factory.getbasetemp() / f"{name}.gguf"
    count = len(shape.layers)
    settings = [(layers, flash) for flash in (True, False) for layers in (0, 1, count // 2, count, count + 1)]
    questions = [
        {"path": str(path), "gpu_layers": layers, "context": Case(name, 16384, flash=flash).question}
        for layers, flash in settings
    ]
    for (layers, flash), answer in zip(settings, breakdown(questions, patched(), [server]), strict=True):
        setting = Setting(16384, flash=flash, gpu_layers=layers, offload_ops=False, repack=False)
        found = needs(shape, setting)  # an RPC server computes only what lies on it
        for part, theirs in ((found.cpu, _share(answer, "CPU")), (found.gpu, _share(answer, "RPC"))):
            assert part.weights == pytest.approx(theirs.weights, rel=EXACT), (layers, flash)
            assert part.kv == pytest.approx(theirs.kv, rel=EXACT), (layers, flash)
            assert part.compute == pytest.approx(theirs.compute, rel=SEPARATE), (layers, flash)


def _share(answer: dict[str, Bytes], device: str) -> Bytes:
    return total([Bytes(0, 0, 0), *(part for name, part in answer.items() if name.startswith(device))])


# ---- that the question is the right one


@pytest.mark.parametrize("name", ["llama", "gemma3", "gptoss", "deepseek2", "lfm2", "mixtral"])
def test_what_llama_cpp_foretells_is_what_it_allocates(name: str, toy_gguf: Callable[[str], Path]) -> None:
    """The figures above come of a model that is opened with `no_alloc`; here it is really opened."""
    question = {"path": str(toy_gguf(name)), "context": Case(name, 4096).question}
    foreseen, allocated = breakdown([question, {**question, "no_alloc": False}])
    assert total(foreseen.values()) == total(allocated.values())


def test_every_architecture_of_the_toys_is_foretold(toy_gguf: Callable[[str], Path]) -> None:
    """Small widths, where what is not quite llama.cpp's order shows most: the most that was seen is 8.7 %."""
    paths = {name: toy_gguf(name) for name in TOYS}
    settings = [(name, context, flash) for name in TOYS for context in (1024, 16384) for flash in (True, False)]
    questions = [
        {"path": str(paths[name]), "context": Case(name, context, flash=flash).question}
        for name, context, flash in settings
    ]
    for (name, context, flash), answer in zip(settings, breakdown(questions), strict=True):
        found = needs(read_shape(read_model(paths[name])), Setting(context, flash=flash, repack=False))
        theirs = total(answer.values())
        assert found.weights == pytest.approx(theirs.weights, rel=EXACT), name
        assert found.kv == pytest.approx(theirs.kv, rel=EXACT), name
        assert found.compute == pytest.approx(theirs.compute, rel=FORETOLD), (name, context, flash)


# ---- a GPU that helps with what does not lie on it

HELPED = [(name, flash) for name in (*DIVIDED, "llama-3.1-70b") for flash in (True, False)]
# half way without flash attention, llama.cpp's allocator finds no hole for its scores: 2 GiB more than is foretold
HELPED.remove(("gpt-oss-20b", False))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offloading_device(tmp_path_factory.mktemp("offloading"))


@pytest.mark.parametrize(("name", "flash"), HELPED)
def test_a_gpu_that_computes_the_cpus_layers_has_room_for_their_weights(
    name: str, flash: bool, device: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the scheduler does for CUDA, Vulkan and Metal: large batches go to the GPU, wherever the weights are."""
    shape = shape_of(name, tmp_path_factory.getbasetemp())
    path = tmp_path_factory.getbasetemp() / f"{name}.gguf"
    counts = (0, len(shape.layers) // 2, len(shape.layers), len(shape.layers) + 1)
    questions = [
        {"path": str(path), "gpu_layers": count, "repack": True, "context": Case(name, 16384, flash=flash).question}
        for count in counts
    ]
    for count, answer in zip(counts, breakdown(questions, device=device), strict=True):
        found = needs(shape, Setting(16384, flash=flash, gpu_layers=count, gpu=True))
        for part, theirs in ((found.cpu, _share(answer, "CPU")), (found.gpu, _share(answer, "GPU"))):
            assert part.weights == pytest.approx(theirs.weights, rel=EXACT), count
            assert part.kv == pytest.approx(theirs.kv, rel=EXACT), count
            assert part.compute == pytest.approx(theirs.compute, rel=FORETOLD), count
