"""ggml's own reader as an oracle: which files `gguf_init_from_file` of the installed libggml-base takes.

Run as a script this file is the child: it reads one path per line and answers `1` (taken) or `0` (refused). The library
may abort, loop or swallow memory on a hostile file, so it never runs in the test's own process, and the child has
limits; one that dies has refused. 20 µs a call. Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

CHILD_MEMORY: Final = 1 << 30  # bytes of address space; the library itself takes about 0.1 GiB
CHILD_SECONDS: Final = 60  # of processor time, all calls together
NAMES: Final = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


class GgmlType(NamedTuple):
    name: str
    block: int
    size: int


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def library_path() -> Path:
    found = find_spec("llama_cpp")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "lib"
    return next(folder / name for name in NAMES if (folder / name).exists())


def tensor_types(count: int) -> dict[int, GgmlType]:
    """What ggml says of the first `count` tensor types; harmless, so it is asked in this process."""
    ggml = ctypes.CDLL(str(library_path()))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_type_name.restype = ctypes.c_char_p
    return {
        number: GgmlType(
            (ggml.ggml_type_name(number) or b"").decode(), ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        )
        for number in range(count)
    }


class Oracle:
    """One child that answers for many files, and is replaced when a file kills it."""

    def __init__(self) -> None:
        self.deaths = 0
        self.child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", __file__, str(library_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            bufsize=0,
        )

    def takes(self, path: Path) -> bool:
        """Whether ggml opens the file's header; the tensor data is not asked for."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(os.fsencode(path) + b"\n")
        answer = self.child.stdout.read(1)
        if not answer:
            self.deaths += 1
            self.close()
            self.child = self._start()
        return answer == b"1"

    def close(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()
        self.child.wait()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bounded() -> None:
    with contextlib.suppress(ImportError):  # Windows has no limits of this kind
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS, CHILD_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answers(library: str) -> Iterator[bytes]:
    ggml = ctypes.CDLL(library)
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = (ctypes.c_char_p, _Params)
    ggml.gguf_free.argtypes = (ctypes.c_void_p,)
    for line in sys.stdin.buffer:
        context = ggml.gguf_init_from_file(line.rstrip(b"\n"), _Params(True, None))
        if context:
            ggml.gguf_free(context)
        yield b"1" if context else b"0"


if __name__ == "__main__":
    _bounded()
    for verdict in _answers(sys.argv[1]):
        os.write(1, verdict)
