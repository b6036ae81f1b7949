"""Which type each tensor of a quantization gets: llama.cpp's own answer, and none of ours.

A header without data goes into a sparse temporary, the installed llama.cpp is asked in a child process what its
quantizer would do with it (`dry_run`), and its log says the type of each tensor. So every mix of every version is right
without a copy of its rules. Knows no encoding and no file that is kept.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from yarn_gguf.children.command import ending
from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError, YarnGgufError
from yarn_gguf.gguf_file.format import DEFAULT_ALIGNMENT, ValueType, pad
from yarn_gguf.gguf_file.header import Entry, TensorInfo, encode_header, entry
from yarn_gguf.quant_names import FTYPES, tensor_type_number

SECONDS: Final = 120.0
VERSION: Final = 3
SAID: Final = 300  # characters of what llama.cpp says, in one line
EMBEDDING: Final = "token_embd.weight"
# what its quantizer does not look at, and what would make the temporary large
_LEFT_OUT: Final = ("tokenizer.", "yarn_gguf.")
# of a tensor: [   4/  30] blk.0.attn_k.weight  - [   128,    64,  1,  1], type =    f32, size = … MiB -> … MiB (q5_0)
_LINE: Final = re.compile(
    r"^\[ *\d+/ *\d+\] (?P<name>\S+) +- \[[^\]]*\], type = +(?P<was>\w+), size = +[\d.]+ MiB"
    r"(?: -> +[\d.]+ MiB \((?P<type>\w+)\))?$",
    re.MULTILINE,
)
_FALLBACK: Final = re.compile(r"^warning: (?P<name>\S+) +- (?P<why>ncols +\d+ not divisible by +\d+)", re.MULTILINE)
_NEEDS_IMPORTANCE: Final = "will require an imatrix"
_OFFENDER: Final = re.compile(r"offending tensor: (?P<name>\S+)\n\s+- target type: (?P<type>\w+)")
_FAILED: Final = re.compile(r"failed to quantize: (?P<why>.*)")


@dataclass(frozen=True)
class Mix:
    """What was asked for, as `llama-quantize` takes it."""

    name: str  # of FTYPES
    overrides: tuple[tuple[str, int], ...] = ()  # a regular expression, and the type of the tensors that it finds
    output: int | None = None  # type of output.weight
    embedding: int | None = None  # type of token_embd.weight
    pure: bool = False
    importance: bool = False  # there is an importance matrix

    @property
    def plain(self) -> bool:
        """Nothing but a name."""
        return not (self.overrides or self.pure or self.output is not None or self.embedding is not None)


@dataclass(frozen=True)
class Choice:
    """`types`: ggml's number for each tensor."""

    types: Mapping[str, int]
    fallbacks: tuple[str, ...]  # tensors that got another type than the mix has for them, as their rows do not fit it
    unweighted: tuple[str, str] | None  # a tensor, and its type, that must not be quantized without an importance


def choose(entries: Iterable[Entry], tensors: Sequence[TensorInfo], mixes: Sequence[Mix], about: Path) -> list[Choice]:
    """The type of each tensor of a float model with this header, for each of the mixes."""
    kept = _kept(entries, tensors)
    said = _ask(kept, tensors, [_Question(mix) for mix in mixes], about)
    return [_choice(kept, tensors, mix, log, about) for mix, log in zip(mixes, said, strict=True)]


def _choice(entries: Sequence[Entry], tensors: Sequence[TensorInfo], mix: Mix, log: str, about: Path) -> Choice:
    types = {match["name"]: _number(match["type"] or match["was"], about) for match in _LINE.finditer(log)}
    if missing := [tensor.name for tensor in tensors if tensor.name not in types]:
        text = f"llama.cpp's quantizer names no type for {missing[0]} and {len(missing) - 1} more"
        raise ChildError(text, file=about, code="quantizer")
    offender = _offender(entries, tensors, mix, about) if _NEEDS_IMPORTANCE in log and not mix.importance else None
    return Choice(types, tuple(match["name"] for match in _FALLBACK.finditer(log)), offender)


def needs_importance(
    entries: Iterable[Entry],
    tensors: Sequence[TensorInfo],
    choice: Choice,
    names: Collection[str],
    mix: Mix,
    about: Path,
) -> tuple[str, str] | None:
    """A tensor among these, with its type, that llama.cpp quantizes only with an importance matrix; None without one.

    They are asked about as a model of their own, each with the type that it has in the whole.
    """
    some = [tensor for tensor in tensors if tensor.name in names]
    each = tuple((f"^{re.escape(tensor.name)}$", choice.types[tensor.name]) for tensor in some)
    alone = replace(mix, overrides=each, importance=False)
    kept = _kept(entries, tensors)
    if not some or _NEEDS_IMPORTANCE not in _ask(kept, some, [_Question(alone)], about)[0]:
        return None
    return _offender(kept, some, alone, about)


