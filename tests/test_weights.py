"""Weights as numbers. The oracle is upstream's converter, run on the same quantized checkpoint: its float32 bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import upstream
from tests.test_checkpoint import raw, refusal
from tests.toys import TOYS, save_checkpoint
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.stored import as_float32
from yarn_gguf.checkpoint.weights import Weights, open_weights
from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.gguf_file import fs

Tensors = dict[str, Any]
Settings = dict[str, Any]
Make = Callable[[str, Any, Any], Tensors]  # name, a float weight, torch's generator → what stands in its place


def draw(generator: Any, low: int, high: int, shape: tuple[int, ...], dtype: str) -> Any:
    import torch

    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64).to(getattr(torch, dtype))


def scales(generator: Any, *shape: int, dtype: str = "float32") -> Any:
    import torch

    return (torch.rand(shape, generator=generator) * 0.01 + 0.001).to(getattr(torch, dtype))


def words(generator: Any, *shape: int) -> Any:
    return draw(generator, -(1 << 31), 1 << 31, shape, "int32")


def eight_bits(weight: Any, kind: str = "float8_e4m3fn") -> Any:
    import torch

    return (weight * 20).to(getattr(torch, kind))


def up(count: int, size: int) -> int:
    return -(-count // size)


def in_blocks(size: tuple[int, int], dtype: str = "float32") -> Make:
    def make(name: str, weight: Any, generator: Any) -> Tensors:
        shape = [up(count, each) for count, each in zip(weight.shape, size, strict=True)]
        return {name: eight_bits(weight), f"{name}_scale_inv": scales(generator, *shape).to(_torch(dtype))}

    return make


def _torch(dtype: str) -> Any:
    import torch

    return getattr(torch, dtype)


def per_tensor(name: str, weight: Any, generator: Any) -> Tensors:
    found = {name: eight_bits(weight), f"{name}_scale_inv": scales(generator)}
    return {**found, name.replace("weight", "activation_scale"): scales(generator)}


def as_mistral_writes(name: str, weight: Any, generator: Any) -> Tensors:
    base = name.removesuffix("weight")
    return {
        name: eight_bits(weight, "float8_e5m2"),
        f"{base}qscale_weight": scales(generator, dtype="bfloat16"),
        f"{base}qscale_act": scales(generator),
    }


def with_scales(kind: str, *trailing: int, rows: bool = True) -> Make:
    """Weights with one scale per row (of shape [rows, *trailing]) or per tensor."""

    def make(name: str, weight: Any, generator: Any) -> Tensors:
        values = draw(generator, -128, 128, weight.shape, "int8") if kind == "int8" else eight_bits(weight, kind)
        shape = (len(weight), *trailing) if rows else ()
        return {name: values, f"{name}_scale": scales(generator, *shape, dtype="bfloat16" if rows else "float32")}

    return make


def in_blocks_compressed(name: str, weight: Any, generator: Any) -> Tensors:
    shape = (up(weight.shape[0], 64), up(weight.shape[1], 48))
    return {name: eight_bits(weight), f"{name}_scale": scales(generator, *shape, dtype="bfloat16")}


def packed(bits: int, group: int, zero_points: bool) -> Make:
    def make(name: str, weight: Any, generator: Any) -> Tensors:
        rows, columns = weight.shape
        each = len(range(0, 32 - (bits - 1), bits))
        found = {
            f"{name}_packed": words(generator, rows, up(columns, each)),
            f"{name}_scale": scales(generator, rows, columns // group, dtype="bfloat16"),
            f"{name}_shape": _tensor([rows, columns]),
        }
        return (
            {**found, f"{name}_zero_point": words(generator, up(rows, each), columns // group)}
            if zero_points
            else found
        )

    return make


def _tensor(values: list[int]) -> Any:
    import torch

    return torch.tensor(values)


def gptq(bits: int, group: int = 32) -> Make:
    def make(name: str, weight: Any, generator: Any) -> Tensors:
        import torch

        base, (outputs, inputs), each = name.removesuffix("weight"), weight.shape, 32 // bits
        order = torch.arange(inputs, dtype=torch.int32) // group
        return {
            f"{base}qweight": words(generator, inputs // each, outputs),
            f"{base}qzeros": words(generator, inputs // group, outputs // each),
            f"{base}scales": scales(generator, inputs // group, outputs, dtype="float16"),
            f"{base}g_idx": order[torch.randperm(inputs, generator=generator)],
        }

    return make


def bitnet(name: str, weight: Any, generator: Any) -> Tensors:
    shape = (weight.shape[0] // 4, weight.shape[1])
    return {name: draw(generator, 0, 256, shape, "uint8"), f"{name}_scale": scales(generator, 1, dtype="bfloat16")}


def compressed(form: str, **weights: Any) -> Settings:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, **weights}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def grouped(bits: int, size: int) -> Settings:
    return compressed("pack-quantized", strategy="group", type="int", num_bits=bits, group_size=size)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
CHANNELS: Settings = {"strategy": "channel", "type": "float"}
CASES: dict[str, tuple[Settings, Make]] = {
    "fp8 in blocks of 128": ({**FP8, "weight_block_size": [128, 128]}, in_blocks((128, 128))),
    "fp8 in blocks that do not divide": ({**FP8, "weight_block_size": [40, 24]}, in_blocks((40, 24))),
    "fp8 in blocks with powers of two": ({**FP8, "weight_block_size": [32, 64]}, in_blocks((32, 64), "float8_e8m0fnu")),
    "fp8 per tensor": ({**FP8, "activation_scheme": "static", "weight_block_size": None}, per_tensor),
    "fp8 as Mistral writes it": (FP8, as_mistral_writes),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, with_scales("float8_e4m3fn", rows=False)),
    "compressed floats": (compressed("float-quantized", **CHANNELS), with_scales("float8_e4m3fn", 1)),
    "compressed floats, flat scales": (compressed("naive-quantized", **CHANNELS), with_scales("float8_e5m2")),
    "compressed integers": (compressed("int-quantized", strategy="channel", type="int"), with_scales("int8", 1)),
    "compressed blocks": (
        compressed("float-quantized", strategy="block", type="float", block_structure=[64, 48]),
        in_blocks_compressed,
    ),
    "packed, 4 bits": (grouped(4, 32), packed(4, 32, zero_points=False)),
    "packed, 4 bits, zero points": (grouped(4, 16), packed(4, 16, zero_points=True)),
    "packed, 3 bits, zero points": (grouped(3, 32), packed(3, 32, zero_points=True)),
    "packed, 8 bits": (grouped(8, 64), packed(8, 64, zero_points=True)),
    "gptq, 4 bits": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq(4)),
    "gptq, 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, gptq(8)),
    "gptq 2, 2 bits": ({"quant_method": "gptq", "bits": 2, "checkpoint_format": "gptq_v2"}, gptq(2)),
    "bitnet": ({"quant_method": "bitnet"}, bitnet),
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer without rearranged heads: what upstream writes is what it read."""
    return save_checkpoint(TOYS["qwen3"], tmp_path_factory.mktemp("toy") / "qwen3", num_hidden_layers=1)


