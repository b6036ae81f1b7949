"""llama.cpp libraries that misbehave: the real ones, with one function in front of them.

A small shared library takes the place of libllama and brings the real one with it; whoever asks for `llama_decode`
gets ours, all else is the original. Needs a C compiler, and a dynamic linker that searches as ELF's does.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

_HEAD: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct batch { int n; void *a, *b, *c, *d, *e; signed char *logits; };
typedef int (*decode_t)(void *, struct batch);
typedef float *(*logits_t)(void *);
static int calls = 0;
int llama_decode(void *context, struct batch batch) {
    decode_t real = (decode_t) dlsym(RTLD_NEXT, "llama_decode");
    calls++;
"""
_TAIL: Final = "    return real(context, batch);\n}\n"
FAULTS: Final = {
    "aborts": 'if (calls == 2) { fprintf(stderr, "GGML_ASSERT(the moon is full) failed\\n"); abort(); }',
    "segfaults": "if (calls == 2) *(volatile int *) 8 = 1;",
    "hangs": 'if (calls == 2) { fprintf(stderr, "waiting for Godot\\n"); for (;;) pause(); }',
    "spins": "if (calls == 2) for (;;) ;",
    "floods": 'if (calls == 2) for (;;) fprintf(stderr, "%0200d a line of a flood\\n", calls++);',
    "exits": 'if (calls == 2) { fprintf(stderr, "out of memory\\n"); exit(7); }',
    "refuses": "if (calls == 2) return -3;",
    "gives_nan": """
    int done = real(context, batch);
    logits_t logits = (logits_t) dlsym(RTLD_NEXT, "llama_get_logits");
    if (calls == 2) logits(context)[5] = NAN;
    return done;""",
}


def bad_library(fault: str, folder: Path) -> Path:
    """A folder of libraries that do this at the second micro-batch."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler on Linux is needed to make a library that misbehaves")
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations
    folder.mkdir()
    for library in Path(spec.submodule_search_locations[0], "lib").iterdir():
        (folder / library.name).symlink_to(library)
    (folder / "libllama.so").unlink()
    source = folder / "shim.c"
    source.write_text(_HEAD + FAULTS[fault] + _TAIL)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "libllama.so"), str(source), f"-L{folder}"]
    links = ["-Wl,--no-as-needed", "-l:libllama.so.0", "-Wl,-rpath,$ORIGIN", "-ldl"]
    subprocess.run([*command, *links], check=True, capture_output=True)
    return folder
