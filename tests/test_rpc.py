"""A model spread over other machines: two of llama.cpp's RPC servers on this one, real ones, against one process.

What verify, record, eval and run compute is what they compute without; who dies is named, who is not there at once.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has none
import pytest

from yarn_gguf import rpc
from yarn_gguf.errors import UsageError

from .built import patched, tools
from .command import COMMAND, environment, run
from .test_run import EXACT, OPENING, File, file, text_of
from .test_serve import served

__all__ = ["file"]  # the fixture
pytestmark = pytest.mark.slow

EQUAL = 1e-10  # mean KL: the same kernels on the same processor; measured 0


@contextmanager
def server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """One `ggml-rpc-server` with a thread, and where it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(tools() / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"127.0.0.1:{port}"
    try:
        end = time.monotonic() + 20
        while rpc.why_not(endpoint) is not None:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield endpoint, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def two() -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    with server() as one, server() as other:
        yield [one, other]


Two = list[tuple[str, subprocess.Popen[bytes]]]


def names(two: Two) -> str:
    return ",".join(endpoint for endpoint, _ in two)


def memory(process: subprocess.Popen[bytes]) -> int:
    found: int = psutil.Process(process.pid).memory_info().rss
    return found


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text_of(2048), encoding="utf-8")
    return path


def test_verify_over_two_servers_is_exact_against_this_machine(two: Two, file: File, text: Path) -> None:
    path = file("yarn8")
    words = ("--text", text, "--ctx", "1024", "--noise", "0", "--threads", "1", "--runtime", patched(), "--json")
    done = run("verify", path, path, *words, "--rpc", names(two), "--tensor-split", "1,3")
    assert done.code == 0, done
    assert done.json["candidates"][0]["kld"]["mean"] <= EQUAL
    assert done.json["candidates"][0]["top1"] == 1
    assert done.json["settings"]["rpc"] == names(two).split(",")


def test_both_servers_hold_a_part_of_the_model(two: Two, file: File) -> None:
    """By llama.cpp's own account of its buffers, device by device, and by what the split asks for."""
    words = ("-p", OPENING, "-n", "4", "--json", "--runtime", patched(), "--rpc", names(two))
    found = run("run", file("yarn8"), *EXACT, *words, "-ts", "1,3").json["memory"]["buffers"]
    for endpoint, _ in two:
        held = {each["what"]: each["bytes"] for each in found if endpoint in each["where"]}
        assert held["model"] > 0 and held["KV"] == 2 * 256 * 4 * 2048, found  # one of two layers each
    found = run("run", file("yarn8"), *EXACT, *words, "-ts", "0,1").json["memory"]["buffers"]
    caches = [each["where"] for each in found if each["what"] == "KV"]
    assert len(caches) == 1 and two[1][0] in caches[0]


def test_run_says_the_same_over_two_servers(two: Two, file: File, text: Path) -> None:
    words = ("run", file("yarn8"), *EXACT, "-f", text, "-c", "4k", "-n", "32", "--json", "--runtime", patched())
    here, away = run(*words), run(*words, "--rpc", two[0][0], "--rpc", two[1][0])
    assert (here.code, away.code) == (0, 0), away
    assert away.json["tokens"] == here.json["tokens"] and away.json["gpu_layers"] == -1


def test_llama_server_says_the_same_over_two_servers(two: Two, file: File) -> None:
    path, prompt = file("yarn8"), text_of(500)
    here = run("run", path, *EXACT, "-p", prompt, "-n", "32", "--json", "--runtime", patched()).json["text"]
    with served(path, "--rpc", names(two), "-ts", "1,3") as up:
        asked = up.ask("/v1/completions", prompt=prompt, max_tokens=32, temperature=0)
        assert asked["choices"][0]["text"] == here
        two[0][1].kill()
        with pytest.raises((AssertionError, OSError, http.client.HTTPException)):
            up.ask("/v1/completions", prompt=prompt + " and", max_tokens=32, temperature=0)
        _, said = up.process.communicate(timeout=60)
        assert up.process.returncode == 5
        assert f"RPC server {two[0][0]} (connection refused) went away: llama-server was ended by" in said.decode()


def test_eval_says_the_same_over_two_servers(two: Two, file: File) -> None:
    words = ("eval", "copy", file("yarn8"), "--ctx", "512", "--depths", "0", "--samples", "1", "--json")
    here, away = (run(*words, "--runtime", patched(), *more) for more in ((), ("--rpc", names(two))))
    assert away.code == 0, away
    assert away.json["models"][0]["results"] == here.json["models"][0]["results"]


