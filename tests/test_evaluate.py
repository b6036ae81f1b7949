"""`eval`: what it prints and writes, what it refuses, and figures that can be known without it."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.command import run
from tests.llama_logits import llama_logits
from tests.test_docs import documented, field_names
from yarn_gguf.demo import demo_model
from yarn_gguf.models import Opening, open_model
from yarn_gguf.tasks.chants import chant
from yarn_gguf.tasks.prompts import TASKS, make
from yarn_gguf.tasks.words import LISTED, SAYINGS

BASE = demo_model("base")
TASK_OPTIONS = {
    "passkey": ("--samples", "1", "--depths", "2"),
    "copy": ("--samples", "1", "--depths", "0.5"),
    "ppl": ("--tokens", "64"),
    "sensitivity": ("--samples", "1"),
    "entropy": ("--samples", "1"),
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "base.gguf"
    assert run("convert", BASE, "-o", out, "--outtype", "f32").code == 0
    return out


def test_documented_json_fields_are_the_real_ones(gguf: Path) -> None:
    found: set[str] = set()
    for task, options in TASK_OPTIONS.items():
        model = BASE if task == "entropy" else gguf
        done = run("eval", task, model, "--ctx", "128", *options, "--json")
        assert (done.code, done.err) == (0, ""), done
        found |= field_names(done.json)
    assert found == documented("## `eval … --json`") | {"schema"}


@pytest.mark.parametrize("task", ["passkey", "copy"])
def test_a_prompt_fills_its_length_and_its_answer_is_what_the_needle_says(task: str) -> None:
    with open_model(BASE, Opening(1024, threads=1)) as session:
        longest = max(len(session.tokenize(f" {saying}")) for saying in SAYINGS)
        for number, depth in enumerate((0.0, 0.3, 1.0)):
            prompt = make(TASKS[task], session.tokenize, length=500, depth=depth, random=Random(number))
            assert 500 - longest < len(prompt.tokens) <= 500
            answer = session.text_of(prompt.tokens[prompt.start :]).decode()
            before = session.text_of(prompt.tokens[1 : prompt.start]).decode()
            assert before.count(answer.strip()) == (2 if task == "passkey" else 1)
            needle = len(session.tokenize(before[: before.index(answer.strip())]))
            assert prompt.distance >= prompt.start - needle, "the needle begins no later than the answer in it"


def test_perplexity_is_that_of_an_independent_reader(gguf: Path, tmp_path: Path) -> None:
    """One window over the whole text: −Σ log p of its last tokens, from logits that a child of the tests reads."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join([*SAYINGS] * 12), encoding="utf-8")
    done = run("eval", "ppl", gguf, "--ctx", "129", "--tokens", "64", "--stride", "64", "--text", text, "--json")
    assert done.code == 0, done.err
    (found,) = done.json["models"][0]["results"]
    with open_model(gguf, Opening(256, threads=1)) as session:
        tokens = session.tokenize(text.read_text(encoding="utf-8"))
    window = np.concatenate([tokens[:1], tokens[1:][129 + 64 - 128 : 129 + 64]])
    logits = llama_logits(gguf, window).astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    logs -= logits.max(axis=1, keepdims=True)
    last = np.arange(len(window) - 65, len(window) - 1)
    assert found["nll"] == pytest.approx(-logs[last, window[last + 1]].mean(), rel=1e-5)
    assert found["ppl"] == pytest.approx(math.exp(found["nll"]))


def test_llama_cpp_and_transformers_get_the_same_figures(gguf: Path) -> None:
    for task, name in (("copy", "score"), ("passkey", "score"), ("ppl", "ppl"), ("sensitivity", "change")):
        done = run("eval", task, gguf, BASE, "--ctx", "200", *TASK_OPTIONS[task], "--json")
        ours, theirs = ([result[name] for result in model["results"]] for model in done.json["models"])
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-5), task  # abs: what float32 leaves of logits of 20


def test_a_token_out_of_sight_changes_nothing(tmp_path: Path) -> None:
    """Two layers that look 16 tokens back see 30 back, and nothing beyond."""
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = MistralConfig(vocab_size=1280, num_hidden_layers=2, sliding_window=16, bos_token_id=0, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path)
    done = run("eval", "sensitivity", tmp_path, "--ctx", "128", "--samples", "1", "--json")
    changes = {result["distance"]: result["change"] for result in done.json["models"][0]["results"]}
    assert all(change > 0 for distance, change in changes.items() if distance <= 16), changes
    assert all(change == 0 for distance, change in changes.items() if distance > 30), changes


