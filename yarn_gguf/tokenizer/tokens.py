"""The token lists of each route: texts, types and scores as llama.cpp's converter writes them.

Knows SentencePiece's pieces, byte-level BPE and BPE with spaces as ▁. Does not know roles, keys or model classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from yarn_gguf.errors import InputError, about
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.tokenizer.files import (
    AddedToken,
    Json,
    TokenizerJson,
    added_token,
    is_id,
    json_object,
    refuse_surrogates,
)
from yarn_gguf.tokenizer.sentencepiece_model import Kind, SentencePieceModel
from yarn_gguf.tokenizer.vocabulary import TokenType

ADDED_SCORE: Final = -1000.0
PADDED_SCORE: Final = -10000.0
LOOKS_SPECIAL: Final = frozenset(("<pad>", "<mask>", "<2mass>", "[@BOS@]"))
BRACKETS: Final = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE: Final = "▁"
LONGEST_DECODED: Final = 1 << 16  # characters


def looks_special(token: str) -> bool:
    """Some files do not mark as special what clearly is; a control token is not shown."""
    return token in LOOKS_SPECIAL or any(token.startswith(begin) and token.endswith(end) for begin, end in BRACKETS)


def _alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: printable ones as they are, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + n): byte for n, byte in enumerate(others)}}


ALPHABET: Final = _alphabet()


@dataclass
class Tokens:
    """Lists of one length, filled by id."""

    texts: list[str]
    types: list[TokenType]
    scores: list[float] | None
    notes: list[Finding] = field(default_factory=list)

    def put(self, token_id: int, text: str, kind: TokenType, score: float = ADDED_SCORE) -> None:
        self.texts[token_id], self.types[token_id] = text, kind
        if self.scores is not None:
            self.scores[token_id] = score


def _empty(size: int, scores: bool) -> Tokens:
    texts = [f"[PAD{n}]" for n in range(size)]
    return Tokens(texts, [TokenType.UNUSED] * size, [PADDED_SCORE] * size if scores else None)


def _refuse_more(count: int, size: int, file: Path) -> None:
    if count > size:
        text = f"has token ids up to {count - 1}, but the model's embedding has {size} rows"
        raise InputError(
            f"{text}; use the tokenizer that the model was trained with", file=file, code="too_many_tokens"
        )


def _say_padded(tokens: Tokens, filled: Iterable[int]) -> None:
    missing = len(tokens.texts) - len(set(filled))
    if missing:
        text = f"{missing} of {len(tokens.texts)} embedding rows have no token and are padded with unused ones"
        tokens.notes.append(note("tokenizer_padded", text))


def config_added(folder: Path) -> list[AddedToken]:
    """added_tokens_decoder of tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    found = (json_object(path) or {}).get("added_tokens_decoder") or {}
    if not isinstance(found, dict) or not all(key.isdecimal() and len(key) < 10 for key in found):
        raise InputError("added_tokens_decoder is not an object of token ids", file=path, code="bad_tokenizer")
    tokens = [added_token(each, path, int(key)) for key, each in found.items()]
    refuse_surrogates((each.content for each in tokens), path)
    return tokens


def _file_added(folder: Path) -> Json:
    path = folder / "added_tokens.json"
    found = json_object(path) or {}
    if not all(is_id(each) for each in found.values()):
        raise InputError("is not an object of token ids", file=path, code="bad_tokenizer")
    refuse_surrogates(iter(found), path)
    return found


