"""What `extend` did can be undone byte for byte, after any number of extensions; and after other tools, by value.

The command line runs in processes of its own on real files; gguf-py and ggml's reader look at what it wrote.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest

from tests import gguf_bytes as g
from tests.command import extended, run
from tests.make_gguf import (
    PAIRS,
    ROPE_FREQS,
    Raw,
    hashes,
    read_keys,
    read_tensors,
    rewritten,
    rope_freqs_of,
    small_model,
)
from tests.oracle_gguf import Oracle

STRANGE: Final = (
    g.text(b"GGUF.version", b"not a version"),
    g.text(b"k\xff\xfe", b"\xc3("),
    g.pair(b"empty", g.ARRAY, g.array(g.STRING, 0, b"")),
    g.pair(b"truth", g.BOOL, b"\2"),
    g.text(b"yarn_gguf.note", b"somebody else's"),
    g.text(b"yarn_gguf.version", b"0.1.0"),
)
FILES: Final[dict[str, Raw]] = {
    "a plain file": Raw(),
    "one without a stated alignment": Raw(state_alignment=False),
    "one with bytes behind the last tensor": Raw(trailing=b"behind the last tensor" * 100),
    "one aligned to 64": Raw(alignment=64),
    "one aligned to 4096": Raw(alignment=4096),
    "one aligned to 8192": Raw(alignment=8192),
    "one aligned to 1": Raw(alignment=1),
    "one whose header padding is not zeros": Raw(gap=0x5A, alignment=256),
    "one whose tensor padding is not zeros": Raw(padding=0xA5),
    "one whose last tensor is not padded": Raw(padded_end=False),
    "one of version 2": Raw(version=2),
    "one with keys that are hard to read": Raw(pairs=STRANGE),
    "one with somebody else's keys under our name": Raw(pairs=STRANGE[-2:]),
    "one with rope_freqs first": Raw(rope_freqs="first"),
    "one with rope_freqs last and not padded": Raw(rope_freqs="last", padded_end=False, alignment=128),
    "one with all of it": Raw(2, 512, True, STRANGE, 1, 2, True, b"tail", "first"),
}
KEYS: Final = ("--factor", "8", "--encoding", "keys")
BAKED: Final = ("--ctx", "1k", "--encoding", "baked", "--beta-fast", "16")
OTHER: Final = ("--factor", "3.5", "--method", "linear")
CHAINS: Final[dict[str, Sequence[Sequence[str]]]] = {
    "keys": [KEYS],
    "baked": [BAKED],
    "keys, baked, keys": [KEYS, BAKED, OTHER],
    "baked, keys, baked": [BAKED, KEYS, BAKED],
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as found:
        yield found


def other_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {name: found for name, found in read_tensors(path).items() if name != ROPE_FREQS}


@pytest.mark.parametrize("name", FILES)
def test_a_chain_of_extensions_ends_as_its_last_one_alone_and_is_undone_byte_for_byte(
    name: str, tmp_path: Path, oracle: Oracle
) -> None:
    """keys → baked → keys → baked, in place; each step is what the same step makes of the original."""
    original = FILES[name].write(tmp_path / "original.gguf")
    file = FILES[name].write(tmp_path / "file.gguf")
    for step in (KEYS, BAKED, OTHER, BAKED):
        extended(file, "--in-place", *step)
        extended(original, "-o", tmp_path / "alone.gguf", "--force", *step)
        assert file.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
        assert oracle.takes(file)
        if STRANGE[0] not in FILES[name].pairs:  # gguf-py refuses such keys
            assert other_tensors(file) == other_tensors(original)
    assert "byte-identical header" in extended(file, "--restore", "--in-place").out
    assert file.read_bytes() == original.read_bytes()
    assert sorted(hashes(tmp_path)) == ["alone.gguf", "file.gguf", "original.gguf"]


@pytest.mark.parametrize("name", CHAINS)
def test_one_step_back_undoes_all_steps(name: str, tmp_path: Path) -> None:
    source = FILES["one with all of it"].write(tmp_path / "source.gguf")
    last = source
    for number, step in enumerate(CHAINS[name]):
        extended(last, "-o", tmp_path / f"{number}.gguf", *step)
        last = tmp_path / f"{number}.gguf"
    extended(last, "--restore", "-o", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == source.read_bytes()


def test_baking_on_llama3_factors_multiplies_the_original_ones_and_not_the_last(tmp_path: Path) -> None:
    """Linear by 4 divides every frequency by 4 whatever lies under it."""
    source = Raw(rope_freqs="first").write(tmp_path / "model.gguf")
    before = rope_freqs_of(source)
    for factor in (4, 2):
        extended(source, "--in-place", "--method", "linear", "--factor", str(factor), "--encoding", "baked")
        np.testing.assert_allclose(rope_freqs_of(source), np.multiply(before, factor), rtol=1e-6)
    extended(source, "--in-place", "--factor", "2", "--encoding", "keys")
    assert rope_freqs_of(source) == before


def test_the_file_says_what_was_asked_for(tmp_path: Path) -> None:
    source = small_model(tmp_path / "model.gguf")
    more = ("--beta-fast", "24", "--beta-slow", "2", "--no-truncate", "--attention-factor", "1.5")
    extended(source, "--factor", "6", *more, "--encoding", "baked", "-o", tmp_path / "out.gguf")
    ours = {name: value for name, value in read_keys(tmp_path / "out.gguf").items() if name.startswith("yarn_gguf.")}
    restore = ours.pop("yarn_gguf.restore")
    padding = ours.pop("yarn_gguf.padding")
    assert ours == {
        "yarn_gguf.version": "0.1.0",
        "yarn_gguf.method": "yarn",
        "yarn_gguf.encoding": "baked",
        "yarn_gguf.context_length": 768,
        "yarn_gguf.magnitude": 1.5,
        "yarn_gguf.factor": 6.0,
        "yarn_gguf.original_context": 128,
        "yarn_gguf.beta_fast": 24.0,
        "yarn_gguf.beta_slow": 2.0,
        "yarn_gguf.truncate": False,
        "yarn_gguf.attention_factor": 1.5,
    }
    assert json.loads(restore)["format"] == 1
    assert set(padding) <= {" "}


Edit = Callable[[Path, Path], object]
EDITS: Final[dict[str, tuple[Edit, Mapping[str, Any]]]] = {
    "written again": (rewritten, {}),
    "one more key": (lambda a, b: rewritten(a, b, {"general.author": "somebody"}), {"general.author": "somebody"}),
    "keys reversed": (lambda a, b: rewritten(a, b, backwards=True), {}),
    "another name": (lambda a, b: rewritten(a, b, {"general.name": "Mia"}), {"general.name": "Mia"}),
    "a key dropped": (lambda a, b: rewritten(a, b, drop=["general.name"]), {"general.name": None}),
    "padding dropped": (lambda a, b: rewritten(a, b, drop=["yarn_gguf.padding"]), {}),
}


@pytest.mark.parametrize("step", [KEYS, BAKED], ids=["keys", "baked"])
@pytest.mark.parametrize("name", EDITS)
def test_after_another_tool_the_values_are_restored(name: str, step: Sequence[str], tmp_path: Path) -> None:
    source, (edit, expected) = small_model(tmp_path / "model.gguf"), EDITS[name]
    extended(source, *step, "-o", tmp_path / "extended.gguf")
    edit(tmp_path / "extended.gguf", tmp_path / "edited.gguf")
    document = extended(tmp_path / "edited.gguf", "--restore", "-o", tmp_path / "back.gguf", "--json").json
    wanted = {**read_keys(source), **expected}
    assert read_keys(tmp_path / "back.gguf") == {key: value for key, value in wanted.items() if value is not None}
    assert read_tensors(tmp_path / "back.gguf") == read_tensors(source)
    identical = (tmp_path / "back.gguf").read_bytes() == source.read_bytes()
    assert document["identical"] == identical == (not expected)
    assert ["not_identical"] * (not identical) == [found["code"] for found in document["findings"]]


def test_bytes_that_another_tool_dropped_are_not_made_up(tmp_path: Path) -> None:
    """gguf-py drops what lies behind the last tensor and cannot write the bytes between header and data."""
    source = Raw(gap=0x5A, alignment=32, trailing=b"behind").write(tmp_path / "model.gguf")
    extended(source, *BAKED, "-o", tmp_path / "extended.gguf")
    rewritten(tmp_path / "extended.gguf", tmp_path / "edited.gguf", {"general.author": "x" * 50})
    done = extended(tmp_path / "edited.gguf", "--restore", "-o", tmp_path / "back.gguf")
    assert "not byte-identical" in done.words
    assert read_tensors(tmp_path / "back.gguf") == read_tensors(source)
    assert b"behind" not in (tmp_path / "back.gguf").read_bytes()
    extended(tmp_path / "edited.gguf", *KEYS, "-o", tmp_path / "again.gguf")
    assert read_tensors(tmp_path / "again.gguf") == read_tensors(source)


def test_the_gap_of_another_length_is_left_alone(tmp_path: Path) -> None:
    """A header that grew must not have the old filling written over the end of its tensor infos."""
    source = Raw(gap=0x5A, alignment=32).write(tmp_path / "model.gguf")
    extended(source, *KEYS, "-o", tmp_path / "extended.gguf")
    for size in range(32):
        edited = tmp_path / "edited.gguf"
        rewritten(tmp_path / "extended.gguf", edited, {"general.author": "x" * size})
        if size % 8 == 0:  # each run takes a third of a second
            extended(edited, "--restore", "-o", tmp_path / "back.gguf", "--force")
            assert read_tensors(tmp_path / "back.gguf") == read_tensors(source)


def test_a_file_that_was_never_extended_has_nothing_to_restore(tmp_path: Path) -> None:
    source = small_model(tmp_path / "model.gguf")
    done = run("extend", source, "--restore", "-o", tmp_path / "back.gguf")
    assert (done.code, sorted(hashes(tmp_path))) == (3, ["model.gguf"])
    assert "nothing to restore" in done.err


def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_keys(path)["yarn_gguf.restore"])
    return found


DAMAGE: Final[dict[str, Any]] = {
    "no JSON": "{",
    "no object": "[1, 2]",
    "a number": "1e999",
    "nested beyond all reason": "[" * 100_000,
    "another format": {"format": 2},
    "no format": {"format": None},
    "entries that are no object": {"entries": ["x"]},
    "an entry that is no base64": {"entries": {"llama.context_length": "%%%"}},
    "an entry that is no entry": {"entries": {"llama.context_length": base64.b64encode(b"abc").decode()}},
    "an entry under another's name": {"entries": {"x": base64.b64encode(g.u32(b"y", 1)).decode()}},
    "an order of numbers": {"order": [1]},
    "a size that is negative": {"trailing": -1},
    "a size that is infinite": {"body": float("inf")},
    "a size that is a truth": {"body": True},
    "a size of text": {"trailing": "9"},
    "tensor data of another length": {"replaced": base64.b64encode(b"12345").decode()},
    "tensor data of no tensor": {"replaced": base64.b64encode(bytes(4 * PAIRS)).decode()},
    "parts that are no texts": {"parts": [None]},
    "a gap of numbers": {"gap": 3},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    extended(small_model(tmp_path / "model.gguf"), *KEYS, "-o", tmp_path / "extended.gguf")
    record: Any = DAMAGE[name]
    if isinstance(record, dict):
        record = json.dumps({**_record(tmp_path / "extended.gguf"), **record})
    rewritten(tmp_path / "extended.gguf", tmp_path / "bad.gguf", {"yarn_gguf.restore": record})
    before = hashes(tmp_path)
    for arguments in (("--restore",), ("--factor", "2")):
        done = run("extend", tmp_path / "bad.gguf", *arguments, "-o", tmp_path / "out.gguf")
        assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done
        assert "yarn_gguf.restore" in done.err
    assert hashes(tmp_path) == before


def test_sizes_in_the_record_that_the_file_cannot_have_do_no_harm(tmp_path: Path) -> None:
    source = small_model(tmp_path / "model.gguf")
    extended(source, *KEYS, "-o", tmp_path / "extended.gguf")
    record = {**_record(tmp_path / "extended.gguf"), "trailing": 1 << 40, "body": 1 << 50}
    rewritten(tmp_path / "extended.gguf", tmp_path / "odd.gguf", {"yarn_gguf.restore": json.dumps(record)})
    done = extended(tmp_path / "odd.gguf", "--restore", "-o", tmp_path / "back.gguf")
    assert "not byte-identical" in done.words
    assert read_tensors(tmp_path / "back.gguf") == read_tensors(source)


def test_a_record_that_is_no_text_is_refused(tmp_path: Path) -> None:
    extended(small_model(tmp_path / "model.gguf"), *KEYS, "-o", tmp_path / "extended.gguf")
    rewritten(tmp_path / "extended.gguf", tmp_path / "bad.gguf", {"yarn_gguf.restore": 7})
    assert run("extend", tmp_path / "bad.gguf", "--restore").code == 3


def test_what_is_restored_has_no_key_of_ours(tmp_path: Path) -> None:
    extended(small_model(tmp_path / "model.gguf"), *KEYS, "--in-place")
    file = tmp_path / "model.gguf"
    assert any(name.startswith("yarn_gguf.") for name in read_keys(file))
    extended(file, "--restore", "--in-place")
    assert not any(name.startswith("yarn_gguf.") for name in read_keys(file))
    assert len(gguf.GGUFReader(file).tensors) == 7