def test_attention_that_looks_evenly_has_the_entropy_of_its_span(tmp_path: Path) -> None:
    """Queries of zero: position n looks at n + 1 tokens alike, ln(n + 1)."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path)
    done = run("eval", "entropy", tmp_path, "--ctx", "100", "--samples", "1", "--json")
    for result in done.json["models"][0]["results"]:
        even = np.mean([math.log(n + 1) for n in range(result["first"], result["end"])])
        assert result["entropy"] == pytest.approx(even, abs=1e-5)


def test_rope_options_scale_a_checkpoint(tmp_path: Path) -> None:
    scaled = tmp_path / "yarn.gguf"
    run("convert", BASE, "-o", scaled, "--outtype", "f32", "--factor", "8")
    options = ("--ctx", "600", "--tokens", "64", "--json")
    plain, yarn, file = (
        run("eval", "ppl", *arguments, *options).json["models"][0]["results"][0]["ppl"]
        for arguments in ((BASE,), (BASE, "--factor", "8"), (scaled,))
    )
    assert yarn == pytest.approx(file, rel=1e-4)
    assert plain > 1.5 * yarn


def test_pictures_and_pages_are_whole(gguf: Path, tmp_path: Path) -> None:
    for task, options in TASK_OPTIONS.items():
        model = BASE if task == "entropy" else gguf
        plot, page = tmp_path / f"{task}.svg", tmp_path / f"{task}.html"
        done = run("eval", task, model, "--ctx", "96,128", *options, "--plot", plot, "--html", page)
        assert done.code == 0, done.err
        assert str(plot) in done.out and str(page) in done.out
        assert ET.parse(plot).getroot().tag.endswith("svg")
        text = page.read_text(encoding="utf-8")
        assert text.count("<svg") == 1 and "http://" not in text.replace("http://www.w3.org", "")
        assert model.name in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("passkey", "MODEL", "--depths", "2,x"), 2, "neither a number of depths"),
        (("passkey", "MODEL", "--depths", "0,1.5"), 2, "from 0 (the beginning) to 1"),
        (("passkey", "MODEL", "--ctx", "20"), 2, "does not fit a context of 20"),
        (("passkey", "MODEL", "--ctx", "8k,"), 2, "is not a number of tokens"),
        (("passkey", "MODEL", "--factor", "8"), 2, "rope options are for Hugging Face folders"),
        (("passkey", "MODEL", "--runtime", "nowhere"), 3, "holds no"),
        (("passkey", "MODEL", "--plot", "a.txt"), 2, "--plot draws"),
        (("passkey", "nowhere.gguf"), 3, "nowhere.gguf"),
        (("entropy", "MODEL"), 2, "does not show its attention"),
        (("ppl", "MODEL", "--ctx", "128", "--text", "SHORT"), 3, "but 2176 tokens are needed"),
        (("ppl", "MODEL", "--ctx", "128", "--text", "NOWHERE"), 4, "NOWHERE"),
        (("sensitivity", "MODEL", "--ctx", "2"), 2, "too short"),
        (("copy",), 2, "Missing argument"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    gguf: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A short text.", encoding="utf-8")
    names = {"MODEL": str(gguf), "SHORT": str(short), "NOWHERE": str(tmp_path / "NOWHERE")}
    done = run("eval", *(names.get(each, each) for each in arguments))
    assert done.code == code, done
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""


def test_a_chant_can_be_known_where_it_says_so() -> None:
    said, known = chant(Random(3), 400, LISTED[:20], (5, 9))
    after: dict[str, set[str]] = {}  # a jump makes another one follow, once in a while
    for before, word, sure in zip(said, said[1:], known[1:], strict=False):
        assert not sure or word in after[before]
        after.setdefault(before, set()).add(word)
    assert sum(known) > 200


def test_no_word_is_both_listed_and_said() -> None:
    from yarn_gguf.tasks.text import Mix, document

    text = document(Random(0), 3000, Mix(list=0))
    assert not set(LISTED) & set(text.replace(".", " ").split())
    assert len(set(LISTED)) == len(LISTED)


def test_json_of_two_runs_is_the_same(gguf: Path) -> None:
    one, other = (run("eval", "copy", gguf, "--ctx", "128", "--depths", "0,1", "--json").json for _ in range(2))
    for each in (one, other):
        del each["models"][0]["seconds"]
    assert json.dumps(one) == json.dumps(other)
