"""Run as a script: `ask.py LIBLLAMA` loads a library and prints what it says of itself, as one line of JSON.

Imports nothing of ours, and not `llama_cpp`: the library may be of another version than the one that fits.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any


def _functions(library: ctypes.CDLL, names: dict[str, tuple[Any, list[Any]]]) -> None:
    for name, (result, arguments) in names.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def answer(path: Path) -> dict[str, Any]:
    """Features, backends, devices and the line of system information."""
    if hasattr(os, "add_dll_directory"):
        os.add_dll_directory(str(path.parent))
    llama = ctypes.CDLL(str(path))
    name = path.name.replace("llama", "ggml")
    ggml = ctypes.CDLL(str(path.with_name(name)))
    base = ctypes.CDLL(str(path.with_name(name.replace("ggml", "ggml-base"))))
    text, pointer, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
    _functions(llama, {"llama_backend_init": (None, []), "llama_print_system_info": (text, [])})
    _functions(
        ggml,
        {
            "ggml_backend_reg_count": (size, []),
            "ggml_backend_reg_get": (pointer, [size]),
            "ggml_backend_dev_count": (size, []),
            "ggml_backend_dev_get": (pointer, [size]),
        },
    )
    _functions(
        base,
        {
            "ggml_backend_reg_name": (text, [pointer]),
            "ggml_backend_dev_name": (text, [pointer]),
            "ggml_backend_dev_description": (text, [pointer]),
            "ggml_backend_dev_memory": (None, [pointer, ctypes.POINTER(size), ctypes.POINTER(size)]),
        },
    )
    llama.llama_backend_init()
    features = ""
    if hasattr(llama, "llama_yarn_features"):
        _functions(llama, {"llama_yarn_features": (text, [])})
        features = _text(llama.llama_yarn_features())
    devices = []
    for number in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(number)
        free, total = size(), size()
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        devices.append(
            {
                "name": _text(base.ggml_backend_dev_name(device)),
                "description": _text(base.ggml_backend_dev_description(device)),
                "free": free.value,
                "total": total.value,
            }
        )
    registered = (ggml.ggml_backend_reg_get(number) for number in range(ggml.ggml_backend_reg_count()))
    return {
        "features": [feature for feature in features.split(",") if feature],
        "backends": [_text(base.ggml_backend_reg_name(one)) for one in registered],
        "devices": devices,
        "system_info": _text(llama.llama_print_system_info()),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(answer(Path(sys.argv[1]))))  # noqa: T201 - the answer
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
