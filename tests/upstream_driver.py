"""Child process: runs upstream's converter, with the vocabulary step answered "this model has none".

`upstream_driver.py LLAMA_CPP_TREE CONVERTER_ARGUMENT…`; with `--each TYPE…` at the end, once for each type, `{outtype}`
of the arguments filled in by upstream. Everything else is upstream's own code, entry point and command
line included. The toys have no tokenizer, and what is tested with them are logits of token ids.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

EACH = "--each"


def set_no_vocabulary(model: Any) -> None:
    """Stands in for `TextModel.set_vocab`. llama.cpp takes the number of tokens from the file's vocab_size."""
    model._set_vocab_none()
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


def with_subclasses(cls: Any) -> Iterator[Any]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from with_subclasses(subclass)


def main() -> None:
    tree = sys.argv.pop(1)
    sys.path.insert(0, tree)
    converter: Any = import_module("convert_hf_to_gguf")
    base: Any = import_module("conversion.base")
    get_model_class = converter.get_model_class

    def get_model_class_without_vocabulary(*args: Any, **kwargs: Any) -> Any:
        """The classes exist only once their module is loaded, and some hand their work to another class."""
        found = get_model_class(*args, **kwargs)
        for cls in with_subclasses(base.TextModel):
            cls.set_vocab = set_no_vocabulary
        return found

    converter.get_model_class = get_model_class_without_vocabulary
    if EACH not in sys.argv:
        converter.main()
        return
    at = sys.argv.index(EACH)
    types, sys.argv = sys.argv[at + 1 :], sys.argv[:at]
    for each in types:
        if code := in_a_fork(converter, each):
            sys.exit(code)


def in_a_fork(converter: Any, outtype: str) -> int:
    """One conversion in a process of its own: the classes keep what they have seen."""
    child = os.fork()
    if child == 0:
        sys.argv += ["--outtype", outtype]
        converter.main()
        sys.stderr.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
