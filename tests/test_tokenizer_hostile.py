"""Tokenizer folders that somebody made to break a converter: every one is read, or refused with one line."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.make_checkpoints import edit_json, tokenizer
from tests.make_tokenizers import added_token, byte_level
from tests.toys import VOCABULARY
from yarn_gguf.children.command import ending
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.header import encode_header
from yarn_gguf.tokenizer.check import check_tokenizer
from yarn_gguf.tokenizer.reading import Vocabulary, entries, read_vocabulary
from yarn_gguf.tokenizer.tokens import decoded

Json = dict[str, Any]

TOKENIZER: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"
GENERATION: Final = "generation_config.json"
CONFIG: Final = "config.json"
VALUES: Final[tuple[Any, ...]] = (None, 5, -1, 2**40, "x", [], {}, [[]], {"a": 1}, True, 0.5)
LISTED: Final = 2  # entries of a long list or object that are put to the test
LONG: Final = 12


# ---- folders


def folder_of(kind: str, folder: Path) -> Path:
    """A toy's tokenizer, with every file that is looked at and every field that is read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer(kind).items():
        (folder / name).write_bytes(content)
    names = {0: "<unk>", 1: "<s>", 2: "</s>"} if kind == "pieces" else {0: "<|pad|>", 1: "<|begin|>", 2: "<|end|>"}
    listed = {str(n): {**added_token(n, text, True), "rstrip": False} for n, text in names.items()}
    infill = {"▁<EOT>": VOCABULARY - 1}
    edit_json(
        folder / SETTINGS,
        added_tokens_decoder=listed,
        add_prefix_space=True,
        add_bos_token=True,
        pad_token={"content": names[0], "special": True},
        additional_special_tokens=[names[2], {"content": names[1]}],
        extra_special_tokens={"image_token": names[0]},
        chat_template=[{"name": "default", "template": "{{ x }}"}, {"name": "tool", "template": "{{ y }}"}],
    )
    edit_json(folder / "special_tokens_map.json", bos_token=names[1], eos_token={"content": names[2]}, mask_token="x")
    edit_json(folder / GENERATION, bos_token_id=1, eos_token_id=[2, 1], pad_token_id=0)
    edit_json(folder / CONFIG, eos_token_id=[2, 1], bos_token_id=1, pad_token_id=0, unk_token_id=0, eod_token_id=2)
    edit_json(folder / CONFIG, text_config={"sep_token_id": 2, "mask_token_id": 1})
    edit_json(folder / "added_tokens.json", **(infill if kind == "pieces" else {names[2]: 2}))
    return folder


def every_step(folder: Path) -> None:
    """Steps of all kinds that are looked into, in no order that makes sense."""
    whole = json.loads((folder / TOKENIZER).read_text())
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    bert = {"type": "BertNormalizer", "clean_text": True, "strip_accents": None, "lowercase": True}
    decoders = [
        space,
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "Metaspace"},
        byte_level(True),
    ]
    roberta = {"type": "RobertaProcessing", "sep": ["<|end|>", 2], "cls": ["<|begin|>", 1]}
    around = [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"SpecialToken": {"id": "<|end|>", "type_id": 0}}]
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    template = {
        "type": "TemplateProcessing",
        "single": [around[0], texts[0], around[1]],
        "pair": [around[0], texts[0], around[1], around[1], texts[1], around[1]],
    }
    edit_json(
        folder / TOKENIZER,
        normalizer={"type": "Sequence", "normalizers": [bert, {"type": "Lowercase"}, {"type": "StripAccents"}]},
        decoder={"type": "Sequence", "decoders": decoders},
        post_processor={"type": "Sequence", "processors": [byte_level(True), roberta, template]},
        added_tokens=[*whole["added_tokens"], {**added_token(9, " ▁x", False), "normalized": False}],
    )


def read(folder: Path, model_class: str, pre: str | None = None) -> Vocabulary:
    """Read and written as a conversion would, so that a value that no GGUF holds shows."""
    found = read_vocabulary(folder, VOCABULARY, model_class, pre=pre)
    encode_header(3, entries(found), [], 32)
    return found


# ---- the sweep


@dataclass(frozen=True)
class Case:
    kind: str
    model_class: str
    without: tuple[str, ...] = ()
    pre: str | None = None


