"""How fast a large checkpoint is converted: ours, llama.cpp's own converter, and `cp` and `sync` of what we wrote.

    python -m benchmarks.convert [FOLDER] [--rounds N]

A Llama of 1.1 B parameters (`make_llama`) is made in a folder of its own inside FOLDER and removed afterwards: 12 GB of
room are needed there for a while. In each round the three take turns, and who begins changes; the source is read before
each run, so that all find it in the cache. Seconds are wall time of the whole command, Python's start and our fsync
included (upstream's converter does not sync, and is spared its vocabulary); memory is the child's peak. Ratios are
medians over the rounds. After that: whether the bytes depend on --jobs, and the peak on a model with a tensor of 2 GB.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.extend import Run, machine, measured, settle, warm
from benchmarks.make_llama import make

ROOM: Final = 12_000_000_000
GOAL_MIB: Final = 600
# against cp and sync, against upstream
GOALS: Final = {"bf16": (1.15, 0.2), "f16": (1.15, 0.2), "q8_0": (None, 0.2)}


def ours(model: Path, out: Path, outtype: str, jobs: int = 0) -> list[str]:
    command = [sys.executable, "-m", "yarn_gguf", "convert", str(model), "-o", str(out), "--outtype", outtype]
    return [*command, "--skip-tokenizer-check", *(["--jobs", str(jobs)] if jobs else [])]


def upstream(model: Path, out: Path, outtype: str) -> list[str]:
    from tests.upstream import DRIVER, llama_cpp_source

    command = [sys.executable, "-P", str(DRIVER), str(llama_cpp_source()), str(model)]
    return [*command, "--outfile", str(out), "--outtype", outtype]


def copy(source: Path, out: Path) -> list[str]:
    return ["sh", "-c", 'cp --reflink=never "$0" "$1" && sync -d "$1"', str(source), str(out)]


def timed(command: list[str], source: Path, out: Path) -> Run:
    out.unlink(missing_ok=True)
    warm(source)
    settle()
    try:
        return measured(*command)
    finally:
        out.unlink(missing_ok=True)


def rounds(model: Path, outtype: str, count: int, *, with_upstream: bool) -> list[dict[str, Run]]:
    """What each of them took, round by round."""
    folder = model.parent
    weights, written, out = model / "model.safetensors", folder / "written.gguf", folder / "out.gguf"
    measured(*ours(model, written, outtype))
    commands = {
        "ours": (ours(model, out, outtype), weights),
        "cp + sync": (copy(written, out), written),
        "upstream": (upstream(model, out, outtype), weights),
    }
    names = [name for name in commands if with_upstream or name != "upstream"]
    found = []
    for number in range(count):
        turn = number % len(names)
        found.append({name: timed(*commands[name], out) for name in names[turn:] + names[:turn]})
        print(f"  {outtype:5}", "  ".join(f"{name} {found[-1][name].seconds:.2f} s" for name in names), flush=True)
    written.unlink()
    return found


def row(outtype: str, found: list[dict[str, Run]]) -> str:
    def median(name: str) -> str:
        return f"{statistics.median(r[name].seconds for r in found):.2f} s" if name in found[0] else "–"

    def ratio(name: str, goal: float | None) -> str:
        if name not in found[0]:
            return "–"
        value = statistics.median(r["ours"].seconds / r[name].seconds for r in found)
        return f"{value:.2f}" + ("" if goal is None else f" (goal {goal})")

    def peak(name: str) -> str:
        return f"{max(r[name].mib for r in found):.0f} MiB" if name in found[0] else "–"

    copied, converted = GOALS[outtype]
    cells = [outtype, median("ours"), median("cp + sync"), median("upstream")]
    cells += [ratio("cp + sync", copied), ratio("upstream", converted)]
    cells += [f"{statistics.median(r['ours'].cpu for r in found):.2f} s", peak("ours"), peak("upstream")]
    return f"| {' | '.join(cells)} |"


def digests(model: Path, outtype: str) -> dict[str, str]:
    """sha256 of what comes of one worker, of two, and of two again."""
    out, found = model.parent / "out.gguf", {}
    for label, jobs in (("1", 1), ("2", 2), ("2 again", 2)):
        out.unlink(missing_ok=True)
        measured(*ours(model, out, outtype, jobs))
        with out.open("rb") as file:
            found[label] = hashlib.file_digest(file, "sha256").hexdigest()
    out.unlink()
    return found


def report_digests(model: Path) -> None:
    for outtype in GOALS:
        found = digests(model, outtype)
        same = "identical" if len(set(found.values())) == 1 else f"DIFFERENT: {found}"
        print(f"sha256 of {outtype} with --jobs {', '.join(found)}: {same} ({found['1'][:16]}…)", flush=True)


def report_wide(folder: Path, tall: Path, types: Sequence[str]) -> None:
    """Our peak where one tensor has 2 GB, against that on the model of many; without vocabularies, which differ."""
    wide = make(folder / "wide", shape="wide")

    def peak(model: Path, outtype: str) -> float:
        command = [*ours(model, folder / "out.gguf", outtype), "--no-vocab"]
        command.remove("--skip-tokenizer-check")
        return timed(command, model / "model.safetensors", folder / "out.gguf").mib

    for outtype in types:
        usual, large = peak(tall, outtype), peak(wide, outtype)
        print(f"{outtype}: {usual:.0f} MiB; with one tensor of 2 GB {large:.0f} MiB, {large / usual:.2f} of it")
    shutil.rmtree(wide)


@contextmanager
def made(parent: Path) -> Iterator[Path]:
    """The large model, in a folder of its own that is removed; says where and on what it lies."""
    if shutil.disk_usage(parent).free < ROOM:
        raise SystemExit(f"{parent.resolve()}: {ROOM / 1e9:.0f} GB are needed for a while; name another folder")
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-bench-", dir=parent) as name:
        folder = Path(name)
        model = make(folder / "model")
        size = (model / "model.safetensors").stat().st_size
        print(f"{machine(folder)}, load {os.getloadavg()[0]:.1f}; {datetime.date.today()}; {size / 1e9:.2f} GB of bf16")
        yield model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="on the filesystem to be measured [here]")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run [5]")
    parser.add_argument("--outtype", choices=GOALS, action="append", help="only these [all]")
    parser.add_argument("--no-upstream", action="store_true", help="only ours and cp")
    parser.add_argument("--only-times", action="store_true", help="neither digests nor the model with a large tensor")
    options = parser.parse_args()
    with made(options.folder) as model:
        types = options.outtype or list(GOALS)
        found = {t: rounds(model, t, options.rounds, with_upstream=not options.no_upstream) for t in types}
        print(f"\nmedians of {options.rounds}; load at the end {os.getloadavg()[0]:.1f}")
        print("| type | ours | cp + sync | upstream | ours / cp | ours / upstream | our cpu | our peak | its peak |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for outtype, runs in found.items():
            print(row(outtype, runs))
        print(f"\ngoal for our peak: {GOAL_MIB} MiB")
        if not options.only_times:
            report_digests(model)
            report_wide(model.parent, model, types)


if __name__ == "__main__":
    main()
