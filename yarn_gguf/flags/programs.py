"""The programs that a model can be started in, one row each, and what a launch in each of them looks like.

Knows which library computes in them, what they can be given (`Means`), who writes their words and who remarks on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from yarn_gguf.flags import llama_words, other_words, remarks
from yarn_gguf.flags.choice import Means
from yarn_gguf.flags.launch import Launch

Shell = Callable[[list[str]], str]
NOTHING: Final = Means(parameters=False, overrides=False)


@dataclass(frozen=True)
class Program:
    name: str
    means: Means
    commands: Callable[[Launch], list[list[str]]] | None  # one or more, each as its words
    text: Callable[[Launch], str] | None  # where it is no command
    remarks: remarks.Remarks
    libraries: bool = False  # computes with a library that `--runtime` chooses
    run: bool = False  # its printed form is run by our tests
    judged: bool = True  # as llama.cpp
    stops: str = "caps the context at"  # what it does at the file's context length

    def words(self, launch: Launch) -> list[list[str]]:
        return [] if self.commands is None else self.commands(launch)


def _llama(name: str) -> Program:
    def commands(launch: Launch) -> list[list[str]]:
        return [llama_words.command(launch, name)]

    return Program(name, Means(), commands, None, remarks.llama_programs(name), libraries=True, run=True)


def _koboldcpp(launch: Launch) -> list[list[str]]:
    return [other_words.koboldcpp(launch)]


def _vllm(launch: Launch) -> list[list[str]]:
    asked = launch.wanted.asked
    rope = other_words.gguf_rope_parameters(launch.wanted.facts, asked)
    return [other_words.vllm(launch.path, asked, launch.wanted.context, rope, launch.settings)]


_ROWS: Final = (
    _llama("llama-server"),
    _llama("llama-cli"),
    Program(
        "llama-cpp-python",
        Means(caps=False),
        None,
        llama_words.python_call,
        remarks.llama_cpp_python,
        libraries=True,
        run=True,
    ),
    Program("ollama", NOTHING, None, other_words.modelfile, remarks.ollama),
    Program("lm-studio", NOTHING, other_words.lms, None, remarks.lm_studio, stops="may cap the context at"),
    Program("koboldcpp", NOTHING, _koboldcpp, None, remarks.koboldcpp, stops="changes RoPE's base beyond"),
    Program("vllm", NOTHING, _vllm, None, remarks.vllm_gguf, judged=False),
)
PROGRAMS: Final = {row.name: row for row in _ROWS}
