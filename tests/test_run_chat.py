"""`run --chat`: the prompt that a file's template makes is the one that transformers makes of the same template.

The templates are those of published models that lie in llama.cpp's sources; the vocabulary is the demo's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest

from yarn_gguf.errors import InputError
from yarn_gguf.running.session import Speaker
from yarn_gguf.runtime import LlamaSettings

from .command import COMMAND, environment, run
from .test_run import EXACT, File, _transformers, _until, decoded, file, greedy
from .upstream import llama_cpp_source

__all__ = ["file"]  # the fixture
pytestmark = pytest.mark.slow

PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
TALK = (
    {"role": "system", "content": "Be  brief.\n"},
    {"role": "user", "content": "Where is <the> key & 'lock'? é 漢"},
    {"role": "assistant", "content": "In the town."},
    {"role": "user", "content": "  Say it again.  "},
)
# each from another family, and with what else a template may need: dates, tools, JSON, macros, namespaces
PUBLISHED = (
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen-QwQ-32B",
    "google-gemma-2-2b-it",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "deepseek-ai-DeepSeek-V3.1",
    "openai-gpt-oss-120b",
    "microsoft-Phi-3.5-mini-instruct",
    "ibm-granite-granite-3.3-2B-Instruct",
    "HuggingFaceTB-SmolLM3-3B",
    "GLM-4.6",
    "NVIDIA-Nemotron-Nano-v2",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
)


def with_template(source: Path, out: Path, template: str) -> Path:
    """A copy of a GGUF with a chat template."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@cache
def published(name: str) -> str:
    return (llama_cpp_source() / "models" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def transformers_prompt(template: str, talk: tuple[dict[str, str], ...], **how: Any) -> Any:
    tokenizer = _transformers("yarn8", 0)[1]
    return tokenizer.apply_chat_template(
        list(talk), chat_template=template, add_generation_prompt=True, return_dict=False, **how
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_template_is_rendered_as_transformers_renders_it(name: str, file: File, tmp_path: Path) -> None:
    from jinja2.exceptions import TemplateError

    template = published(name)
    made = with_template(file("yarn8"), tmp_path / "chat.gguf", template)
    with Speaker(made, LlamaSettings()) as speaker:
        speaker.load_words()
        for talk in (TALK, TALK[1:], TALK[1:2]):
            try:
                wanted = transformers_prompt(template, talk, tokenize=False)
            except TemplateError as error:  # no system message in this family
                with pytest.raises(InputError, match="its chat template cannot be rendered") as refused:
                    speaker.chat(talk)
                assert str(error) in refused.value.text
                continue
            assert speaker.chat(talk) == wanted
            ids = transformers_prompt(template, talk, tokenize=True)
            assert speaker.tokenize(wanted, add_special=False, parse_special=True) == ids


def test_a_reply_is_what_transformers_replies_to_its_own_template(file: File, tmp_path: Path) -> None:
    made = with_template(file("yarn8"), tmp_path / "chat.gguf", PLAIN)
    talk = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "The old man walked"})
    done = run("run", made, *EXACT, "--chat", "-sys", "Be brief.", "-p", "The old man walked", "-n", "32", "--json")
    assert done.code == 0, done
    ids = transformers_prompt(PLAIN, talk, tokenize=True)
    assert done.json["prompt"]["tokens"] == len(ids)
    assert done.json["tokens"] == greedy("yarn8", ids, 32)


def test_a_template_that_is_given_stands_in_the_files_place(file: File, tmp_path: Path) -> None:
    """As a text and as a file; also where the file has none, or another."""
    other = with_template(file("yarn8"), tmp_path / "other.gguf", "{{ raise_exception('not this one') }}")
    (tmp_path / "plain.jinja").write_text(PLAIN, encoding="utf-8")
    talk = ({"role": "user", "content": "The old man walked"},)
    ids = transformers_prompt(PLAIN, talk, tokenize=True)
    for model, given in ((file("yarn8"), PLAIN), (other, tmp_path / "plain.jinja")):
        words = ("--chat", "--chat-template", given, "-p", "The old man walked", "-n", "16", "--json")
        found = run("run", model, *EXACT, *words).json
        assert (found["prompt"]["tokens"], found["tokens"]) == (len(ids), greedy("yarn8", ids, 16))


@pytest.mark.parametrize(
    ("template", "code", "said"),
    [
        ("{{ messages", 3, "the chat template cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}", 3, "the chat template cannot be rendered"),
        ("nowhere.jinja", 2, "is neither a file nor a Jinja template"),
    ],
)
def test_a_template_that_is_given_is_rendered_in_the_same_sandbox(
    template: str, code: int, said: str, file: File
) -> None:
    done = run("run", file("yarn8"), *EXACT, "--chat", "--chat-template", template, "-p", "hello", "-n", "1")
    assert (done.code, done.out) == (code, ""), done
    assert done.err.count("\n") == 1 and said in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_conversation_goes_on_from_what_was_said(file: File, tmp_path: Path) -> None:
    import pty

    made = with_template(file("yarn8"), tmp_path / "chat.gguf", PLAIN)
    master, slave = pty.openpty()
    words = [*COMMAND, "run", str(made), *EXACT, "--chat", "-n", "8"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment(), close_fds=True)
    os.close(slave)
    talk: tuple[dict[str, str], ...] = ()
    _until(master, "> ")
    for line in ("The old man walked", "Where is the pass key?"):
        os.write(master, f"{line}\n".encode())
        talk = (*talk, {"role": "user", "content": line})
        reply = decoded(greedy("yarn8", transformers_prompt(PLAIN, talk, tokenize=True), 8))
        shown = _until(master, "context 2048")
        assert " ".join(reply.split()) in " ".join(shown.split())
        talk = (*talk, {"role": "assistant", "content": reply})
    assert "more known already" in shown  # the cache holds the beginning
    os.write(master, b"\x04")
    assert process.wait(20) == 0
    os.close(master)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages", "cannot be rendered"),
        ("{{ raise_exception('no such role') }}", "cannot be rendered: no such role"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
        ("{{ messages.append(1) }}", "cannot be rendered"),
        ("{{ undefined_name.field }}", "cannot be rendered"),
        ("{{ 'x' * 10000000000 }}", "takes too much: MemoryError"),
    ],
)
def test_a_template_that_misbehaves_is_one_line(template: str, said: str, file: File, tmp_path: Path) -> None:
    made = with_template(file("yarn8"), tmp_path / "bad.gguf", template)
    done = run("run", made, *EXACT, "--chat", "-p", "hello", "-n", "1")
    assert (done.code, done.out) == (3, ""), done
    assert done.err.count("\n") == 1 and said in done.err


def test_a_template_that_never_ends_is_given_up(file: File, tmp_path: Path) -> None:
    loop = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    made = with_template(file("yarn8"), tmp_path / "endless.gguf", loop)
    done = run("run", made, *EXACT, "--chat", "-p", "hello", "--deadline", "3")
    assert done.code == 5 and "gave no sign of life for 3 s" in done.err