CASES: Final = (
    Case("llama-bpe", "Qwen2ForCausalLM"),
    Case("every step", "Qwen2ForCausalLM", pre="llama-bpe"),
    Case("llama-bpe", "HunYuanDenseV1ForCausalLM"),
    Case("llama-bpe", "LagunaForCausalLM"),
    Case("pieces", "LlamaForCausalLM"),
    Case("pieces", "LlamaForCausalLM", ("tokenizer.model",)),
    Case("pieces", "InternLM3ForCausalLM"),
    Case("pieces", "Phi3ForCausalLM"),
    Case("pieces", "Gemma4ForCausalLM", pre="gemma4"),
)


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a JSON value; of long lists and objects only the first few."""
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys[: LISTED if len(keys) > LONG and path else None]:
        yield (*path, key)
        yield from places(value[key], (*path, key))  # type: ignore[index]


def changed(whole: Json, path: tuple[str | int, ...], value: object) -> Json:
    """`whole` with another value at one place; all else is shared."""
    copied: Any = copy.copy(whole)
    at = copied
    for key in path[:-1]:
        at[key] = copy.copy(at[key])
        at = at[key]
    at[path[-1]] = value
    return dict(copied)


def sweep(case: Case, folder: Path, step: int = 1) -> tuple[int, list[str]]:
    """How many mutations were tried, and those that ended in anything but a vocabulary or an InputError."""
    folder_of(case.kind.replace("every step", "llama-bpe"), folder)
    if case.kind == "every step":
        every_step(folder)
    for name in case.without:
        (folder / name).unlink()
    read(folder, case.model_class, case.pre)
    tried, wrong = 0, []
    for file in sorted(folder.glob("*.json")):
        good = file.read_bytes()
        whole = json.loads(good)
        for n, (path, value) in enumerate((path, value) for path in places(whole) for value in VALUES):
            if n % step:
                continue
            tried += 1
            file.write_text(json.dumps(changed(whole, path, value)))
            try:
                read(folder, case.model_class, case.pre)
            except InputError as error:
                if error.file is None:
                    wrong.append(f"{file.name} {path} = {value!r}: names no file: {error}")
            except Exception as error:  # noqa: BLE001 - any other kind is what is looked for
                wrong.append(f"{file.name} {path} = {value!r}: {error!r}")
        file.write_bytes(good)
    return tried, wrong


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind} {case.model_class} {' '.join(case.without)}")
def test_no_value_in_any_field_ends_in_anything_but_a_vocabulary_or_an_input_error(case: Case, tmp_path: Path) -> None:
    """About one in 29 of what there is, another part of it in each file."""
    tried, wrong = sweep(case, tmp_path, step=29)
    assert wrong == []
    assert tried > 50


# ---- one by one


def pipeline(folder: Path, **changes: object) -> Path:
    return edit_json(folder_of("llama-bpe", folder) / TOKENIZER, **changes)


def test_a_strip_decoder_ends_when_there_is_nothing_left_to_strip() -> None:
    strip = {"type": "Strip", "content": " ", "start": 10**12}
    assert decoded("  x ", strip) == "x "
    assert decoded("  x ", {**strip, "start": 1}) == " x "
    assert decoded("  x ", {**strip, "start": -1}) == "  x "
    assert decoded("   ", strip) == ""


def test_a_decoder_that_makes_a_token_grow_without_end_is_refused(tmp_path: Path) -> None:
    grow = {"type": "Replace", "pattern": {"String": "|"}, "content": "||"}
    folder = pipeline(tmp_path, decoder={"type": "Sequence", "decoders": [grow] * 64})
    with pytest.raises(InputError, match=r"tokenizer\.json: its decoder makes over 65536 characters"):
        read(folder, "Qwen2ForCausalLM")


@pytest.mark.parametrize("role", ["unk", "bos", "eos"])
@pytest.mark.parametrize("value", [2**31, 2**33, 2**40, -1])
@pytest.mark.parametrize("nested", [False, True])
def test_an_id_that_no_token_can_have_is_refused(role: str, value: int, nested: bool, tmp_path: Path) -> None:
    folder = folder_of("llama-bpe", tmp_path)
    (folder / CONFIG).unlink()
    ids = {f"{role}_token_id": value}
    edit_json(folder / CONFIG, **({"text_config": ids} if nested else ids))
    (folder / SETTINGS).unlink()
    with pytest.raises(InputError, match=f"{role}_token_id is {value}, which no token has") as caught:
        read(folder, "Qwen2ForCausalLM")
    assert caught.value.file == str(folder / CONFIG)


@pytest.mark.parametrize(
    ("model_class", "file", "changes", "found"),
    [
        ("HunYuanDenseV1ForCausalLM", CONFIG, {"eod_token_id": 2**33}, "eod_token_id is 8589934592"),
        ("HunYuanDenseV1ForCausalLM", CONFIG, {"eod_token_id": -5}, "eod_token_id is -5"),
        ("HunYuanDenseV1ForCausalLM", GENERATION, {"eos_token_id": [2**33, 1]}, "eos_token_id is 8589934592"),
        ("LagunaForCausalLM", CONFIG, {"eos_token_id": [2**33]}, "eos_token_id is 8589934592"),
    ],
)
def test_ids_that_only_some_classes_look_at_are_refused_too(
    model_class: str, file: str, changes: Json, found: str, tmp_path: Path
) -> None:
    folder = edit_json(folder_of("llama-bpe", tmp_path) / file, **changes)
    with pytest.raises(InputError, match=found) as caught:
        read(folder, model_class, "llama-bpe")
    assert caught.value.file == str(folder / file)


def inside(kind: str, name: str, value: object) -> Json:
    return {"type": "Sequence", name: [{"type": kind, name: value}]}


@pytest.mark.parametrize("kind", ["llama-bpe", "pieces"])
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": 5}}, "normalizers is a JSON int, not a list"),
        ({"normalizer": {"type": "Sequence", "normalizers": [5]}}, "normalizer.normalizers holds 5, not an object"),
        ({"normalizer": inside("Sequence", "normalizers", "x")}, "normalizers is a JSON str, not a list"),
        ({"pre_tokenizer": {"type": []}}, r"pre_tokenizer has the type \[\], not a name"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}}, "pretokenizers is a JSON int, not a list"),
        ({"pre_tokenizer": {"pretokenizers": [{"type": {}}]}}, "pretokenizers has the type {}, not a name"),
        ({"decoder": {"type": "Sequence", "decoders": 5}}, "decoders is a JSON int, not a list"),
        ({"decoder": 5}, "decoder holds 5, not an object"),
        ({"post_processor": {"type": "Sequence", "processors": True}}, "processors is a JSON bool, not a list"),
        ({"normalizer": {"type": "BertNormalizer", "lowercase": [1]}}, r"normalizer.lowercase is \[1\], not true"),
        ({"normalizer": {"type": "BertNormalizer", "strip_accents": 0.5}}, "normalizer.strip_accents is 0.5, not true"),
    ],
)
def test_a_step_of_the_wrong_shape_is_refused_and_named(kind: str, changes: Json, found: str, tmp_path: Path) -> None:
    folder = edit_json(folder_of(kind, tmp_path) / TOKENIZER, **changes)
    with pytest.raises(InputError, match=found) as caught:
        read(folder, "LlamaForCausalLM", "llama-bpe")
    assert caught.value.file == str(folder / TOKENIZER)


# ---- the proof


@pytest.mark.parametrize(
    "changes",
    [
        {"post_processor": {"type": "Nope"}},
        {"version": []},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
        {"truncation": 5},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    ],
)
def test_a_file_that_hf_tokenizers_cannot_parse_is_bad_input(changes: Json, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, **changes)
    vocabulary = read(folder, "LlamaForCausalLM", "llama-bpe")
    with pytest.raises(InputError, match=r"tokenizer\.json: HF's tokenizers cannot use it: .+") as caught:
        check_tokenizer(folder, vocabulary)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < len(str(folder)) + 300


def test_a_file_that_hf_tokenizers_panics_over_is_bad_input(tmp_path: Path) -> None:
    folder = folder_of("llama-bpe", tmp_path)
    model = json.loads((folder / TOKENIZER).read_text())["model"]
    edit_json(folder / TOKENIZER, model={**model, "continuing_subword_prefix": "x"})
    vocabulary = read(folder, "Qwen2ForCausalLM", "llama-bpe")
    with pytest.raises(InputError, match=r"tokenizer\.json: HF's tokenizers breaks down over it: .+"):
        check_tokenizer(folder, vocabulary)


@pytest.mark.parametrize(("kind", "model_class"), [("llama-bpe", "Qwen2ForCausalLM"), ("pieces", "LlamaForCausalLM")])
def test_a_folder_whose_name_is_not_utf_8_is_read_and_proven(kind: str, model_class: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for name, content in tokenizer(kind).items():
        (folder / name).write_bytes(content)
    assert {each.level.name for each in check_tokenizer(folder, read(folder, model_class))} <= {"NOTE", "WARNING"}


def test_a_folder_for_temporary_files_whose_name_is_not_utf_8_serves_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "model", tmp_path / os.fsdecode(b"t\xe9mp")
    for each in (folder, other):
        each.mkdir()
    for name, content in tokenizer("llama-bpe").items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr("tempfile.tempdir", str(other))
    check_tokenizer(folder, read(folder, "LlamaForCausalLM"))
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said"), [(-int(signal.SIGKILL), "signal SIGKILL"), (-99, "signal 99"), (70, "code 70")]
)
def test_the_end_of_a_child_is_told_whatever_its_signal(code: int, said: str) -> None:
    assert f"ended with {said}, saying: no word" in ending(subprocess.CompletedProcess([], code, "", ""))
