"""Every byte of a header damaged: a file that is a model all the same is read as it stands, any other is refused.

Never a bug of ours (70), never a hang, and no memory that the file's own bytes do not account for. Says nothing of
what is made of the damaged numbers; malformed files that somebody thought of are in test_hostile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import gguf
import pytest

from tests import gguf_bytes as g
from tests.command import Done, extended, run
from tests.make_gguf import PAIRS

SECONDS: Final = 5
MEBIBYTES: Final = 1536
MASKS: Final = (0x01, 0x80, 0xFF)
INSPECT: Final = ("inspect",)
EXTEND: Final = ("extend", "--factor", "4", "--dry-run")


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
    "extended sliding": Sweep(extended_sliding, 7, 17),
    "extended llama3": Sweep(extended_llama3, 7, 17),
}


def flips(path: Path, step: int) -> Iterator[str]:
    """Damages one byte after the other, and puts it back; names what was done."""
    whole = path.read_bytes()
    for at in range(0, gguf.GGUFReader(path).data_offset, step):
        for mask in MASKS:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([whole[at] ^ mask]))
            yield f"byte {at} ^ {mask:#04x}"
        path.write_bytes(whole)


def fault_of(done: Done) -> str:
    """What is wrong with how a run ended; nothing at exit 0, or at exit 3 with one line that says why."""
    if (done.code == 0 and not done.err) or (done.code == 3 and not done.out and done.err.count("\n") == 1):
        return ""
    last = done.err.strip().splitlines()[-1:]
    return f"exit {done.code}: {' '.join(last)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_a_header_with_any_byte_damaged_is_read_or_refused(name: str, tmp_path: Path) -> None:
    """Exit 3 also where the damage shows in settings that make no RoPE: it is the file that is wrong."""
    sweep = SWEEPS[name]
    path = sweep.make(tmp_path / "model.gguf")
    for command, step in ((INSPECT, sweep.inspected), (EXTEND, sweep.extended)):
        assert not fault_of(run(command[0], path, *command[1:], seconds=SECONDS, mebibytes=MEBIBYTES))
        found = [
            f"{command[0]}, {what}: {fault}"
            for what in flips(path, step)
            if (fault := fault_of(run(command[0], path, *command[1:], seconds=SECONDS, mebibytes=MEBIBYTES)))
        ]
        assert not found, "\n".join(found)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]
