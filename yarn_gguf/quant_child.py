"""Child process: what llama.cpp's quantizer would make of a file. `python -m yarn_gguf.quant_child`.

Reads one JSON request on stdin, writes one JSON answer on stdout; its parent is `quant_policy`. It is a process of its
own because llama.cpp may abort on a header that it does not like, and because it need not be loaded for a conversion.

    request  gguf: path   asked: [{ftype: number   overrides: [[pattern, type]]   output, embedding: type or null
                                   pure, importance: bool   dry: bool; false only where llama.cpp refuses to write}]
    answer   [{code: 0 or what llama_model_quantize returned   log: all that it said}]
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from functools import cache
from typing import Any

NOBODY = b"yarn-gguf.nothing"  # a tensor that no model has


def parameters(library: Any, asked: dict[str, Any]) -> Any:
    """What is asked, as the library wants it; ctypes keeps alive what it points to."""
    wanted = library.llama_model_quantize_default_params()
    wanted.ftype, wanted.pure, wanted.dry_run, wanted.nthread = asked["ftype"], asked["pure"], asked["dry"], 1
    for field, number in (("output_tensor_type", asked["output"]), ("token_embedding_type", asked["embedding"])):
        if number is not None:
            setattr(wanted, field, number)
    if asked["overrides"]:
        override = library.llama_model_tensor_override
        pairs = [override(os.fsencode(pattern), number) for pattern, number in asked["overrides"]]
        wanted.tt_overrides = (override * (len(pairs) + 1))(*pairs)  # what is left is zeros: its end
    if asked["importance"]:  # the types depend on whether there is one, not on what it says
        data = library.llama_model_imatrix_data
        values = ctypes.cast((ctypes.c_float * 1)(1.0), ctypes.POINTER(ctypes.c_float))
        wanted.imatrix = (data * 2)(data(NOBODY, values, 1))
    return wanted


def answer(library: Any, gguf: str, asked: dict[str, Any]) -> dict[str, Any]:
    said = bytearray()
    log = library.llama_log_callback(lambda _, text, __: said.extend(text))
    library.llama_log_set(log, ctypes.c_void_p(0))
    wanted = parameters(library, asked)
    code = library.llama_model_quantize(os.fsencode(gguf), os.fsencode(os.devnull), ctypes.byref(wanted))
    library.llama_log_set(log_nothing(library), ctypes.c_void_p(0))
    return {"code": code, "log": said.decode("utf-8", "replace")}


@cache
def log_nothing(library: Any) -> Any:
    return library.llama_log_callback(lambda *_: None)


def main() -> None:
    from llama_cpp import llama_cpp

    request = json.load(sys.stdin)
    json.dump([answer(llama_cpp, request["gguf"], asked) for asked in request["asked"]], sys.stdout)


if __name__ == "__main__":
    main()
