"""`yarn-gguf run`: what it says is what transformers says, at every length; and it says whatever it did about RoPE.

The models are those of the demo, as float32 files: `base` knows 256 tokens, `yarn8` 2048 by YaRN.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has none
import pytest

from yarn_gguf.demo import demo_model
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.tasks.text import Mix, document

from .built import patched
from .command import COMMAND, Done, environment, run

pytestmark = pytest.mark.slow

EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--temp", "0", "--threads", "1")
OPENING = "The old man walked"
File = Callable[..., Path]


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """(model, options of `extend` …) -> its float32 GGUF. Not to be written to."""
    folder = tmp_path_factory.mktemp("run")

    def made(model: str, *options: str) -> Path:
        out = folder / f"{'-'.join((model, *options))}.gguf".replace("/", "_")
        if not out.exists():
            plain = demo_model(model) if not options else made(model)
            words: tuple[str | Path, ...] = ("convert", plain, "--outtype", "f32")
            words = ("extend", plain, *options) if options else words
            done = run(*words, "-o", out)
            assert done.code == 0, done.err
        return out

    return made


@cache
def text_of(tokens: int, seed: int = 3) -> str:
    """About so many tokens of what the models were trained on."""
    return document(Random(seed), tokens, Mix())


@cache
def _transformers(model: str, factor: float) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(demo_model(model))
    if factor > 1:
        config.rope_parameters = {
            **config.rope_parameters,
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": 256,
        }
        config.max_position_embeddings = int(256 * factor)
    made = AutoModelForCausalLM.from_pretrained(demo_model(model), config=config, dtype=torch.float32)
    return made.eval(), AutoTokenizer.from_pretrained(demo_model(model))


def greedy(model: str, ids: Sequence[int], count: int, factor: float = 0) -> list[int]:
    """The tokens that transformers goes on with, each the most probable one; without the one that ends a text."""
    import torch

    found, _ = _transformers(model, factor)
    given = torch.tensor([list(ids)])
    out = found.generate(given, max_new_tokens=count, do_sample=False, attention_mask=torch.ones_like(given))
    new = [int(each) for each in out[0, len(ids) :]]
    return new[:-1] if new and new[-1] == found.config.eos_token_id else new


def encoded(text: str, model: str = "yarn8") -> list[int]:
    tokenizer = _transformers(model, 0)[1]
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def decoded(tokens: Sequence[int]) -> str:
    found: str = _transformers("yarn8", 0)[1].decode(list(tokens), skip_special_tokens=False)
    return found


def spoken(path: Path, *arguments: str | Path) -> Done:
    done = run("run", path, *EXACT, *arguments, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    return done


# ---- what is said


@pytest.mark.parametrize("length", [8, 250, 1500])
def test_the_most_probable_text_is_that_of_transformers(length: int, file: File, tmp_path: Path) -> None:
    """Within the original context, across its end, and far beyond it."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text_of(length) + "\n", encoding="utf-8")
    found = spoken(file("yarn8"), "-f", prompt, "-n", "48").json
    ids = encoded(text_of(length))
    assert found["prompt"]["tokens"] == len(ids)
    assert found["tokens"] == greedy("yarn8", ids, 48)
    assert found["text"] == decoded(found["tokens"])


def test_other_rope_settings_would_say_something_else(file: File) -> None:
    """The comparison above is worth something: the same prompt, without the scaling."""
    ids = encoded(text_of(1500))
    assert greedy("yarn8", ids, 48) != greedy("yarn8", ids, 48, factor=1.0001)