def quantized(toy: Path, folder: Path, settings: Settings, make: Make) -> Path:
    """The toy with its matrices replaced."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors: Tensors = {}
    for name, weight in load_file(toy / "model.safetensors").items():
        is_matrix = name.endswith("_proj.weight")
        tensors |= make(name, weight, generator) if is_matrix else {name: weight.to(torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((toy / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


def converted(folder: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """Upstream's float32 tensors by their names in the GGUF."""
    import gguf

    reader = gguf.GGUFReader(upstream.convert(folder, out, "f32", *arguments))
    return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def gguf_names(names: Iterator[str] | Mapping[str, Any]) -> dict[str, str]:
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 1)
    return {name: str(table.get_name(name, (".weight", ".bias"))) for name in names}


def whole(weights: Weights, name: str) -> Any:
    weight = weights[name]
    return as_float32(weight.read(0, weight.shape[0]), weight.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_quantized_checkpoint_gives_the_numbers_that_upstream_gives(tmp_path: Path, toy: Path, case: str) -> None:
    settings, make = CASES[case]
    folder = quantized(toy, tmp_path / "quantized", settings, make)
    # its lazy tensors lack the shift that bitnet needs
    expected = converted(folder, tmp_path / "f32.gguf", *(["--no-lazy"] if case == "bitnet" else []))
    with open_weights(read_checkpoint(folder), settings) as weights:
        names = gguf_names(weights)
        assert set(names.values()) == set(expected)
        assert sum(name.endswith("_proj.weight") for name in names) == 7
        for name, gguf_name in names.items():
            found, right = whole(weights, name), expected[gguf_name]
            assert (found.dtype, weights[name].shape) == (np.float32, right.shape)
            assert found.tobytes() == right.tobytes(), name
            is_made = name.endswith("_proj.weight")
            assert (weights[name].dtype, weights[name].stored is None) == (
                ("F32", True) if is_made else ("BF16", False)
            )


@pytest.mark.parametrize("case", CASES)
def test_a_weight_read_in_slices_is_the_whole_cut_up(tmp_path: Path, toy: Path, case: str) -> None:
    settings, make = CASES[case]
    folder = quantized(toy, tmp_path / "quantized", settings, make)
    with open_weights(read_checkpoint(folder), settings) as weights, ThreadPoolExecutor(4) as pool:
        for name, weight in weights.items():
            together = weight.read(0, weight.shape[0])
            for size in (1, 7, 40, 41):
                cuts = [(i, min(i + size, weight.shape[0])) for i in range(0, weight.shape[0], size)]
                parts = list(pool.map(lambda cut, weight=weight: weight.read(*cut), cuts))
                assert all(part.flags.c_contiguous and part.flags.writeable for part in parts)
                assert np.concatenate(parts).tobytes() == together.tobytes(), (name, size)


@pytest.mark.slow
def test_dtypes_without_a_quantization_come_out_as_upstream_casts_them(tmp_path: Path, toy: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = quantized(toy, tmp_path / "mixed", {}, lambda name, weight, generator: {name: weight})
    kinds = ("float64", "float16", "bfloat16", "float32", "int8", "int64", "int32", "int16", "uint8", "bool")
    tensors = load_file(toy / "model.safetensors")
    sizes = {name: weight * (1e3 if i % 2 else 1) for i, (name, weight) in enumerate(sorted(tensors.items()))}
    tensors = {name: weight.to(_torch(kinds[i % len(kinds)])) for i, (name, weight) in enumerate(sizes.items())}
    double = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float64)
    tensors[double].view(-1)[:4] = torch.tensor([1 / 3, 1e300, -1e-320, 1 + 2**-24], dtype=torch.float64)
    save_file(tensors, folder / "model.safetensors")
    expected = converted(folder, tmp_path / "f32.gguf")
    with open_weights(read_checkpoint(folder), None) as weights:
        assert {weight.dtype for weight in weights.values()} == {"F32", "F16", "BF16"}
        for name, gguf_name in gguf_names(weights).items():
            assert whole(weights, name).tobytes() == expected[gguf_name].tobytes(), name


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_every_byte_of_an_eight_bit_float_has_torchs_value(name: str) -> None:
    import torch

    dtype = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}[name]
    right = torch.arange(256, dtype=torch.uint8).view(_torch(name)).to(torch.float32).numpy()
    assert as_float32(np.arange(256, dtype=np.uint8), dtype).tobytes() == right.tobytes()


