"""A checkpoint's tokenizer files → the vocabulary of a GGUF, as llama.cpp's converter would write it.

Composes: files, token lists, roles and the pre-tokenizer, by the table of `families`. Proves nothing about
what llama.cpp makes of it (`check` does), knows no tensors, and never runs or renders what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from yarn_gguf.errors import InputError, about
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.tokenizer.families import Family, Prefix, Route, family_of
from yarn_gguf.tokenizer.files import (
    Json,
    TokenizerJson,
    content,
    id_of,
    json_object,
    read_merges,
    read_tokenizer_json,
    text,
)
from yarn_gguf.tokenizer.pre_tokenizers import Match, match, named
from yarn_gguf.tokenizer.sentencepiece_model import Algorithm, SentencePieceModel, read_sentencepiece
from yarn_gguf.tokenizer.special_tokens import ROLES, Roles, read_roles, token_id_of
from yarn_gguf.tokenizer.tokens import Tokens, all_added, byte_tokens, piece_tokens, refuse_twins, spaced_tokens
from yarn_gguf.tokenizer.vocabulary import (
    MODEL,
    PRE,
    PREFIX,
    SCORES,
    TOKENS,
    TYPES,
    Keys,
    Vocabulary,
    add_key,
    entries,
    id_key,
)

__all__ = ["Vocabulary", "entries", "family_of", "read_vocabulary"]

CODE_LLAMA_SIZE: Final = 32016
CODE_LLAMA_EOT: Final = 32010
GRANITE_SIZE: Final = 49152
GEMMA_EOT: Final = 107
# Metaspace adds no space before a text that begins with one, and none behind an added token; llama.cpp always does
METASPACE: Final = frozenset(("leading", "added"))


@dataclass
class _Reading:
    """One folder, while its vocabulary is put together."""

    folder: Path
    size: int
    family: Family
    model_class: str
    pre: str | None
    settings: Json
    tokenizer: TokenizerJson | None
    pieces: SentencePieceModel | None
    keys: Keys = field(default_factory=Keys)
    notes: list[Finding] = field(default_factory=list)

    @property
    def json(self) -> TokenizerJson:
        if self.tokenizer is None:
            raise InputError(
                "no such file; a tokenizer is needed", file=self.folder / "tokenizer.json", code="not_found"
            )
        return self.tokenizer

    @property
    def sentencepiece(self) -> SentencePieceModel:
        if self.pieces is None:
            raise InputError(
                "no such file; a tokenizer is needed", file=self.folder / "tokenizer.model", code="not_found"
            )
        return self.pieces


def read_vocabulary(
    folder: Path, vocab_size: int, model_class: str, model_type: str = "", pre: str | None = None
) -> Vocabulary:
    """`vocab_size`: rows of the embedding. `pre`: the pre-tokenizer's name, where the user gives one."""
    family = family_of(model_class, model_type)
    settings = json_object(folder / "tokenizer_config.json") or {}
    found = content(folder / "tokenizer.model")
    pieces = None if found is None else read_sentencepiece(found, folder / "tokenizer.model")
    tokenizer = read_tokenizer_json(folder)
    reading = _Reading(folder, vocab_size, family, model_class, pre, settings, tokenizer, pieces)
    _refuse_foreign(reading)
    reading.keys.found.update((add_key(key.removeprefix("add_")), value) for key, value in family.first.items())
    _prefix(reading, Prefix.FIRST)
    route = _route(reading)
    tokens, matched, model = _tokens(reading, route)
    refuse_twins(tokens, folder / ("tokenizer.json" if reading.tokenizer is not None else "tokenizer.model"))
    _keys(reading, route, tokens, matched, model)
    return _vocabulary(reading, route, tokens, matched, model)


