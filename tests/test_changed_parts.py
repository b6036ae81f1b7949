"""A split set whose later parts another tool has changed since it was extended: told apart from a set that is none.

`check_parts` is called on what the package reads; the command line must go on where the tensors are the same ones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import pytest

from tests import gguf_bytes as g
from tests.command import extended, run
from tests.make_gguf import read_keys, read_tensors, rewritten, small_model
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Finding, Level
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.provenance import RESTORE, check_parts, original_of


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """An extended set of four parts with two tensors each."""
    rewritten(small_model(tmp_path / "small.gguf"), tmp_path / "model.gguf", split=2)
    (tmp_path / "out").mkdir()
    extended(tmp_path / "model-00001-of-00004.gguf", "--factor", "4", "-o", tmp_path / "out" / "model.gguf")
    for part in (found := sorted((tmp_path / "out").iterdir())):
        data = part.read_bytes()  # not through a hard link into the original
        part.unlink()
        part.write_bytes(data)
    return found


def _header(part: Path) -> tuple[bytes, bytes, bytes, bytes]:
    """All bytes of a part: magic and version; entries; tensor infos; data."""
    reader, data = gguf.GGUFReader(part), part.read_bytes()
    infos, last = reader.tensors[0].field.offset, reader.tensors[-1].field
    end = int(last.offset + sum(piece.nbytes for piece in last.parts))
    return data[:8], data[24:infos], data[infos:end], data[reader.data_offset :]


def _written(part: Path, entries: bytes, infos: bytes, *, more: int = 0, data: bytes | None = None) -> None:
    reader = gguf.GGUFReader(part)
    head, _, _, old = _header(part)
    count = int(reader.fields["GGUF.kv_count"].parts[0][0]) + more
    raw = head + struct.pack("<QQ", len(reader.tensors), count) + entries + infos
    part.write_bytes(raw + bytes(-len(raw) % 32) + (old if data is None else data))


def one_more_key(part: Path) -> None:
    _, entries, infos, _ = _header(part)
    _written(part, entries + g.text(b"general.author", b"somebody"), infos, more=1)


def tensors_exchanged(part: Path) -> None:
    """The same two tensors in the other order."""
    _, entries, infos, data = _header(part)
    one, other = gguf.GGUFReader(part).tensors
    cut, second = infos.index(g.string(other.name.encode())), other.data_offset - one.data_offset
    length = other.n_bytes + -other.n_bytes % 32
    moved = infos[cut:-8] + struct.pack("<Q", 0) + infos[: cut - 8] + struct.pack("<Q", length)
    _written(part, entries, moved, data=data[second : second + length].ljust(length, b"\0") + data[:second])


def other_name(part: Path) -> None:
    _, entries, infos, _ = _header(part)
    name = str(gguf.GGUFReader(part).tensors[1].name).encode()
    _written(part, entries, infos.replace(name, name[:-1] + b"X"))


def other_shape(part: Path) -> None:
    _, entries, infos, _ = _header(part)
    changed = infos.replace(struct.pack("<I2Q", 2, 64, 32), struct.pack("<I2Q", 2, 32, 64))
    assert changed != infos
    _written(part, entries, changed)


def other_type(part: Path) -> None:
    """F16 for BF16, which are of the same size."""
    _, entries, infos, _ = _header(part)
    changed = infos.replace(struct.pack("<QI", 32, 30), struct.pack("<QI", 32, 1))
    assert changed != infos
    _written(part, entries, changed)


def findings(parts: list[Path]) -> tuple[Finding, ...]:
    model = read_model(parts[0])
    return check_parts(model, original_of(model))


def without_infos(part: Path, infos: Any = None) -> None:
    """The record as earlier versions wrote it; or with other digests."""
    record = json.loads(read_keys(part)[RESTORE])
    del record["infos"]
    if infos is not None:
        record["infos"] = infos
    _set_record(part, json.dumps(record, separators=(",", ":")))


def _set_record(part: Path, text: str) -> None:
    reader = gguf.GGUFReader(part)
    field = reader.fields[RESTORE]
    _, entries, infos, _ = _header(part)
    start = int(field.offset) - 24
    end = start + sum(piece.nbytes for piece in field.parts)
    _written(part, entries[:start] + g.text(RESTORE.encode(), text.encode()) + entries[end:], infos)


def test_a_set_as_it_was_written_is_not_spoken_of(parts: list[Path]) -> None:
    assert findings(parts) == ()


CHANGES: Final[Mapping[str, Callable[[Path], None]]] = {
    "one more key": one_more_key,
    "tensors in another order": tensors_exchanged,
}


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_another_tool_changed_are_named_and_read(name: str, parts: list[Path]) -> None:
    for part in parts[1:3]:
        CHANGES[name](part)
    (found,) = findings(parts)
    assert (found.level, found.code) == (Level.WARNING, "parts_changed")
    assert "model-00002-of-00004.gguf, model-00003-of-00004.gguf" in found.text
    assert "00004-of" not in found.text
    assert run("inspect", parts[1]).code == 0
    tensors = [read_tensors(part) for part in parts]
    assert run("extend", parts[2], "--restore", "--in-place").code == 0
    assert read_keys(parts[0])["llama.context_length"] == 128
    assert [read_tensors(part) for part in parts] == tensors


@pytest.mark.parametrize("change", [other_name, other_shape, other_type])
def test_parts_with_other_tensors_are_refused(change: Callable[[Path], None], parts: list[Path]) -> None:
    change(parts[1])
    with pytest.raises(InputError) as caught:
        findings(parts)
    assert (caught.value.exit_code, caught.value.code) == (3, "split_mixed")
    assert "model-00002-of-00004.gguf" in caught.value.text
    assert "00003-of" not in caught.value.text
    assert run("extend", parts[0], "--restore", "--in-place").code == 3


def test_a_record_without_digests_of_tensors_says_changed_where_it_cannot_tell(parts: list[Path]) -> None:
    without_infos(parts[0])
    assert findings(parts) == ()
    other_name(parts[2])
    (found,) = findings(parts)
    assert (found.level, found.code) == (Level.WARNING, "parts_changed")
    assert "model-00003-of-00004.gguf" in found.text
    assert run("inspect", parts[0]).code == 0


def test_an_extension_on_top_of_an_older_record_keeps_what_it_says(parts: list[Path]) -> None:
    without_infos(parts[0])
    extended(parts[0], "--factor", "8", "--in-place")
    assert findings(parts) == ()
    one_more_key(parts[1])
    assert [found.code for found in findings(parts)] == ["parts_changed"]


@pytest.mark.parametrize("infos", [[1, 2, 3], "abc", {}], ids=repr)
def test_digests_that_are_no_texts_are_a_damaged_record(infos: Any, parts: list[Path]) -> None:
    without_infos(parts[0], infos)
    done = run("extend", parts[0], "--restore", "--in-place")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert f"{RESTORE} is damaged" in done.err
