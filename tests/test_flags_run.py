"""What `flags` prints is run, as it is printed, in the programs themselves; their logits are held against transformers.

llama-server is asked over HTTP for the whole vocabulary's log-probabilities; llama-cli prints none, so its logits are
written down inside of it (`recorded`); the Python program is extended by the lines that read its logits. Each on stock
libraries and on patched ones, on files with YaRN inside and on files without.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .built import builds_cache, patched, stock, tools
from .command import Done, run, run_fresh
from .llama_logits import kl
from .make_checkpoints import checkpoint
from .recorded import Recording, read_recording, recorder
from .test_logits import WRONG, default_yarn, limit
from .test_patched import KINDS
from .toys import CONTEXT, FACTOR, LENGTH, TOYS, VOCABULARY, YARN, reference_logits, tokens
from .upstream import write_with_keys

pytestmark = pytest.mark.slow

PLAIN = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "1")  # so that no rounding but float32's is left
PROMPTS = (300, 1000)  # tokens, each followed by GENERATED
GENERATED = 8
SECONDS = 60.0
ALL = {"beta_fast": 6.0, "beta_slow": 2.0, "attention_factor": 1.0}
Files = Callable[[str], Path]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Case:
    """A toy, what is done to its file beforehand, what `flags` is asked for, and what transformers is told."""

    toy: str
    asked: tuple[str, ...] = ("--ctx", str(LENGTH))
    made: tuple[str, ...] = ()  # of `extend`; nothing: the file has no YaRN
    convert: tuple[str, ...] = ()
    rope: Mapping[str, Any] = field(default_factory=lambda: YARN)
    context: int = LENGTH
    patched: bool = False  # what computes
    words: tuple[str, ...] = ()  # that must stand in the command line, and
    absent: tuple[str, ...] = ("--rope-scaling", "--override-kv")  # that must not
    exact: bool = True


BETAS = {"beta_fast": 6.0, "beta_slow": 2.0}
LINEAR = {"rope_type": "linear", "factor": FACTOR}
TYPED_BETAS = ("--beta-fast", "6", "--beta-slow", "2")
BY_8 = ("--factor", "8")
CASES: Mapping[str, Case] = {
    # YaRN by flags alone
    "parameters": Case("llama", words=("--rope-scaling yarn", "--rope-scale 8"), absent=("--override-kv",)),
    "parameters-sliding": Case("gemma3", words=("--rope-scaling yarn",), absent=("--override-kv",)),
    "parameters-sliding-exact": Case("olmo3", words=("--rope-scaling yarn",), absent=("--override-kv",)),
    "betas": Case(
        "qwen3",
        (*BY_8, *TYPED_BETAS),
        rope={**YARN, **BETAS},
        words=("--yarn-beta-fast 6", "--yarn-beta-slow 2"),
        absent=("--override-kv",),
    ),
    "attention-stock": Case(
        "qwen3",
        (*BY_8, "--attention-factor", "1"),
        rope={**YARN, "attention_factor": 1.0},
        words=("rope.scaling.attn_factor=float:",),
        absent=("--yarn-attn-factor",),
    ),
    "attention-patched": Case(
        "qwen3",
        (*BY_8, "--attention-factor", "1"),
        rope={**YARN, "attention_factor": 1.0},
        words=("--yarn-attn-factor 0.8278",),
        absent=("--override-kv",),
        patched=True,
    ),
    "scaled-sliding": Case("gptoss", words=("--override-kv",), absent=("--rope-scaling",)),
    "truncate-patched": Case(
        "gptoss",
        (*BY_8, "--no-truncate", *TYPED_BETAS),
        rope={**YARN, **BETAS, "truncate": False},
        words=("yarn_truncate=bool:false",),
        absent=(),
        patched=True,
    ),
    "truncate-stock": Case(
        "gptoss", (*BY_8, "--no-truncate"), rope={**YARN, "truncate": False}, absent=(), exact=False
    ),
    "linear": Case("qwen3", (*BY_8, "--method", "linear"), rope=LINEAR, words=("linear",), absent=()),
    # YaRN inside
    "keys": Case("llama", made=BY_8),
    "keys-betas-stock": Case(
        "qwen3",
        made=(*BY_8, *TYPED_BETAS, "--encoding", "keys"),
        rope={**YARN, **BETAS},
        words=("--yarn-beta-fast 6", "--yarn-beta-slow 2"),
    ),
    "keys-betas-patched": Case(
        "qwen3",
        made=(*BY_8, *TYPED_BETAS, "--encoding", "keys"),
        rope={**YARN, **BETAS},
        absent=("--rope-scaling", "--override-kv", "--yarn-beta-fast"),
        patched=True,
    ),
    "baked": Case(
        "llama",
        made=(*BY_8, *TYPED_BETAS, "--attention-factor", "1", "--no-truncate"),
        rope={**YARN, **ALL, "truncate": False},
    ),
    "folded": Case("llama", convert=(*BY_8, "--fold-magnitude")),
    "dynamic-stock": Case(
        "llama",
        ("--ctx", "512"),
        made=(*BY_8, "--dynamic"),
        rope={**YARN, "factor": 4.0},
        context=512,
        words=("--rope-scale 4",),
        absent=("--override-kv",),
    ),
    "dynamic-patched": Case(
        "llama", ("--ctx", "512"), made=(*BY_8, "--dynamic"), rope={**YARN, "factor": 4.0}, context=512, patched=True
    ),
    "upstream-keys": Case(
        "llama", asked=(), made=("--upstream",), words=("context_length=int:1024",), absent=("--rope",)
    ),
}


@pytest.fixture(scope="module")
def made(toy_folder: Files, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """case -> its file."""

    @cache
    def plain(name: str, *options: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        source, out = checkpoint(toy_folder(name), folder / "checkpoint"), folder / "plain model.gguf"
        succeed(run("convert", source, "--outtype", "f32", *options, "-o", out))
        return out

    @cache
    def file(case: Case) -> Path:
        found = plain(case.toy, *case.convert)
        if not case.made:
            return found
        out = tmp_path_factory.mktemp(case.toy) / "it's long.gguf"  # a name that must be quoted
        if case.made == ("--upstream",):
            return upstream_keys(found, out)
        succeed(run("extend", found, "-o", out, *case.made))
        return out

    return file


def upstream_keys(source: Path, out: Path) -> Path:
    """As upstream's converter writes YaRN: with the context length unscaled."""
    names: dict[str, str | int | float | bool] = {"type": "yarn", "factor": FACTOR, "original_context_length": CONTEXT}
    keys = {f"rope.scaling.{name}": value for name, value in names.items()}
    return write_with_keys(source, out, keys, without="yarn_gguf.")


