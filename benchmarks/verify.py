"""What `verify` costs beside the models' own work, and what a scored position costs with a large vocabulary.

    python -m benchmarks.verify [FOLDER] [--tokens 512] [--rounds 3] [--model CHECKPOINT]

Two files of `benchmarks.convert`'s 1.1 B model, f16 and q8_0, are compared over a text of random ids; beside that
llama.cpp alone decodes the same ids through both, one after the other, in the same batches, with logits asked for at
each position and thrown away. The two take turns. Then two toys of 152,064 words, whose models cost next to nothing.
Seconds are wall time of whole commands, Python's start and the loading of models included on both sides.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.convert import made
from benchmarks.extend import Run, measured, warm

GOAL: Final = 1.15  # of decoding alone
GOAL_MS: Final = 1.0  # for each scored token and candidate
WIDE: Final = 2048  # tokens through the toys
BATCH: Final = 64
# a process of its own; arguments: ids, batch, models
DECODE: Final = """
import os, sys
import numpy as np
from llama_cpp import llama_cpp as lib
lib.llama_backend_init()
ids, size = np.load(sys.argv[1]), int(sys.argv[2])
for path in sys.argv[3:]:
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(os.fsencode(path), settings)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = len(ids), size, size
    params.n_threads = params.n_threads_batch = os.cpu_count()
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(size, 0, 1)
    for start in range(0, len(ids), size):
        batch.n_tokens = min(size, len(ids) - start)
        for i in range(batch.n_tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = int(ids[start + i]), start + i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert lib.llama_decode(context, batch) == 0
        lib.llama_get_logits(context)
    lib.llama_free(context)
    lib.llama_model_free(model)
"""


def ours(ids: Path, count: int, batch: int, models: list[Path]) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "yarn_gguf",
        "verify",
        *map(str, models),
        "--tokens",
        str(ids),
        "--ctx",
        str(count),
    ]
    return [*command, "--batch", str(batch), "--noise", "0", "--max-kld", "99", "--min-top1", "0"]


def alone(ids: Path, batch: int, models: list[Path]) -> list[str]:
    return [sys.executable, "-c", DECODE, str(ids), str(batch), *map(str, models)]


def drawn(path: Path, words: int, count: int) -> Path:
    np.save(path, np.random.default_rng(1).integers(0, words, count).astype(np.int32))
    return path


def rounds(ids: Path, count: int, models: list[Path], times: int) -> list[tuple[Run, Run]]:
    found = []
    commands = {"ours": ours(ids, count, BATCH, models), "alone": alone(ids, BATCH, models)}
    for number in range(times):
        runs = {}
        for name in ("ours", "alone") if number % 2 else ("alone", "ours"):
            for model in models:
                warm(model)
            runs[name] = measured(*commands[name])
        found.append((runs["ours"], runs["alone"]))
        print(f"  verify {runs['ours'].seconds:.1f} s  decoding alone {runs['alone'].seconds:.1f} s", flush=True)
    return found


def report_large(folder: Path, checkpoint: Path, count: int, times: int) -> None:
    models = [folder / "f16.gguf", folder / "q8_0.gguf"]
    for model in models:
        command = [sys.executable, "-m", "yarn_gguf", "convert", str(checkpoint), "-o", str(model)]
        subprocess.run([*command, "--outtype", model.stem, "--skip-tokenizer-check"], check=True, capture_output=True)
    runs = rounds(drawn(folder / "ids.npy", 32000, count), count, models, times)
    wall = statistics.median(one.seconds / other.seconds for one, other in runs)
    work = statistics.median(one.cpu / other.cpu for one, other in runs)
    print(f"1.1 B, {count} tokens, batches of {BATCH}: {wall:.2f} of decoding alone (goal {GOAL}); CPU time {work:.2f}")


def report_wide(folder: Path, times: int) -> None:
    from tests.make_wide import WORDS, make_wide

    models = [make_wide(folder / "one.gguf", WIDE), make_wide(folder / "two.gguf", WIDE, 0.05)]
    ids, short = drawn(folder / "wide.npy", WORDS, WIDE), drawn(folder / "short.npy", WORDS, BATCH)
    whole, start = rounds(ids, WIDE, models, times), rounds(short, BATCH, models, times)

    def per_token(side: int) -> float:
        long, less = (statistics.median(run[side].seconds for run in runs) for runs in (whole, start))
        return (long - less) / (WIDE - BATCH) * 1000

    both, models_alone = per_token(0), per_token(1)
    print(f"{WORDS} words: {both:.2f} ms for a token and a candidate, of which the models take {models_alone:.2f};")
    print(f"measuring costs {both - models_alone:.2f} ms (goal {GOAL_MS})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="on the filesystem to be used [here]")
    parser.add_argument("--tokens", type=int, default=512, help="through the large model [512]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run [3]")
    parser.add_argument("--model", type=Path, help="a checkpoint made by `benchmarks.make_llama` [made here]")
    options = parser.parse_args()
    if options.model is not None:
        with tempfile.TemporaryDirectory(prefix="yarn-gguf-bench-", dir=options.folder) as name:
            report_large(Path(name), options.model, options.tokens, options.rounds)
            report_wide(Path(name), options.rounds)
        return
    with made(options.folder) as model:
        report_large(model.parent, model, options.tokens, options.rounds)
        shutil.rmtree(model)
        report_wide(model.parent, options.rounds)


if __name__ == "__main__":
    main()
