"""What stock llama.cpp makes of YaRN settings: as upstream's converter writes them, and after `yarn-gguf extend`.

Prints the table of the README: a toy Llama (random float32 weights), factor 8 over 128 tokens, mean KL divergence from
transformers over all 1024 positions, float32 cache, flash attention off. Uses the tests' harness, as a module:

    python -m benchmarks.exactness
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.test_logits import divergence
from tests.toys import TOYS, YARN, save_checkpoint
from tests.upstream import convert
from yarn_gguf.before import read_before
from yarn_gguf.extend import plan_extension, write_extension
from yarn_gguf.intent import RopeOptions

SETTINGS: dict[str, dict[str, Any]] = {
    "YaRN, defaults": {},
    "`attention_factor` 1.0": {"attention_factor": 1.0},
    "`beta_fast` 4, `beta_slow` 2": {"beta_fast": 4.0, "beta_slow": 2.0},
    "`truncate` false": {"truncate": False},
}


def main() -> None:
    toy = TOYS["llama"]
    print("| settings of the checkpoint | as upstream's converter writes it | after `yarn-gguf extend` |")
    print("| --- | --- | --- |")
    for name, settings in SETTINGS.items():
        rope = toy.scaled(**YARN, **settings)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = save_checkpoint(toy, Path(folder, "model"), rope, max_position_embeddings=128)
            written = convert(checkpoint, Path(folder, "upstream.gguf"))
            mended = Path(folder, "mended.gguf")
            options = RopeOptions(factor=8, **settings)
            write_extension(plan_extension(read_before(written), options), mended)
            before, after = (divergence(toy, file, rope) for file in (written, mended))
        print(f"| {name} | {before:.1e} | {after:.1e} |", flush=True)


if __name__ == "__main__":
    main()
