"""Several files of one reading: each what a run of its own writes, and the checkpoint read once for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from yarn_gguf.gguf_file.format import TENSOR_TYPES
from yarn_gguf.gguf_file.shards import read_model

from .command import environment, run, run_fresh
from .make_checkpoints import WEIGHTS, as_bf16, load, store
from .make_gguf import hashes
from .quantize_tool import importances, write_gguf_imatrix
from .test_convert import refused
from .test_faults import namespaces
from .test_quantize_faults import MATRICES
from .toys import TOYS, save_checkpoint

__all__ = ["namespaces"]  # a fixture

TYPES: Final = ("bf16", "q8_0", "Q4_K_M", "Q5_K_M", "F16", "IQ4_XS")
EXPERTS: Final[dict[str, Any]] = {"hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2}
DENSE: Final[dict[str, Any]] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
Convert = Callable[..., Path]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral in bf16: permuted and stacked tensors, rows that make types fall back."""
    folder = save_checkpoint(TOYS["mixtral"], tmp_path_factory.mktemp("experts") / "model", **EXPERTS)
    store(folder / WEIGHTS, as_bf16(load(folder / WEIGHTS)))
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint(TOYS["llama"], tmp_path_factory.mktemp("dense") / "model", **DENSE)
    store(folder / WEIGHTS, as_bf16(load(folder / WEIGHTS)))
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def converted(model: Path, folder: Path, outtype: str, *options: str | Path) -> dict[str, str]:
    """Digests of what a run writes into the folder."""
    folder.mkdir(exist_ok=True)
    done = run("convert", model, "--no-vocab", "-o", folder / "{FTYPE}.gguf", "--outtype", outtype, *options)
    assert (done.code, done.err) == (0, ""), done
    return digests(folder)


@pytest.mark.parametrize("options", [(), ("--split-max-size", "300K"), ("--factor", "8", "--encoding", "baked")])
def test_each_is_what_a_run_of_its_own_writes(options: tuple[str, ...], experts: Path, tmp_path: Path) -> None:
    alone: dict[str, str] = {}
    for name in TYPES:
        alone |= converted(experts, tmp_path / name, name, *options)
    for jobs in ("1", "3"):
        together = converted(experts, tmp_path / jobs, ",".join(TYPES), "--jobs", jobs, *options)
        assert together == alone
    assert len(alone) > len(TYPES) if "--split-max-size" in options else len(alone) == len(TYPES)


def test_with_an_importance_matrix_and_without_the_fast_path_too(dense: Path, tmp_path: Path) -> None:
    matrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", importances(MATRICES))
    names = ("Q8_0", "Q4_K_M", "IQ2_XS", "F16")
    alone: dict[str, str] = {}
    for name in names:
        options = () if name == "F16" else ("--imatrix", matrix)  # which would be refused of floats alone
        alone |= converted(dense, tmp_path / name, name, *options)
    assert converted(dense, tmp_path / "all", ",".join(names), "--imatrix", matrix) == alone
    out = tmp_path / "plain"
    out.mkdir()
    arguments: list[str | Path] = ["--outtype", ",".join(names), "--imatrix", matrix, "-o", out / "{FTYPE}.gguf"]
    done = run_fresh("convert", dense, "--no-vocab", *arguments, YARN_GGUF_PLAIN_IO="1")
    assert done.code == 0, done
    assert digests(out) == alone


