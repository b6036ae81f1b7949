"""Child process: llama.cpp's quantizer at work for `quantize`. `python -m yarn_gguf.quantize_child`.

    quantize {source, output, ftype, threads, imatrix, requantize, pure} -> {said: its log}

While it works it tells of every tensor that it begins: {"progress": [number, of so many]}.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from yarn_gguf.children.inside import Line, Refusal
from yarn_gguf.imatrix import Imatrix, read_imatrix
from yarn_gguf.quantize import refusal

STEP = re.compile(rb"\[ *(\d+)/ *(\d+)\] ")
MOST_SAID = 1 << 22  # bytes of its log
STRING, INTEGER = 3, 0  # llama_model_kv_override_type


class Quantizer:
    def __init__(self, line: Line) -> None:
        from llama_cpp import llama_cpp

        self.lib, self.line = llama_cpp, line
        self.said = bytearray()
        self.log = llama_cpp.llama_log_callback(self._hear)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))

    def _hear(self, _: int, text: bytes, __: Any) -> None:
        if len(self.said) < MOST_SAID:
            self.said += text
        if match := STEP.match(text):
            self.line.say(progress=[int(match[1]), int(match[2])])
        elif not text.startswith(b"llama_model_loader"):
            sys.stderr.write(text.decode("utf-8", "replace"))

    def quantize(
        self, source: str, output: str, ftype: int, threads: int, imatrix: str | None, requantize: bool, pure: bool
    ) -> dict[str, Any]:
        wanted = self.lib.llama_model_quantize_default_params()
        wanted.ftype, wanted.nthread, wanted.pure, wanted.allow_requantize = ftype, threads, pure, requantize
        kept = [] if imatrix is None else self._weigh(wanted, read_imatrix(imatrix))
        with self.line.working():
            code = self.lib.llama_model_quantize(os.fsencode(source), os.fsencode(output), ctypes.byref(wanted))
        del kept
        said = self.said.decode("utf-8", "replace")
        if code:
            raise Refusal("not_quantized", f"llama.cpp does not quantize it: {refusal(said)}")
        return {"said": said}

    def _weigh(self, wanted: Any, matrix: Imatrix) -> list[Any]:
        """Gives the quantizer the importance of every column; returns what must live as long as it works."""
        data = self.lib.llama_model_imatrix_data
        weights = {name: matrix.weights(name) for name in matrix.entries}
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [data(name.encode(), each.ctypes.data_as(pointer), each.size) for name, each in weights.items()]
        wanted.imatrix = (data * (len(entries) + 1))(*entries)  # what is left is zeros: its end
        keys = list(self._keys(matrix))
        wanted.kv_overrides = (self.lib.llama_model_kv_override * (len(keys) + 1))(*keys)
        return [weights, entries, keys]

    def _keys(self, matrix: Imatrix) -> Iterator[Any]:
        for found in matrix.keys():  # noqa: SIM118 - of a GGUF, to be written
            override, value = self.lib.llama_model_kv_override(), found.value()
            override.key, override.tag = found.key.encode(), INTEGER if isinstance(value, int) else STRING
            if isinstance(value, int):
                override.value.val_i64 = value
            else:
                override.value.val_str = os.fsencode(str(value))
            yield override


def main() -> None:
    line = Line()
    line.serve({"quantize": Quantizer(line).quantize})


if __name__ == "__main__":
    main()
