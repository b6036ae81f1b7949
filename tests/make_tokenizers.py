"""Tokenizer folders for tests: rebuilt from llama.cpp's real vocabularies, or trained here.

Knows the `tokenizer.json` of the families, written out as Hugging Face's files have them, and independently of
`yarn_gguf.tokenizer.pre_tokenizers`. Nothing of `yarn_gguf` is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf

from tests.upstream import llama_cpp_source

Json = dict[str, Any]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SEED = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = CL100K.replace(
    r"|\s+(?!\S)|\s+",
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}",
)


def source_regex(marker: str) -> str:
    """The regular expression in llama.cpp's source that begins like this: those with long character lists."""
    text = (llama_cpp_source() / "src" / "llama-vocab.cpp").read_text()
    found = re.search(r'"(' + re.escape(marker) + r'.*)",\n', text)
    assert found is not None
    return found[1].replace("\\\\", "\\")


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def digits(individual: bool) -> Json:
    return {"type": "Digits", "individual_digits": individual}


NFC: Json = {"type": "NFC"}
GPT2 = byte_level(True)
BYTES = byte_level(False)
LINES = split("[\r\n]")


def structures() -> Mapping[str, tuple[Json | None, Json, bool]]:
    """Normalizer, pre-tokenizer and ignore_merges of each family, by llama.cpp's name for it."""
    latin = source_regex("\\\\s?[A-Za-zµ")
    east_asian = split(source_regex("[一-龥\u0800"))
    bloom = split(source_regex(" ?[^(\\\\s|"))
    digit = digits(True)
    return {
        "gpt-2": (None, GPT2, False),
        "olmo": (NFC, GPT2, False),
        "starcoder": (None, sequence(digit, GPT2), False),
        "command-r": (NFC, sequence(digit, GPT2), False),
        "llama-bpe": (None, sequence(split(CL100K), BYTES), True),
        "smaug-bpe": (None, sequence(split(CL100K), BYTES), False),
        "qwen2": (NFC, sequence(split(QWEN2), BYTES), False),
        "qwen35": (NFC, sequence(split(QWEN35), BYTES), False),
        "deepseek-llm": (
            {"type": "Sequence", "normalizers": []},
            sequence(
                LINES, split(latin), split(source_regex("\\\\s?[!-/:-~")), split("\\s+$"), east_asian, digit, BYTES
            ),
            False,
        ),
        "deepseek-coder": (
            {"type": "Sequence", "normalizers": []},
            sequence(LINES, split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), east_asian, digit, BYTES),
            False,
        ),
        "deepseek-v3": (
            {"type": "Sequence", "normalizers": []},
            sequence(split(r"\p{N}{1,3}"), split(source_regex("[一-龥\u3040")), split(DEEPSEEK_V3), BYTES),
            False,
        ),
        "falcon": (
            None,
            sequence({"type": "Punctuation", "behavior": "Contiguous"}, GPT2, digits(False), split("[0-9][0-9][0-9]")),
            False,
        ),
        "gpt-4o": (None, sequence(split(O200K, "Removed", True), BYTES), False),
        "tekken": (None, sequence(split(TEKKEN), BYTES), True),
        "tiny_aya": (NFC, sequence(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(O200K), BYTES), False),
        "bailingmoe": (None, sequence(split(BAILING), BYTES), False),
        "seed-coder": (None, sequence(split(SEED), BYTES), False),
        "exaone-moe": (NFC, sequence(split(EXAONE_MOE), BYTES), False),
        "minicpm5": (
            None,
            sequence(split(r"\p{N}{1,3}"), split(CL100K.replace(r"\p{N}{1,3}", r"\p{N}+")), BYTES),
            True,
        ),
        "jais-2": (None, sequence(split(JAIS2), BYTES), False),
        "ufakzeka": (
            None,
            sequence(split(QWEN2.removeprefix(CONTRACTIONS + "|")), BYTES),
            False,
        ),
        "laguna": (None, sequence(split("[^\\n]+|[\\n]+"), split(QWEN2), BYTES), False),
        "poro-chat": (None, sequence(bloom, BYTES), False),
        "viking": (None, sequence(bloom, digit, BYTES), False),
    }


def added_token(token_id: int, text: str, special: bool, **flags: bool) -> Json:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": token_id, "content": text, **plain, "special": special, **flags}


