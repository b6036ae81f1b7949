"""How fast a large model is extended: `yarn-gguf extend` against `cp --reflink=never A B && sync -d B`, in pairs.

A GGUF of random bytes is built in a folder of its own, removed afterwards, and read before each run, so that both find
it in the cache; room for two of it, and a tenth more, is needed there: 4.2 GiB for the usual 2. The two take turns, and
which goes first alternates. Seconds are wall time of the whole command, its start and its fsync included; memory is the
child's peak. The ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GOAL_RATIO, GOAL_MIB = 1.05, 150
# in a process of its own: a child's peak starts at what its parent had
MEASURE = """
import os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - began
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
"""


class Run(NamedTuple):
    seconds: float
    mib: float
    cpu: float


def build(path: Path, size: int) -> None:
    """A llama of a few tensors of random bytes, which no filesystem can make smaller."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    numbers = {"context_length": 4096, "embedding_length": 4096, "block_count": 1, "attention.head_count": 32}
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    count = 8
    for number in range(count):
        writer.add_tensor_info(f"blk.{number}.weight", (size // count,), np.dtype(np.int8), size // count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.write(bytes(-end % 32))
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def measured(*command: str) -> Run:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True, env=env
    )
    code, seconds, mib, cpu = done.stdout.split()
    if code != "0":
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{done.stderr}")
    return Run(float(seconds), float(mib), float(cpu))


def settle() -> None:
    """Nothing of the last run is left to be written while the next one is timed."""
    os.sync()
    time.sleep(1)


def warm(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def pairs(source: Path, count: int) -> list[tuple[Run, Run]]:
    """(ours, cp's) of each pair."""
    ours, theirs = source.with_name("extended.gguf"), source.with_name("copied.gguf")
    commands = {
        "ours": (sys.executable, "-m", "yarn_gguf", "extend", str(source), "--factor", "4", "-o", str(ours)),
        "cp": ("sh", "-c", 'cp --reflink=never "$0" "$1" && sync -d "$1"', str(source), str(theirs)),
    }
    found = []
    for number in range(count):
        runs = {}
        for name in ("ours", "cp") if number % 2 else ("cp", "ours"):
            ours.unlink(missing_ok=True)
            theirs.unlink(missing_ok=True)
            warm(source)
            settle()
            runs[name] = measured(*commands[name])
        found.append((runs["ours"], runs["cp"]))
        print(
            f"{number + 1:4}{runs['ours'].seconds:12.2f}{runs['cp'].seconds:12.2f}{ratio(found[-1]):9.3f}", flush=True
        )
    ours.unlink(missing_ok=True)
    theirs.unlink(missing_ok=True)
    return found


def ratio(pair: tuple[Run, Run]) -> float:
    return pair[0].seconds / pair[1].seconds


def machine(folder: Path) -> str:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    cores = os.cpu_count() or 0
    return f"{platform.machine()}, {cores} cores, {platform.system()} {platform.release()}, {kind.stdout.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="on the filesystem to be measured [here]")
    parser.add_argument(
        "--size",
        type=float,
        default=2.0,
        metavar="GIB",
        help="size of the model; below 1 it is Python's start that is timed [2]",
    )
    parser.add_argument("--pairs", type=int, default=7, help="how many of each are run [7]")
    options = parser.parse_args()
    size = max(round(options.size * 128), 1) << 23  # whole MiB for each of the eight tensors
    check_room(options.folder, size)
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-bench-", dir=options.folder) as folder:
        source = Path(folder) / "source.gguf"
        build(source, size)
        print(f"{machine(source.parent)}; {datetime.date.today()}; {source.stat().st_size / 2**30:.2f} GiB")
        print(f"{'pair':>4}{'extend s':>12}{'cp+sync s':>12}{'ratio':>9}")
        found = pairs(source, options.pairs)
    report(found)


def check_room(folder: Path, size: int) -> None:
    needed, free = size * 21 // 10, shutil.disk_usage(folder).free
    if needed > free:
        needs = f"needs {needed / 2**30:.1f} GiB for a while, {free / 2**30:.1f} are free"
        raise SystemExit(f"{folder.resolve()}: {needs}; name another folder, or a smaller --size")


def report(found: list[tuple[Run, Run]]) -> None:
    """Medians and peak of all pairs."""
    ours, theirs = ([pair[i] for pair in found] for i in (0, 1))
    median, peak = statistics.median(map(ratio, found)), max(run.mib for run in ours)
    print(
        f"{'':4}{statistics.median(r.seconds for r in ours):12.2f}{statistics.median(r.seconds for r in theirs):12.2f}",
        end="",
    )
    print(f"{median:9.3f}   medians; goal {GOAL_RATIO}")
    print(
        f"peak memory {peak:.0f} MiB, goal {GOAL_MIB}; processor time {statistics.median(r.cpu for r in ours):.2f} s",
        end="",
    )
    print(f" against cp's {statistics.median(r.cpu for r in theirs):.2f} s")


if __name__ == "__main__":
    main()
