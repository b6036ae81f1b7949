"""`general.*` and the default file name equal what llama.cpp's own converter makes of the same files and names.

Two ways to ask it: as a whole, on toy checkpoints; and its metadata step alone, with tensors that have shapes but no
data, for many names and cards at once. Where it ends with an error, ours must not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests import upstream
from yarn_gguf.conversion.general import ParameterCounts, count_parameters, default_name, entries, read_general
from yarn_gguf.gguf_file.reader import read_header

OTHERS: Final = {"general.architecture", "general.file_type", "general.quantization_version", "general.alignment"}
DENSE: Final[dict[str, tuple[int, ...]]] = {
    "token_embd.weight": (128256, 2048),
    "blk.0.ffn_up.weight": (480_000, 2048),
    "output_norm.weight": (2048,),
}
SPARSE: Final[dict[str, tuple[int, ...]]] = {
    "token_embd.weight": (32000, 4096),
    **{f"blk.{i}.ffn_up_exps.weight": (8, 14336, 4096) for i in range(32)},
    **{f"blk.{i}.ffn_down_exps.weight": (8, 4096, 14336) for i in range(31)},
    "blk.0.ffn_down_exps.bias": (8, 4096),
    "blk.0.odd_exps.weight": (16, 8),
}
MODELS: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "dense": DENSE,
    "sparse": SPARSE,
    "small": {"output.weight": (320, 128)},
    "empty": {},
}

# Reads [folder, tensors, name, output folder] of each case; the metadata step is upstream's own, vocabulary and
# hyperparameters left out. Answers with the name of the file, or with the error.
ORACLE: Final = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
from conversion import base
gguf = base.gguf

class Model(base.TextModel):
    model_arch = gguf.MODEL_ARCH.LLAMA

    def set_gguf_parameters(self):
        pass

    set_vocab = set_gguf_parameters

answers = []
for folder, tensors, name, out in json.load(sys.stdin):
    model = object.__new__(Model)
    model.__dict__.update(dir_model=Path(folder), dir_model_card=Path(folder), fname_out=Path(out), model_name=name)
    model.__dict__.update(ftype=gguf.LlamaFileType.MOSTLY_Q8_0, metadata_override=None, remote_hf_model_id=None)
    model.__dict__.update(_prec_a4={}, gguf_writer=gguf.GGUFWriter(None, "llama"))
    f32 = gguf.GGMLQuantizationType.F32
    infos = {key: base.gguf.gguf_writer.TensorInfo(shape, f32, 0) for key, shape in tensors.items()}
    model.gguf_writer.tensors = [infos]
    try:
        model.prepare_metadata(vocab_only=False)
        model.gguf_writer.tensors = [{}]
        model.gguf_writer.write_header_to_file(Path(out, "keys.gguf"))
        model.gguf_writer.write_kv_data_to_file()
        model.gguf_writer.close()
        answers.append([model.fname_out.name, ""])
    except Exception as error:
        answers.append(["", f"{type(error).__name__}: {error}"])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Case:
    """A checkpoint's folder, as far as `general` looks at it."""

    folder: str
    card: str | bytes | None = None
    config: Any = field(default_factory=dict)
    generation: Any = None
    model: str = "dense"
    name: str | None = None


def _card(*lines: str, tail: str = "# Title\n") -> str:
    return "\n".join(["---", *lines, "---", tail])


def _said(text: str) -> dict[str, str]:
    return {"_name_or_path": text}


NAMES: Final = """
Llama-3.2-1B-Instruct|Mixtral-8x7B-Instruct-v0.1|Qwen2.5-7B-Instruct-1M|Phi-3-mini-128k-instruct|gpt-oss-20b|bloom-7b1
tiny-llama|TinyLlama-1.1B-Chat-v1.0|model|my model of-today|Llama-3|llama-v2-3.1|7B|v1.0|1-2-3
Qwen3-30B-A3B-Thinking-2507|Mistral-7B-v0.3|SmolLM2-135M|granite-3.1-1b-a400m-base|Yarn-Llama-2-1b-128k|Hermes-2-Pro-Llama-3-8B|deepseek-v2-lite
gemma-2-2b-it|a--b---c-|.hidden-1b|phi-1_5|phi-1_5-1_3B|model-large-2|model-xl|model-small-1.2B|model-vision-chat-lora
Model-F16|Model-1B-q4_k_m|IQ2_XXS|-1b|1b-1b-1B|Ünïcode-1b-ß|snapshot-0a1b2c|x-12x34B|Big-1000000000B|deepseek-iter2-1b
""".strip().replace("\n", "|").split("|")  # fmt: skip