def _kept(entries: Iterable[Entry], tensors: Sequence[TensorInfo]) -> list[Entry]:
    """The entries that the quantizer's decisions can depend on; the size of the vocabulary stands for it."""
    kept = {e.key: e for e in entries if not e.key.startswith(_LEFT_OUT)}
    size = f"{kept['general.architecture'].value()}.vocab_size"
    rows = next((tensor.dims[-1] for tensor in tensors if tensor.name == EMBEDDING), None)
    if rows is not None:
        kept.setdefault(size, entry(size, ValueType.UINT32, rows))
    return list(kept.values())


def _offender(entries: Sequence[Entry], tensors: Sequence[TensorInfo], mix: Mix, about: Path) -> tuple[str, str]:
    """Who needs an importance matrix: asked to quantize without one, llama.cpp says so before it writes anything."""
    match = _OFFENDER.search(_ask(entries, tensors, [_Question(mix, dry=False)], about)[0])
    if match is None:
        raise ChildError("llama.cpp does not say which tensor needs an importance matrix", file=about, code="quantizer")
    return match["name"], match["type"]


def _number(name: str, about: Path) -> int:
    number = tensor_type_number(name)
    if number is None:
        raise ChildError(f"llama.cpp's quantizer names a type that is not known here: {name}", file=about)
    return number


# ---- the child


@dataclass(frozen=True)
class _Question:
    mix: Mix
    dry: bool = True  # False: what llama.cpp refuses before it writes

    @property
    def request(self) -> dict[str, Any]:
        mix = self.mix
        return {
            "ftype": FTYPES[mix.name],
            "overrides": mix.overrides,
            "output": mix.output,
            "embedding": mix.embedding,
            "pure": mix.pure,
            "importance": mix.importance,
            "dry": self.dry,
        }


def _ask(
    entries: Sequence[Entry], tensors: Sequence[TensorInfo], questions: Sequence[_Question], about: Path
) -> list[str]:
    """What llama.cpp says about a model of these tensors."""
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-") as temporary:
        gguf = Path(temporary, "header.gguf")
        _write_sparse(gguf, entries, tensors)
        request = {"gguf": os.fspath(gguf), "asked": [question.request for question in questions]}
        answers = _run(json.dumps(request), about)
    for question, answer in zip(questions, answers, strict=True):
        if answer["code"] and question.dry:
            raise _refused(entries, tensors, question.mix, answer["log"], about)
    return [answer["log"] for answer in answers]


def _refused(entries: Sequence[Entry], tensors: Sequence[TensorInfo], mix: Mix, log: str, about: Path) -> YarnGgufError:
    """The fault is in the patterns, where llama.cpp takes the model without them: by its words nobody could tell."""
    failed = _FAILED.search(log)
    said = " ".join((failed["why"] if failed else log)[-SAID:].split())
    if mix.overrides:
        _ask(entries, tensors, [_Question(replace(mix, overrides=()))], about)
        patterns = ", ".join(pattern for pattern, _ in mix.overrides)
        return UsageError(f"--tensor-type {patterns}: llama.cpp does not take that ({said})", code="usage")
    text = f"llama.cpp's quantizer does not take this model as {mix.name}: {said}"
    return InputError(text, file=about, code="quantizer_refuses")


def _write_sparse(path: Path, entries: Sequence[Entry], tensors: Sequence[TensorInfo]) -> None:
    """A file with a header and, where the data would be, nothing: it takes no room."""
    infos, end = [], 0
    for tensor in tensors:
        infos.append(replace(tensor, offset=pad(end, DEFAULT_ALIGNMENT)))
        end = infos[-1].offset + tensor.size
    header = encode_header(VERSION, entries, infos, DEFAULT_ALIGNMENT)
    try:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + pad(end, DEFAULT_ALIGNMENT))
    except OSError as error:
        text = f"cannot be written: {error.strerror}; TMPDIR can name another folder for temporary files"
        raise ResourceError(text, file=path, code="write_failed") from error


def _run(request: str, about: Path) -> list[dict[str, Any]]:
    package = Path(__file__).parent.parent
    paths = [os.fspath(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "yarn_gguf.quant_child"],  # -P: no module of the current folder
            input=request,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = f"llama.cpp's quantizer took over {SECONDS:.0f} s to choose types"
        raise ChildError(text, file=about, code="timeout") from error
    if done.returncode:
        raise ChildError(f"llama.cpp's quantizer, asked for types, {ending(done)}", file=about, code="quantizer")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