READ: Final = """
import sys
from pathlib import Path
from yarn_gguf.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
print(counts["rchar"])
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc")
def test_the_checkpoint_is_read_once(tmp_path: Path) -> None:
    """By what the kernel counts: a second type reads nothing but what Python loads for it."""
    model = save_checkpoint(TOYS["llama"], tmp_path / "model", hidden_size=1024, intermediate_size=4096)
    size = (model / WEIGHTS).stat().st_size
    assert size > 190e6

    def read(outtype: str) -> int:
        arguments: list[str | Path] = [
            "convert",
            model,
            "--no-vocab",
            "-o",
            tmp_path / "{ftype}.gguf",
            "--force",
            "--json",
        ]
        command = [sys.executable, "-c", READ, *map(str, arguments), "--outtype", outtype]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
        return int(done.stdout.splitlines()[-1])

    one, several = read("Q4_0"), read("f32,f16,q8_0,Q4_0,Q4_1,Q5_0")
    assert size < one < 1.3 * size
    assert several < one + 0.05 * size


def test_a_dry_run_tells_types_and_sizes_as_they_will_be(experts: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["--no-vocab", "-o", tmp_path / "{ftype}.gguf", "--outtype", "Q4_K_M,q8_0,MXFP4_MOE"]
    planned = run("convert", experts, *arguments, "--dry-run", "--json").json
    assert not list(tmp_path.iterdir())
    written = run("convert", experts, *arguments, "--json").json
    assert [{**output} for output in planned["outputs"]] == written["outputs"]
    for output in written["outputs"]:
        model = read_model(output["path"])
        plan = {each["name"]: each for each in planned["plan"] if each["outtype"] == output["type"]}
        assert output["bytes"] == model.bytes == Path(output["path"]).stat().st_size
        assert {n: (p["type"], p["bytes"]) for n, p in plan.items()} == {
            n: (TENSOR_TYPES[t.type].name, t.size) for n, (_, t) in model.tensors.items()
        }
        assert sum(each["tensors"] for each in output["tensor_types"]) == len(model.tensors)


def test_types_are_shown(dense: Path, tmp_path: Path) -> None:
    done = run("convert", dense, "--no-vocab", "-o", tmp_path, "--outtype", "Q4_K_M,f16", "--dry-run")
    assert done.code == 0, done
    assert "Q4_K_M: 13 Q4_K, 5 F32, 3 Q6_K" in done.words
    assert done.out.count("blk.1.ffn_down.weight") == 2
    for name in ("Q4_K_M", "F16"):
        assert f"would be {tmp_path}/Model-952K-{name}.gguf" in done.words


def test_one_name_that_is_taken_stops_all(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "Q4_0.gguf").write_text("earlier output")
    before = hashes(tmp_path)
    arguments: list[str | Path] = ["-o", tmp_path / "{ftype}.gguf", "--outtype", "f16,Q4_0,Q4_1"]
    said = refused(run("convert", dense, "--no-vocab", *arguments), 2)
    assert "Q4_0.gguf: exists" in said
    assert hashes(tmp_path) == before


def test_a_limit_that_one_of_them_meets_stops_all(dense: Path, tmp_path: Path) -> None:
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    arguments: list[str | Path] = ["-o", tmp_path / "{ftype}.gguf", "--outtype", "Q8_0,Q4_0,f32"]
    done = run_fresh("convert", dense, "--no-vocab", *arguments, before=limited)
    assert done.code == 4, done
    assert not list(tmp_path.iterdir())


def test_the_keys_say_how_each_was_made(dense: Path, tmp_path: Path) -> None:
    matrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", importances(MATRICES))
    converted(dense, tmp_path / "out", "Q8_0,Q4_K_M,f16", "--imatrix", matrix)
    models = {name: read_model(tmp_path / "out" / f"{name}.gguf").first for name in ("Q8_0", "Q4_K_M", "F16")}
    assert {name: model.get("general.file_type") for name, model in models.items()} == {
        "Q8_0": 7,
        "Q4_K_M": 15,
        "F16": 1,
    }
    assert {model.get("general.quantization_version") for model in models.values()} == {2}
    assert models["Q4_K_M"].get("quantize.imatrix.file") == os.fspath(matrix)[:127]
    assert models["Q4_K_M"].get("quantize.imatrix.entries_count") == len(MATRICES)
    assert models["F16"].get("quantize.imatrix.file") is None
    assert json.dumps(models["Q8_0"].get("quantize.imatrix.dataset")) == '"calibration.txt"'