def _refuse_foreign(reading: _Reading) -> None:
    folder = reading.folder
    if reading.pieces is None and reading.tokenizer is None:
        other = "tekken.json" if (folder / "tekken.json").exists() else "neither tokenizer.json nor tokenizer.model"
        raise InputError(
            f"has {other}; put the tokenizer.json of the same model beside it", file=folder, code="no_tokenizer"
        )
    if reading.settings.get("tokenizer_class") == "HybridDNATokenizer":
        text = "the tokenizer HybridDNATokenizer runs code of its own, which is never done; use --converter"
        raise InputError(text, file=folder / "tokenizer_config.json", code="foreign_tokenizer")


def _route(reading: _Reading) -> Route:
    """The first of the family's routes whose file is there."""
    routes = reading.family.routes
    gpt2 = reading.settings.get("tokenizer_class") == "GPT2Tokenizer"
    if reading.family.quirk == "phi3" and (gpt2 or reading.pieces is None):
        return Route.BYTES
    for route in routes:
        if route in (Route.PIECES, Route.PIECES_PHI3):
            if reading.pieces is not None:
                return route
        elif reading.tokenizer is not None and (route is not Route.SPACED or _is_spaced(reading.tokenizer)):
            return route
    raise InputError(
        f"has no {' and no '.join(dict.fromkeys(route.value.partition(' ')[0] for route in routes))} of a kind that"
        f" {reading.model_class} is known to have",
        file=reading.folder,
        code="no_tokenizer",
    )


def _is_spaced(tokenizer: TokenizerJson) -> bool:
    decoder = tokenizer.raw.get("decoder")
    sequence = isinstance(decoder, dict) and decoder.get("type") == "Sequence"
    return tokenizer.model.get("type") == "BPE" and tokenizer.byte_fallback and sequence


def _tokens(reading: _Reading, route: Route) -> tuple[Tokens, Match | None, str]:
    """The lists, the pre-tokenizer (None where llama.cpp's tokenizer has none), and llama.cpp's tokenizer."""
    folder, size, family = reading.folder, reading.size, reading.family
    if route in (Route.PIECES, Route.PIECES_PHI3):
        pieces = reading.sentencepiece
        if pieces.algorithm is not Algorithm.BPE:
            text = f"its algorithm is {pieces.algorithm.name}; llama.cpp joins pieces as BPE does"
            reading.notes.append(warning("sentencepiece_algorithm", text))
        added = reading.tokenizer.added if reading.tokenizer is not None else ()
        extra = added if route is Route.PIECES_PHI3 else None
        return piece_tokens(folder, pieces, size, extra), None, "llama"
    tokenizer = reading.json
    kind = tokenizer.model.get("type", "BPE")
    if kind != "BPE" or not tokenizer.vocab:
        raise InputError(f"its model is {kind}, only BPE is supported", file=tokenizer.path, code="foreign_tokenizer")
    if route is Route.SPACED:
        return spaced_tokens(folder, tokenizer, size, frozenset()), None, "llama"
    if route is Route.SPACED_GEMMA4:
        return spaced_tokens(folder, tokenizer, size, family.visible), _match(reading, tokenizer), "gemma4"
    return byte_tokens(folder, tokenizer, size, family.control), _match(reading, tokenizer), "gpt2"


def _match(reading: _Reading, tokenizer: TokenizerJson) -> Match:
    return named(reading.pre, tokenizer) if reading.pre else match(tokenizer, reading.model_class)


