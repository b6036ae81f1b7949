"""Every byte of a header damaged: a file that is a model all the same is read as it stands, any other is refused.

Never a bug of ours (70), never a hang, and no memory that the file's own bytes do not account for. Says nothing of
what is made of the damaged numbers; malformed files that somebody thought of are in test_hostile.

A process for each of these seventeen thousand runs would take five minutes, so one process does a whole sweep. Run as a
module, this file is that process: it names every flip before it tries it, and how that ended after.
"""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import gguf
import pytest

from tests import gguf_bytes as g
from tests.command import ROOT, extended
from tests.make_gguf import PAIRS

SECONDS: Final = 5  # of processor time, for a run that takes 4 milliseconds
BYTES: Final = 1536 << 20  # of address space, of which Python and numpy take a quarter
MASKS: Final = (0x01, 0x80, 0xFF)
INSPECT: Final = ("inspect",)
EXTEND: Final = ("extend", "--factor", "4", "--dry-run")
NOTHING: Final = "nothing flipped"


def _number(name: bytes, value: float) -> bytes:
    return g.pair(name, g.FLOAT32, struct.pack("<f", value))


def _small(path: Path, arch: bytes, pairs: Sequence[bytes], *, rope_freqs: bool = False) -> Path:
    """A model with a tokenizer and next to no tensors."""
    tokens = [b"<s>", b"a", b"b"]
    common = [
        g.text(b"general.architecture", arch),
        g.text(b"general.name", b"small"),
        g.u32(arch + b".context_length", 128),
        g.u32(arch + b".embedding_length", 64),
        g.u32(arch + b".block_count", 6),
        g.u32(arch + b".attention.head_count", 2),
        g.u32(arch + b".attention.head_count_kv", 1),
        g.u32(arch + b".rope.dimension_count", 2 * PAIRS),
        _number(arch + b".rope.freq_base", 10000.0),
    ]
    tokenizer = [
        g.text(b"tokenizer.ggml.model", b"llama"),
        g.pair(b"tokenizer.ggml.tokens", g.ARRAY, g.array(g.STRING, 3, g.strings(*tokens))),
        g.pair(b"tokenizer.ggml.scores", g.ARRAY, g.array(g.FLOAT32, 3, bytes(12))),
        g.pair(b"tokenizer.ggml.token_type", g.ARRAY, g.array(g.I32, 3, struct.pack("<3i", 3, 1, 1))),
        g.u32(b"tokenizer.ggml.bos_token_id", 0),
    ]
    infos = [g.tensor(b"token_embd.weight", (4, 3), g.F32, 0), g.tensor(b"output_norm.weight", (4,), g.F32, 64)]
    data = bytes(64) + bytes(32)
    if rope_freqs:
        infos.append(g.tensor(b"rope_freqs.weight", (PAIRS,), g.F32, len(data)))
        data += struct.pack(f"<{PAIRS}f", *(1 + n / 4 for n in range(PAIRS)))
    path.write_bytes(g.gguf([*common, *pairs, *tokenizer], infos, data))
    return path


def sliding(path: Path) -> Path:
    pattern = bytes([1, 1, 1, 1, 1, 0])
    pairs = [
        g.u32(b"gemma3.attention.key_length", 2 * PAIRS),
        g.u32(b"gemma3.attention.sliding_window", 64),
        g.pair(b"gemma3.attention.sliding_window_pattern", g.ARRAY, g.array(g.BOOL, 6, pattern)),
        _number(b"gemma3.rope.freq_base_swa", 3000.0),
        g.text(b"gemma3.rope.scaling.type", b"linear"),
        _number(b"gemma3.rope.scaling.factor", 8.0),
        g.u32(b"gemma3.rope.scaling.original_context_length", 64),
    ]
    return _small(path, b"gemma3", pairs)


def llama3(path: Path) -> Path:
    return _small(path, b"llama", [], rope_freqs=True)


def extended_sliding(path: Path) -> Path:
    source = sliding(path.with_name("source.gguf"))
    extended(source, "--factor", "16", "-o", path)
    source.unlink()
    return path


def extended_llama3(path: Path) -> Path:
    source = llama3(path.with_name("source.gguf"))
    extended(source, "--factor", "4", "--beta-fast", "16", "--encoding", "baked", "-o", path)
    source.unlink()
    return path


class Sweep(NamedTuple):
    """A file, and which of its header's bytes are flipped: every `inspected`-th, and every `extended`-th."""

    make: Callable[[Path], Path]
    inspected: int
    extended: int


# an extended file is four times as long, most of it text whose every byte means the same
SWEEPS: Final[dict[str, Sweep]] = {
    "sliding": Sweep(sliding, 1, 3),
    "llama3": Sweep(llama3, 1, 3),
    "extended sliding": Sweep(extended_sliding, 5, 11),
    "extended llama3": Sweep(extended_llama3, 5, 11),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", [INSPECT, EXTEND], ids=lambda command: command[0])
@pytest.mark.parametrize("name", SWEEPS)
def test_a_header_with_any_byte_damaged_is_read_or_refused(name: str, command: Sequence[str], tmp_path: Path) -> None:
    """Exit 3 also where the damage shows in settings that make no RoPE: it is the file that is wrong."""
    sweep = SWEEPS[name]
    path = sweep.make(tmp_path / "model.gguf")
    size, step = gguf.GGUFReader(path).data_offset, sweep.inspected if command is INSPECT else sweep.extended
    first, *others = swept(path, size, step, command)
    assert first == f"{NOTHING}: exit 0"
    faults = [line for line in others if not line.endswith(("exit 0", "exit 2", "exit 3"))]
    assert not faults, "\n".join(faults)
    assert len(others) == len(MASKS) * len(range(0, size, step))
    refused = sum(line.endswith("exit 3") for line in others)
    assert refused > len(others) / 8  # measured: 24 to 60 %, for text may be any text
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def swept(path: Path, size: int, step: int, command: Sequence[str]) -> list[str]:
    """A line for every flip; the last one says how the process died, should it have died."""
    arguments = [sys.executable, "-m", "tests.test_flips", str(path), str(size), str(step), *command]
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return (done.stdout + (f"died with {done.returncode}" if done.returncode else "")).splitlines()


# ---- from here on: the other process


def _sweep(path: Path, size: int, step: int, command: Sequence[str]) -> None:
    from yarn_gguf.cli import main

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for what in flips(path, size, step):
        print(what, end=": ", flush=True)  # noqa: T201 - the answer
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which ends the process
        code: object = None
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                main([command[0], str(path), *command[1:]])
            except SystemExit as end:
                code = end.code
        print(f"exit {code}{fault_of(code, out.getvalue(), err.getvalue())}", flush=True)  # noqa: T201 - the answer


def flips(path: Path, size: int, step: int) -> Iterator[str]:
    """Damages one byte after the other, and puts it back; names what it did."""
    whole = path.read_bytes()
    yield NOTHING
    for at in range(0, size, step):
        for mask in MASKS:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            yield f"byte {at} ^ {mask:#04x}"
    path.write_bytes(whole)


def fault_of(code: object, out: str, err: str) -> str:
    """What is wrong with how a run ended; nothing at exit 0, or where one line says why it ended otherwise.

    Exit 2 is right where a file that is linearly scaled has lost the key that says from where: an option can say it.
    """
    one_line = not out and err.count("\n") == 1
    if (code == 0 and not err) or (code == 3 and one_line) or (code == 2 and one_line and "--original-ctx" in err):
        return ""
    return f", {err.count(chr(10))} lines: {' '.join(err.strip().splitlines()[-1:])}"


if __name__ == "__main__":
    _sweep(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