def tokenizer_json(
    name: str, vocab: Mapping[str, int], merges: Iterable[str], added: Iterable[Json], processor: Json | None = None
) -> Json:
    normalizer, pre_tokenizer, ignore_merges = structures()[name]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": [each.split(" ", 1) for each in merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": processor or {**BYTES, "trim_offsets": False},
        "decoder": byte_level(True),
        "model": model,
    }


def write(folder: Path, tokenizer: Json | None, settings: Json, config: Json) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, "config.json": config}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def rebuilt(vocabulary: str, name: str, folder: Path) -> tuple[Path, int]:
    """A folder as the model of one of llama.cpp's vocabularies has it, and the number of tokens."""
    reader = gguf.GGUFReader(llama_cpp_source() / "models" / f"ggml-vocab-{vocabulary}.gguf")
    tokens, types, merges = (
        reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")
    )
    apart = {3: True, 4: False}
    added = [
        added_token(n, text, apart[kind])
        for n, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in apart
    ]
    # as in the real files, a special token is in the vocabulary as well unless it comes after all of it
    last = max(n for n, kind in enumerate(types) if kind == 1)
    vocab = {text: n for n, text in enumerate(tokens) if types[n] == 1 or (n < last and types[n] in apart)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": len(tokens)}
    return write(folder, tokenizer_json(name, vocab, merges, added), settings, config), len(tokens)


def corpus() -> list[str]:
    """Text of many kinds, lines long enough for tokens of many characters: llama.cpp's own documentation and inputs."""
    tree = llama_cpp_source()
    files = [*sorted((tree / "docs").glob("*.md")), *sorted((tree / "models").glob("*.inp")), tree / "README.md"]
    return [path.read_text(encoding="utf-8", errors="ignore") for path in files]


def trained(name: str, folder: Path, texts: Iterable[str] = (), tokens: int = 3000, added: Iterable[str] = ()) -> int:
    """A folder with a BPE tokenizer trained here on the corpus and `texts`; returns the size of its vocabulary.

    Trained without a pre-tokenizer's cuts but for bytes, so that there are tokens over every boundary that a
    pre-tokenizer could draw, and a boundary in the wrong place shows.
    """
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=tokens, min_frequency=1, show_progress=False, initial_alphabet=sorted(alphabet)
    )
    pieces = [text[n : n + 24] for text in [*corpus(), *[each * 3 for each in texts]] for n in range(0, len(text), 24)]
    bpe.train_from_iterator(pieces, trainer)
    model = json.loads(bpe.to_str())["model"]
    size = len(model["vocab"])
    extra = [added_token(size + n, text, text.startswith("<|")) for n, text in enumerate(("<|endoftext|>", *added))]
    merges = [" ".join(pair) for pair in model["merges"]]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": size + len(extra)}
    write(folder, tokenizer_json(name, model["vocab"], merges, extra), settings, config)
    return size + len(extra)


def pieces_json(pieces: list[tuple[str, float, int]], prefix: str = "normalizer") -> Json:
    """The `tokenizer.json` of SentencePiece BPE pieces (text, score, kind), merges made as transformers makes them."""
    ids = {text: n for n, (text, _, _) in enumerate(pieces)}
    joins = [
        (-score, ids[text[:cut]], ids[text[cut:]], f"{text[:cut]} {text[cut:]}")
        for text, score, kind in pieces
        if kind == 1
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    space: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoders: list[Json] = [
        {**space, "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    normalizers = {"normalizer": [*prepend, space], "none": [space], "metaspace": []}[prefix]
    return {
        "version": "1.0",
        "added_tokens": [
            added_token(n, text, True, normalized=False) for n, (text, _, kind) in enumerate(pieces) if kind in (2, 3)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": metaspace if prefix == "metaspace" else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [each[3].split(" ", 1) for each in sorted(joins)],
        },
    }


def trained_pieces(folder: Path, tokens: int = 2000) -> list[tuple[str, float, int]]:
    """Trains a SentencePiece BPE model like Llama's into the folder; returns its pieces as sentencepiece reads them."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(corpus()).splitlines()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=tokens,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    def kind(n: int) -> int:
        checks = ((2, model.IsUnknown), (3, model.IsControl), (5, model.IsUnused), (6, model.IsByte))
        return next((number for number, check in checks if check(n)), 1)

    return [(model.IdToPiece(n), model.GetScore(n), kind(n)) for n in range(model.GetPieceSize())]
