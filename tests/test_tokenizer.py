"""Vocabularies of a GGUF, against upstream's own `set_vocab`, against both libraries' token ids, and hostile files."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.make_tokenizers import added_token, pieces_json, trained, trained_pieces, write
from tests.upstream import llama_cpp_source
from yarn_gguf.errors import ChildError, InputError
from yarn_gguf.findings import Level
from yarn_gguf.gguf_file.header import Entry
from yarn_gguf.gguf_file.reader import read_header
from yarn_gguf.tokenizer.check import check_tokenizer
from yarn_gguf.tokenizer.reading import Vocabulary, entries, read_vocabulary
from yarn_gguf.tokenizer.sentencepiece_model import read_sentencepiece
from yarn_gguf.tokenizer.vocabulary import TYPES, TokenType

DRIVER = Path(__file__).with_name("tokenizer_driver.py")
BYTE_CLASSES = (
    "Qwen2ForCausalLM",
    "LlamaForCausalLM",
    "Starcoder2ForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "LagunaForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Exaone4ForCausalLM",
    "Mistral3ForConditionalGeneration",
)
PIECE_CLASSES = (
    "LlamaForCausalLM",
    "Gemma2ForCausalLM",
    "GemmaForCausalLM",
    "MiniCPMForCausalLM",
    "InternLM3ForCausalLM",
    "NemotronForCausalLM",
    "Qwen2ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Phi3ForCausalLM",
)
ADDED = ["<|im_start|>", "<think>", "  two", "|é|", "<unused1>"]
PADDING = 6


def upstream_entries(folder: Path, pre: str | None) -> list[Entry]:
    out = folder / "upstream.gguf"
    command: list[str | Path] = [sys.executable, "-P", DRIVER, llama_cpp_source(), folder, out, pre or ""]
    subprocess.run(command, check=True, capture_output=True)
    found = read_header(out).entries
    return [entry for key, entry in found.items() if key.startswith("tokenizer.")]


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("bytes")
    size = trained("qwen2", folder, added=ADDED) + PADDING
    path = folder / "tokenizer_config.json"
    templates = [{"name": "default", "template": "{{ x }}"}, {"name": "tool use", "template": "{{ y }}"}]
    more = {"add_bos_token": True, "add_prefix_space": False, "chat_template": templates}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder, size


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, float, int]]]:
    """tokenizer.model with two tokens of its own, without tokenizer.json."""
    folder = tmp_path_factory.mktemp("pieces")
    pieces = trained_pieces(folder)
    own = {"<|im_start|>": True, "<mine x>": False}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        **{f"{role}_token": text for role, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))},
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(len(pieces) + n): added_token(len(pieces) + n, text, special, normalized=False)
            for n, (text, special) in enumerate(own.items())
        },
    }
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    write(folder, None, settings, {**config, "vocab_size": len(pieces) + PADDING})
    return folder, pieces


@pytest.mark.slow
@pytest.mark.parametrize("model_class", BYTE_CLASSES)
def test_byte_level_bpe_is_written_byte_for_byte_as_upstream_does(
    model_class: str, bytes_folder: tuple[Path, int]
) -> None:
    folder, size = bytes_folder
    set_config(folder, architectures=[model_class], vocab_size=size)
    vocabulary = read_vocabulary(folder, size, model_class)
    ours, theirs = entries(vocabulary), upstream_entries(folder, vocabulary.pre)
    assert [each.key for each in ours] == [each.key for each in theirs]
    assert [each.raw for each in ours] == [each.raw for each in theirs]
    assert vocabulary.templates == {"default": "{{ x }}", "tool_use": "{{ y }}"}


@pytest.mark.slow
@pytest.mark.parametrize("model_class", PIECE_CLASSES)
def test_sentencepiece_is_written_byte_for_byte_as_upstream_does(
    model_class: str, pieces_folder: tuple[Path, list[tuple[str, float, int]]]
) -> None:
    folder, pieces = pieces_folder
    set_config(folder, architectures=[model_class])
    vocabulary = read_vocabulary(folder, len(pieces) + PADDING, model_class)
    ours, theirs = entries(vocabulary), upstream_entries(folder, None)
    assert [each.key for each in ours] == [each.key for each in theirs]
    assert [each.raw for each in ours] == [each.raw for each in theirs]


def test_pieces_are_read_as_sentencepiece_reads_them(pieces_folder: tuple[Path, list[tuple[str, float, int]]]) -> None:
    folder, pieces = pieces_folder
    path = folder / "tokenizer.model"
    found = read_sentencepiece(path.read_bytes(), path)
    assert [(each.text, each.score, int(each.kind)) for each in found.pieces] == pieces
    assert found.add_dummy_prefix
    assert not found.remove_extra_whitespaces


@pytest.mark.parametrize("prefix", ["normalizer", "none", "metaspace"])
@pytest.mark.parametrize("with_model", [True, False])
def test_sentencepiece_gives_the_tokens_of_its_tokenizer_json(
    prefix: str, with_model: bool, pieces_folder: tuple[Path, list[tuple[str, float, int]]], tmp_path: Path
) -> None:
    folder, pieces = pieces_folder
    tokenizer = pieces_json(pieces, prefix)
    for n, (text, special) in enumerate((("<|im_start|>", True), ("<mine x>", False))):
        tokenizer["added_tokens"].append(added_token(len(pieces) + n, text, special, normalized=False))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer, settings, json.loads((folder / "config.json").read_text()))
    if with_model:
        (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    vocabulary = read_vocabulary(tmp_path, len(pieces) + PADDING, "LlamaForCausalLM")
    findings = check_tokenizer(tmp_path, vocabulary)
    assert len(findings) == (2 if prefix == "metaspace" else 0)  # a leading space, and text behind an added token
    assert all(each.level is Level.WARNING and "--" not in each.text for each in findings)
    if not with_model:
        flat = replace(vocabulary, scores=(-1000.0,) * len(vocabulary.tokens))  # what upstream writes
        with pytest.raises(InputError, match="the original tokenizer gives"):
            check_tokenizer(tmp_path, flat)


def test_without_tokenizer_json_it_is_said_that_nothing_was_compared(
    pieces_folder: tuple[Path, list[tuple[str, float, int]]],
) -> None:
    folder, pieces = pieces_folder
    vocabulary = read_vocabulary(folder, len(pieces) + PADDING, "LlamaForCausalLM")
    assert [each.code for each in check_tokenizer(folder, vocabulary)] == ["tokenizer_not_checked"]


def test_a_fine_tune_with_tokens_of_its_own_is_converted_and_proven(bytes_folder: tuple[Path, int]) -> None:
    folder, size = bytes_folder
    vocabulary = read_vocabulary(folder, size, "Qwen2ForCausalLM")
    assert vocabulary.pre == "qwen2"
    by_text = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert by_text["<|im_start|>"] is TokenType.CONTROL
    assert by_text["<think>"] is TokenType.USER_DEFINED
    assert [each.code for each in vocabulary.notes] == ["tokenizer_role", "tokenizer_padded", "tokenizer_nfc"]
    # it only says that llama.cpp puts a bos before the text, which tokenizer_config.json asks for
    assert {each.code for each in check_tokenizer(folder, vocabulary)} <= {"tokens_differ", "tokens_around_differ"}


def test_an_added_token_with_a_spelled_space_is_that_text_in_a_byte_level_tokenizer(tmp_path: Path) -> None:
    """Upstream writes it with a space, and then llama.cpp cuts " x" out of every text."""
    size = trained("qwen2", tmp_path, tokens=300, added=["▁x"])
    vocabulary = read_vocabulary(tmp_path, size, "Qwen2ForCausalLM")
    assert vocabulary.tokens[-1] == "▁x"
    assert check_tokenizer(tmp_path, vocabulary) == ()
    with pytest.raises(InputError, match="the original tokenizer gives"):
        check_tokenizer(tmp_path, replace(vocabulary, tokens=(*vocabulary.tokens[:-1], " x")))


ROLES = ["<s>", "</s>", "<unk>", "<img>", "<pad_of_map>", "<listed>", "<plain>"]


def unmarked_roles(folder: Path, tokenizer_class: str, decoder: bool) -> int:
    """A folder in which no token is marked special, and roles are named in both files of settings."""
    size = trained("qwen2", folder, tokens=300, added=ROLES)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] |= {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] |= {"<sep_of_vocab>": size, "<listed_of_vocab>": size + 1}
    path.write_text(json.dumps(tokenizer))
    settings: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": False},
        "unk_token": "<unk>",
        "sep_token": "<sep_of_vocab>",
        "image_token": "<img>",
        "extra_special_tokens": ["<listed>", "<listed_of_vocab>"],
    }
    if decoder:
        settings["added_tokens_decoder"] = {
            str(each["id"]): {key: value for key, value in each.items() if key != "id"}
            for each in tokenizer["added_tokens"]
        }
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen3", "vocab_size": size + 2}
    write(folder, None, settings, config)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad_of_map>"}))
    return size + 2


@pytest.mark.parametrize(
    ("tokenizer_class", "decoder", "shown"),
    [
        ("PreTrainedTokenizerFast", False, {"<listed>", "<plain>"}),
        ("PreTrainedTokenizerFast", True, {"<listed>", "<plain>", "<pad_of_map>"}),  # then the map is not looked at
        ("Qwen2Tokenizer", False, {"<plain>"}),
        ("Qwen2Tokenizer", True, {"<plain>", "<pad_of_map>"}),
    ],
)
def test_a_token_with_a_role_is_a_control_token_though_the_file_does_not_mark_it(
    tokenizer_class: str, decoder: bool, shown: set[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    size = unmarked_roles(tmp_path, tokenizer_class, decoder)
    vocabulary = read_vocabulary(tmp_path, size, "Qwen2ForCausalLM")
    by_text = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert {text for text, kind in by_text.items() if kind is TokenType.USER_DEFINED} == shown
    original: Any = AutoTokenizer.from_pretrained(tmp_path)
    special = {each.content for each in original.added_tokens_decoder.values() if each.special}
    assert {text for text, kind in by_text.items() if kind is TokenType.CONTROL} == special
    assert check_tokenizer(tmp_path, vocabulary) == ()


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("decoder", [False, True])
def test_roles_without_a_mark_are_written_byte_for_byte_as_upstream_does(
    tokenizer_class: str, decoder: bool, tmp_path: Path
) -> None:
    size = unmarked_roles(tmp_path, tokenizer_class, decoder)
    vocabulary = read_vocabulary(tmp_path, size, "Qwen2ForCausalLM")
    theirs = upstream_entries(tmp_path, vocabulary.pre)
    assert [(each.key, each.raw) for each in entries(vocabulary)] == [(each.key, each.raw) for each in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("with_model", [True, False])
def test_sentencepiece_goes_by_the_mark_of_a_role_only_where_upstream_does(
    with_model: bool, pieces_folder: tuple[Path, list[tuple[str, float, int]]], tmp_path: Path
) -> None:
    """With tokenizer.model upstream reads the marks of tokenizer_config.json itself, without it transformers does."""
    folder, pieces = pieces_folder
    size = len(pieces) + 2
    own = [added_token(n, text, False, normalized=False) for n, (text, _, kind) in enumerate(pieces) if kind in (2, 3)]
    own += [added_token(len(pieces) + n, text, False, normalized=False) for n, text in enumerate(("<pad2>", "<mine>"))]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"added_tokens_decoder": {str(each["id"]): each for each in own}, "pad_token": "<pad2>"}
    for each in own:
        each.pop("id")
    config = {**json.loads((folder / "config.json").read_text()), "vocab_size": size}
    tokenizer = pieces_json(pieces)
    tokenizer["added_tokens"] = [{"id": int(n), **each} for n, each in settings["added_tokens_decoder"].items()]
    write(tmp_path, tokenizer, settings, config)
    if with_model:
        (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    set_config(tmp_path, architectures=["LlamaForCausalLM"])
    ours, theirs = (
        next(each.raw for each in found if each.key == TYPES)
        for found in (
            entries(read_vocabulary(tmp_path, size, "LlamaForCausalLM")),
            upstream_entries(tmp_path, None),
        )
    )
    assert ours == theirs


@pytest.mark.parametrize(("model_class", "says"), [("Qwen2ForCausalLM", "no BOS"), ("LLaDAModelLM", "BOS")])
def test_a_contradiction_about_bos_is_told_with_what_the_file_says(
    model_class: str, says: str, bytes_folder: tuple[Path, int]
) -> None:
    folder, size = bytes_folder
    vocabulary = read_vocabulary(folder, size, model_class)
    (found,) = (each.text for each in vocabulary.notes if each.code == "tokenizer_role")
    assert found == (
        "tokenizer_config.json has add_bos_token true, the post-processor of tokenizer.json does otherwise;"
        f" the file says: {says} is added"
    )
    assert vocabulary.adds("bos") is (says == "BOS")


def test_a_literal_spelled_space_is_a_note_in_plain_words(
    pieces_folder: tuple[Path, list[tuple[str, float, int]]], tmp_path: Path
) -> None:
    folder, pieces = pieces_folder
    tokenizer = pieces_json(pieces)
    extra = added_token(len(pieces), "▁▁qz", False, normalized=False)
    tokenizer["added_tokens"].append(extra)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(len(pieces)): extra}
    write(tmp_path, tokenizer, settings, json.loads((folder / "config.json").read_text()))
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    findings = check_tokenizer(tmp_path, read_vocabulary(tmp_path, len(pieces) + 1, "LlamaForCausalLM"))
    assert [(each.level, each.code) for each in findings] == [(Level.NOTE, "tokens_differ")]
    assert "literal ▁ (U+2581)" in findings[0].text
    assert "--" not in findings[0].text


def test_more_tokens_than_embedding_rows_are_refused_and_fewer_are_padded(bytes_folder: tuple[Path, int]) -> None:
    folder, size = bytes_folder
    with pytest.raises(InputError, match=f"embedding has {size - PADDING - 1} rows"):
        read_vocabulary(folder, size - PADDING - 1, "Qwen2ForCausalLM")
    found = read_vocabulary(folder, size, "Qwen2ForCausalLM")
    assert found.tokens[-1] == f"[PAD{size - 1}]"
    assert found.types[-PADDING:] == (TokenType.UNUSED,) * PADDING
    assert {each.code: each.text for each in found.notes}["tokenizer_padded"].startswith(
        f"{PADDING} of {size} embedding rows"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested too deeply"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "not an object"),
        (b"{}", "has no model object"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}}}', "not an object of token ids"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}', "one id to two tokens"),
        (b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}}}', "surrogate"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}', "no pair"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 1e9}]}', "lacks its id"),
        (b'{"model": {"type": "Unigram", "vocab": [["a", 0]]}}', "only BPE"),
    ],
)
def test_a_hostile_tokenizer_json_is_refused(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=found):
        read_vocabulary(tmp_path, 10, "Qwen2ForCausalLM")


def test_a_damaged_tokenizer_model_is_refused_or_read_but_never_crashes() -> None:
    piece = b"\x0a\x01a" + b"\x15" + struct.pack("<f", -1.0)
    good = b"".join(b"\x0a" + bytes([len(piece)]) + piece for _ in range(3)) + b"\x12\x02\x18\x02"
    path = Path("tokenizer.model")
    assert len(read_sentencepiece(good, path).pieces) == 3
    for cut in range(len(good)):
        for damaged in (good[:cut], good[:cut] + b"\xff" + good[cut + 1 :]):
            try:
                read_sentencepiece(damaged, path)
            except InputError as error:
                assert error.file == "tokenizer.model"


def test_a_vocabulary_that_llama_cpp_refuses_is_an_error_of_the_child(bytes_folder: tuple[Path, int]) -> None:
    folder, size = bytes_folder
    vocabulary: Vocabulary = read_vocabulary(folder, size, "Qwen2ForCausalLM", pre="no-such-name")
    with pytest.raises(ChildError, match="refuses the vocabulary"):
        check_tokenizer(folder, vocabulary)


def test_equal_tokens_are_refused_before_llama_cpp_aborts_on_them(tmp_path: Path) -> None:
    size = trained("qwen2", tmp_path, tokens=300, added=["[PAD303]"])
    with pytest.raises(InputError, match="which llama"):
        read_vocabulary(tmp_path, size + 5, "Qwen2ForCausalLM")
