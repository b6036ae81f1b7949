"""Pieces of planned tensors, put together, against the whole tensors rearranged and quantized by gguf-py at once.

The sources are real safetensors files, read by the package's own weights; slices are made small, so that a few hundred
kilobytes have many of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.torch import save_file

from yarn_gguf.archs.tensors import Part, Planned, Transform
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.weights import Weights, open_weights
from yarn_gguf.conversion import slices
from yarn_gguf.conversion.slices import pieces, size_of
from yarn_gguf.encode import BF16, F16, F32, Q8_0
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.fill import Copy, Made, Piece
from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.writer import staged

Array = NDArray[Any]
DATA: Final = 4096 + 32  # where the data begins in the files of these tests
TYPES: Final = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PERMUTED: Final = Transform("permuted", 8, lambda x: x.reshape(-1, 2, 4, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape))
FIRST_HALF: Final = Transform("first half", 1, lambda x: x[:, : x.shape[1] // 2])
JOINED: Final = Transform("joined", 2, lambda a, b: np.concatenate((a, b), axis=-1))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 20_000)
    monkeypatch.setattr(slices, "STEP", 3_000)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Iterator[Weights]]:
    def make(dtype: str, **tensors: torch.Tensor) -> Weights:
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({name: t.to(DTYPES[dtype]).contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
        return open_weights(read_checkpoint(folder), None)

    return make  # type: ignore[return-value]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02


def written(planned: list[Planned], out: Path, jobs: int = 2, *, check: bool = False) -> tuple[list[Piece], bytes]:
    """The pieces, and the file's bytes from where the data begins."""
    offsets, end = [], 0
    for tensor in planned:
        offsets.append(end)
        end += -(-size_of(tensor) // 32) * 32
    found = list(pieces(planned, offsets, DATA, check=check))
    with staged(overwrite=True, jobs=jobs) as stage:
        stage.write(out, DATA + end, found)
    return found, out.read_bytes()[DATA:]


def wanted(values: torch.Tensor, dtype: str, type: int) -> bytes:
    """By upstream's own steps: BF16 goes through float32, then gguf-py."""
    stored = values.to(DTYPES[dtype])
    numbers = (stored.to(torch.float32) if dtype == "BF16" else stored).contiguous().numpy()
    return bytes(quantize(numbers, gguf.GGMLQuantizationType[TENSOR_TYPES[type].name]).tobytes())


@pytest.mark.parametrize("outtype", TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_put_together_are_the_whole_tensors(dtype: str, outtype: str, checkpoint: Any, tmp_path: Path) -> None:
    a, b, experts, joined = random(72, 96), random(104, 96), random(5, 24, 64), random(72, 32)
    type = TYPES[outtype]
    with checkpoint(dtype, a=a, b=b, e=experts, j=joined, norm=random(77)) as w:
        planned = [
            Planned("norm", (77,), F32, (Part((w["norm"],)),)),
            Planned("plain", (72, 96), type, (Part((w["a"],)),)),
            Planned("permuted", (72, 96), type, (Part((w["a"],), PERMUTED),)),
            Planned("fused", (176, 96), type, (Part((w["a"],)), Part((w["b"],), PERMUTED))),
            Planned("halved", (10, 12, 64), type, (Part((w["e"],), FIRST_HALF), Part((w["e"],), FIRST_HALF))),
            Planned("joined", (72, 128), type, (Part((w["a"], w["j"]), JOINED),)),
        ]
        found, data = written(planned, tmp_path / "out")
        again, same = written(planned, tmp_path / "one", jobs=1)
    pa, pb = (t.reshape(-1, 2, 4, 96).swapaxes(1, 2).reshape(t.shape) for t in (a, b))
    half = experts[:, :12]
    whole = [random(77), a, pa, torch.cat((a, pb)), torch.cat((half, half)), torch.cat((a, joined), -1)]
    expected = b""
    for tensor, values in zip(planned, whole, strict=True):
        data_of = wanted(values, dtype, tensor.type)
        expected += data_of + bytes(-len(data_of) % 32)
    assert data == expected == same
    cuts = [(piece.to, piece.length) for piece in found]
    assert cuts == [(piece.to, piece.length) for piece in again]
    sizes = [piece.length for piece in found if isinstance(piece, Made)]
    assert len(sizes) > 4
    assert max(sizes) <= 40_000  # 20,000 bytes of 16-bit floats, as F32


def test_what_lies_there_already_is_left_to_the_kernel(checkpoint: Any, tmp_path: Path) -> None:
    with checkpoint("BF16", a=random(72, 96), b=random(72, 96)) as w:
        both = (Part((w["a"],)), Part((w["b"],)))
        planned = [Planned("stacked", (2, 72, 96), BF16, both), Planned("f16", (2, 72, 96), F16, both)]
        found, _ = written(planned, tmp_path / "out")
        assert [type(piece) for piece in found[:2]] == [Copy, Copy]
        assert all(isinstance(piece, Made) for piece in found[2:])
        checked, _ = written(planned, tmp_path / "checked", check=True)
        assert all(isinstance(piece, Made) for piece in checked)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "checked").read_bytes()


@pytest.mark.parametrize(("bad", "code"), [(float("nan"), "not_finite"), (-float("inf"), "not_finite")])
def test_a_number_that_is_none_is_named_with_its_tensor(bad: float, code: str, checkpoint: Any, tmp_path: Path) -> None:
    values = random(72, 96)
    values[61, 17] = bad
    with checkpoint("BF16", a=random(72, 96), bad=values) as w:
        parts = (Part((w["a"],)), Part((w["bad"],)))
        for type in (F32, F16, Q8_0):
            with pytest.raises(InputError, match=r"blk\.0 \(from bad\): (nan|-inf) at \[1, 61, 17\]") as error:
                written([Planned("blk.0", (2, 72, 96), type, parts)], tmp_path / "out")
            assert error.value.code == code
        written([Planned("blk.0", (2, 72, 96), BF16, parts)], tmp_path / "out")  # copied unseen
        with pytest.raises(InputError, match=r"at \[1, 61, 17\]"):
            written([Planned("blk.0", (2, 72, 96), BF16, parts)], tmp_path / "out", check=True)


def test_a_number_too_large_for_f16_is_named_with_a_way_out(checkpoint: Any, tmp_path: Path) -> None:
    values = random(72, 96)
    values[70, 95] = 70000
    with checkpoint("BF16", bad=values) as w:
        planned = [Planned("output.weight", (72, 96), F16, (Part((w["bad"],)),))]
        with pytest.raises(InputError, match=r"70144 at \[70, 95\] is too large for F16; use --outtype bf16") as error:
            written(planned, tmp_path / "out")
    assert error.value.code == "f16_overflow"
    assert not (tmp_path / "out").exists()


MEMORY: Final = """
import resource, sys
from pathlib import Path
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.gguf_file.writer import staged
from yarn_gguf.conversion.slices import pieces, size_of
from yarn_gguf.archs.tensors import Part, Planned
from yarn_gguf.checkpoint.weights import open_weights
with open_weights(read_checkpoint(Path(sys.argv[1])), None) as weights:
    (weight,) = weights.values()
    planned = Planned("a", weight.shape, 1, (Part((weight,)),))
    with staged(overwrite=True, jobs=2) as stage:
        stage.write(Path(sys.argv[2]), size_of(planned), list(pieces([planned], [0], 0)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """Two workers hold a slice each. Measured: 48 MiB for 16 MiB of weights as for 256, most of it numpy's start."""
    peaks = []
    for rows in (1 << 10, 1 << 14):
        folder = tmp_path / str(rows)
        folder.mkdir()
        save_file({"a": torch.zeros(rows, 8192, dtype=torch.bfloat16)}, folder / "model.safetensors")
        command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "out")]
        # in a child of a small process: a child's peak starts at what its parent had
        spawn = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
        done = subprocess.run(
            [sys.executable, "-c", spawn, *command], capture_output=True, text=True, check=True, cwd=Path.cwd()
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0] + 8, peaks
    assert peaks[1] < 120, peaks
