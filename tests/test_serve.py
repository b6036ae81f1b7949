"""`run --serve`: a real server, asked over HTTP, computes what `run` and `verify` compute; and ends when it is told.

llama.cpp's own server, patched and stock, as `build --tools` makes it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # it has none
import pytest

from yarn_gguf.before import read_before
from yarn_gguf.effective import Runtime
from yarn_gguf.errors import InputError
from yarn_gguf.running.scaling import choose
from yarn_gguf.running.serving import EXTRAS, find_server
from yarn_gguf.runtime import LlamaSettings, open_llama

from .built import patched, tools
from .command import COMMAND, environment, run
from .test_docs import documented
from .test_run import BEYOND, EXACT, OPENING, File, decoded, encoded, file, greedy, text_of
from .test_run_chat import PLAIN, with_template

__all__ = ["file"]  # the fixture
pytestmark = pytest.mark.slow

CACHE = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--threads", "1")
GREEDY = {"temperature": 0}
# of log-probabilities: measured 5e-7 to 1.4e-5, as the server divides a prompt into other batches, which take other
# kernels; another beta, the nearest wrong setting here, gives 0.02 and more
CLOSE, FAR = 1e-4, 1e-3


class Served:
    """A server that is up. `document`: what `run --serve --json` said of it."""

    def __init__(self, process: subprocess.Popen[bytes], document: dict[str, Any]) -> None:
        self.process, self.document = process, document
        self.children = psutil.Process(process.pid).children(recursive=True)

    def ask(self, path: str, **body: Any) -> Any:
        host, port = self.document["url"].removeprefix("http://").split(":")
        line = http.client.HTTPConnection(host, int(port), timeout=60)
        sent = json.dumps(body) if body else None
        line.request("POST" if body else "GET", path, sent, {"Content-Type": "application/json"})
        answer = line.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        line.close()
        return found

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said.decode()


@contextmanager
def served(path: Path, *more: str | Path, runtime: str | Path | None = None, **env: str) -> Iterator[Served]:
    words = [*COMMAND, "run", path, "--serve", "--port", "0", *CACHE, "--json"]
    process = subprocess.Popen(
        [*map(str, words), "--runtime", str(runtime or tools()), *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**env),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate())
    found = Served(process, json.loads(line))
    try:
        yield found
    finally:
        if process.poll() is None:
            found.stop()
        assert not psutil.wait_procs(found.children, timeout=10)[1], "a process was left behind"


def test_greedy_completions_are_those_of_run_and_of_transformers(file: File) -> None:
    path = file("yarn8")
    with served(path) as server:
        assert server.document["runtime"] == "patched" and server.document["context"] == 2048
        assert set(server.document) == documented("## `run --serve --json`") | {"schema"}
        assert server.ask("/props")["default_generation_settings"]["n_ctx"] == 2048
        for length in (8, 900):
            prompt = text_of(length)
            ours = run("run", path, *EXACT, "-p", prompt, "-n", "32", "--json").json
            theirs = server.ask("/v1/completions", prompt=prompt, max_tokens=32, **GREEDY)
            assert theirs["choices"][0]["text"] == ours["text"] == decoded(greedy("yarn8", encoded(prompt), 32))


@pytest.mark.parametrize(
    ("options", "context"),
    [
        (("--factor", "8", "--beta-fast", "4", "--beta-slow", "2", "--encoding", "keys"), None),
        (("--factor", "8", "--dynamic"), 512),
        (("--factor", "4", "--attention-factor", "1.0"), None),
        ((), 1024),
    ],
    ids=["betas", "dynamic", "attention factor", "longer than the file's"],
)
def test_log_probabilities_are_those_of_a_session_with_the_same_settings(
    options: tuple[str, ...], context: int | None, file: File
) -> None:
    """What `verify` holds exact against transformers, token by token over the server's own interface."""
    path = file("base", *options)
    before = read_before(path)
    scaling = choose(before, Runtime.PATCHED, context or before.current.context)
    size = () if context is None else ("--ctx", str(context))
    with served(path, *size) as server:
        assert server.document["scaling"]["exact"] is True
        found = {}
        for length in (20, 130, 300, 380):
            tokens = tuple(server.ask("/tokenize", content=text_of(length), add_special=True)["tokens"])
            asked = {"n_predict": 1, "n_probs": 64, "post_sampling_probs": False, "cache_prompt": False, **GREEDY}
            found[tokens] = server.ask("/completion", prompt=tokens, **asked)["completion_probabilities"][0]

    def worst(**rope: float) -> float:
        settings = LlamaSettings(
            scaling.context,
            threads=1,
            flash_attention=False,
            kv_k="f32",
            kv_v="f32",
            library=patched(),
            keys=scaling.keys,
            rope={**scaling.parameters, **rope},
        )
        with open_llama(path, settings) as session:
            return max(_distance(session.next_logits(np.array(each, np.int32)), step) for each, step in found.items())

    assert worst() <= CLOSE
    assert worst(yarn_beta_fast=24.0) > FAR


