"""What is read of a good file is what gguf-py wrote, what gguf-py reads, and byte for byte what lies in the file.

The oracles are gguf-py's writer and reader, ggml's table of tensor types, and bytes put together by hand. Bad files are
test_hostile's; times are the benchmarks'.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from tests import gguf_bytes as g
from tests.child_reader import read_in_child
from tests.oracle_gguf import tensor_types
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file import header as our
from yarn_gguf.gguf_file.format import TENSOR_TYPES, ValueType
from yarn_gguf.gguf_file.reader import FIRST_PIECE, parse_entry, read_header

GGML_TYPE_COUNT: Final = 43  # of the llama.cpp that is pinned
Writer = Any  # gguf-py ships no types

# least, greatest and middling values of every kind, as a key's value and as an array's items
NUMBERS: Final[dict[GGUFValueType, list[Any]]] = {
    GGUFValueType.UINT8: [0, 200, 255],
    GGUFValueType.INT8: [-128, -1, 127],
    GGUFValueType.UINT16: [0, 40_000, 65_535],
    GGUFValueType.INT16: [-32_768, -1, 32_767],
    GGUFValueType.UINT32: [0, 3_000_000_000, 4_294_967_295],
    GGUFValueType.INT32: [-2_147_483_648, -1, 2_147_483_647],
    GGUFValueType.FLOAT32: [-0.0, 1.5, float("inf")],
    GGUFValueType.BOOL: [True, False, True],
    GGUFValueType.UINT64: [0, 1 << 63, (1 << 64) - 1],
    GGUFValueType.INT64: [-(1 << 63), -1, (1 << 63) - 1],
    GGUFValueType.FLOAT64: [-0.0, 1e300, float("-inf")],
}
TEXTS: Final = ["", "plain", "Ġслово", "语言模型", "🦙🦙", "\n\0\t", "=" * 127, "=" * 128, "ж" * 64, "é" * 5000]


def written(path: Path, fill: Callable[[Writer], None]) -> Path:
    """A file by gguf-py, filled by `fill`."""
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(value: our.Value | None) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.gguf"


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.name.lower())
def test_a_number_of_each_kind_is_what_gguf_py_wrote(kind: GGUFValueType, path: Path) -> None:
    def fill(writer: Writer) -> None:
        for n, value in enumerate(NUMBERS[kind]):
            writer.add_key_value(f"k.{n}", value, kind)
        writer.add_key_value("all", NUMBERS[kind], GGUFValueType.ARRAY, sub_type=kind)

    header = read_header(written(path, fill))
    found = [header.get(f"k.{n}") for n in range(3)]
    assert repr(found) == repr(NUMBERS[kind])  # as text, for the sign of a zero
    assert repr(plain(header.get("all"))) == repr(NUMBERS[kind])
    assert header.entries["k.0"].type == header.entries["all"].item_type == ValueType[kind.name]
    assert (header.entries["k.0"].item_type, header.entries["k.0"].count) == (None, 1)
    assert (header.entries["all"].type, header.entries["all"].count) == (ValueType.ARRAY, 3)


def test_nan_keeps_its_bits(path: Path) -> None:
    payload = b"\x01\x00\xc0\xff"
    path.write_bytes(g.gguf([g.pair(b"k", g.FLOAT32, payload)]))
    assert read_header(path).entries["k"].raw[-4:] == payload


def test_texts_are_what_gguf_py_wrote(path: Path) -> None:
    def fill(writer: Writer) -> None:
        for n, text in enumerate(TEXTS):
            writer.add_key_value(f"k.{n}", text, GGUFValueType.STRING)  # add_string drops an empty one
        writer.add_array("all", TEXTS)

    header = read_header(written(path, fill))
    assert [header.get(f"k.{n}") for n in range(len(TEXTS))] == TEXTS
    assert header.get("all") == TEXTS
    assert header.get("missing") is None
    assert all(entry.utf8 for entry in header.entries.values())


def tensors(writer: Writer) -> None:
    """Several types, one to four dimensions, sizes that need padding and sizes that do not."""
    rng = np.random.default_rng(7)
    writer.add_custom_alignment(64)
    writer.add_tensor("f32", rng.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("f16", rng.normal(size=(2, 3, 4, 5)).astype(np.float16))
    writer.add_tensor("i8", rng.integers(0, 9, 7).astype(np.int8))
    writer.add_tensor("i64", rng.integers(0, 9, (2, 1, 4)).astype(np.int64))
    for kind in (GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0):
        rows = gguf.quants.quantize(rng.normal(size=(6, 64)).astype(np.float32), kind)
        writer.add_tensor(kind.name, rows, raw_dtype=kind)
    for kind in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.IQ1_M, GGMLQuantizationType.TQ1_0):
        rows = rng.integers(0, 255, (3, 2 * gguf.GGML_QUANT_SIZES[kind][1])).astype(np.uint8)
        writer.add_tensor(kind.name, rows, raw_dtype=kind)


def test_tensors_lie_where_and_are_what_gguf_py_reads(path: Path) -> None:
    header, theirs = read_header(written(path, tensors)), gguf.GGUFReader(path)
    whole = path.read_bytes()
    assert len(header.tensors) == len(theirs.tensors) == 10
    assert header.alignment == 64
    assert header.data_offset == theirs.data_offset
    for tensor, other in zip(header.tensors.values(), theirs.tensors, strict=True):
        begin = header.data_offset + tensor.offset
        assert (tensor.name, tensor.type, list(tensor.dims)) == (other.name, other.tensor_type, other.shape.tolist())
        assert (tensor.elements, tensor.size, begin) == (other.n_elements, other.n_bytes, other.data_offset)
        assert whole[begin : begin + tensor.size] == other.data.tobytes()
    assert header.trailing == 0
    assert header.end == max(other.data_offset + other.n_bytes for other in theirs.tensors)


def test_every_value_is_what_gguf_py_reads(path: Path) -> None:
    def fill(writer: Writer) -> None:
        tensors(writer)
        for kind, values in NUMBERS.items():
            writer.add_key_value(f"one.{kind.name}", values[1], kind)
            writer.add_key_value(f"all.{kind.name}", values, GGUFValueType.ARRAY, sub_type=kind)
        writer.add_array("texts", TEXTS[1:])

    header, theirs = read_header(written(path, fill)), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(header.entries) == list(fields)
    for key, field in fields.items():
        entry = header.entries[key]
        assert plain(entry.value()) == field.contents()
        assert [t for t in (entry.type, entry.item_type) if t is not None] == field.types


def test_every_byte_of_the_header_is_kept(path: Path) -> None:
    header, whole = read_header(written(path, tensors)), path.read_bytes()
    parts = list(header.entries.values()), list(header.tensors.values())
    assert our.encode_header(header.version, *parts, header.alignment) == whole[: header.data_offset]


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.name.lower())
def test_an_entry_that_we_make_is_the_bytes_that_gguf_py_writes(kind: GGUFValueType, path: Path) -> None:
    def fill(writer: Writer) -> None:
        writer.add_key_value("one", NUMBERS[kind][2], kind)
        writer.add_key_value("all", NUMBERS[kind], GGUFValueType.ARRAY, sub_type=kind)

    header, ours = read_header(written(path, fill)), ValueType[kind.name]
    assert our.entry("one", ours, NUMBERS[kind][2]) == header.entries["one"]
    assert our.array_entry("all", ours, NUMBERS[kind]) == header.entries["all"]


def test_a_text_entry_that_we_make_is_the_bytes_that_gguf_py_writes(path: Path) -> None:
    def fill(writer: Writer) -> None:
        writer.add_string("ключ", TEXTS[3])
        writer.add_array("all", TEXTS)

    header = read_header(written(path, fill))
    assert our.entry("ключ", ValueType.STRING, TEXTS[3]) == header.entries["ключ"]
    assert our.array_entry("all", ValueType.STRING, TEXTS) == header.entries["all"]


def test_an_entry_parsed_from_its_own_bytes_is_the_one_in_the_file(path: Path) -> None:
    path.write_bytes(g.small())
    entries = read_header(path).entries.values()
    assert [parse_entry(entry.raw) for entry in entries] == list(entries)
    for entry in entries:
        for raw in (entry.raw + b"\0", entry.raw[:-1]):
            with pytest.raises(InputError):
                parse_entry(raw)


def test_the_table_of_tensor_types_is_ggmls() -> None:
    ggml = {n: kind for n, kind in tensor_types(GGML_TYPE_COUNT).items() if kind.block > 0}
    assert {n: (t.name.lower(), t.block, t.size) for n, t in TENSOR_TYPES.items()} == {
        n: (t.name.lower(), t.block, t.size) for n, t in ggml.items()
    }
    assert [t.name for t in TENSOR_TYPES.values()] == [GGMLQuantizationType(n).name for n in TENSOR_TYPES if n < 41] + [
        "Q1_0",
        "Q2_0",
    ]  # gguf-py spells them as we do, and does not know the newest two


VOCABULARY: Final = 152_000
MERGES: Final = 150_000


def vocabulary() -> tuple[list[str], list[str]]:
    """Words as in a large model's tokenizer: many scripts, some of 128 bytes and more, some empty of letters."""
    rng = random.Random(3)
    scripts = [
        range(0x61, 0x7B),
        range(0x3B1, 0x3C9),
        range(0x430, 0x44F),
        range(0x4E00, 0x9FA5),
        range(0x1F600, 0x1F640),
    ]
    words = []
    for n in range(VOCABULARY):
        script = scripts[n % 5 if n % 3 == 0 else 0]
        letters = 150 if n % 1009 == 0 else rng.randrange(1, 9)
        words.append("Ġ" * (n % 2) + "".join(map(chr, rng.choices(script, k=letters))) + str(n))
    return words, [f"{words[n]} {words[-n]}" for n in range(MERGES)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    words, merges = vocabulary()

    def fill(writer: Writer) -> None:
        writer.add_token_list(words)
        writer.add_token_types([n % 6 for n in range(VOCABULARY)])
        writer.add_token_scores([n / 7 for n in range(VOCABULARY)])
        writer.add_token_merges(merges)

    return written(tmp_path_factory.mktemp("large") / "vocabulary.gguf", fill), words, merges


Large = tuple[Path, list[str], list[str]]


def test_a_large_vocabulary_is_what_gguf_py_wrote(large: Large) -> None:
    path, words, merges = large
    assert path.stat().st_size > 16 * FIRST_PIECE  # it comes in several pieces
    header = read_header(path)
    assert header.get("tokenizer.ggml.tokens") == words
    assert header.get("tokenizer.ggml.merges") == merges
    assert plain(header.get("tokenizer.ggml.token_type")) == [n % 6 for n in range(VOCABULARY)]
    scores = header.get("tokenizer.ggml.scores")
    assert isinstance(scores, np.ndarray)
    assert scores.tobytes() == (np.arange(VOCABULARY) / 7).astype("<f4").tobytes()
    assert all(entry.utf8 for entry in header.entries.values())


def test_a_large_vocabulary_is_read_within_120_mib(large: Large) -> None:
    """All of the child counts, Python and numpy too. The bound is what is promised; measured: 45 MiB."""
    read = read_in_child(large[0])
    assert read.exit == 0, read.text
    assert read.peak < 120


@pytest.mark.parametrize("shift", range(-9, 3))
def test_a_length_that_straddles_two_pieces_is_read_right(shift: int, path: Path) -> None:
    """The filler ends `shift` bytes from where the first piece does; texts and numbers follow."""
    filler = b"x" * (FIRST_PIECE + shift - 24 - len(g.text(b"filler", b"")))
    texts = g.pair(b"texts", g.ARRAY, g.array(g.STRING, 3, g.strings(b"one", b"", b"three")))
    floats = g.pair(b"floats", g.ARRAY, g.array(g.FLOAT32, 2, bytes(8)))
    long = g.pair(b"long", g.ARRAY, g.array(g.STRING, 2, g.strings(b"", filler)))
    for tail in ([texts, floats], [long], [g.u32(b"n", 7)]):
        pairs = [g.text(b"filler", filler), *tail]
        path.write_bytes(g.gguf(pairs, [g.tensor(b"t", (1,), g.F32, 0)], b"data"))
        header = read_header(path)
        assert [entry.raw for entry in header.entries.values()] == pairs
        assert header.tensors["t"].size == 4