def _keys(reading: _Reading, route: Route, tokens: Tokens, matched: Match | None, model: str) -> None:
    found, family = reading.keys.found, reading.family
    found[MODEL] = model
    if model != "gemma4":
        found[PRE] = matched.name if matched is not None else "default"
    found[TOKENS] = None
    if tokens.scores is not None:
        found[SCORES] = None
    found[TYPES] = None
    if family.quirk == "internlm3":
        _prefix(reading, Prefix.LAST, anyway=True)
    has_merges = model != "llama"
    roles = read_roles(
        reading.folder, reading.tokenizer, None if has_merges else len(tokens.texts), _role_names(reading)
    )
    for role, token in family.by_text.items():
        roles.set(role, token_id_of(reading.tokenizer, token))
    if family.quirk == "internlm3":
        _chat_eos(reading, roles)
    reading.keys.add_roles(roles, merges=has_merges)
    reading.notes.extend(note("tokenizer_role", text) for text in roles.notes)
    if family.quirk in _QUIRKS:
        _QUIRKS[family.quirk](reading)
    _prefix(reading, Prefix.LAST)
    if family.prefix is Prefix.FALSE or (family.prefix is Prefix.FALSE_WITH_PIECES and route is Route.PIECES):
        found[PREFIX] = False
    for name, value in family.last.items():
        found[add_key(name.removeprefix("add_")) if isinstance(value, bool) else id_key(name)] = value
    if model == "llama" and PREFIX not in found and not _adds_prefix(reading):
        found[PREFIX] = False  # llama.cpp's default is true; upstream leaves it, and then a text gets a space too many
    reading.notes.extend(_contradictions(reading, roles))


def _contradictions(reading: _Reading, roles: Roles) -> Iterator[Finding]:
    """After all keys are there: a model class may have its own word on what is added."""
    for role, adds in roles.contradicted.items():
        no = "" if reading.keys.found.get(add_key(role)) else "no "
        yield note(
            "tokenizer_role",
            f"tokenizer_config.json has add_{role}_token {str(adds).lower()}, the post-processor of tokenizer.json"
            f" does otherwise; the file says: {no}{role.upper()} is added",
        )


def _prefix(reading: _Reading, when: Prefix, anyway: bool = False) -> None:
    found = reading.settings.get("add_prefix_space")
    if isinstance(found, bool) and (reading.family.prefix is when or anyway):
        reading.keys.found[PREFIX] = found


def _adds_prefix(reading: _Reading) -> bool:
    """Whether a text gets a space before it: by tokenizer.json if it is there, else by SentencePiece's own flag."""
    if reading.tokenizer is None or not _is_spaced(reading.tokenizer):
        return reading.pieces is None or reading.pieces.add_dummy_prefix
    steps = list(_spaced_steps(reading.tokenizer))
    schemes = (each.get("prepend_scheme", "always") for each in steps if each.get("type") == "Metaspace")
    return any(each.get("type") == "Prepend" for each in steps) or any(each != "never" for each in schemes)


def _spaced_steps(tokenizer: TokenizerJson) -> Iterator[Json]:
    """Every step of the normalizer and the pre-tokenizer, those inside sequences too."""
    left = [tokenizer.raw.get("normalizer"), tokenizer.raw.get("pre_tokenizer")]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield each
            left.extend(each.get("normalizers") or ())
            left.extend(each.get("pretokenizers") or ())


def _deviates(reading: _Reading, matched: Match | None, model: str) -> frozenset[str]:
    if matched is not None:
        return matched.pre_tokenizer.deviates if matched.pre_tokenizer is not None else frozenset()
    if model == "llama" and reading.tokenizer is not None:
        metaspace = any(each.get("type") == "Metaspace" for each in _spaced_steps(reading.tokenizer))
        return METASPACE if metaspace else frozenset()
    return frozenset()


def _role_names(reading: _Reading) -> tuple[str, ...]:
    """HunYuan's OCR variants have a pad token of -1, which is none."""
    pad = _config(reading).get("pad_token_id")
    hunyuan = reading.family.quirk == "hunyuan" and isinstance(pad, int) and pad < 0
    return tuple(role for role in ROLES if not (hunyuan and role == "pad"))


def _config(reading: _Reading) -> Mapping[str, Any]:
    config = json_object(reading.folder / "config.json") or {}
    nested = config.get("text_config")
    return {**config, **(nested if isinstance(nested, dict) else {})}


def _chat_eos(reading: _Reading, roles: Roles) -> None:
    decoder = reading.settings.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        special = isinstance(token, dict) and token.get("special") and token.get("content") == "<|im_end|>"
        if special and "eos" in roles.ids:
            roles.ids["eos"] = int(number)