def _distance(logits: Any, step: Any) -> float:
    """The largest between a server's log-probabilities of its most probable words and those of logits."""
    shifted = logits.astype(np.float64) - logits.max()
    log = shifted - np.log(np.exp(shifted).sum())
    return float(max(abs(each["logprob"] - log[each["id"]]) for each in step["top_logprobs"]))


def test_a_dynamic_file_is_served_with_the_smallest_factor(file: File) -> None:
    prompt = text_of(200)
    with served(file("base", "--factor", "8", "--dynamic"), "--ctx", "512") as server:
        theirs = server.ask("/v1/completions", prompt=prompt, max_tokens=32, **GREEDY)["choices"][0]["text"]
    assert theirs == decoded(greedy("base", encoded(prompt, "base"), 32, 2))


@pytest.mark.skipif(any(find_spec(name) is None for name in EXTRAS), reason="llama-cpp-python[server] is not installed")
@pytest.mark.parametrize("patch", [False, True])
def test_llama_cpp_pythons_server_does_not_lay_its_own_settings_over_the_file(
    patch: bool, file: File, tmp_path: Path
) -> None:
    """Betas, and a dynamic file, on both libraries: what it passes by itself is 32/1; it has a variable for each."""
    prompt, runtime = text_of(200), "stock"
    if patch:
        for library in patched().glob("lib*"):
            (tmp_path / library.name).symlink_to(library)
        runtime = str(tmp_path)
    betas = file("base", "--factor", "8", "--beta-fast", "4", "--beta-slow", "2", "--encoding", "keys")
    dynamic = file("base", "--factor", "8", "--dynamic")
    env = {"YARN_GGUF_CACHE": str(tmp_path / "no-builds"), "YARN_BETA_FAST": "16", "N_CTX": "64", "PORT": "1"}
    for path, size in ((betas, "2048"), (dynamic, "512")):
        words = ("--ctx", size, "-p", prompt, "-n", "32", "--json", "--runtime", runtime)
        ours = run("run", path, *EXACT, *words).json["text"]
        with served(path, "--ctx", size, runtime=runtime, **env) as server:
            assert server.document["server"] == "llama-cpp-python"
            assert server.document["runtime"] == ("patched" if patch else "stock")
            theirs = server.ask("/v1/completions", prompt=prompt, max_tokens=32, repeat_penalty=1, **GREEDY)["choices"][
                0
            ]["text"]
        assert theirs == ours


def test_chat_is_that_of_run(file: File, tmp_path: Path) -> None:
    made = with_template(file("yarn8"), tmp_path / "chat.gguf", PLAIN)
    talk = [{"role": "user", "content": OPENING}]
    ours = run("run", made, *EXACT, "--chat", "-p", OPENING, "-n", "16", "--json").json["text"]
    with served(made) as server:
        theirs = server.ask("/v1/chat/completions", messages=talk, max_tokens=16, **GREEDY)
    assert theirs["choices"][0]["message"]["content"].strip() == ours.strip()


def test_a_chat_template_is_taken_instead_of_the_files(file: File, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(PLAIN, encoding="utf-8")
    given = ("--chat-template", str(tmp_path / "chat.jinja"))
    talk = [{"role": "user", "content": OPENING}]
    ours = run("run", file("yarn8"), *EXACT, "--chat", *given, "-p", OPENING, "-n", "16", "--json").json["text"]
    with served(file("yarn8"), *given) as server:
        theirs = server.ask("/v1/chat/completions", messages=talk, max_tokens=16, **GREEDY)
    assert theirs["choices"][0]["message"]["content"].strip() == ours.strip()


def test_the_same_seed_samples_the_same_tokens_as_llama_cpps_server(file: File) -> None:
    """Temperature, top-k, top-p, min-p and penalties, in llama.cpp's order."""
    sampling = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "seed": 7}
    penalties = {"repeat_penalty": 1.1, "repeat_last_n": 32, "presence_penalty": 0.2, "frequency_penalty": 0.1}
    flags = [
        word
        for name, value in {**sampling, **penalties}.items()
        for word in (f"--{name.replace('_', '-').replace('temperature', 'temp')}", str(value))
    ]
    ours = run("run", file("yarn8"), *EXACT, "-p", OPENING, "-n", "48", "--json", "--runtime", patched(), *flags).json
    with served(file("yarn8")) as server:
        theirs = server.ask("/completion", prompt=OPENING, n_predict=48, return_tokens=True, **sampling, **penalties)
    assert ours["tokens"] == theirs["tokens"]