CASES: Final[dict[str, Case]] = {
    **{f"the folder {name}": Case(name) for name in NAMES},
    **{f"the folder {name} of a sparse model": Case(name, model="sparse") for name in NAMES},
    **{f"_name_or_path {name}": Case("folder-1b", config=_said(f"some-org/{name}")) for name in NAMES[:20]},
    **{f"based on {name}": Case("folder", _card(f"base_model: some-org/{name}")) for name in NAMES[:20]},
    "a small model": Case("SmolLM2-135M", model="small"),
    "a model without tensors": Case("SmolLM2-135M", model="empty"),
    "a name given": Case("SmolLM2-135M", _card("name: Card"), name="org/Given Name"),
    "an empty name given": Case("SmolLM2-135M", name=""),
    "a path in _name_or_path": Case("m-1b", config=_said("/home/me/models/x")),
    "a relative path in _name_or_path": Case("m-1b", config=_said("./Llama-3-8B")),
    "an empty _name_or_path": Case("m", config=_said("")),
    "nothing but a slash in _name_or_path": Case("m-1b", config=_said("/Llama-2-7b")),
    "a card without front matter": Case("m-1b", "# Title\n---\nname: x\n---\n"),
    "an empty card": Case("m-1b", ""),
    "empty front matter": Case("m-1b", "---\n---\n"),
    "front matter that is a list": Case("m-1b", "---\n- a\n---\n"),
    "front matter that never ends": Case("m-1b", "---\nname: Endless\nlicense: mit\n"),
    "a card with Windows line ends": Case("m-1b", b"---\r\nname: Windows\r\ntags:\r\n- no\r\n---\r\n"),
    "a card with tabs": Case("m-1b", "---\ntags:\n-\ttab\nname:\tTabbed\n---\n"),
    "a full card": Case(
        "m-1b",
        _card(
            "license: other",
            "license_name: llama3.2",
            "license_link: LICENSE",
            "language: [en, de, 'no']",
            "pipeline_tag: text-generation",
            "tags:",
            "- facebook",
            "- no",
            "- ünï",
            "base_model:",
            "- meta-llama/Llama-3.2-1B",
            "- https://huggingface.co/mistralai/Mistral-7B-v0.1",
            "- https://example.com/a/b",
            "- https://huggingface.co/a/b/c",
            "- Just A Name",
            "- local-7b-v2",
            "- {name: Own, author: Me, url: 'https://x', other: 3}",
            "- ./dots-1b",
            "- 5",
            "- null",
            "- ''",
            "datasets: [HuggingFaceTB/smol-smoltalk, 'ssh://git@x/y', c4]",
        ),
    ),
    "a card in llama.cpp's own words": Case(
        "m-1b",
        _card(
            "name: Name",
            "model_name: Other",
            "author: null",
            "model_author: Author",
            "version: v9",
            "organization: Org",
            "description: |",
            "  Two",
            "  lines",
            "finetune: Tuned Well",
            "basename: Base Name/x",
            "size_label: 1 B",
            "url: https://u",
            "model_doi: d",
            "uuid: u",
            "repo_url: r",
            "language: fr",
            "languages: [de]",
        ),
    ),
    "another converter's words": Case("m-1b", _card("model_name: N", "model_creator: C", "model_type: mistral")),
    "a list of licences": Case("m-1b", _card("license: [mit, apache-2.0]")),
    "no licence at all": Case("m-1b", _card("license: []", "license_name: ''")),
    "a base model that is null": Case("m-1b", _card("base_model:")),
    "base models that are none": Case("m-1b", _card("base_models: []", "dataset_sources: 5")),
    "the first of several words for it": Case("m-1b", _card("base_model: []", "base_models: [a/b]")),
    "tags that are years": Case("m-1b", _card("tags: [2024, 2025]", "language: [no]")),
    "tags that are nothing": Case("m-1b", _card("tags: 5", "language: {}")),
    "sampling": Case(
        "m-1b",
        generation={"temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05, "min_p": 0},
    ),
    "all of the sampling": Case(
        "m-1b",
        generation={
            "sequence": "kdypmxt",
            "top_k": -1,
            "xtc_probability": 0.1,
            "xtc_threshold": 1,
            "temperature": None,
            "penalty_last_n": 64,
            "penalty_repeat": None,
            "repetition_penalty": 1.5,
            "mirostat": True,
            "mirostat_tau": 5.0,
            "mirostat_eta": 1e-40,
        },
    ),
    "sampling that is a list": Case("m-1b", generation=[]),
}

DEEP: Final = "[" * 200_000 + "]" * 200_000
BOMB: Final = "\n".join(
    ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30))]
)
LAUGHS: Final = "\n".join(["a0: &a0 [lol]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])
HOSTILE: Final[dict[str, Case]] = {
    "a number for a name": Case("m-1b", _card("name: 1.0")),
    "a date for a version": Case("m-1b", _card("version: 2024-01-01")),
    "a date that is none": Case("m-1b", _card("version: 2024-13-45")),
    "an object for a licence": Case("m-1b", _card("license: {a: b}")),
    "mixed tags": Case("m-1b", _card("tags: [a, 1, [x], {y: z}, null, 2024-01-01]")),
    "a tag that no integer holds": Case("m-1b", _card("tags: [99999999999999]")),
    "text in a base model that is none": Case("m-1b", _card("base_model: {name: [1]}", "datasets: [{name: 5}]")),
    "front matter that is no YAML": Case("m-1b", _card("a: b: c", "- [")),
    "YAML that builds objects": Case("m-1b", _card("name: !!python/object/apply:os.system ['true']")),
    "YAML tags that do not fit": Case("m-1b", _card("name: !!int ''", "b: !!bool x", "c: !!float z")),
    "deep YAML": Case("m-1b", _card(f"a: {DEEP}")),
    "deep YAML in blocks": Case("m-1b", _card("- " * 100_000)),
    "tables merged into tables": Case("m-1b", _card(BOMB)),
    "lists of lists of lists": Case("m-1b", _card(LAUGHS, "tags: *a29", "base_model: *a29")),
    "a list that holds itself": Case("m-1b", _card("tags: &t [*t]", "base_model: &b [*b, {name: *b}]")),
    "an integer of a million digits": Case("m-1b", _card("version: 1" + "0" * 1_000_000)),
    "sexagesimals": Case("m-1b", _card("version: 1" + ":59" * 100_000)),
    "half a character": Case("m-1b", _card('name: "\\uD800"'), config=_said("\ud800-1b")),
    "nothing, as a number": Case("m-1b", _card("version: 0", "name: false")),
    "an integer in base 16": Case("m-1b", _card("version: 0x" + "f" * 100_000)),
    "a huge card": Case("m-1b", _card("name: N", f"x: {'y' * (5 << 20)}")),
    "a card that is not UTF-8": Case("m-1b", b"---\nname: \xff\n---\n"),
    "a config that is a list": Case("m-1b", config=[1]),
    "a number in _name_or_path": Case("m-1b", config={"_name_or_path": 5}),
    "a list in _name_or_path": Case("m-1b", config={"_name_or_path": []}),
    "sampling of the wrong types": Case(
        "m-1b", generation={"top_k": 5.5, "top_p": "x", "temperature": 1e300, "sequence": [1], "mirostat": 1 << 40}
    ),
    "sampling that is a number": Case("m-1b", generation=5),
    "ten thousand base models": Case("m-1b", _card("base_model: [" + "a, " * 10_000 + "b]")),
}


EMPTY: Final = {
    "a config that is a list",
    "a list in _name_or_path",
    "sampling that is a number",
    "nothing, as a number",
}


def _lay_out(case: Case, folder: Path) -> Path:
    made = folder / case.folder
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(case.config))
    if case.generation is not None:
        (made / "generation_config.json").write_text(json.dumps(case.generation))
    if case.card is not None:
        (made / "README.md").write_bytes(case.card if isinstance(case.card, bytes) else case.card.encode())
    return made


Answer = tuple[Path, str, dict[str, bytes] | str]  # folder, file name, bytes of each key or why there are none


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    root = tmp_path_factory.mktemp("general")
    cases = list(CASES.items())
    folders = [_lay_out(case, root / f"{number}") for number, (_, case) in enumerate(cases)]
    outs = [root / f"{number}" / "out" for number in range(len(cases))]
    for out in outs:
        out.mkdir()
    asked = zip(folders, (MODELS[case.model] for _, case in cases), (case.name for _, case in cases), outs, strict=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ORACLE, upstream.llama_cpp_source()],
        input=json.dumps([[str(folder), tensors, name, str(out)] for folder, tensors, name, out in asked]),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: dict[str, Answer] = {}
    for (title, _), folder, out, (name, error) in zip(cases, folders, outs, json.loads(done.stdout), strict=True):
        answers[title] = folder, name, error or _keys(out / "keys.gguf")
    return answers


def _keys(path: Path) -> dict[str, bytes]:
    found = read_header(path).entries
    return {key: each.raw for key, each in found.items() if key.startswith("general.") and key not in OTHERS}


def _ours(case: Case, folder: Path) -> tuple[str, dict[str, bytes]]:
    general = read_general(folder, count_parameters(MODELS[case.model].items()), case.name)
    return default_name(general, "q8_0"), {each.key: each.raw for each in entries(general)}


@pytest.mark.parametrize("title", CASES)
def test_keys_their_types_their_order_and_the_file_name_are_upstreams(title: str, upstreams: dict[str, Answer]) -> None:
    folder, name, keys = upstreams[title]
    assert isinstance(keys, dict), keys
    ours = _ours(CASES[title], folder)
    assert ours == (name, keys)
    assert list(ours[1]) == list(keys)


@pytest.mark.parametrize("title", HOSTILE)
def test_what_upstream_stumbles_over_is_passed_over_with_a_note(title: str, tmp_path: Path) -> None:
    folder = _lay_out(HOSTILE[title], tmp_path)
    general = read_general(folder, ParameterCounts(10**9, 10**9, 0, 0))
    assert len(entries(general)) < 5000
    assert default_name(general, "f16").endswith("-F16.gguf")
    assert bool(general.notes) == (title not in EMPTY)
    assert all(len(note) < 400 and "\n" not in note for note in general.notes)


def test_a_file_name_never_leaves_its_folder_and_always_fits(tmp_path: Path) -> None:
    cards = {
        "a": ("size_label: ../../../etc/x", "version: /v", "finetune: ../t"),
        "b": (f"basename: {'ü' * 300}",),
        "c": (f"finetune: {'é' * 300}", f"version: {'x' * 300}"),
        "d": ('name: "a\\0b\\nc\\e[31m"',),
    }
    for number, lines in cards.items():
        folder = _lay_out(Case("m", _card(*lines)), tmp_path / number)
        name = default_name(read_general(folder, ParameterCounts(0, 0, 0, 0)), "f16")
        assert Path(name).name == name
        assert len(name.encode()) <= 255
        assert name.endswith("-F16.gguf")
        (tmp_path / name).touch()
        assert name.isprintable()


def test_files_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    (tmp_path / "generation_config.json").symlink_to("nowhere")
    general = read_general(tmp_path, ParameterCounts(0, 0, 0, 0), "x")
    assert len(general.notes) == 1
    assert "README.md is not a regular file" in general.notes[0]


def test_a_folder_given_as_a_dot_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream calls such a model nothing, and its file `-1.0B-F16.gguf`."""
    (tmp_path / "Llama-3.2-1B").mkdir()
    monkeypatch.chdir(tmp_path / "Llama-3.2-1B")
    assert default_name(read_general(Path(), ParameterCounts(10**9, 10**9, 0, 0)), "f16") == "Llama-3.2-1B-F16.gguf"


@pytest.mark.parametrize(
    ("toy", "name", "outtype"),
    [
        ("llama", "Llama-3.2-1B-Instruct", "f16"),
        ("mixtral", "Mixtral-8x7B-Instruct-v0.1", "f32"),
        ("qwen3moe", "toy", "auto"),
    ],
)
def test_a_whole_conversion_by_upstream_says_the_same(
    toy: str, name: str, outtype: str, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / name
    shutil.copytree(toy_folder(toy), checkpoint, ignore=shutil.ignore_patterns("*.gguf"))
    (checkpoint / "README.md").write_text(_card("license: mit", "base_model: org/Base-7B-v2", "tags: [x, y]"))
    (checkpoint / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "repetition_penalty": 1.1}))
    out = tmp_path / "out"
    out.mkdir()
    upstream.convert(checkpoint, out, outtype)
    (written,) = out.iterdir()
    header = read_header(written)
    tensors = [(each.name, each.dims[::-1]) for each in header.tensors.values()]
    general = read_general(checkpoint, count_parameters(tensors))
    assert {each.key: each.raw for each in entries(general)} == _keys(written)
    assert [each.key for each in entries(general)] == list(_keys(written))
    assert default_name(general, written.stem.rpartition("-")[2]) == written.name
