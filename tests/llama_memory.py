"""What llama.cpp itself says that a model takes: its memory breakdown, by kind of buffer.

Each call is a child process (this file, run as a script). With `no_alloc`, llama.cpp's own way to find out what fits
(`common/fit.cpp`), nothing is allocated, so models of any size can be asked about; without it they are really opened.
Nothing of `yarn_gguf` is imported: this is what its figures are held against.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"  # of src/llama-ext.h; it returns a std::map by value


class Bytes(NamedTuple):
    weights: int
    kv: int
    compute: int


def breakdown(
    questions: list[dict[str, Any]],
    library: Path | None = None,
    servers: Sequence[str] = (),
    device: Path | None = None,
) -> list[dict[str, Bytes]]:
    """Of each question {path, no_alloc, gpu_layers, repack, context: {parameters}}: bytes by the buffer type's name.

    `context` has fields of `llama_context_params`, the types of the cache by their names. `servers`: HOST:PORT of
    llama.cpp's RPC servers, each a device that layers can lie on; `device`: the library of another (`offloading`).
    """
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    if library is not None:
        environment["LLAMA_CPP_LIB_PATH"] = str(library)
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps({"questions": questions, "servers": list(servers), "device": device and str(device)}),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return [{name: Bytes(*numbers) for name, numbers in answer.items()} for answer in answers]


class _Map(ctypes.Structure):
    """libstdc++'s std::map: the comparison, the head (colour, root, first, last), the count."""

    _fields_ = (("head", ctypes.c_void_p * 5), ("count", ctypes.c_size_t))


class _Node(ctypes.Structure):
    _fields_ = (
        ("colour", ctypes.c_size_t),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("values", ctypes.c_size_t * 3),
    )


def _entries(address: int | None) -> list[tuple[int, list[int]]]:
    if not address:
        return []
    node = _Node.from_address(address)
    return [*_entries(node.left), (node.key, list(node.values)), *_entries(node.right)]


def _add_servers(lib: Any, endpoints: list[str]) -> None:
    def function(name: str, arguments: list[Any]) -> Any:
        found = getattr(lib._lib, name)
        found.argtypes, found.restype = arguments, ctypes.c_void_p
        return found

    registry = function("ggml_backend_reg_by_name", [ctypes.c_char_p])(b"RPC")
    address = function("ggml_backend_reg_get_proc_address", [ctypes.c_void_p, ctypes.c_char_p])
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address(registry, b"ggml_backend_rpc_add_server"))
    for endpoint in endpoints:
        function("ggml_backend_register", [ctypes.c_void_p])(add(endpoint.encode()))


def _add_device(lib: Any, path: str) -> None:
    made = ctypes.CDLL(path).offloading_registry
    made.restype = ctypes.c_void_p
    register = lib._lib.ggml_backend_register
    register.argtypes = [ctypes.c_void_p]
    register(made())


def _answer(lib: Any, question: dict[str, Any]) -> dict[str, list[int]]:
    chosen = lib.llama_model_default_params()
    chosen.n_gpu_layers = question.get("gpu_layers", 0)
    if question.get("no_alloc", True):
        chosen.no_alloc, chosen.load_mode = True, 0
    chosen.use_extra_bufts = question.get("repack", False)
    model = lib.llama_model_load_from_file(os.fsencode(question["path"]), chosen)
    assert model, "not loaded"
    opened = lib.llama_context_default_params()
    for name, value in question["context"].items():
        kind = name in ("type_k", "type_v")
        setattr(opened, name, getattr(lib, f"GGML_TYPE_{value.upper()}") if kind else value)
    context = lib.llama_init_from_model(model, opened)
    assert context, "no context"
    function = getattr(lib._lib, BREAKDOWN)
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    found = function(context)
    name = lib._lib.ggml_backend_buft_name
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    answer: dict[str, list[int]] = {}
    for key, values in _entries(found.head[2]):
        kept = answer.setdefault(name(key).decode(), [0, 0, 0])
        kept[:] = [a + b for a, b in zip(kept, values, strict=True)]
    lib.llama_free(context)
    lib.llama_model_free(model)
    return answer


def main() -> None:
    from llama_cpp import llama_cpp as lib

    out = os.dup(1)
    os.dup2(2, 1)
    lib.llama_backend_init()
    asked = json.loads(sys.stdin.read())
    if asked["servers"]:
        _add_servers(lib, asked["servers"])
    if asked["device"]:
        _add_device(lib, asked["device"])
    answers = [_answer(lib, question) for question in asked["questions"]]
    os.write(out, (json.dumps(answers) + "\n").encode())


if __name__ == "__main__":
    main()