def test_a_context_shift_is_that_of_llama_cpps_server(file: File) -> None:
    """The patched library, where a shift is exact: the same tokens are dropped, and the same text comes after."""
    ours = run("run", file("yarn8"), *EXACT, *BEYOND, "--runtime", patched(), "--json").json
    with served(file("yarn8"), "--ctx", "256", "--allow-shift") as server:
        theirs = server.ask(
            "/completion", prompt=OPENING, n_predict=600, return_tokens=True, ignore_eos=True, **GREEDY
        )["tokens"]
    assert ours["shifts"] == 3
    assert ours["tokens"][:400] == theirs[:400]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_server_with_it(number: int, code: int, file: File) -> None:
    with served(file("yarn8")) as server:
        assert server.children
        returned, said = server.stop(number)
        assert returned == code and said.count("\n") == 1


def test_a_signal_before_the_server_answers_leaves_no_process(file: File) -> None:
    words = [*COMMAND, "run", str(file("yarn8")), "--serve", "--port", "0", "--runtime", str(tools())]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    ourselves = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    while process.poll() is None and not any("llama-server" in each.name() for each in children):
        children = ourselves.children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert children and not psutil.wait_procs(children, timeout=10)[1]


def test_a_server_that_dies_is_exit_5(file: File) -> None:
    with served(file("yarn8")) as server:
        os.kill(server.document["process"], signal.SIGKILL)
        _, said = server.process.communicate(timeout=30)
        assert server.process.returncode == 5
        assert "llama-server was ended by SIGKILL" in said.decode()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux ends a child with its parent")
def test_a_server_ends_when_we_are_killed(file: File) -> None:
    with served(file("yarn8")) as server:
        server.process.kill()
        server.process.communicate()
        assert not psutil.wait_procs(server.children, timeout=10)[1]


def test_a_port_that_is_taken_is_one_line_at_once(file: File) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("run", file("yarn8"), "--serve", "--port", port, "--runtime", tools())
    assert (done.code, done.out) == (4, "")
    assert f"cannot listen at 127.0.0.1:{port}: address already in use" in done.err


def test_a_server_that_cannot_start_says_why(file: File) -> None:
    done = run("run", file("yarn8"), "--serve", "--port", "0", "--runtime", tools(), "--chat-template", "{% if")
    assert done.code == 5 and done.err.count("\n") == 1, done
    assert "llama-server ended with exit status 1; it said: " in done.err


@pytest.mark.parametrize(("runtime", "make"), [("stock", "build --tools --no-patch"), ("folder", "build --tools")])
def test_without_a_server_it_is_said_how_to_get_one(
    runtime: str, make: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("YARN_GGUF_CACHE", str(tmp_path))
    monkeypatch.setattr("yarn_gguf.running.serving.EXTRAS", ("no_such_module",))
    (tmp_path / "libllama.so").write_bytes(b"")
    with pytest.raises(InputError, match=f"`yarn-gguf {make}` makes llama-server") as refused:
        find_server(str(tmp_path) if runtime == "folder" else runtime)
    assert "pip install 'llama-cpp-python[server]'" in refused.value.text


def test_what_is_set_in_the_environment_does_not_reach_the_server(file: File) -> None:
    """llama-server takes settings from variables; the file's scaling must not be undone by one."""
    unwanted = {"LLAMA_ARG_ROPE_SCALE": "2", "LLAMA_ARG_YARN_BETA_FAST": "4", "LLAMA_ARG_N_PARALLEL": "3"}
    prompt = text_of(400)
    with served(file("yarn8"), **unwanted) as server:
        theirs = server.ask("/v1/completions", prompt=prompt, max_tokens=32, **GREEDY)["choices"][0]["text"]
    assert theirs == decoded(greedy("yarn8", encoded(prompt), 32))