def test_experts_that_lie_in_one_tensor_are_scaled_block_by_block(tmp_path: Path) -> None:
    """The definition, in float32, where a weight has three axes: upstream's converter knows no such model."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(2)
    weight = eight_bits(torch.randn(3, 50, 70, generator=generator) / 20)
    blocks, single = scales(generator, 3, 4, 3), scales(generator, 3, 1, 1)
    tensors = {"a": weight, "a_scale_inv": blocks}
    save_file(tensors, tmp_path / "model.safetensors")
    rows = blocks.repeat_interleave(16, 1).repeat_interleave(32, 2)[:, :50, :70]
    for settings, scale in (({**FP8, "weight_block_size": [16, 32]}, rows), (FP8, single)):
        save_file({"a": weight, "a_scale_inv": blocks if scale is rows else single}, tmp_path / "model.safetensors")
        with open_weights(read_checkpoint(tmp_path), settings) as weights:
            assert whole(weights, "a").tobytes() == (weight.float() * scale).numpy().tobytes()
            assert weights["a"].read(1, 2).tobytes() == (weight.float() * scale)[1:2].numpy().tobytes()


def test_mxfp4_blocks_stay_bytes_and_a_scalar_has_one_entry(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (2, 6, 3, 16), np.uint8)
    arrays = {"x.down_proj_blocks": blocks, "x.down_proj_scales": blocks[..., 0].copy(), "mask": blocks[0, 0]}
    save_file({**arrays, "scalar": np.array(2.5, np.float16)}, tmp_path / "model.safetensors")
    with open_weights(read_checkpoint(tmp_path), {"quant_method": "mxfp4", "modules_to_not_convert": []}) as weights:
        assert {name: weight.dtype for name, weight in weights.items()} == {
            "mask": "F32",
            "scalar": "F16",
            "x.down_proj_blocks": "U8",
            "x.down_proj_scales": "U8",
        }
        assert np.array_equal(weights["x.down_proj_blocks"].read(1, 2), blocks[1:2])
        assert weights["scalar"].shape == (1,)
        assert weights["scalar"].read(0, 1).tolist() == [2.5]


REFUSED: dict[str, Settings] = {
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "None": {"bits": 4},
    "nvfp4-pack-quantized": compressed("nvfp4-pack-quantized"),
    "NVFP4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "3 bits": {"quant_method": "gptq", "bits": 3},
    "group": compressed("float-quantized", strategy="group", group_size=32),
    "weight_block_size": {**FP8, "weight_block_size": [128, 0]},
    "without a scale": FP8,
    "one group": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    "group_size": compressed("pack-quantized", strategy="group", group_size=0, num_bits=4),
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_quantization_that_is_not_read_is_refused_by_name(tmp_path: Path, named: str) -> None:
    from safetensors.torch import save_file

    save_file({"a.weight": eight_bits(scales(_generator(), 4, 4))}, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    error = refusal(lambda: open_weights(checkpoint, REFUSED[named]))
    assert (error.code, error.file) == ("quantization", str(tmp_path / "config.json"))
    assert named in error.text


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("case", CASES)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, toy: Path, case: str) -> None:
    """What belongs to one weight: each part of it too long by five, and each part left out."""
    from safetensors.torch import load_file

    settings, make = CASES[case]
    folder = quantized(toy, tmp_path / "quantized", settings, make)
    whole = {name: each for name, each in load_file(folder / "model.safetensors").items() if "0.mlp.up_" in name}
    numbers = (".weight", ".weight_packed", ".qweight")
    for name, part in whole.items():
        if name.endswith(UNUSED):
            continue
        without = {key: each for key, each in whole.items() if key != name}
        longer = {**whole, name: part.repeat(5, *(1,) * (part.ndim - 1)) if part.ndim else part.repeat(5)}
        wrong = [] if name.endswith(numbers) and case in ANY_LENGTH else [longer]
        wrong += [] if name.endswith(LEFT_TO_THE_PLAN[case.split(",")[0].split()[0]]) else [without]
        for tensors in wrong:
            _save(tensors, folder / "model.safetensors")
            checkpoint = read_checkpoint(folder)
            with pytest.raises(InputError) as caught:
                open_weights(checkpoint, settings)
            assert caught.value.code == "quantization", name


UNUSED = (".activation_scale", ".qscale_act")
ANY_LENGTH = ("fp8 per tensor", "fp8 as Mistral writes it", "modelopt", "bitnet")  # one scale, however long the weight
# without these, the others are tensors that no plan knows; a zero point is one of two ways to pack
LEFT_TO_THE_PLAN: dict[str, tuple[str, ...]] = {
    "fp8": (),
    "modelopt": (),
    "compressed": (),
    "bitnet": (),
    "packed": (".weight_packed", "_zero_point"),
    "gptq": (".qweight",),
}


def _save(tensors: Tensors, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_a_dtype_that_has_no_meaning_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "model.safetensors", {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x")
    checkpoint = read_checkpoint(tmp_path)
    assert refusal(lambda: open_weights(checkpoint, None)).code == "dtype"


def test_what_modelopt_says_beside_the_config_counts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weight = eight_bits(scales(_generator(), 4, 4))
    save_file({"a.weight": weight, "a.weight_scale": scales(_generator())}, tmp_path / "model.safetensors")
    settings = tmp_path / "hf_quant_config.json"
    settings.write_text(json.dumps({"producer": {"name": "ModelOpt"}, "quantization": {"quant_algo": "FP8"}}))
    checkpoint = read_checkpoint(tmp_path)
    with open_weights(checkpoint, None) as weights:
        assert list(weights) == ["a.weight"]
        assert whole(weights, "a.weight").tobytes() == (weight.float() * scales(_generator())).numpy().tobytes()
    settings.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}))
    assert "NVFP4" in refusal(lambda: open_weights(checkpoint, None)).text
    settings.write_text("[]")
    refusal(lambda: open_weights(checkpoint, None))


def test_a_file_that_shrinks_or_changes_under_a_reader_is_noticed(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((1000, 100), np.float32)}, path)
    with open_weights(read_checkpoint(tmp_path), None) as weights:
        weights["a"].read(0, 1)
        weights.verify()
        os.truncate(path, 200_000)
        for act in (lambda: weights["a"].read(0, 1000), weights.verify):
            with pytest.raises(ResourceError) as caught:
                act()
            assert (caught.value.code, caught.value.file) == ("input_changed", str(path))
    save_file({"a": np.zeros((1000, 100), np.float32)}, path)
    checkpoint = read_checkpoint(tmp_path)
    os.utime(path, ns=(1, 1))
    with open_weights(checkpoint, None) as weights, pytest.raises(ResourceError, match="changed while it was read"):
        weights["a"].read(0, 1)


def test_reading_outside_or_after_the_end_is_a_bug_that_shows(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((4, 2), np.float32), "none": np.zeros((0, 2), np.float32)}, tmp_path / "model.safetensors")
    with open_weights(read_checkpoint(tmp_path), None) as weights:
        for begin, end in ((-1, 2), (3, 5), (3, 2)):
            with pytest.raises(IndexError):
                weights["a"].read(begin, end)
        assert weights["none"].read(0, 0).shape == (0, 2)
    with pytest.raises(ValueError, match="after close"):
        weights["a"].read(0, 1)


def test_the_portable_way_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    values = np.random.default_rng(5).standard_normal((3000, 300)).astype(np.float32)  # more than one step of 1 MiB
    save_file({"a": values}, tmp_path / "model.safetensors")
    monkeypatch.setattr(fs, "FAST", False)
    with open_weights(read_checkpoint(tmp_path), None) as weights:
        assert np.array_equal(weights["a"].read(0, 3000), values)


MEASURE = """
import json, sys, time
from pathlib import Path
from tests.child_reader import _peak
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.weights import open_weights
settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
before = _peak()
with open_weights(read_checkpoint(Path(sys.argv[1])), settings) as weights:
    begin, done = time.process_time(), 0
    for at in range(0, weights["a"].shape[0], 512):
        done += weights["a"].read(at, at + 512).nbytes
