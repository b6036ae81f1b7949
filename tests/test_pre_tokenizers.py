"""Pre-tokenizers told by structure, against llama.cpp's real vocabularies and against both libraries' token ids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import pytest

from tests.make_tokenizers import rebuilt, split, structures, trained
from tests.upstream import llama_cpp_source
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Level
from yarn_gguf.tokenizer.check import KNOWN, check_tokenizer
from yarn_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from yarn_gguf.tokenizer.probe import PROBES
from yarn_gguf.tokenizer.reading import METASPACE, read_vocabulary

# llama.cpp's vocabulary → the name for its structure, where nothing but the structure is known
VOCABULARIES = {
    "gpt-2": "gpt-2",
    "llama-bpe": "llama-bpe",
    "qwen2": "qwen2",
    "qwen35": "qwen35",
    "deepseek-llm": "deepseek-llm",
    "deepseek-coder": "deepseek-coder",
    "falcon": "falcon",
    "mpt": "olmo",
    "gpt-neox": "olmo",
    "starcoder": "starcoder",
    "refact": "starcoder",
    "command-r": "command-r",
}
# On a vocabulary with tokens over every boundary llama.cpp differs here; on these models' own it does not (above).
HARD_FOR_LLAMA_CPP = {"deepseek-llm", "falcon"}
PROBE_TEXTS = [text for texts in PROBES.values() for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize(("vocabulary", "name"), VOCABULARIES.items())
def test_a_real_vocabulary_is_recognised_and_gives_the_recorded_tokens(
    vocabulary: str, name: str, tmp_path: Path
) -> None:
    import tokenizers

    folder, size = rebuilt(vocabulary, name, tmp_path)
    found = read_vocabulary(folder, size, "SomeForCausalLM")
    assert found.pre == name
    assert check_tokenizer(folder, found) == ()
    models = llama_cpp_source() / "models"
    if not (models / f"ggml-vocab-{vocabulary}.gguf.inp").exists():
        return
    texts = (models / f"ggml-vocab-{vocabulary}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (models / f"ggml-vocab-{vocabulary}.gguf.out").read_text().splitlines()
    wanted = [[int(each) for each in line.split()] for line in lines]
    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # what is recorded is what llama.cpp gives, which leaves text as it is; the original makes NFC of it first
    pairs = [(text, ids) for text, ids in zip(texts, wanted, strict=False) if is_normalized("NFC", text)]
    assert len(pairs) > 40
    assert [original.encode(text, add_special_tokens=False).ids for text, _ in pairs] == [ids for _, ids in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("name", structures())
def test_each_structure_is_recognised_and_proven_on_a_vocabulary_made_to_show_differences(
    name: str, tmp_path: Path
) -> None:
    size = trained(name, tmp_path, PROBE_TEXTS, added=["<|im_start|>", "<think>", "  two"])
    vocabulary = read_vocabulary(tmp_path, size, "SomeForCausalLM")
    assert vocabulary.pre == name
    if name in HARD_FOR_LLAMA_CPP:
        with pytest.raises(InputError, match="the original tokenizer gives"):
            check_tokenizer(tmp_path, vocabulary)
    else:
        findings = check_tokenizer(tmp_path, vocabulary)
        kinds = {re.search(r"\(kind '(\w+)'\)", each.text)[1] for each in findings}  # type: ignore[index]
        assert kinds <= vocabulary.deviates


def test_what_llama_cpp_is_known_to_cut_otherwise_is_a_note_in_plain_words_without_advice(tmp_path: Path) -> None:
    size = trained("gpt-4o", tmp_path, PROBE_TEXTS)
    findings = check_tokenizer(tmp_path, read_vocabulary(tmp_path, size, "SomeForCausalLM"))
    assert {(each.level, each.code) for each in findings} == {(Level.NOTE, "tokens_differ")}
    assert (
        "llama.cpp cuts letters with combining marks differently from the original tokenizer, as for every model of"
        " the pre-tokenizer 'gpt-4o' (kind 'marks')"
    ) in {each.text for each in findings}
    assert not re.search(r"--|\d{2}", "".join(each.text for each in findings))


def test_every_kind_that_may_differ_has_its_sentence() -> None:
    assert {kind for each in PRE_TOKENIZERS for kind in each.deviates} | METASPACE <= set(KNOWN)


def test_every_name_of_the_table_is_one_that_llama_cpp_has() -> None:
    source = (llama_cpp_source() / "src" / "llama-vocab.cpp").read_text()
    known = set(re.findall(r'tokenizer_pre == "([^"]+)"', source))
    names = {name for each in PRE_TOKENIZERS for name in (each.name, *each.names.values())}
    assert names <= known


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "adds a space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "byte-level encoding is missing"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        split(r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}|\s+"),
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            r"{1,2}",
        ),
    ],
)
def test_an_unknown_structure_is_refused_by_name_with_the_way_out(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    size = trained("qwen2", tmp_path, tokens=300)
    _edit(tmp_path, **change)
    with pytest.raises(InputError, match="--pre NAME") as caught:
        read_vocabulary(tmp_path, size, "Qwen2ForCausalLM")
    assert named in caught.value.text
    assert read_vocabulary(tmp_path, size, "Qwen2ForCausalLM", pre="qwen2").pre == "qwen2"


@pytest.mark.parametrize("wrong", ["llama-bpe", "gpt-2", "deepseek-v3", "qwen35"])
def test_a_wrong_name_is_caught_with_the_first_token_that_differs(wrong: str, tmp_path: Path) -> None:
    size = trained("qwen2", tmp_path, PROBE_TEXTS)
    vocabulary = read_vocabulary(tmp_path, size, "Qwen2ForCausalLM", pre=wrong)
    with pytest.raises(InputError, match=rf"token \d+ of a text .* llama.cpp with pre-tokenizer '{wrong}' gives \d+"):
        check_tokenizer(tmp_path, vocabulary)


def test_a_model_class_decides_between_names_of_one_implementation(tmp_path: Path) -> None:
    size = trained("starcoder", tmp_path, tokens=300)
    names = {
        each: read_vocabulary(tmp_path, size, each).pre
        for each in ("Starcoder2ForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM", "SomethingNew")
    }
    assert list(names.values()) == ["starcoder", "refact", "smollm", "starcoder"]