def piece_tokens(folder: Path, model: SentencePieceModel, size: int, extra: Sequence[AddedToken] | None) -> Tokens:
    """SentencePiece's pieces, then what was added. `extra`: tokenizer.json's added tokens, and only marked ones are
    control tokens (Phi-3's way); None: tokenizer.json is not looked at."""
    _refuse_more(len(model.pieces), size, folder / "tokenizer.model")
    tokens = _empty(size, scores=True)
    filled = set(range(len(model.pieces)))
    for token_id, piece in enumerate(model.pieces):
        # upstream writes a user-defined piece as a normal one
        kind = TokenType.NORMAL if piece.kind is Kind.USER_DEFINED else TokenType(piece.kind)
        tokens.put(token_id, piece.text, kind, piece.score)
    beyond = []
    added = [AddedToken(token_id, text) for text, token_id in _file_added(folder).items()]
    marked = [*config_added(folder), *(extra or ())]
    for each, has_flag in [*((each, False) for each in added), *((each, True) for each in marked)]:
        if each.id >= size:
            beyond.append(each.content)
            continue
        filled.add(each.id)
        special = has_flag and (each.special or (extra is None and looks_special(each.content)))
        text = each.content if special or not has_flag or extra is not None else each.content.replace(SPACE, " ")
        tokens.put(each.id, text, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    if beyond:
        names = ", ".join(dict.fromkeys(beyond))
        text = f"added tokens beyond the {size} embedding rows are left out: {names}"
        tokens.notes.append(warning("tokens_beyond_embedding", text))
    _say_padded(tokens, filled)
    return tokens


def all_added(folder: Path, tokenizer: TokenizerJson, roles_too: bool = False) -> dict[int, AddedToken]:
    """As transformers has them: tokenizer_config.json overrules tokenizer.json; tokens with a role are special,
    whatever their flag says. `roles_too`: so is a plain token of the vocabulary that the settings name."""
    found = {each.id: each for each in tokenizer.added}
    found.update((each.id, each) for each in config_added(folder))
    named, listed = special_texts(folder)
    anew = _made_anew(folder)
    for token_id, each in found.items():
        if each.content in named or (anew and each.content in listed):
            found[token_id] = replace(each, special=True, normalized=each.normalized and not anew)
    if roles_too:
        plain = (named | listed) - {each.content for each in found.values()}
        ids = ((tokenizer.vocab[text], text) for text in sorted(plain) if text in tokenizer.vocab)
        found.update((token_id, AddedToken(token_id, text, special=True, normalized=False)) for token_id, text in ids)
    return found


def _made_anew(folder: Path) -> bool:
    """Whether transformers leaves tokenizer.json's added tokens aside and makes Qwen2's tokenizer from its parts."""
    name = str((json_object(folder / "tokenizer_config.json") or {}).get("tokenizer_class"))
    return name.startswith("Qwen2Tokenizer") or (json_object(folder / "config.json") or {}).get("model_type") == "qwen2"


def byte_tokens(folder: Path, tokenizer: TokenizerJson, size: int, control: frozenset[str]) -> Tokens:
    added = all_added(folder, tokenizer, roles_too=True)
    _refuse_more(max([*tokenizer.vocab.values(), *added], default=-1) + 1, size, tokenizer.path)
    tokens = _empty(size, scores=False)
    for text, token_id in tokenizer.vocab.items():
        tokens.put(token_id, text, TokenType.NORMAL)
    decoder = tokenizer.raw.get("decoder")
    for token_id, each in added.items():
        with about(tokenizer.path):
            text = each.content if each.normalized else decoded(each.content, decoder)
        special = each.special or looks_special(text) or text in control
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        # upstream does so in byte-level tokenizers too, where ▁ is no space: llama.cpp would cut out the wrong text
        tokens.put(token_id, text.replace(SPACE, " ") if tokenizer.byte_fallback and not special else text, kind)
    _say_padded(tokens, [*tokenizer.vocab.values(), *added])
    return tokens


def decoded(token: str, decoder: object) -> str:
    """What an added token is after decoding, which is how upstream spells it."""
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        values = [ALPHABET.get(character) for character in token]
        known = [value for value in values if value is not None]
        return bytes(known).decode("utf-8", "replace") if len(known) == len(values) else token
    if kind == "Sequence" and isinstance(decoder, dict):
        for each in decoder.get("decoders") or ():
            token = decoded(token, each)
    elif kind == "Replace" and isinstance(decoder, dict):
        pattern, content = decoder.get("pattern"), decoder.get("content")
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        if not isinstance(plain, str) or not plain or not isinstance(content, str):
            return token
        if token.count(plain) * len(content) > LONGEST_DECODED:
            text = f"its decoder makes over {LONGEST_DECODED} characters of one added token"
            raise InputError(text, code="bad_tokenizer")
        return token.replace(plain, content)
    elif kind == "Metaspace":
        return token.replace(SPACE, " ")
    elif kind == "Strip" and isinstance(decoder, dict) and decoder.get("content") == " ":
        start = decoder.get("start")
        most = start if isinstance(start, int) else 0
        token = token[max(0, min(most, len(token) - len(token.lstrip(" ")))) :]
    return token


def spaced_tokens(folder: Path, tokenizer: TokenizerJson, size: int, visible: frozenset[str]) -> Tokens:
    """BPE that sees spaces as ▁ and has tokens <0xXX>. Types as upstream's, scores right for llama.cpp (see below)."""
    added = all_added(folder, tokenizer)
    _refuse_more(max([*tokenizer.vocab.values(), *added], default=-1) + 1, size, tokenizer.path)
    tokens = _empty(size, scores=True)
    special = set().union(*special_texts(folder))
    scores = merge_scores(tokenizer)
    for text, token_id in tokenizer.vocab.items():
        kind = TokenType.CONTROL if text in special else TokenType.NORMAL
        kind = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else kind
        tokens.put(token_id, text, kind, scores.get(text, ADDED_SCORE))
    base = len(tokenizer.vocab)
    for token_id, each in added.items():
        if token_id >= base:
            tokens.put(token_id, each.content, TokenType.CONTROL if each.content in special else TokenType.USER_DEFINED)
    for token_id, text in enumerate(tokens.texts):
        if text in visible:
            tokens.types[token_id] = TokenType.USER_DEFINED
    _say_padded(tokens, [*tokenizer.vocab.values(), *added])
    return tokens


def merge_scores(tokenizer: TokenizerJson) -> dict[str, float]:
    """Scores that make llama.cpp's SentencePiece join what the merges join, in their order.

    It joins the pair whose text has the highest score; so a token's score is minus the place of the first merge that
    makes it. Upstream gives every token the same score, which joins from the left and is wrong.
    """
    scores: dict[str, float] = {}
    for place, pair in enumerate(tokenizer.merges):
        scores.setdefault(pair.replace(" ", "", 1), float(-place))
    return scores


def special_texts(folder: Path) -> tuple[set[str], set[str]]:
    """Tokens that have a role in the settings, and tokens that are only listed there as special.

    As transformers reads them: special_tokens_map.json overrules tokenizer_config.json, but is not looked at where
    that has added_tokens_decoder; extra_special_tokens is the newer name of additional_special_tokens.
    """
    named: dict[str, object] = {}
    listed: list[object] = []
    settings = json_object(folder / "tokenizer_config.json") or {}
    older = {} if "added_tokens_decoder" in settings else json_object(folder / "special_tokens_map.json") or {}
    for each in (settings, older):
        named.update((key, value) for key, value in each.items() if key.endswith("_token"))
        extra = each.get("extra_special_tokens")
        more = extra or each.get("additional_special_tokens")
        if isinstance(more, dict):
            named.update(more)
        elif isinstance(more, list) and (extra or not listed):
            listed.extend(more)
    return _texts(named.values()), _texts(listed)


def _texts(found: Iterable[object]) -> set[str]:
    texts = (each.get("content") if isinstance(each, dict) else each for each in found)
    return {each for each in texts if isinstance(each, str)}


def refuse_twins(tokens: Tokens, file: Path) -> None:
    """llama.cpp aborts on two tokens of one text."""
    if len(set(tokens.texts)) == len(tokens.texts):
        return
    seen: dict[str, int] = {}
    for token_id, text in enumerate(tokens.texts):
        other = seen.setdefault(text, token_id)
        if other != token_id:
            found = (
                f"tokens {other} and {token_id} are both {text!r}, which llama.cpp does not take; rename one of them"
            )
            raise InputError(found, file=file, code="equal_tokens")