def succeed(done: Done) -> Done:
    assert done.code == 0, done
    return done


def printed(case: Case, file: Path, program: str, *more: str) -> Done:
    """What `flags` says, of a library that is named by its folder where it is a patched one."""
    runtime = ("--runtime", str(patched())) if case.patched else ()
    done = run("flags", file, "--for", program, *case.asked, *runtime, *PLAIN, *more)
    assert done.code == (0 if case.exact else 1), done
    return done


def environment(case: Case, **more: str) -> dict[str, str]:
    """Where a shell finds the programs, and the stock libraries for those that are not patched."""
    found = {**os.environ, "PATH": f"{tools()}{os.pathsep}{os.environ['PATH']}", **more}
    if not case.patched:
        found["LD_LIBRARY_PATH"] = str(stock())
    return found


@contextmanager
def shell(line: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A line in a shell, in a group of its own, which is ended with the block."""
    process = subprocess.Popen(["bash", "-c", line], start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(SECONDS)


def ids_before(count: int) -> npt.NDArray[np.int32]:
    return tokens()[:count]


def assert_as_transformers(
    case: Case, ids: npt.NDArray[np.int32], positions: Any, logits: Logits, bound: float
) -> None:
    """Mean KL over these positions; the wrong ones must be seen to be wrong."""
    toy = TOYS[case.toy]
    meant = reference_logits(toy, toy.scaled(**case.rope), ids)[positions]
    found = float(kl(meant, logits).mean())
    assert found <= bound if case.exact else found > WRONG, found


def assert_scaling_matters(case: Case, ids: npt.NDArray[np.int32], positions: Any, logits: Logits) -> None:
    """Without it the same text leads to something else."""
    assert kl(reference_logits(TOYS[case.toy], None, ids)[positions], logits).mean() > WRONG


# ---- llama-server


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def get(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            get(f"{url}/health")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"no answer; exit status {process.poll()}")


@contextmanager
def server(line: str, port: int, log: Path, **options: Any) -> Iterator[str]:
    with log.open("wb") as file, shell(line, stdout=file, stderr=file, **options) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        except AssertionError:
            sys.stderr.write(log.read_text(errors="replace")[-3000:])
            raise


def completion(url: str, prompt: npt.NDArray[np.int32], forced: int) -> Logits:
    """The log-probability of every token of the vocabulary behind the prompt, and behind each `forced` that follows.

    It is forced because the server keeps to itself what it knows of a token that is no whole character; what is
    asked for stands before any bias.
    """
    body = {"prompt": prompt.tolist(), "n_predict": GENERATED, "temperature": 0, "n_probs": VOCABULARY}
    found = get(f"{url}/completion", {**body, "logit_bias": [[forced, 1000.0]]})["completion_probabilities"]
    assert [token["id"] for token in found] == [forced] * GENERATED
    logits = np.full((GENERATED, VOCABULARY), np.nan)
    for row, token in zip(logits, found, strict=True):
        for each in token["top_logprobs"]:
            row[each["id"]] = each["logprob"]
    assert not np.isnan(logits).any()
    return logits


@pytest.mark.parametrize("name", CASES)
def test_llama_server_as_printed_computes_what_transformers_does(
    name: str, made: Callable[[Case], Path], toy_gguf: Files, tmp_path: Path
) -> None:
    case, port = CASES[name], free_port()
    line = printed(case, made(case), "llama-server", "--", "--port", str(port)).out.strip()
    assert all(word in line for word in case.words), line
    assert not any(word in line for word in case.absent), line
    bound = limit(TOYS[case.toy], toy_gguf(case.toy))
    with server(line, port, tmp_path / "log", env=environment(case)) as url:
        assert get(f"{url}/props")["default_generation_settings"]["n_ctx"] == case.context  # not capped
        (forced,) = get(f"{url}/tokenize", {"content": "a"})["tokens"]
        lengths = [length for length in PROMPTS if length + GENERATED <= case.context]
        found = {length: completion(url, ids_before(length), forced) for length in lengths}
    for length, logits in found.items():
        ids = np.concatenate([ids_before(length), np.full(GENERATED, forced, np.int32)])
        positions = np.arange(length - 1, length - 1 + GENERATED)
        assert_as_transformers(case, ids, positions, logits, bound)


# ---- llama-cli


def recorded(case: Case, line: str, folder: Path) -> Recording:
    """The line run by a shell with the recorder in it."""
    out = folder / "recording"
    env = environment(case, LD_PRELOAD=str(recorder()), RECORD_LOGITS=str(out))
    with (folder / "log").open("wb") as log, shell(line, env=env, stdout=log, stderr=log) as process:
        assert process.wait(SECONDS) == 0, (folder / "log").read_text(errors="replace")[-3000:]
    found = read_recording(out)
    assert bool(found.features) == case.patched
    return found


CLI_CASES = [name for name in CASES if name not in ("linear", "folded", "dynamic-stock", "dynamic-patched")]


@pytest.mark.skipif(sys.platform != "linux", reason="the recorder is preloaded as Linux does it")
@pytest.mark.parametrize("name", CLI_CASES)
def test_llama_cli_as_printed_computes_what_transformers_does(
    name: str, made: Callable[[Case], Path], toy_gguf: Files, tmp_path: Path
) -> None:
    case = CASES[name]
    text = "Once upon a time, it was said; and 'so' it is. " * 12
    more = ("-p", text, "--", "--single-turn", "--temp", "0", "-n", "64")
    line = printed(case, made(case), "llama-cli", *more).out.strip()
    found = recorded(case, line, tmp_path)
    beyond = found.positions > CONTEXT
    assert beyond.sum() >= 8 and found.positions.max() > 2 * CONTEXT
    bound = limit(TOYS[case.toy], toy_gguf(case.toy))
    assert_as_transformers(case, found.ids, found.positions[beyond], found.logits[beyond], bound)


# ---- llama-cpp-python


READ = """
import sys, numpy
ids = numpy.load(sys.argv[1]).tolist()
start = len(ids) - int(sys.argv[2])
llm.eval(ids[:start])
rows = []
for token in ids[start:]:
    llm.eval([token])
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    rows.append(numpy.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy())
numpy.save(sys.argv[3], numpy.stack(rows))
"""


def python_logits(program: str, ids: npt.NDArray[np.int32], folder: Path) -> Logits:
    """Of the last GENERATED positions, by the printed program with `READ` behind it."""
    file, given, out = folder / "program.py", folder / "ids.npy", folder / "logits.npy"
    file.write_text(program + READ)
    np.save(given, ids)
    command = [sys.executable, "-P", str(file), str(given), str(GENERATED), str(out)]
    env = {key: value for key, value in os.environ.items() if key != "LLAMA_CPP_LIB_PATH"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    found: Logits = np.load(out)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_python_program_as_printed_computes_what_transformers_does(
    name: str, made: Callable[[Case], Path], toy_gguf: Files, tmp_path: Path
) -> None:
    case = CASES[name]
    program = printed(case, made(case), "llama-cpp-python").out
    ids = ids_before(case.context)
    logits = python_logits(program, ids, tmp_path)
    positions = np.arange(case.context - GENERATED, case.context)
    assert_as_transformers(case, ids, positions, logits, limit(TOYS[case.toy], toy_gguf(case.toy)))
    assert_scaling_matters(case, ids, positions, logits)


@pytest.mark.parametrize("name", KINDS)
def test_flags_alone_do_what_a_file_would_on_every_kind_of_graph(name: str, toy_gguf: Files, tmp_path: Path) -> None:
    toy, ids = TOYS[name], ids_before(LENGTH)
    asked = ("--factor", "8", "--original-ctx", str(CONTEXT), *TYPED_BETAS)
    done = run("flags", toy_gguf(name), "--for", "llama-cpp-python", *asked, *PLAIN)
    assert (done.code, "✓ stock llama.cpp computes exactly" in done.err) == (0, True), done
    told = default_yarn(toy, **BETAS)
    meant = reference_logits(toy, told["rope_parameters"], ids, told.get("frequencies"))[-GENERATED:]
    assert kl(meant, python_logits(done.out, ids, tmp_path)).mean() <= limit(toy, toy_gguf(name))


def test_the_patched_program_is_named_where_the_build_has_it(made: Callable[[Case], Path]) -> None:
    def printed(program: str) -> str:
        words = ("flags", made(CASES["keys"]), "--for", program, "--runtime", "patched")
        return run_fresh(*words, YARN_GGUF_CACHE=str(builds_cache())).out

    for program in ("llama-server", "llama-cli"):
        assert shlex.split(printed(program))[0] == str(tools() / program)
    assert f'os.environ["LLAMA_CPP_LIB_PATH"] = {str(patched())!r}' in printed("llama-cpp-python")


def test_without_what_flags_adds_the_python_class_overrides_the_files_betas(
    made: Callable[[Case], Path], tmp_path: Path
) -> None:
    """The day that this fails, llama-cpp-python has left its defaults to the file."""
    case = CASES["keys-betas-patched"]
    done = printed(case, made(case), "llama-cpp-python")
    assert "Llama(...)'s own betas, 32 and 1, override the file's" in " ".join(done.err.split())
    bare = "\n".join(line for line in done.out.splitlines() if "yarn_beta" not in line)
    ids, toy = ids_before(LENGTH), TOYS[case.toy]
    meant = reference_logits(toy, toy.scaled(**case.rope), ids)[-GENERATED:]
    assert kl(meant, python_logits(bare, ids, tmp_path)).mean() > WRONG
