"""How fast a header with a large vocabulary is read: ours against gguf-py's GGUFReader.

The file is built by gguf-py: 152,000 tokens, 150,000 merges, some long, some not Latin. Each reader runs in a child
of its own, warm, timed from call to return; memory is the child's peak, its imports included and shown apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

READERS = {
    "yarn_gguf": "from yarn_gguf.gguf_file.reader import read_header as read",
    "gguf-py": "from gguf import GGUFReader as read",
}
CHILD = """
import gc, json, sys, time
{importing}
def peak():  # of this program alone: ru_maxrss would start at what the parent had
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)
imports, seconds = peak(), []
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    found = read(sys.argv[1])
    seconds.append(time.perf_counter() - begin)
    if len(seconds) == 1:
        memory = peak()
    del found
    gc.collect()
print(json.dumps(dict(seconds=seconds, imports=imports, memory=memory)))
"""


def build(path: Path, tokens: int, merges: int) -> None:
    from gguf import GGUFWriter

    words = [f"{'Ġ' if n % 3 else ''}{chr(0x3B1 + n % 900) if n % 5 == 0 else 'w'}{n}" for n in range(tokens)]
    for n in range(0, tokens, 1000):
        words[n] += "=" * 200
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * tokens)
    writer.add_token_merges([f"{words[n % tokens]} {n}" for n in range(merges)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(name: str, path: Path, runs: int) -> tuple[float, float, float, float]:
    """Best and median seconds, MiB after the imports, MiB at the peak."""
    command = [sys.executable, "-c", CHILD.format(importing=READERS[name]), str(path), str(runs)]
    root = Path(__file__).resolve().parent.parent
    found = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=root).stdout)
    warm = found["seconds"][1:] or found["seconds"]
    return min(warm), statistics.median(warm), found["imports"], found["memory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=152_000, help="words of the vocabulary")
    parser.add_argument("--merges", type=int, default=150_000, help="merges of the vocabulary")
    parser.add_argument("--runs", type=int, default=15, help="timed reads of ours, after one that warms up")
    parser.add_argument("--slow-runs", type=int, default=3, help="timed reads of gguf-py's, after one that warms up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        build(path, options.tokens, options.merges)
        print(f"{options.tokens} tokens, {options.merges} merges, {path.stat().st_size / 1e6:.1f} MB")
        ours = measure("yarn_gguf", path, options.runs + 1)
        theirs = measure("gguf-py", path, options.slow_runs + 1)
    print(f"{'':10}{'best s':>10}{'median s':>10}{'imports MiB':>13}{'peak MiB':>10}")
    for name, figures in (("yarn_gguf", ours), ("gguf-py", theirs)):
        print(f"{name:10}{figures[0]:10.4f}{figures[1]:10.4f}{figures[2]:13.0f}{figures[3]:10.0f}")
    added = (theirs[3] - theirs[2]) / max(ours[3] - ours[2], 0.1)
    print(f"ratio     {theirs[0] / ours[0]:10.0f}{theirs[1] / ours[1]:10.0f}{'':13}{theirs[3] / ours[3]:10.1f}", end="")
    print(f"   (of what each adds to its imports: {added:.1f})")


if __name__ == "__main__":
    main()