def test_several_candidates_follow_one_another(two: Two, file: File, text: Path, tmp_path: Path) -> None:
    """A server serves one model at a time; against a record that `record` made over the servers, too."""
    path, words = file("yarn8"), ("--threads", "1", "--runtime", patched(), "--json")
    over = ("--rpc", names(two), "--ctx", "512")
    done = run("record", path, "-o", tmp_path / "r.yref", "--text", text, "--top", "1280", *words, *over)
    assert done.code == 0, done
    for reference, more in ((tmp_path / "r.yref", ()), (path, ("--text", text, "--noise", "0"))):
        found = run("verify", reference, path, path, *words, *over, *more)
        assert found.code == 0, found
        assert [each["top1"] for each in found.json["candidates"]] == [1, 1]
        assert max(each["kld"]["mean"] for each in found.json["candidates"]) <= 1e-6  # what a record rounds
    refused = run("verify", path, path, path, *over, *words[2:4], "--lockstep", "--text", text)
    assert refused.code == 2 and "serves one model at a time" in refused.err


# ---- who is not there


def test_a_server_that_dies_in_the_middle_is_exit_5_with_its_name(two: Two, file: File) -> None:
    words = ("-p", OPENING, "-n", "10000000", "-c", "256", "--ignore-eos", "--runtime", patched(), "-ts", "1,3")
    process = subprocess.Popen(
        [*COMMAND, "run", str(file("base")), *EXACT, *map(str, words), "--rpc", names(two)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1)
    two[1][1].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    error = said.decode().strip()
    assert f"RPC server {two[1][0]} (connection refused) went away: llama.cpp ended with signal SIGABRT" in error
    assert two[0][0] not in error and "\n" not in error


def test_a_server_that_dies_while_verify_is_at_work_is_named_too(two: Two, file: File, text: Path) -> None:
    words = ("verify", file("yarn8"), file("yarn8"), "--text", text, "--ctx", "2048", "--windows", "1", "--json")
    more = ("--threads", "1", "--runtime", patched(), "--rpc", names(two), "--batch", "16", "--noise", "0")
    process = subprocess.Popen(
        [*COMMAND, *map(str, (*words, *more))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    idle = memory(two[0][1])
    end = time.monotonic() + 60
    while memory(two[0][1]) < idle + (2 << 20) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)  # until the server has got its weights
    two[0][1].kill()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 5, (out, said)
    assert f"RPC server {two[0][0]}" in json.loads(out)["error"]["text"]
    assert said.decode().count("\n") == 1


def test_a_machine_that_refuses_is_named_at_once(file: File) -> None:
    with server() as (endpoint, process):
        process.kill()
        process.wait()
        path = file("yarn8")
        for command in (
            ("run", path, "-p", "a"),
            ("verify", path, path, "--ctx", "64"),
            ("record", path, "--ctx", "64", "-o", path.with_name("never.yref")),
            ("eval", "copy", path, "--ctx", "256"),
        ):
            began = time.monotonic()
            done = run(*command, "--rpc", endpoint, "--runtime", patched())
            assert (done.code, done.out) == (4, "")
            assert f"no RPC server answers at {endpoint}: connection refused" in done.err
            assert done.err.count("\n") == 1 and time.monotonic() - began < 5


def test_a_server_that_serves_somebody_else_is_named(file: File) -> None:
    with server() as (endpoint, _):
        host, port = endpoint.split(":")
        with socket.create_connection((host, int(port))) as other:
            other.send(b"\x0e")  # a client that has begun a request, and goes on thinking
            time.sleep(0.2)
            done = run("run", file("yarn8"), "-p", "a", "--rpc", endpoint, "--runtime", patched(), "--deadline", "3")
    assert done.code == 4
    assert f"RPC server {endpoint} does not greet" in done.err and done.err.count("\n") == 1


def test_a_library_without_rpc_says_how_to_get_one(file: File) -> None:
    done = run("run", file("yarn8"), "-p", "a", "--rpc", "127.0.0.1:1")
    assert done.code == 3 and "this llama.cpp library has no RPC; build one with: yarn-gguf build --rpc" in done.err


@pytest.mark.parametrize("texts", [["a"], ["a:b"], ["a:0"], ["a:70000"], [":1"], ["a:1,,b:2"], ["a:1", "a:1"]])
def test_what_is_no_name_of_a_server_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        rpc.endpoints(texts)
    assert rpc.endpoints(["a:1, b-2.c:3", "10.0.0.1:65535"]) == ("a:1", "b-2.c:3", "10.0.0.1:65535")