print(json.dumps([_peak() - before, time.process_time() - begin, done]))
"""


def test_the_memory_of_a_reader_is_that_of_its_slice(tmp_path: Path) -> None:
    rows, columns = 32768, 8192  # 256 MiB of 8-bit floats, 1 GiB of float32
    header = {
        "a": {"dtype": "F8_E4M3", "shape": [rows, columns], "data_offsets": [0, rows * columns]},
        "a_scale_inv": {
            "dtype": "F32",
            "shape": [rows // 128, columns // 128],
            "data_offsets": [rows * columns, rows * columns + rows * columns // 4096],
        },
    }
    path = raw(tmp_path / "model.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + rows * columns + rows * columns // 4096)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    peak, seconds, length = json.loads(done.stdout)
    assert length == rows * columns * 4
    assert peak < 64  # MiB; measured: 24 for slices of 16 MiB
    assert seconds < 10  # measured: 1.0 s


def test_plain_weights_are_read_at_the_speed_of_pread(tmp_path: Path) -> None:
    header = {"a": {"dtype": "BF16", "shape": [16384, 8192], "data_offsets": [0, 16384 * 8192 * 2]}}
    path = raw(tmp_path / "model.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 16384 * 8192 * 2)
    path.read_bytes()  # into the page cache
    with open_weights(read_checkpoint(tmp_path), None) as weights:
        begin = time.process_time()
        for at in range(0, 16384, 1024):
            weights["a"].read(at, at + 1024)
        ours = time.process_time() - begin
    begin = time.process_time()
    with path.open("rb", buffering=0) as file:
        for at in range(16):
            os.pread(file.fileno(), 1 << 24, at << 24)
    theirs = time.process_time() - begin
    assert ours < 3 * theirs + 0.2  # seconds for 256 MiB; measured: 0.05 both
