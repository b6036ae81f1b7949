"""A launch in the words of llama.cpp's programs and of llama-cpp-python. Knows their flags; judges nothing.

Every number is written in full: what is read back is the same float.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

from yarn_gguf.flags.launch import Launch
from yarn_gguf.flags.start import Start, Value

# a field of `Parameters`, as llama.cpp's programs call it
FLAGS: Final[dict[str, str]] = {
    "scaling": "--rope-scaling",
    "factor": "--rope-scale",
    "original": "--yarn-orig-ctx",
    "base": "--rope-freq-base",
    "attn_factor": "--yarn-attn-factor",
    "beta_fast": "--yarn-beta-fast",
    "beta_slow": "--yarn-beta-slow",
}
_SCALING_NAMES: Final = {"none": "NONE", "linear": "LINEAR", "yarn": "YARN"}
_KINDS: Final[dict[type, str]] = {bool: "bool", int: "int", float: "float", str: "str"}
# Llama(...) would pass numbers of its own, which override the file
_FROM_FILE: Final = {"yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0}


def quantized(kind: str | None) -> bool:
    """Whether llama.cpp keeps a cache of this type in blocks: V needs flash attention then."""
    return (kind or "").startswith(("q", "iq"))


def unflashed(value: str) -> str:
    """Why llama.cpp opens no context with values of this type and flash attention off."""
    return f"values in {value} need flash attention, or llama.cpp opens no context; leave it on"


def number(value: float | str) -> str:
    """In full, without a superfluous .0"""
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def override(name: str, value: Value) -> str:
    """KEY=TYPE:VALUE"""
    text = str(value).lower() if isinstance(value, bool) else number(value)
    return f"{name}={_KINDS[type(value)]}:{text}"


def rope_arguments(start: Start, arch: str) -> Iterator[str]:
    for field in fields(start.parameters):
        value = getattr(start.parameters, field.name)
        if value is not None:
            yield from (FLAGS[field.name], number(value))
    if start.overrides:
        yield from ("--override-kv", ",".join(override(f"{arch}.{k}", v) for k, v in start.overrides.items()))


def _rope_arguments(launch: Launch) -> Iterator[str]:
    return rope_arguments(launch.chosen.start, launch.wanted.facts.arch)


def program(launch: Launch, name: str) -> str:
    """A patched program lies beside its libraries, where `build --tools` has made it; a stock one is in the PATH."""
    file = None if launch.library is None else program_file(launch.library, name)
    return name if file is None else str(file)


def program_file(folder: Path, name: str) -> Path | None:
    file = folder / (f"{name}.exe" if os.name == "nt" else name)
    return file if file.is_file() else None


def command(launch: Launch, name: str) -> list[str]:
    """llama-server, llama-cli and their kin take the same flags."""
    s = launch.settings
    words = [program(launch, name), "-m", launch.path, "-c", str(launch.wanted.context), *_rope_arguments(launch)]
    if s.kv_k is not None:
        words += ["-ctk", s.kv_k]
    if s.kv_v is not None:
        words += ["-ctv", s.kv_v]
    if s.flash_attention is not None:
        words += ["-fa", "on" if s.flash_attention else "off"]
    if s.gpu_layers is not None:
        words += ["-ngl", "all" if s.gpu_layers < 0 else str(s.gpu_layers)]
    if s.threads is not None:
        words += ["-t", str(s.threads)]
    if s.prompt is not None:
        words += ["-p", s.prompt]
    return [*words, *s.more]


def python_call(launch: Launch) -> str:
    """A program that opens the model as `llm`; with a prompt it completes that and prints it."""
    lines = [*_library_lines(launch.library), "import llama_cpp", "", "llm = llama_cpp.Llama("]
    lines += [f"    {name}={value}," for name, value in _python_arguments(launch).items()]
    lines.append(")")
    if launch.settings.prompt is not None:
        lines.append(f'print(llm({launch.settings.prompt!r}, max_tokens=None)["choices"][0]["text"])')
    return "\n".join(lines)


def _library_lines(library: Path | None) -> list[str]:
    if library is None:
        return []
    return ["import os", "", f'os.environ["LLAMA_CPP_LIB_PATH"] = {str(library)!r}  # before the next line']


def _python_arguments(launch: Launch) -> dict[str, str]:
    s, p = launch.settings, launch.chosen.start.parameters
    found: dict[str, str] = {"model_path": repr(launch.path), "n_ctx": str(launch.wanted.context)}
    found["n_gpu_layers"] = str(-1 if s.gpu_layers is None else s.gpu_layers)
    if p.scaling is not None:
        found["rope_scaling_type"] = f"llama_cpp.LLAMA_ROPE_SCALING_TYPE_{_SCALING_NAMES[p.scaling]}"
    if p.factor is not None:
        found["rope_freq_scale"] = f"1 / {number(p.factor)}"
    if p.base is not None:
        found["rope_freq_base"] = repr(p.base)
    if p.original is not None:
        found["yarn_orig_ctx"] = str(p.original)
    given = {"yarn_attn_factor": p.attn_factor, "yarn_beta_fast": p.beta_fast, "yarn_beta_slow": p.beta_slow}
    found |= {name: repr(_FROM_FILE[name] if value is None else value) for name, value in given.items()}
    if launch.chosen.start.overrides:
        arch = launch.wanted.facts.arch
        items = {f"{arch}.{name}": value for name, value in launch.chosen.start.overrides.items()}
        found["kv_overrides"] = repr(items)
    for name, kind in (("type_k", s.kv_k), ("type_v", s.kv_v)):
        found |= {} if kind is None else {name: f"llama_cpp.GGML_TYPE_{kind.upper()}"}
    if s.flash_attention is not None or quantized(s.kv_v):
        found["flash_attn"] = str(s.flash_attention is not False)
    if s.threads is not None:
        found["n_threads"] = str(s.threads)
    return found
