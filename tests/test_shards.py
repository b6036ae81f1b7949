"""Split sets: read as one model by any of their parts, refused when they are none, written whole.

The sets are split by gguf-py from models that llama.cpp loads, so that it can say whether it loads what we wrote.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import pytest

from tests import gguf_bytes as g
from tests.command import extended, run
from tests.llama_logits import load_ok
from tests.make_gguf import ROPE_FREQS, hashes, read_keys, read_tensors, rewritten, rope_freqs_of, small_model
from tests.oracle_gguf import Oracle

BAKED: Final = ("--factor", "8", "--encoding", "baked")
KEYS: Final = ("--factor", "8", "--encoding", "keys")
SIZE: Final = 8  # tensors in a part
ToyGguf = Callable[[str], Path]


def toy_set(toy_gguf: ToyGguf, name: str, folder: Path, *, factors_in: int = 0) -> list[Path]:
    """A toy in parts of SIZE tensors; `factors_in` moves its rope_freqs.weight to the first or to a later part."""
    folder.mkdir(exist_ok=True)
    source = toy_gguf(name)
    if not factors_in:
        return rewritten(source, folder / "model.gguf", split=SIZE)
    values = np.array(rope_freqs_of(source), np.float32)
    without = rewritten(source, folder / "without.gguf", drop=[ROPE_FREQS])[0]
    first = factors_in == 1
    parts = rewritten(without, folder / "model.gguf", split=SIZE, tensors={ROPE_FREQS: values}, tensors_first=first)
    without.unlink()
    return parts


def holder_of(parts: list[Path]) -> list[int]:
    return [number for number, part in enumerate(parts, 1) if ROPE_FREQS in read_tensors(part)]


def all_tensors(parts: list[Path]) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {name: found for part in parts for name, found in read_tensors(part).items() if name != ROPE_FREQS}


def set_of(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-0*.gguf"))


# ---- reading


def test_any_part_stands_for_the_set(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama", tmp_path)
    answers = [extended(part, *KEYS, "--dry-run", "--json").json for part in parts]
    assert len(parts) == 4
    assert answers == [answers[0]] * 4
    assert [Path(file["path"]).name for file in answers[0]["outputs"][0]["files"]] == [
        f"model-yarn8x-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)
    ]
    assert set_of(tmp_path, "model") == parts


def _renumbered(part: Path, **keys: int) -> None:
    """The same part with other `split.*` values, all of which gguf-py wrote as numbers of two or four bytes."""
    data = part.read_bytes()
    for name, value in keys.items():
        field = gguf.GGUFReader(part).fields["split." + name.replace("_", ".")]
        at, width = field.offset + 8 + len(field.name) + 4, field.parts[-1].nbytes
        data = data[:at] + value.to_bytes(width, "little", signed=value < 0) + data[at + width :]
    part.write_bytes(data)


def _replaced(parts: list[Path], number: int, by: Path) -> None:
    shutil.copy(by, parts[number - 1])


def _exchanged(parts: list[Path], one: int, other: int) -> None:
    contents = [parts[number - 1].read_bytes() for number in (one, other)]
    for number, data in zip((other, one), contents, strict=True):
        parts[number - 1].write_bytes(data)


def _missing(parts: list[Path], *numbers: int) -> None:
    for number in numbers:
        parts[number - 1].unlink()


def _folder(part: Path) -> None:
    part.unlink()
    part.mkdir()


FAULTS: Final[dict[str, tuple[Callable[[list[Path], list[Path]], object], str]]] = {
    "a part missing": (lambda a, b: _missing(a, 3), "parts missing beside it: model-00003-of-00004.gguf"),
    "two parts missing": (lambda a, b: _missing(a, 2, 4), "model-00002-of-00004.gguf, model-00004-of"),
    "the same part twice": (
        lambda a, b: _replaced(a, 3, a[1]),
        "model-00003-of-00004.gguf says split.no 1 of 4, not 2",
    ),
    "two parts exchanged": (lambda a, b: _exchanged(a, 2, 3), "split.no"),
    "a part of another model": (lambda a, b: _replaced(a, 3, b[2]), "tensors that stand twice"),
    "a part with too few tensors": (lambda a, b: _replaced(a, 4, b[3]), "split.tensors.count is 30, the parts hold"),
    "a part of a longer set": (lambda a, b: _renumbered(a[1], count=5), "says split.no 1 of 5, not 1 of 4"),
    "a part that is a folder": (lambda a, b: _folder(a[2]), "not a regular file"),
    "a part that is empty": (lambda a, b: a[2].write_bytes(b""), "model-00003-of-00004.gguf: at byte 0: the file is"),
    "a part that is cut short": (lambda a, b: a[2].write_bytes(a[2].read_bytes()[:-500]), "needs the file to have"),
    "a first part of another count": (lambda a, b: _renumbered(a[0], count=3), "its name must end in -00001-of-00003"),
    "a first part of 65535": (lambda a, b: _renumbered(a[0], count=65535), "its name must end in -00001-of-65535"),
    "a wrong number of tensors": (lambda a, b: _renumbered(a[0], tensors_count=31), "split.tensors.count is 31"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_set_that_is_none_is_refused_and_its_faults_are_listed(name: str, toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama", tmp_path / "set")
    other = toy_set(toy_gguf, "qwen3", tmp_path / "other")
    fault, says = FAULTS[name]
    fault(parts, other)
    before = hashes(tmp_path)
    done = run("extend", parts[0], *KEYS)
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done
    assert says in done.err
    assert hashes(tmp_path) == before


def test_a_part_under_another_name_is_refused(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    part = toy_set(toy_gguf, "llama", tmp_path)[0].rename(tmp_path / "model.gguf")
    done = run("extend", part, *KEYS)
    assert done.code == 3
    assert "its name must end in -00001-of-00004.gguf" in done.err


def test_a_part_numbered_beyond_its_set_is_refused(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama", tmp_path)
    stray = Path(shutil.copy(parts[1], tmp_path / "model-00009-of-00004.gguf"))
    assert run("extend", stray, *KEYS).code == 3


def test_a_set_of_ninety_thousand_parts_is_refused_in_a_short_line(tmp_path: Path) -> None:
    raw = g.gguf([g.u32(b"split.count", 90_000), g.u32(b"split.no", 0)], [g.tensor(b"a", (1,), g.F32, 0)], bytes(4))
    (tmp_path / "m-00001-of-90000.gguf").write_bytes(raw)
    done = run("extend", tmp_path / "m-00001-of-90000.gguf", *KEYS)
    assert done.code == 3
    assert "m-00009-of-90000.gguf and more" in done.err
    assert len(done.err) < 500


@pytest.mark.parametrize("count", [-5, 1 << 31, (1 << 63) - 1])
def test_a_set_of_billions_of_parts_is_refused_at_once(count: int, tmp_path: Path) -> None:
    huge = g.pair(b"split.count", g.I64, struct.pack("<q", count))
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(g.gguf([huge]))
    done = run("extend", tmp_path / "m-00001-of-00002.gguf", *KEYS)
    assert done.code == 3
    assert f"split.count is {count}" in done.err


# ---- writing


@pytest.mark.parametrize("step", [KEYS, BAKED], ids=["keys", "baked"])
@pytest.mark.parametrize(("name", "factors_in"), [("llama", 0), ("llama-llama3", 1), ("llama-llama3", 4)])
def test_an_extended_set_loads_everywhere_and_is_undone_byte_for_byte(
    name: str, factors_in: int, step: tuple[str, ...], toy_gguf: ToyGguf, tmp_path: Path
) -> None:
    parts = toy_set(toy_gguf, name, tmp_path / "set", factors_in=factors_in)
    assert holder_of(parts) == [factors_in] * bool(factors_in)
    before = hashes(tmp_path / "set")
    document = extended(parts[1], *step, "-o", tmp_path / "out.gguf", "--json").json
    written = set_of(tmp_path, "out")
    files = document["outputs"][0]["files"]
    assert [Path(file["path"]) for file in files] == written
    assert [file["bytes"] for file in files] == [path.stat().st_size for path in written]
    rewritten_parts = {1, factors_in or 1} if step == BAKED else {1}
    assert [file["how"] for file in files] == [
        "written" if number in rewritten_parts else "hard-linked" for number in (1, 2, 3, 4)
    ]
    assert all_tensors(written) == all_tensors(parts)
    added = step == BAKED and not factors_in
    assert document["tensors"] == 30 + bool(factors_in) + added
    assert read_keys(written[0])["split.tensors.count"] == document["tensors"]
    assert read_keys(written[0])["llama.context_length"] == 1024
    with Oracle() as oracle:
        assert all(oracle.takes(path) for path in written)
    assert load_ok(written[0])
    extended(written[3], "--restore", "-o", tmp_path / "back.gguf")
    for old, new in zip(parts, set_of(tmp_path, "back"), strict=True):
        assert old.read_bytes() == new.read_bytes()
    assert hashes(tmp_path / "set") == before


@pytest.mark.parametrize("factors_in", [1, 4])
def test_in_place_only_the_parts_that_change_are_rewritten(factors_in: int, toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama-llama3", tmp_path, factors_in=factors_in)
    original, values = hashes(tmp_path), rope_freqs_of(parts[factors_in - 1])
    steps: list[tuple[tuple[str, ...], set[int]]] = [
        (KEYS, {1}),
        (BAKED, {1, factors_in}),
        ((*BAKED, "--no-truncate"), {1, factors_in}),
        ((*BAKED, "--no-truncate"), {1}),  # the tensor has that data already
        (KEYS, {1, factors_in}),
        (BAKED, {1, factors_in}),
        (("--restore",), {1, factors_in}),
    ]
    for step, expected in steps:
        before = [part.stat().st_ino for part in parts]
        document = extended(parts[2], *step, "--in-place", "--json").json
        after = [part.stat().st_ino for part in parts]
        assert {n for n, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b} == expected
        assert [file["how"] for file in document["outputs"][0]["files"]] == [
            "written" if number in expected else "kept" for number in (1, 2, 3, 4)
        ]
        assert (rope_freqs_of(parts[factors_in - 1]) == values) == (BAKED[-1] not in step)
        assert len(hashes(tmp_path)) == 4
    assert hashes(tmp_path) == original


def test_a_header_padding_that_is_not_zeros_survives_in_a_later_part_that_is_rewritten(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf", keys={"embedding_length": 64})
    factors = {ROPE_FREQS: np.arange(1, 17, dtype=np.float32)}
    parts = rewritten(model, tmp_path / "set.gguf", split=2, tensors=factors)
    data = parts[-1].read_bytes()
    start = gguf.GGUFReader(parts[-1]).data_offset
    parts[-1].write_bytes(data[: start - 4] + b"\1\2\3\4" + data[start:])  # behind the last info there are 8 or more
    before = {part.name: part.read_bytes() for part in parts}
    extended(parts[0], *BAKED, "--in-place")
    assert parts[-1].read_bytes()[start - 4 : start] == b"\1\2\3\4"
    extended(parts[0], "--restore", "--in-place")
    assert {part.name: part.read_bytes() for part in parts} == before


def test_a_first_part_without_tensors_is_padded_as_it_was(tmp_path: Path) -> None:
    """What gguf-split writes with --no-tensor-first-split."""
    model = small_model(tmp_path / "model.gguf")
    for number, padding in enumerate((b"", bytes(13), b"\1" * 13)):
        folder = tmp_path / str(number)
        folder.mkdir()
        parts = [folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"]
        reader = gguf.GGUFReader(model)
        old = model.read_bytes()
        info = next(t.field.offset for t in reader.tensors)
        numbers = [g.u32(b"split.count", 2), g.pair(b"split.tensors.count", g.I32, struct.pack("<i", 7))]
        count = int(reader.fields["GGUF.kv_count"].parts[0][0])
        head = g.gguf(n_pairs=count + 3) + old[24:info] + b"".join([*numbers, g.u32(b"split.no", 0)])
        spaced = head + padding[: -len(head) % 32] if padding else head
        parts[0].write_bytes(spaced)
        tail = g.gguf([*numbers, g.u32(b"split.no", 1)], n_tensors=7) + old[info : _infos_end(reader)]
        parts[1].write_bytes(tail + bytes(-len(tail) % 32) + old[reader.data_offset :])
        before = hashes(folder)
        for step in (KEYS, BAKED, KEYS, BAKED):
            extended(parts[0], *step, "--in-place")
            with Oracle() as oracle:
                assert all(map(oracle.takes, parts))
            assert all_tensors(parts) == read_tensors(model)
            assert bool(holder_of(parts)) == (step == BAKED)
        document = extended(parts[0], "--restore", "--in-place", "--json").json
        assert hashes(folder) == before
        assert document["identical"]


def _infos_end(reader: gguf.GGUFReader) -> int:
    last = reader.tensors[-1].field
    return int(last.offset + sum(part.nbytes for part in last.parts))


def test_parts_that_are_links_into_a_cache_are_linked_by_what_they_point_to(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    """The hub's cache: snapshots/x/model.gguf -> ../../blobs/0123."""
    parts = toy_set(toy_gguf, "llama", tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    for part in parts:
        blob = part.rename(part.with_name(f"{part.name[-15]}0123"))
        (snapshot / part.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (tmp_path / "out").mkdir()
    extended(snapshot / parts[0].name, *KEYS, "-o", tmp_path / "out" / "model.gguf")
    written = set_of(tmp_path / "out", "model")
    assert [path.is_symlink() for path in written] == [False] * 4
    assert load_ok(written[0])


def test_an_extended_set_with_a_part_of_another_model_is_noticed(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    """Before the extension nothing could tell: the two sets have the same names and numbers."""
    parts = toy_set(toy_gguf, "llama", tmp_path)
    extended(parts[0], *KEYS, "-o", tmp_path / "out.gguf")
    written = set_of(tmp_path, "out")
    before, other = hashes(tmp_path), bytearray(parts[1].read_bytes())
    at = other.index(b"blk.0.")
    other[at : at + 6] = b"blk.7."
    written[1].unlink()
    written[1].write_bytes(other)
    done = run("extend", written[0], "--restore", "--in-place")
    assert done.code == 3
    assert "out-00002-of-00004.gguf is from another model or was changed" in done.err
    assert {name for name, found in hashes(tmp_path).items() if before[name] != found} == {written[1].name}


def test_writing_a_set_again_over_its_hard_links_leaves_no_temporary(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    """Renaming one hard link over another of the same file does nothing at all, the system's rules say."""
    parts = toy_set(toy_gguf, "llama", tmp_path)
    extended(parts[0], *KEYS, "-o", tmp_path / "out.gguf")
    before = hashes(tmp_path)
    extended(parts[0], *KEYS, "-o", tmp_path / "out.gguf", "--force")
    assert hashes(tmp_path) == before
    assert len(before) == 8


def test_a_part_that_exists_stops_the_whole_set(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama", tmp_path)
    (tmp_path / "out-00003-of-00004.gguf").write_text("precious")
    before = hashes(tmp_path)
    done = run("extend", parts[0], *KEYS, "-o", tmp_path / "out.gguf")
    assert done.code == 2
    assert "out-00003-of-00004.gguf: exists; --force replaces it" in done.err
    assert hashes(tmp_path) == before


def test_the_file_names_follow_any_spelling_of_the_output(toy_gguf: ToyGguf, tmp_path: Path) -> None:
    parts = toy_set(toy_gguf, "llama", tmp_path)
    for spelling in ("out.gguf", "out", "out-00001-of-00004.gguf"):
        files = extended(parts[0], *KEYS, "-o", tmp_path / spelling, "--dry-run", "--json").json["outputs"][0]["files"]
        assert [Path(file["path"]).name for file in files][:2] == ["out-00001-of-00004.gguf", "out-00002-of-00004.gguf"]
    said = json.dumps(extended(parts[0], *KEYS, "--json").json["findings"])
    assert "3 other parts hard-linked" in said