@pytest.mark.parametrize(("context", "factor"), [(256, 0), (512, 2), (700, 3), (2048, 8)])
@pytest.mark.parametrize("patch", [False, True])
def test_a_dynamic_file_speaks_as_transformers_does_with_the_factor_of_the_context(
    context: int, factor: int, patch: bool, file: File
) -> None:
    path, text = file("base", "--factor", "8", "--dynamic"), text_of(context // 2)
    library = ("--runtime", patched()) if patch else ()
    found = spoken(path, "--ctx", str(context), "-p", text, "-n", "32", *library).json
    scaling = found["scaling"]
    assert (scaling["method"], scaling["factor"]) == (("yarn", factor) if factor else ("none", 1))
    assert found["runtime"] == ("patched" if patch else "stock")
    assert found["tokens"] == greedy("base", encoded(text, "base"), 32, factor)
    assert bool(scaling["overridden"]) is (not patch and factor != 8)


def test_a_longer_context_than_the_files_is_had_by_yarn_and_said(file: File) -> None:
    text = text_of(600)
    found = spoken(file("base"), "-c", "1k", "-p", text, "-n", "32").json
    assert (found["scaling"]["method"], found["scaling"]["factor"]) == ("yarn", 4)
    assert [each["code"] for each in found["findings"]] == ["overridden"]
    assert found["tokens"] == greedy("base", encoded(text, "base"), 32, 4)
    said = run("run", file("base"), *EXACT, "-c", "1k", "-p", text, "-n", "2").err
    assert said.startswith("note: opened with yarn ×4 over 256 (--ctx 1024)")
    assert "no file changed" in said


def test_without_a_context_there_is_room_for_the_prompt_and_the_reply(file: File) -> None:
    path = file("base", "--factor", "16", "--dynamic")
    assert spoken(path, "-p", text_of(200), "-n", "8").json["context"] == 4096  # the file's own, and no more
    assert spoken(file("yarn8"), "-p", OPENING, "-n", "8").json["context"] == 2048


def test_the_text_comes_while_it_is_made_and_is_the_same_as_in_json(file: File) -> None:
    words = ("run", file("yarn8"), *EXACT, "-p", OPENING, "-n", "1500", "--ignore-eos")
    whole = spoken(*words[1:]).json["text"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None and process.stderr is not None
    first = os.read(process.stdout.fileno(), 1 << 16)
    running = process.poll() is None
    rest, said = process.communicate()
    assert running and 0 < len(first) < len(whole.encode())
    assert (first + rest).decode("utf-8") == whole + ("" if whole.endswith("\n") else "\n")
    assert said.decode().startswith("prompt ")


def test_any_part_of_a_split_set_is_the_model(file: File, tmp_path: Path) -> None:
    words = ("--outtype", "f32", "--split-max-size", "2M", "-o", tmp_path / "split.gguf")
    assert run("convert", demo_model("yarn8"), *words).code == 0
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    for part in (parts[0], parts[2]):
        assert spoken(part, "-p", OPENING, "-n", "8").json["tokens"] == greedy("yarn8", encoded(OPENING), 8)


def test_standard_input_is_a_prompt(file: File) -> None:
    process = subprocess.run(
        [*COMMAND, "run", str(file("yarn8")), "-", *EXACT, "-n", "8", "--json"],
        input=f"{OPENING}\n".encode(),
        capture_output=True,
        env=environment(),
        check=True,
    )
    assert Done(0, process.stdout.decode(), "").json["tokens"] == greedy("yarn8", encoded(OPENING), 8)


def test_characters_are_whole_whatever_tokens_they_are_made_of(file: File) -> None:
    """At a great temperature any token comes: many are a byte of a character, few make one."""
    split, bytes_of = 0, _alphabet()
    for seed in range(3):
        sampled = ("--temp", "1000", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", str(seed))
        found = spoken(file("yarn8"), "-p", OPENING, "-n", "1500", "--ignore-eos", *sampled).json
        pieces = [bytes_of[token] for token in found["tokens"]]
        assert found["text"] == b"".join(pieces).decode("utf-8", "replace")
        alone = "".join(piece.decode("utf-8", "replace") for piece in pieces)
        split += alone.count("\ufffd") - found["text"].count("\ufffd") if len(set(found["tokens"])) > 500 else 0
    assert split > 0


def _alphabet() -> list[bytes]:
    """What each byte-level token stands for, by the alphabet of GPT-2; special ones are no text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = _transformers("yarn8", 0)[1]
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return [b"" if word in special else bytes(back[letter] for letter in word) for word in words]


def test_a_seed_says_the_same_again_and_another_seed_does_not(file: File) -> None:
    def said(seed: int) -> list[int]:
        words = ("-p", OPENING, "-n", "40", "--temp", "3", "--top-k", "0", "--seed", str(seed))
        found: list[int] = spoken(file("yarn8"), *words).json["tokens"]
        return found

    assert said(1) == said(1) != said(2)


# ---- figures


def test_speeds_and_memory_are_those_of_the_work(file: File) -> None:
    path = file("yarn8")
    short = spoken(path, "-p", text_of(1500), "-n", "64", "--ignore-eos").json
    for part in ("prompt", "generation"):
        speed = short[part]
        assert speed["seconds"] > 0
        assert speed["tokens_per_second"] == pytest.approx(speed["tokens"] / speed["seconds"])
    assert short["generation"]["tokens"] == len(short["tokens"]) == 64
    taken = {each["what"]: each["bytes"] for each in short["memory"]["buffers"]}
    weights = sum(tensor.size for _, tensor in read_model(path).tensors.values())
    assert taken["model"] == pytest.approx(weights, rel=0.01)
    assert taken["KV"] == 2 * 2 * 256 * 4 * 2048  # keys and values, layers, numbers, bytes, tokens
    assert short["memory"]["process"] > weights


def test_memory_grows_by_the_cache_of_a_longer_context(file: File) -> None:
    """llama.cpp clears a cache when it is made, so all of it is touched."""
    path = file("base", "--factor", "256")
    found = [spoken(path, "-p", OPENING, "-n", "1", "-c", size).json["memory"] for size in ("1k", "64k")]
    caches = [next(each["bytes"] for each in one["buffers"] if each["what"] == "KV") for one in found]
    assert caches == [4096 * 1024, 4096 * 65536]
    # besides the cache, what a longer mask takes in the compute buffer
    assert 1.0 <= (found[1]["process"] - found[0]["process"]) / (caches[1] - caches[0]) <= 1.4


def test_a_quantized_cache_is_smaller(file: File) -> None:
    words = ("run", file("yarn8"), "-p", OPENING, "-n", "4", "-ctk", "q8_0", "-ctv", "q4_0", "-fa", "on", "--json")
    done = run(*words)
    assert done.code == 0, done
    cache = next(each["bytes"] for each in done.json["memory"]["buffers"] if each["what"] == "KV")
    assert cache == pytest.approx(2 * 256 * 2048 * (34 + 18) / 32, rel=0.01)


def test_the_line_at_the_end_has_speeds_memory_and_scaling(file: File) -> None:
    done = run("run", file("yarn8"), *EXACT, "-p", OPENING, "-n", "4")
    (line,) = done.err.splitlines()
    known = ("prompt 8 tokens (", " tokens/s); generated 4 tokens (", "; memory ", " MiB; ")
    assert all(part in line for part in known) and line.endswith("yarn ×8 over 256, context 2048")


# ---- a full context


BEYOND = ("-p", OPENING, "-n", "600", "-c", "256", "--ignore-eos")


def test_a_shift_that_would_spoil_the_cache_is_refused_before_a_word_is_said(file: File) -> None:
    done = run("run", file("yarn8"), *EXACT, *BEYOND)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert "a context shift of this llama.cpp multiplies cached keys by 1.208 each time" in line
    assert "--allow-shift" in line and "--runtime patched" in line


def test_a_shift_that_was_allowed_is_done_with_a_warning(file: File) -> None:
    done = run("run", file("yarn8"), *EXACT, *BEYOND, "--allow-shift", "--json")
    assert (done.code, done.json["shifts"], len(done.json["tokens"])) == (0, 3, 600)
    assert [(each["level"], each["code"]) for each in done.json["findings"]] == [("warning", "context_shift")]


def test_a_shift_is_done_where_it_spoils_nothing(file: File) -> None:
    """An unscaled cache on stock, a scaled one on the patched library, a dynamic file that needs no scaling."""
    dynamic = file("base", "--factor", "8", "--dynamic")
    for path, library in ((file("base"), ()), (file("yarn8"), ("--runtime", patched())), (dynamic, ())):
        found = spoken(path, *BEYOND, *library).json
        assert (found["shifts"], len(found["tokens"]), found["stop"]) == (3, 600, "length")


def test_both_libraries_say_the_same_until_the_first_shift(file: File) -> None:
    """From there on stock's cache is spoiled, and the texts may part."""
    stock = run("run", file("yarn8"), *EXACT, *BEYOND, "--allow-shift", "--json").json["tokens"]
    exact = spoken(file("yarn8"), *BEYOND, "--runtime", patched()).json["tokens"]
    assert stock[:248] == exact[:248]


def test_without_a_number_of_tokens_a_text_ends_with_its_context(file: File) -> None:
    found = spoken(file("yarn8"), "-p", OPENING, "-c", "256", "--ignore-eos").json
    assert (found["stop"], found["shifts"]) == ("context", 0)
    assert len(found["tokens"]) == 256 - found["prompt"]["tokens"] + 1


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no text to go on with: give -p TEXT, -f FILE, or - for standard input"),
        (("-p", ""), 2, "the text to go on with is empty"),
        (("-p", "a", "-f", "b"), 2, "-p and -f both bring a text"),
        (("-p", "a", "-"), 2, "-p and - both bring a text"),
        (("text",), 2, "'text' is no text to go on with"),
        (("-f", "nowhere.txt"), 3, "nowhere.txt: no such file"),
        (("-p", "a", "-ctk", "q3_0"), 2, "'q3_0' is not one of"),
        (("-p", "a", "-ngl", "most"), 2, "'most' is neither a number of layers nor auto or all"),
        (("-p", "a", "--top-p", "1.5"), 2, "--top-p is a probability"),
        (("-p", "a", "--repeat-penalty", "0"), 2, "--repeat-penalty must be above 0"),
        (("-p", "a", "--temp", "nan"), 2, "--temp must be a number"),
        (("-p", "a", "--system", "b"), 2, "--system is for --chat"),
        (("-p", "a", "--chat-template", "{{ a }}"), 2, "--chat-template is for --chat and --serve"),
        (("-p", "a", "--port", "99"), 2, "--port has no effect without --serve"),
        (
            ("--serve", "--temp", "0", "-n", "5"),
            2,
            "--temp: not for --serve; each request brings its own",
        ),
        (("-p", "a", "-t", "513"), 2, "513 is not in the range 1<=x<=512"),
        (("-p", "a", "-ctv", "q8_0", "-fa", "off"), 2, "values in q8_0 need flash attention"),
        (("--serve", "-ctv", "q8_0", "-fa", "off"), 2, "values in q8_0 need flash attention"),
        (("-p", "a", "--chat"), 3, "has no chat template"),
        (("-p", "a", "--runtime", "nowhere"), 3, "holds no libllama.so"),
        (("--serve", "-p", "a"), 2, "--serve takes no text"),
        (("-p", "a", "--ctx", "0"), 2, "is not a whole number of tokens"),
        (("-p", "a", "--rpc", "localhost"), 2, "HOST:PORT is needed"),
        (("-p", "a", "-ts", "0,0"), 2, "is no list of proportions"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: Sequence[str], code: int, said: str, file: File) -> None:
    done = run("run", file("yarn8"), *words)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.count("\n") == 1 and said in done.err, done.err


def test_a_prompt_that_is_not_utf_8_or_too_long_is_one_line(file: File, tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"good \xff bad")
    (tmp_path / "long.txt").write_text(text_of(600), encoding="utf-8")
    done = run("run", file("yarn8"), "-f", tmp_path / "bytes.txt")
    assert done.code == 3 and "is not UTF-8 at byte 5" in done.err
    done = run("run", file("yarn8"), "-f", tmp_path / "long.txt", "-c", "256")
    assert done.code == 2 and "tokens, the context 256; give a larger --ctx" in done.err
    done = run("run", demo_model("base"), "-p", "a")
    assert done.code == 2 and "is a checkpoint, and run opens GGUFs; yarn-gguf convert makes one" in done.err
    done = run("run", tmp_path / "long.txt", "-p", "a")
    assert done.code == 3 and "a GGUF file starts with" in done.err


def test_what_changes_nothing_here_is_said(file: File) -> None:
    done = run("run", file("base"), *EXACT, "-p", "a", "-n", "1", "-ngl", "99", "-ts", "1,1")
    assert done.code == 0
    assert "-ngl and -ts have no effect: this llama.cpp computes on no GPU here" in done.err
    assert "generated 1 token;" in done.err or "generated 1 token (" in done.err


def test_a_factor_beyond_what_was_ever_published_is_warned_of(file: File) -> None:
    done = run("run", file("base"), *EXACT, "-p", "a", "-n", "1", "-c", "10000")
    assert done.code == 0 and "a factor of 39.0625 is beyond 32" in done.err
    assert "beyond 32" not in run("run", file("base"), *EXACT, "-p", "a", "-n", "1", "-c", "8192").err
    file_of_that = file("base", "--factor", "40")  # of a model that was trained so, for all we know
    assert "beyond 32" not in run("run", file_of_that, *EXACT, "-p", "a", "-n", "1").err


def test_a_context_is_one_factor_whoever_is_asked(file: File, tmp_path: Path) -> None:
    """`run`, `flags` and `extend`: 1000 of 256, also where llama.cpp opens 1024."""
    asked = ("--ctx", "1000")
    ran = run("run", file("base"), *EXACT, "-p", "a", "-n", "1", *asked, "--json").json["scaling"]["factor"]
    told = run("flags", file("base"), "--for", "llama-cli", *asked, "--json").json["rope"]["factor"]
    written = run("extend", file("base"), *asked, "--dry-run", "--json").json
    assert ran == told == 1000 / 256
    assert "3.90625" in json.dumps(written)


def test_a_context_beyond_what_can_be_is_one_line(file: File) -> None:
    done = run("run", file("base"), "-p", "a", "-c", "1000M")
    assert done.code == 4 and "a context of 1048576000 tokens takes 2.9 TiB of memory" in done.err, done


# ---- how it ends


def started(path: Path, *more: str | Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A run that never ends by itself, once its first words are there; with its children."""
    words = ("run", path, *EXACT, "-p", OPENING, "-n", "10000000", "-c", "256", "--ignore-eos", *more)
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_no_process(number: int, code: int, file: File) -> None:
    process, children = started(file("base"))
    assert children and process.stdout is not None
    process.stdout.read(50)  # several tokens
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code
    line, last = said.decode().splitlines()
    assert re.match(r"generated \d+ tokens \(\d+\.\d tokens/s\); no scaling, context 256; broken off", line), line
    assert last == f"stopped by {signal.Signals(number).name}"  # no file was being written
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_child_that_dies_is_exit_5_with_its_signal(file: File) -> None:
    process, (child,) = started(file("base"))
    child.kill()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 5
    assert said.decode().endswith("llama.cpp ended with signal SIGKILL\n")  # what it said before is no cause
    assert said.decode().strip().count("\n") == 0


def test_a_parent_that_is_killed_takes_its_child_along(file: File) -> None:
    process, children = started(file("base"))
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_nobody_who_reads_ends_it_quietly(file: File) -> None:
    """`yarn-gguf run … | head -c 1`"""
    process, children = started(file("base"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 141 and said == b""
    assert not psutil.wait_procs(children, timeout=5)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_on_a_terminal_it_is_a_conversation(file: File) -> None:
    import pty

    master, slave = pty.openpty()
    words = [*COMMAND, "run", str(file("yarn8")), *EXACT, "-n", "8"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment(), close_fds=True)
    os.close(slave)
    shown = _until(master, "> ")
    assert "/exit or Ctrl-D ends the conversation" in shown
    os.write(master, f"{OPENING}\n".encode())
    shown = _until(master, "context 2048")
    first = decoded(greedy("yarn8", encoded(OPENING), 8))
    assert first.strip().splitlines()[0] in shown
    os.write(master, b"/exit\n")
    assert process.wait(20) == 0
    os.close(master)


def _until(descriptor: int, text: str, seconds: float = 30) -> str:
    found, end = "", time.monotonic() + seconds
    while text not in found and time.monotonic() < end:
        found += os.read(descriptor, 1 << 12).decode("utf-8", "replace")
    assert text in found, found
    return found


def test_the_settings_of_llama_cpp_python_do_not_creep_in(file: File) -> None:
    """Betas that its Llama class would override: the text is that of the session which `verify` holds exact."""
    path = file("base", "--factor", "8", "--beta-fast", "4", "--beta-slow", "2", "--encoding", "keys")
    found = spoken(path, "-p", text_of(900), "-n", "24").json
    assert found["scaling"]["overridden"] == {"yarn_beta_fast": 4.0, "yarn_beta_slow": 2.0}
    assert found["scaling"]["exact"] is True
