"""Writes yarn_gguf/config/defaults.json: what transformers takes a field for that a config.json leaves out.

`python scripts/make_config_defaults.py` rewrites it; with `--check` it says whether it is what it should be. Facts of
the installed transformers, one line per model type; run where the pinned version is.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TARGET = ROOT / "yarn_gguf" / "config" / "defaults.json"
DROPPED = {"transformers_version", "_name_or_path", "architectures", "dtype", "id2label", "label2id"}


def defaults(model_type: str) -> dict[str, object]:
    from transformers import AutoConfig, PreTrainedConfig

    generic = PreTrainedConfig().to_dict()
    kept = {"tie_word_embeddings"}
    found = AutoConfig.for_model(model_type).to_dict()
    aliases = {"_aliases": AutoConfig.for_model(model_type).attribute_map}
    return aliases | {
        name: value
        for name, value in sorted(found.items())
        if name not in DROPPED and (name not in generic or name in kept or value != generic[name])
    }


def content() -> str:
    from yarn_gguf.config.families import DEFAULTS

    logging.disable(logging.WARNING)
    lines = [f"{json.dumps(each)}: {json.dumps(defaults(each), default=str)}" for each in sorted(DEFAULTS)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    new = content()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text() == new else 1
    TARGET.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
