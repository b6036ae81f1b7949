"""How fast a large checkpoint is quantized: ours in one pass, llama.cpp in two steps, and the encoding alone.

    python -m benchmarks.quantize [FOLDER] [--outtype Q4_K_M] [--rounds N] [--together Q8_0,Q4_K_M,IQ4_XS]

The model is that of `benchmarks.convert`: a Llama of 1.1 B parameters, made in a folder of its own inside FOLDER and
removed afterwards; 12 GB of room are needed there for a while. In each round all take turns. The limit is the time
that ggml's quantizers take for as many rows of the same types from memory, on all cores, with nothing read or written.
Seconds are wall time of whole commands, Python's start and our fsync included (upstream's tools do not sync); memory is
the child's peak. Then: what of the disk is used besides the output while we write, and several types of one reading
beside runs of their own. `--pure MODEL TYPE` measures the limit alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.convert import made, timed, upstream
from benchmarks.extend import ROOT, Run, measured, settle, warm
from benchmarks.make_llama import pool_of

GOAL: Final = 0.65  # of upstream's two steps
LIMIT: Final = 1.1  # times what encoding alone takes
TOGETHER: Final = 0.9  # of the sum of single runs
GOAL_MIB: Final = 700
CHUNK: Final = 1 << 17  # elements that a quantizer is given at a time


def ours(model: Path, out: Path, outtype: str) -> list[str]:
    command = [sys.executable, "-m", "yarn_gguf", "convert", str(model), "-o", str(out), "--outtype", outtype]
    return [*command, "--skip-tokenizer-check"]


def two_steps(model: Path, out: Path, outtype: str) -> list[str]:
    """The converter to the checkpoint's own type, and the quantizer on all cores; the file in between is removed."""
    from tests.quantize_tool import llama_quantize

    between = out.with_suffix(".between")
    script = '"$@" && "$TOOL" "$BETWEEN" "$OUT" "$TYPE"; code=$?; rm -f "$BETWEEN"; exit $code'
    settings = [f"TOOL={llama_quantize()}", f"BETWEEN={between}", f"OUT={out}", f"TYPE={outtype}"]
    return ["env", *settings, "sh", "-c", script, "sh", *upstream(model, between, "bf16")]


def limit(model: Path, outtype: str) -> Run:
    """In a process of its own, of which only the encoding counts."""
    command = [sys.executable, "-m", "benchmarks.quantize", "--pure", str(model), outtype]
    settle()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    seconds, cpu = map(float, done.stdout.split())
    return Run(seconds, 0.0, cpu)


def rows_of(model: Path, outtype: str) -> Iterator[tuple[int, int, int]]:
    """(ggml's number of the type, elements, length of a row) of every tensor that is quantized."""
    from yarn_gguf.conversion.wanted import Wanted
    from yarn_gguf.convert import planned

    with planned(model, Wanted(tokenizer=False, outtypes=(outtype,))) as conversion:
        for tensor in conversion.versions[0].tensors:
            if len(tensor.shape) > 1:
                yield tensor.type, int(np.prod(tensor.shape)), tensor.shape[-1]


