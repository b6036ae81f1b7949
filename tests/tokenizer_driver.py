"""Child process: upstream's own `set_vocab` on a folder, with the vocabulary-hash lookup answered.

`tokenizer_driver.py LLAMA_CPP_TREE FOLDER OUT.gguf PRE`. The class is made without its constructor, which wants
tensors; what it writes is all upstream's own: the class's `set_vocab`, gguf-py's SpecialVocab and its writer.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    tree, folder, out, pre = sys.argv[1:]
    sys.path[:0] = [tree, f"{tree}/gguf-py"]
    conversion: Any = import_module("conversion")
    base: Any = import_module("conversion.base")
    gguf: Any = import_module("gguf")
    config = json.loads(Path(folder, "config.json").read_text())
    found = conversion.get_model_class(config["architectures"][0])
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: pre
    model = object.__new__(found)
    model.dir_model, model.hparams, model.is_mistral_format = Path(folder), config, False
    model.origin_hf_arch = config["architectures"][0]
    model.gguf_writer = gguf.GGUFWriter(None, "llama")
    if hasattr(found, "Ministral3Model"):  # this class hands its work to another
        model.impl = object.__new__(found.Ministral3Model)
        model.impl.__dict__.update({name: value for name, value in model.__dict__.items() if name != "impl"})
    model.set_vocab()
    model.gguf_writer.write_header_to_file(Path(out))
    model.gguf_writer.write_kv_data_to_file()
    model.gguf_writer.close()


if __name__ == "__main__":
    main()
