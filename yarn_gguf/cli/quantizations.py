"""Quantizations and tensor types on the command line, spelled as `llama-quantize` spells them, in any case."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from yarn_gguf.conversion.wanted import AUTO, CONVERTED, OUTTYPES
from yarn_gguf.quant_names import TENSOR_TYPE_NAMES, quantization, target_type


def outtypes(text: str) -> tuple[str, ...]:
    """One name or several, separated by commas."""
    found = tuple(_outtype(name) for name in text.split(","))
    if twice := [name for name in found if found.count(name) > 1]:
        raise click.BadParameter(f"names {twice[0]} twice")
    return found


def _outtype(text: str) -> str:
    lower = text.strip().lower()
    if lower in (AUTO, *CONVERTED):
        return lower
    name = quantization(text.strip())
    if name is None:
        raise click.BadParameter(f"{text!r} is none of {', '.join(OUTTYPES)}")
    return name


def tensor_type(text: str) -> int:
    number = target_type(text)
    if number is None:
        raise click.BadParameter(f"{text!r} is none of {', '.join(TENSOR_TYPE_NAMES)}")
    return number


def override(text: str) -> tuple[str, int]:
    """A pattern, in small letters as tensors' names are, and ggml's number of a type."""
    pattern, sign, kind = text.partition("=")
    if not (pattern and sign and kind):
        raise click.BadParameter(f"{text!r} is no PATTERN=TYPE, such as attn_q=q8_0")
    return pattern.lower(), tensor_type(kind)


@contextmanager
def unheard() -> Iterator[Callable[[], None]]:
    """A block in which C libraries print to nowhere: ggml talks on both streams about what it does not like, and before
    it ends the process. What Python writes on stderr is still read; on stdout nothing may be written.

    Gives what brings the streams back before the block is over, for those last words.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    outer, saved, null = sys.stderr, (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)
    sys.stderr = open(saved[1], "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield lambda: _bring_back(saved, outer)
    finally:
        _bring_back(saved, outer)
        for descriptor in saved:
            os.close(descriptor)


def _bring_back(saved: tuple[int, int], outer: TextIO) -> None:
    if sys.stderr is not outer:
        sys.stderr.close()
    sys.stderr = outer
    for number, descriptor in enumerate(saved, 1):
        os.dup2(descriptor, number)