def _llama(reading: _Reading) -> None:
    """CodeLlama is told by its size, the first Granite code models by theirs."""
    if reading.size == CODE_LLAMA_SIZE:
        roles = read_roles(reading.folder, reading.tokenizer, None, ("prefix", "suffix", "middle", "eot"))
        roles.set("eot", CODE_LLAMA_EOT)
        reading.keys.add_roles(roles, merges=False)
    if reading.size == GRANITE_SIZE:
        reading.keys.found[add_key("bos")] = False


def _gemma(reading: _Reading) -> None:
    roles = read_roles(reading.folder, reading.tokenizer, None, ("prefix", "suffix", "middle", "fsep", "eot"))
    roles.set("eot", GEMMA_EOT)
    roles.templates = None
    reading.keys.add_roles(roles, merges=False)


def _hunyuan(reading: _Reading) -> None:
    with about(reading.folder / "config.json"):
        eod = id_of(_config(reading).get("eod_token_id"), "eod_token_id")
    if eod is not None:
        reading.keys.found[id_key("eos")] = eod
    path = reading.folder / "generation_config.json"
    several = (json_object(path) or {}).get("eos_token_id")
    with about(path):
        eot = id_of(several[0], "eos_token_id") if isinstance(several, list) and len(several) >= 2 else None
    if eot is not None:
        reading.keys.found[id_key("eot")] = eot


def _laguna(reading: _Reading) -> None:
    """Its tokenizer_config.json only includes the template; its second eos ends the assistant's turn."""
    template = text(reading.folder / "chat_template.jinja")
    if template is not None:
        reading.keys.add_templates(template)
    config = _config(reading)
    several = config.get("eos_token_id")
    if isinstance(several, list):
        with about(reading.folder / "config.json"):
            ids = [id_of(each, "eos_token_id") for each in several if each != config.get("bos_token_id")]
        eot = next((each for each in ids if each is not None), None)
        if eot is not None:
            reading.keys.found[id_key("eot")] = eot


_QUIRKS: Final[Mapping[str, Callable[[_Reading], None]]] = {
    "llama": _llama,
    "gemma": _gemma,
    "hunyuan": _hunyuan,
    "laguna": _laguna,
}


def _vocabulary(reading: _Reading, route: Route, tokens: Tokens, matched: Match | None, model: str) -> Vocabulary:
    merges = None
    if reading.tokenizer is not None and model != "llama":
        merges = reading.tokenizer.merges or read_merges(reading.folder)
    notes = [*reading.notes, *tokens.notes]
    if matched is not None and matched.nfc:
        text = "the tokenizer normalizes text to NFC, llama.cpp does not: give it text that is NFC (most text is)"
        notes.append(note("tokenizer_nfc", text))
    if route is Route.SPACED:
        text = "scores follow the merges; llama.cpp's converter gives every token the same, which tokenizes wrongly"
        notes.append(note("tokenizer_scores", text))
    tokenizer = reading.tokenizer
    added = {} if tokenizer is None else all_added(reading.folder, tokenizer, roles_too=model == "gpt2")
    known = set() if tokenizer is None else {each.id for each in tokenizer.added}
    return Vocabulary(
        model=model,
        pre=matched.name if matched is not None else None if model == "gemma4" else "default",
        tokens=tuple(tokens.texts),
        types=tuple(tokens.types),
        scores=None if tokens.scores is None else tuple(tokens.scores),
        merges=merges,
        keys=reading.keys.found,
        nfc=matched is not None and matched.nfc,
        deviates=_deviates(reading, matched, model),
        exhaustive=matched is not None and matched.exhaustive,
        notes=tuple(notes),
        original=None if tokenizer is None else tokenizer.path,
        added=tuple(added.values()),
        late=tuple(each for token_id, each in sorted(added.items()) if token_id not in known),
    )
