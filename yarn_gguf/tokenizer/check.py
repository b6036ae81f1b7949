"""The proof that llama.cpp makes the same tokens of a text as the original tokenizer, at conversion time.

Gives a vocabulary to llama.cpp in a child process, and the checkpoint's `tokenizer.json` to HF `tokenizers` there, and
compares the ids of `probe`'s texts and of every added token. Knows no pre-tokenizer by name. What the child
may do wrong is a ChildError; what differs is an InputError that shows the first differing token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from yarn_gguf.children.command import ending
from yarn_gguf.errors import ChildError, InputError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.format import ValueType
from yarn_gguf.gguf_file.header import Entry, encode_header, entry
from yarn_gguf.tokenizer.files import AddedToken
from yarn_gguf.tokenizer.probe import PROBES, whole
from yarn_gguf.tokenizer.tokens import ALPHABET
from yarn_gguf.tokenizer.vocabulary import TokenType, Vocabulary, entries

SECONDS: Final = 120.0
ALIGNMENT: Final = 32
VERSION: Final = 3
PER_TEXT: Final = 64  # added tokens
PANIC: Final = "panicked at"  # Rust's word for an assertion that failed; llama.cpp has no Rust
CONTEXT: Final = 4  # tokens shown before the first that differs
SHOWN: Final = 60  # characters of the text
ADDED: Final = "added"
STRIPS: Final = "strips"  # added tokens that take spaces with them, or must stand alone: llama.cpp has no such flags
SPACED: Final = "spaced"  # added tokens with ▁, which upstream writes with a space
# What llama.cpp does differently with a kind of text, where it is known to; and whether that is how it has made this
# tokenizer, so that no other file would be better. Otherwise a text may come out wrong in everyday use.
KNOWN: Final[Mapping[str, tuple[bool, str]]] = {
    "case": (True, "cuts words with large and small letters beyond ASCII differently from the original tokenizer"),
    "marks": (True, "cuts letters with combining marks differently from the original tokenizer"),
    "contractions": (True, "cuts words with an apostrophe differently from the original tokenizer"),
    "cjk": (True, "cuts digits right behind letters that are not Latin differently from the original tokenizer"),
    SPACED: (True, "takes a literal ▁ (U+2581) in a text for a space, the original tokenizer does not"),
    "leading": (False, "puts a space before a text that begins with one, the original tokenizer does not"),
    ADDED: (False, "puts a space behind each added token, the original tokenizer does not"),
    STRIPS: (False, "does not let added tokens take spaces with them or stand alone, the original tokenizer does"),
}
EVERY: Final = "vocabulary"


@dataclass(frozen=True, slots=True)
class _Probe:
    kind: str
    text: str
    raw: bytes | None = None  # what llama.cpp gets, where that is no UTF-8


def check_tokenizer(folder: Path, vocabulary: Vocabulary, general: Sequence[Entry] = ()) -> tuple[Finding, ...]:
    """What a person should know besides; raises where a token differs.

    `general`: the file's general.* keys; llama.cpp goes by the name and the architecture for some tokens.
    """
    file = vocabulary.original
    if file is None:
        text = "the tokenizer is not checked against the original: there is no tokenizer.json to compare with"
        _ask(folder, vocabulary, general, [_Probe("words", "a")], None, ())
        return (note("tokenizer_not_checked", text),)
    probes = list(_probes(vocabulary, vocabulary.added))
    answer = _ask(folder, vocabulary, general, probes, file, vocabulary.late)
    findings: dict[str, Finding] = {}
    apart = {each.id for each in vocabulary.added}
    for probe, original, llama in zip(probes, answer["original"], answer["llama"], strict=True):
        if original != llama:
            if not _is_known(vocabulary, probe, original, llama, apart):
                text = _difference(vocabulary, probe, original, llama)
                raise InputError(text, file=file, code="tokens_differ")
            findings.setdefault(probe.kind, _known(vocabulary, probe.kind))
    return (*findings.values(), *_around(vocabulary, answer["around"]))


def _is_known(
    vocabulary: Vocabulary, probe: _Probe, original: list[int], llama: list[int], apart: AbstractSet[int]
) -> bool:
    """Whether llama.cpp is known to differ here; of added tokens, at least each must be found."""
    if probe.kind == ADDED and probe.kind in vocabulary.deviates:
        return [each for each in original if each in apart] == [each for each in llama if each in apart]
    return probe.kind in vocabulary.deviates or probe.kind in (STRIPS, SPACED)


def _known(vocabulary: Vocabulary, kind: str) -> Finding:
    made_so, what = KNOWN[kind]
    model = f"the pre-tokenizer {vocabulary.pre!r}" if vocabulary.model == "gpt2" else "a SentencePiece vocabulary"
    text = f"llama.cpp {what}, as for every model of {model} (kind {kind!r})"
    return (note if made_so else warning)("tokens_differ", text)


def _probes(vocabulary: Vocabulary, added: Sequence[AddedToken]) -> Iterator[_Probe]:
    texts = [(kind, text) for kind, several in PROBES.items() for text in several]
    texts.append(("all", whole(vocabulary.deviates)))
    for kind, written in [*texts, *_added_texts(vocabulary, added)]:
        text = unicodedata.normalize("NFC", written) if vocabulary.nfc else written
        yield _Probe(kind, text)
        if kind == "invalid" and vocabulary.model == "gpt2":
            yield _Probe(kind, text, text.encode().replace("\ufffd".encode(), b"\xff"))
    if vocabulary.exhaustive:
        yield from (_Probe(EVERY, text) for text in _spelled(vocabulary))


def _added_texts(vocabulary: Vocabulary, added: Sequence[AddedToken]) -> Iterator[tuple[str, str]]:
    """Each added token between letters, between spaces, and next to another."""
    inside = [each for each in added if each.id < len(vocabulary.tokens)]
    kinds = {each.id: _kind(each) for each in inside}
    for kind in (ADDED, STRIPS, SPACED):
        some = [each.content for each in inside if kinds[each.id] == kind]
        for start in range(0, len(some), PER_TEXT):
            chunk = some[start : start + PER_TEXT]
            yield kind, "a" + "b".join(chunk) + "c"
            yield kind, "a " + " b ".join(chunk) + " c"
            yield kind, "".join(chunk)


def _kind(token: AddedToken) -> str:
    if "▁" in token.content:
        return SPACED
    return STRIPS if token.lstrip or token.rstrip or token.single_word else ADDED


def _spelled(vocabulary: Vocabulary) -> Iterator[str]:
    """The text of each token, of those that are UTF-8."""
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        values = [ALPHABET.get(character) for character in text]
        known = [value for value in values if value is not None]
        if kind is not TokenType.NORMAL or len(known) != len(values):
            continue
        try:
            yield bytes(known).decode("utf-8")
        except UnicodeDecodeError:
            continue


def _difference(vocabulary: Vocabulary, probe: _Probe, original: list[int], llama: list[int]) -> str:
    pairs = zip(original, llama, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(original), len(llama)))
    before = [vocabulary.tokens[each] for each in original[max(0, at - CONTEXT) : at]]
    text = probe.text if len(probe.text) <= SHOWN else probe.text[:SHOWN] + "…"
    return (
        f"token {at + 1} of a text ({probe.kind}) differs, after {''.join(before)!r}: the original tokenizer gives"
        f" {_named(vocabulary, original, at)}, llama.cpp with pre-tokenizer"
        f" {vocabulary.pre or vocabulary.model!r} gives {_named(vocabulary, llama, at)}; the text is {text!r};"
        " choose another with --pre NAME, or skip this with --skip-tokenizer-check"
    )


def _named(vocabulary: Vocabulary, ids: list[int], at: int) -> str:
    some = ids[at : at + 3]
    texts = [vocabulary.tokens[each] if each < len(vocabulary.tokens) else "?" for each in some]
    return " ".join(f"{each} {text!r}" for each, text in zip(some, texts, strict=True)) or "no more"


def _around(vocabulary: Vocabulary, around: dict[str, list[int]]) -> Iterator[Finding]:
    if around["llama"] != around["original"]:
        names = {side: [vocabulary.tokens[each] for each in ids] for side, ids in around.items()}
        yield warning(
            "tokens_around_differ",
            f"around a text llama.cpp puts other tokens than tokenizer.json: 'a' becomes {names['llama']} and"
            f" {names['original']}; the keys that say so come from tokenizer_config.json",
        )


def _ask(
    folder: Path,
    vocabulary: Vocabulary,
    general: Sequence[Entry],
    probes: Sequence[_Probe],
    original: Path | None,
    late: Sequence[AddedToken],
) -> dict[str, Any]:
    request = {
        "json": None if original is None else os.fspath(original.absolute()),
        "added": [[each.content, each.special, each.normalized] for each in late],
        "texts": [[each.text, None if each.raw is None else each.raw.hex()] for each in probes],
    }
    keys = {each.key: each for each in general if each.key.startswith("general.")}
    keys.setdefault("general.architecture", entry("general.architecture", ValueType.STRING, "llama"))
    keys.pop("general.alignment", None)
    with tempfile.TemporaryDirectory(prefix="yarn-gguf-") as temporary:
        gguf = Path(temporary, "vocabulary.gguf")
        gguf.write_bytes(encode_header(VERSION, [*keys.values(), *entries(vocabulary)], [], ALIGNMENT))
        done = _run(json.dumps({**request, "gguf": os.fspath(gguf)}), folder)
    if original is not None and PANIC in done.stderr:
        said = " ".join(done.stderr.partition(PANIC)[2].split())[:SHOWN]
        raise InputError(f"HF's tokenizers breaks down over it: {said}", file=original, code="bad_tokenizer")
    if done.returncode:
        raise ChildError(f"the tokenizer check's child {ending(done)}", file=folder, code="tokenizer_child")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "refused" in answer:
        text = f"HF's tokenizers cannot use it: {answer['refused']}"
        raise InputError(text, file=original, code="bad_tokenizer")
    return answer


def _run(request: str, folder: Path) -> subprocess.CompletedProcess[str]:
    package = Path(__file__).parent.parent
    paths = [os.fspath(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "true"}
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", "yarn_gguf.tokenizer.child"],  # -P: no module of the current folder
            input=request,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"the tokenizer check took over {SECONDS:.0f} s", file=folder, code="timeout") from error