def encode_from_memory(model: Path, outtype: str) -> tuple[float, float]:
    """Seconds, and the processors' seconds; the planning is not counted."""
    from yarn_gguf import ggml
    from yarn_gguf.encode import encoded_size

    numbers, place = pool_of("f32"), threading.local()
    chunks = [
        (kind, row, begin % (numbers.size // 2), min(count - begin, CHUNK // row * row))
        for kind, count, row in rows_of(model, outtype)
        for begin in range(0, count, CHUNK // row * row)
    ]

    def quantize(chunk: tuple[int, int, int, int]) -> None:
        kind, row, begin, count = chunk
        if not hasattr(place, "out"):
            place.out = np.empty(8 * CHUNK, np.uint8)
        ggml.quantize(kind, numbers[begin : begin + count], row, None, place.out[: encoded_size(count, "F32", kind)])

    began, used = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(quantize, chunks):
            pass
    return time.monotonic() - began, time.process_time() - used


def rounds(model: Path, outtype: str, count: int) -> list[dict[str, Run]]:
    weights, out = model / "model.safetensors", model.parent / "out.gguf"
    turns = {
        "ours": lambda: timed(ours(model, out, outtype), weights, out),
        "two steps": lambda: timed(two_steps(model, out, outtype), weights, out),
        "limit": lambda: limit(model, outtype),
    }
    found = []
    for number in range(count):
        turn = number % len(turns)
        names = list(turns)[turn:] + list(turns)[:turn]
        found.append({name: turns[name]() for name in names})
        print(f"  {outtype}", "  ".join(f"{name} {found[-1][name].seconds:.1f} s" for name in names), flush=True)
    return found


def report(outtype: str, found: list[dict[str, Run]]) -> None:
    def median(name: str) -> float:
        return statistics.median(each[name].seconds for each in found)

    def ratio(name: str) -> float:
        return statistics.median(each["ours"].seconds / each[name].seconds for each in found)

    peaks = {name: max(each[name].mib for each in found) for name in ("ours", "two steps")}
    cpu = {name: statistics.median(each[name].cpu for each in found) for name in found[0]}
    print("| type | ours | two steps | limit | ours / two steps | ours / limit | cpu: ours, two steps, limit | peaks |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    cells = [outtype, *(f"{median(name):.1f} s" for name in ("ours", "two steps", "limit"))]
    cells += [f"{ratio('two steps'):.2f} (goal {GOAL})", f"{ratio('limit'):.2f} (goal {LIMIT})"]
    cells += [", ".join(f"{cpu[name]:.0f} s" for name in ("ours", "two steps", "limit"))]
    cells += [f"{peaks['ours']:.0f} (goal {GOAL_MIB}), {peaks['two steps']:.0f} MiB"]
    print(f"| {' | '.join(cells)} |", flush=True)


def report_disk(model: Path, outtype: str) -> None:
    """The most that the filesystem, and the folder for temporary files, held while we wrote, less the output."""
    out, done, most = model.parent / "out.gguf", threading.Event(), [0]
    out.unlink(missing_ok=True)
    settle()
    before = shutil.disk_usage(model).used

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], shutil.disk_usage(model).used - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    measured(*ours(model, out, outtype))
    done.set()
    watcher.join()
    size = out.stat().st_blocks * 512
    out.unlink()
    print(f"disk besides the output of {size / 1e6:.0f} MB: {(most[0] - size) / 1024:.0f} KiB (goal 1024)", flush=True)


def report_together(model: Path, names: str, count: int) -> None:
    weights, out = model / "model.safetensors", model.parent / "out-{ftype}.gguf"
    sums, whole = [], []
    for _ in range(count):
        alone = []
        for each in [*names.split(","), names]:
            warm(weights)
            settle()
            alone.append(measured(*ours(model, out, each)).seconds)
            for path in model.parent.glob("out-*.gguf"):
                path.unlink()
        whole.append(alone.pop())
        sums.append(sum(alone))
        print(f"  {names} together {whole[-1]:.1f} s, alone {' + '.join(f'{s:.1f}' for s in alone)} s", flush=True)
    value = statistics.median(one / other for one, other in zip(whole, sums, strict=True))
    print(f"{names}: {statistics.median(whole):.1f} s together, {value:.2f} of runs of their own (goal {TOGETHER})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="on the filesystem to be measured [here]")
    parser.add_argument("--outtype", default="Q4_K_M", help="what is measured beside upstream's two steps [Q4_K_M]")
    parser.add_argument("--together", default="Q8_0,Q4_K_M,IQ4_XS", help="types of one reading [Q8_0,Q4_K_M,IQ4_XS]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run [3]")
    parser.add_argument("--pure", nargs=2, metavar=("MODEL", "TYPE"), help="only the limit, for a checkpoint")
    options = parser.parse_args()
    if options.pure:
        print(*encode_from_memory(Path(options.pure[0]), options.pure[1]))
        return
    with made(options.folder) as model:
        report(options.outtype, rounds(model, options.outtype, options.rounds))
        report_disk(model, options.outtype)
        report_together(model, options.together, options.rounds)


if __name__ == "__main__":
    main()
