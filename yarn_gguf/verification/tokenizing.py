"""The text of a verification as token ids, once all tokenizers have shown that they make the same ones.

llama.cpp with each GGUF's vocabulary, and transformers with the checkpoint's where it has one; none loads a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from yarn_gguf.errors import InputError
from yarn_gguf.files import open_regular
from yarn_gguf.findings import Finding, note
from yarn_gguf.logits import Session, Tokens
from yarn_gguf.reference import open_tokenizer
from yarn_gguf.runtime import LlamaSettings, open_vocabulary
from yarn_gguf.sample_text import sample_text
from yarn_gguf.verification.sides import Checkpoint, Reference, Side
from yarn_gguf.verification.windows import first_difference

LARGEST_TEXT: Final = 1 << 28
PER_TOKEN: Final = 5  # characters, to begin with
MOST_PER_TOKEN: Final = 80
AROUND: Final = 3  # tokens shown behind the first that differs
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Tokenized:
    tokens: Tokens
    text: bytes
    name: str  # of the text, for a report
    bos: int | None  # what the vocabulary puts before a text
    findings: tuple[Finding, ...] = ()


def read_text(path: Path) -> bytes:
    with open_regular(path, "a text file") as file:
        found = file.read(LARGEST_TEXT + 1)
    if len(found) > LARGEST_TEXT:
        raise InputError(f"is larger than {LARGEST_TEXT >> 20} MiB", file=path, code="text_long")
    try:
        found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 at byte {error.start}", file=path, code="bad_text") from error
    return found


def read_tokens(path: Path) -> Tokens:
    """Token ids as numbers in a text file, or as numpy's .npy."""
    with open_regular(path, "a file of token ids") as file:
        raw = file.read(LARGEST_TEXT)
    try:
        if raw.startswith(b"\x93NUMPY"):
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
        else:
            found = np.array([int(each) for each in raw.decode("ascii").replace(",", " ").strip(" []\n").split()])
    except (ValueError, OverflowError) as error:
        raise InputError(
            "holds no token ids; whole numbers or a .npy are needed", file=path, code="bad_tokens"
        ) from error
    if (
        found.ndim != 1
        or not len(found)
        or found.dtype.kind not in "iu"
        or not 0 <= found.min() <= found.max() < 1 << 31
    ):
        raise InputError("is no list of token ids", file=path, code="bad_tokens")
    tokens: Tokens = found.astype(np.int32)
    return tokens


def tokenize(
    text: bytes | None, name: str, needed: int, reference: Reference, others: Sequence[Side], settings: LlamaSettings
) -> Tokenized:
    """All of a text (None: as much of the built-in one as makes `needed` tokens), as every tokenizer makes it."""
    files = [*([reference] if isinstance(reference, Side) else []), *others]
    folder = reference.path if isinstance(reference, Checkpoint) else None
    with ExitStack() as stack:
        askers = [(each.path, stack.enter_context(open_vocabulary(each.path, settings))) for each in files]
        found = tuple[Finding, ...]()
        if folder is not None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
            found = (note("no_tokenizer", f"{folder.name} has no tokenizer to compare with"),)
        elif folder is not None:
            askers.append((folder, stack.enter_context(open_tokenizer(folder, settings.deadline))))
        first = askers[0][1]
        chosen, tokens = _enough(first.tokenize, text, needed)
        _check_same(first, tokens, chosen, askers[1:], askers[0][0])
        details = first.opened.details
        bos = details["bos"] if details.get("adds_bos") and details["bos"] >= 0 else None
    return Tokenized(tokens, chosen, name, bos, found)


def _enough(make: Callable[..., Tokens], text: bytes | None, needed: int) -> tuple[bytes, Tokens]:
    if text is not None:
        return text, make(text, parse_special=True)
    length = PER_TOKEN * needed
    while True:
        chosen = sample_text(length).encode()
        tokens = make(chosen, parse_special=True)
        if len(tokens) >= needed or length > MOST_PER_TOKEN * needed:
            return chosen, tokens
        length *= 2


def _check_same(first: Session, tokens: Tokens, text: bytes, others: list[tuple[Path, Session]], known: Path) -> None:
    for path, asker in others:
        found = asker.tokenize(text, parse_special=True)
        at = first_difference(tokens, found)
        if at is not None:
            one, two = tokens[at : at + AROUND].tolist(), found[at : at + AROUND].tolist()
            before = first.text_of(tokens[max(0, at - AROUND) : at]).decode("utf-8", "replace")
            what = f"token {at} of the text differs, behind {before!r}"
            text_of = f"{what}: {known.name} makes {one}, this one makes {two}; they cannot be compared"
            raise InputError(text_of, file=path, code="tokens_differ")
