"""Malformed files, one named case each, and a small file damaged everywhere: refused in one line and cheaply.

The oracle is ggml's own reader: what it refuses, we refuse, and where we refuse more the test says so. The bytes are
put together by hand. Says nothing of what a good file contains (test_reader does), nor of what its keys mean.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import gguf_bytes as g
from tests.child_reader import read_in_child
from tests.oracle_gguf import Oracle
from yarn_gguf.errors import InputError, ResourceError, YarnGgufError
from yarn_gguf.gguf_file.header import Header, encode_header
from yarn_gguf.gguf_file.reader import read_header

HUGE: Final = (1 << 64) - 1
MIB: Final = 1 << 20


class Case(NamedTuple):
    """A file, part of what must be said of it, and whether ggml's reader, which looks at no data, takes it."""

    data: bytes
    says: str
    ggml_takes: bool = False


def one(raw: bytes, says: str, *, ggml_takes: bool = False, tail: bytes = b"") -> Case:
    """A file with one entry, given as its bytes."""
    return Case(g.gguf([raw]) + tail, says, ggml_takes)


def tensors(*infos: bytes, says: str, data: int = 256, pairs: tuple[bytes, ...] = (), ggml_takes: bool = False) -> Case:
    return Case(g.gguf(pairs, infos, bytes(data)), says, ggml_takes)


def alignment(kind: int, value: bytes, *, ggml_takes: bool = False) -> Case:
    return one(g.pair(b"general.alignment", kind, value), "general.alignment must be", ggml_takes=ggml_takes)


def a(dims: tuple[int, ...], kind: int = g.F32, *, n_dims: int | None = None) -> bytes:
    return g.tensor(b"a", dims, kind, 0, n_dims=n_dims)


def b(offset: int) -> bytes:
    """A second tensor of 4 bytes, which belongs at 32."""
    return g.tensor(b"b", (1,), g.F32, offset)


A, B = a((6,)), b(32)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4000000000\n"
BOMB = struct.pack("<IQ", g.ARRAY, 1)  # one more level of an array in an array

# rows 1 to 15 of the list of faults, in its order
CORPUS: Final[dict[str, Case]] = {
    "an empty file": Case(b"", "the file is empty"),
    "one byte": Case(b"G", "starts with b'G'"),
    "half the magic": Case(b"GG", "starts with b'GG'"),
    "the magic alone": Case(b"GGUF", "the version needs 4 bytes, the file has 0 left"),
    "a file that ends within the counts": Case(g.gguf()[:-1], "the entry count needs 8 bytes, the file has 7 left"),
    "another magic": Case(g.gguf(magic=b"GGML"), "starts with b'GGML', a GGUF file starts with b'GGUF'"),
    "the magic in lower case": Case(g.gguf(magic=b"gguf"), "starts with b'gguf'"),
    "a git-LFS pointer": Case(POINTER, "git-LFS pointer"),
    "a web page": Case(b"<!DOCTYPE html>\n<html>\r\n" * 9, "starts with b'<!DO'"),
    "version 0": Case(g.gguf(version=0), "GGUF version 0;"),
    "version 1": Case(g.gguf(version=1), "GGUF version 1;"),
    "version 4": Case(g.gguf(version=4), "GGUF version 4;"),
    "a version that is 3 in its lower half only": Case(g.gguf(version=0x10003), "GGUF version 65539;"),
    "byte-swapped version 2": Case(g.gguf(version=2 << 24), "byte-swapped"),
    "byte-swapped version 3": Case(g.gguf(version=3 << 24), "byte-swapped"),
    "one entry too many": Case(g.gguf([g.u32(b"k23456789", 1)], n_pairs=2) + bytes(3), "a key needs"),
    "entries beyond the bytes": Case(g.gguf([g.u32(b"k", 1)], n_pairs=3), "at byte 8: declares 3 entries"),
    "entries whose negative count is -1": Case(g.gguf(n_pairs=HUGE), f"declares {HUGE} entries"),
    "entries whose count times their size wraps": Case(g.gguf(n_pairs=(1 << 64) // 14 + 1), "bytes cannot hold"),
    "more entries than any model has": Case(
        g.gguf([g.pair(b"%x" % n, g.U8, b"0") for n in range((1 << 16) + 1)]), "up to 65536", True
    ),
    "tensors beyond the bytes": Case(g.gguf([], [A], n_tensors=9), "declares 0 entries and 9 tensors"),
    "tensors whose negative count is -1": Case(g.gguf(n_tensors=HUGE), f"and {HUGE} tensors"),
    "tensors whose count times their size wraps": Case(g.gguf(n_tensors=(1 << 64) // 25 + 1), "bytes cannot hold"),
    "a key longer than the file": one(g.string(b"key", length=100) + bytes(9), "a key needs 100 bytes"),
    "a key of 2^64 - 1 bytes": one(g.string(b"key", length=HUGE) + bytes(9), f"a key declares {HUGE} bytes"),
    "a key of 2^63 bytes": one(g.string(b"key", length=1 << 63) + bytes(9), "a key declares"),
    "a text longer than the file": one(g.pair(b"k", g.STRING, g.string(b"abc", length=4)), "key 'k' is cut short"),
    "a text of 2^64 - 1 bytes": one(g.pair(b"k", g.STRING, g.string(b"", length=HUGE)), "a string of key 'k' declares"),
    "a text whose end wraps to its start": one(
        g.pair(b"k", g.STRING, g.string(b"", length=(1 << 64) - 8)), "a string of key 'k' declares"
    ),
    "a tensor name longer than the file": Case(
        g.gguf([], [g.string(b"name", length=300) + bytes(16)]), "a tensor name needs 300 bytes"
    ),
    "4 million u32 in 51 bytes": one(g.pair(b"k", g.ARRAY, g.array(g.U32, 4_000_000, bytes(6))), "declares 4000000"),
    "2^40 bytes": one(g.pair(b"k", g.ARRAY, g.array(g.U8, 1 << 40, b"")), "declares 1099511627776 items"),
    "2^61 u64, whose size wraps to nothing": one(g.pair(b"k", g.ARRAY, g.array(g.U64, 1 << 61, b"")), "key 'k'"),
    "2^64 - 1 bools": one(g.pair(b"k", g.ARRAY, g.array(g.BOOL, HUGE, bytes(8))), "key 'k' declares"),
    "4 million texts": one(g.pair(b"k", g.ARRAY, g.array(g.STRING, 4_000_000, bytes(40))), "declares 4000000 items"),
    "2^61 texts, whose lengths' size wraps": one(g.pair(b"k", g.ARRAY, g.array(g.STRING, 1 << 61, b"")), "key 'k'"),
    "an array one item short": one(g.pair(b"k", g.ARRAY, g.array(g.I16, 3, bytes(5))), "declares 3 items of 2 bytes"),
    "an array cut within its count": one(g.pair(b"k", g.ARRAY, struct.pack("<II", g.U8, 1)), "the count of key 'k'"),
    "an array cut before its item type": one(g.pair(b"key23", g.ARRAY, b""), "the type of key 'key23' needs 4 bytes"),
    "texts one short": one(g.pair(b"k", g.ARRAY, g.array(g.STRING, 2, g.strings(b"abcdefgh"))), "1 of 2 strings"),
    "a last text that is cut": one(g.pair(b"k", g.ARRAY, g.array(g.STRING, 1, g.string(b"", length=1))), "last string"),
    "a middle text that ends past the file": one(
        g.pair(b"k", g.ARRAY, g.array(g.STRING, 3, g.string(b"", length=40) + bytes(16))), "key 'k' is cut short"
    ),
    "a middle text of 2^64 - 1 bytes": one(
        g.pair(b"k", g.ARRAY, g.array(g.STRING, 3, g.string(b"", length=HUGE) + bytes(16))), "a string of key 'k'"
    ),
    "a middle text that leads back to the first": one(
        g.pair(b"k", g.ARRAY, g.array(g.STRING, 3, g.string(b"", length=(1 << 64) - 8) + bytes(16))), "declares"
    ),
    "an entry without a type": one(g.string(b"key23") + bytes(3), "the type of key 'key23' needs 4 bytes"),
    "value type 13": one(g.pair(b"k", 13, bytes(8)), "key 'k' has the unknown value type 13"),
    "value type 2^32 - 1": one(g.pair(b"k", 0xFFFFFFFF, bytes(8)), "unknown value type 4294967295"),
    "item type 13": one(g.pair(b"k", g.ARRAY, g.array(13, 1, bytes(8))), "unknown value type 13"),
    "an empty array of an unknown type": one(g.pair(b"k", g.ARRAY, g.array(13, 0, b"")), "unknown value type 13"),
    "an array of arrays": one(g.pair(b"k", g.ARRAY, g.array(g.ARRAY, 1, g.array(g.U8, 1, b"\0"))), "array of arrays"),
    "an empty array of arrays": one(g.pair(b"k", g.ARRAY, g.array(g.ARRAY, 0, b"")), "key 'k' is an array of arrays"),
    "arrays nested 100,000 deep": one(g.pair(b"k", g.ARRAY, BOMB * 100_000), "key 'k' is an array of arrays"),
    "an empty key": one(g.u32(b"", 1), "at byte 24: an empty key"),
    "a key twice": Case(g.gguf([g.u32(b"k", 1), g.text(b"k", b"x")]), "at byte 41: key 'k' stands twice"),
    "a key twice that is not UTF-8": Case(g.gguf([g.u32(b"\xff", 1)] * 2), r"key '\udcff' stands twice"),
    "a key of 65,535 bytes twice": Case(g.gguf([g.u32(b"k" * 65_535, 1)] * 2), "k' stands twice"),
    "a key of 65,536 bytes": one(g.u32(b"k" * 65_536, 1), "a key declares 65536 bytes", ggml_takes=True),
    "alignment 0": alignment(g.U32, struct.pack("<I", 0)),
    "alignment 13": alignment(g.U32, struct.pack("<I", 13)),
    "alignment 31": alignment(g.U32, struct.pack("<I", 31)),
    "alignment 2^31": alignment(g.U32, struct.pack("<I", 1 << 31), ggml_takes=True),
    "alignment 2^21": alignment(g.U32, struct.pack("<I", 1 << 21), ggml_takes=True),
    "alignment as i32": alignment(g.I32, struct.pack("<i", 32)),
    "alignment as u64": alignment(g.U64, struct.pack("<Q", 32)),
    "alignment as u8": alignment(g.U8, b"\x20"),
    "alignment as a float": alignment(g.FLOAT32, struct.pack("<f", 32)),
    "alignment as a bool": alignment(g.BOOL, b"\1"),
    "alignment as text": alignment(g.STRING, g.string(b"32")),
    "alignment as an array of u32": alignment(g.ARRAY, g.array(g.U32, 1, struct.pack("<I", 32))),
    "5 dimensions": tensors(a((1,) * 5), says="tensor 'a' has 5 dimensions"),
    "2^32 - 1 dimensions": tensors(a((1,), n_dims=0xFFFFFFFF), says="tensor 'a' has 4294967295 dimensions"),
    "a negative dimension": tensors(a((HUGE,)), says="tensor 'a' of shape"),
    "a dimension of 2^63": tensors(a((1 << 63,), 24), says="overflows"),
    "two negative dimensions": tensors(a((HUGE, HUGE)), says="overflows"),
    "a product of 2^64": tensors(a((1 << 32, 1 << 32)), says="overflows"),
    "a product of 2^63": tensors(a((1 << 32, 1 << 31), 24), says="overflows"),
    "a product of 2^256": tensors(a((1 << 62,) * 4, 24), says="overflows"),
    "a negative dimension beside a zero": tensors(a((0, HUGE)), says="overflows"),
    "a product that overflows before a zero": tensors(a((1 << 32, 1 << 32, 0)), says="overflows"),
    "a product of 2^63 whose blocks would fit, before a zero": tensors(
        a((1 << 32, 1 << 31, 0), g.Q4_0), says="overflows"
    ),
    "a product that overflows after a zero": tensors(a((0, 1 << 32, 1 << 32)), says="overflows", ggml_takes=True),
    "a size that overflows": tensors(a((1 << 62,)), says="overflows"),
    "a size that overflows once padded": tensors(a(((1 << 61) - 1,), 28), says="overflows"),
    "a size just below 2^63": tensors(a(((1 << 63) - 1,), 24), says="tensor 'a' needs the file", ggml_takes=True),
    "sizes whose sum overflows": tensors(
        a(((1 << 63) - 32,), 24),
        g.tensor(b"b", ((1 << 63) - 32,), 24, (1 << 63) - 32),
        g.tensor(b"c", (64,), 24, (1 << 64) - 64),
        says="tensor 'c' of shape (64,) overflows",
    ),
    "tensor type 43": tensors(a((32,), 43), says="tensor 'a' has the unknown or retired type 43"),
    "tensor type 2^31": tensors(a((32,), 1 << 31), says="type 2147483648"),
    "tensor type 2^32 - 1": tensors(a((32,), 0xFFFFFFFF), says="type 4294967295"),
    **{f"retired tensor type {n}": tensors(a((256,), n), says=f"type {n}") for n in (4, 5, 31, 32, 33, 36, 37, 38)},
    "a row of 33 in blocks of 32": tensors(a((33,), g.Q4_0), says="tensor 'a': rows of 33"),
    "a row of 255 in blocks of 256": tensors(a((255,), g.Q4_K), says="tensor 'a': rows of 255"),
    "rows of half a block, whole together": tensors(a((16, 2), g.Q8_0), says="tensor 'a': rows of 16"),
    "a scalar in blocks of 32": tensors(a((), g.Q8_0), says="tensor 'a': rows of 1"),
    "a tensor name of 64 bytes": tensors(g.tensor(b"n" * 64, (1,), 0, 0), says="a name of 64 bytes"),
    "a tensor name of 100,000 bytes": tensors(
        g.tensor(b"n" * 100_000, (1,), 0, 0), says="a tensor name declares 100000 bytes"
    ),
    "a tensor name twice": tensors(A, g.tensor(b"a", (1,), 0, 32), says="at byte 57: tensor 'a' stands twice"),
    "an empty tensor name": tensors(g.tensor(b"", (1,), 0, 0), says="a name of 0 bytes", ggml_takes=True),
    "a NUL in a tensor name": tensors(g.tensor(b"a\0b", (1,), 0, 0), says=r"tensor 'a\x00b'", ggml_takes=True),
    "a tensor info cut within its offset": Case(g.gguf([], [A])[:56], "tensor 'a' needs 8 bytes"),
    "tensors that overlap": tensors(A, b(0), says="tensor 'b' lies at offset 0, expected 32"),
    "tensors that overlap in part": tensors(A, b(16), says="tensor 'b' lies at offset 16, expected 32"),
    "a hole between tensors": tensors(A, b(64), says="tensor 'b' lies at offset 64, expected 32"),
    "an unaligned tensor": tensors(A, b(24), says="tensor 'b' lies at offset 24, expected 32"),
    "an offset that wraps": tensors(A, b((1 << 64) - 32), says="tensor 'b' of shape (1,) overflows"),
    "a hole before the first tensor": tensors(b(32), says="tensor 'b' lies at offset 32, expected 0"),
    "tensors out of order": tensors(B, A, says="tensor 'b' lies at offset 32, expected 0"),
    "offsets of another alignment": tensors(
        A, B, pairs=(g.u32(b"general.alignment", 64),), says="tensor 'b' lies at offset 32, expected 64"
    ),
    "a header whose padding is missing": Case(g.gguf([], [A])[:61], "the data should start at byte 64"),
    "no data at all": tensors(A, data=0, says="tensor 'a' needs the file to have 88 bytes, it has 64", ggml_takes=True),
    "data one byte short": tensors(A, data=23, says="needs the file to have 88 bytes, it has 87", ggml_takes=True),
    "a second tensor that is missing": tensors(A, B, data=32, says="tensor 'b' needs the file", ggml_takes=True),
}


def refusal(path: Path) -> YarnGgufError | None:
    """What the reader says against a file; all that it takes must also decode, and encode to the bytes it came from."""
    try:
        header = read_header(path)
    except (InputError, ResourceError) as error:
        assert "\n" not in error.text
        assert len(error.text) < 400
        return error
    whole = path.read_bytes()
    for entry in header.entries.values():
        entry.value()
    assert header.end <= len(whole)
    assert whole.startswith(unpadded(header))
    return None


def unpadded(header: Header) -> bytes:
    """The header's bytes, put together anew from what was read of them."""
    return encode_header(header.version, [*header.entries.values()], [*header.tensors.values()], alignment=1)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.gguf"


corpus = pytest.mark.parametrize("case", CORPUS.values(), ids=CORPUS.keys())


@corpus
def test_a_malformed_file_is_refused_in_one_line_that_says_where_and_what(case: Case, path: Path) -> None:
    path.write_bytes(case.data)
    error = refusal(path)
    assert isinstance(error, InputError)
    assert error.exit_code == 3
    assert error.file == str(path)
    assert re.match(r"at byte \d+: .", error.text)
    assert case.says in error.text


@corpus
def test_ggml_refuses_a_malformed_file_too_unless_the_corpus_says_otherwise(
    case: Case, path: Path, oracle: Oracle
) -> None:
    path.write_bytes(case.data)
    assert oracle.takes(path) == case.ggml_takes


@corpus
def test_refusing_a_malformed_file_takes_a_twentieth_of_a_second_at_most(case: Case, path: Path) -> None:
    """Measured: 1 ms for most; 65,537 entries are refused by their count."""
    path.write_bytes(case.data)
    begin = time.process_time()
    refusal(path)
    assert time.process_time() - begin < 0.05


TAKEN: Final[dict[str, bytes]] = {
    "the smallest file": g.gguf(),
    "version 2": g.gguf([g.u32(b"k", 1)], [A], bytes(24), version=2),
    "a key named GGUF.version": g.gguf([g.u32(b"GGUF.version", 7), g.u32(b"GGUF.kv_count", 7)]),
    "keys with a NUL, a newline, and none of it text": g.gguf(
        [g.u32(b"\0", 1), g.u32(b"\n", 2), g.u32(b"\xff\xc3", 3)]
    ),
    "a text that is not UTF-8": g.gguf([g.text(b"k", b"\xff\xfe\0")]),
    "texts that are not UTF-8": g.gguf(
        [g.pair(b"k", g.ARRAY, g.array(g.STRING, 2, g.strings(b"\x80", b"\xed\xb2\x80")))]
    ),
    "an empty text": g.gguf([g.text(b"k", b"")]),
    "empty texts": g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 2, g.strings(b"", b"")))]),
    **{
        f"an empty array of type {n}": g.gguf([g.pair(b"k", g.ARRAY, g.array(n, 0, b""))])
        for n in (*g.WIDTHS, g.STRING)
    },
    "a bool of 2": g.gguf([g.pair(b"k", g.BOOL, b"\2")]),
    "alignment 1": g.gguf([g.u32(b"general.alignment", 1)], [A, b(24)], bytes(28), alignment=1),
    "alignment of a megabyte": g.gguf([g.u32(b"general.alignment", MIB)], [A], bytes(24), alignment=MIB),
    "a key of 65,535 bytes": g.gguf([g.u32(b"k" * 65_535, 1)]),
    "a tensor name of 63 bytes": g.gguf([], [g.tensor(b"n" * 63, (1,), g.F32, 0)], bytes(4)),
    "a tensor name that is not UTF-8": g.gguf([], [g.tensor(b"\xff", (1,), g.F32, 0)], bytes(4)),
    "a tensor without dimensions": g.gguf([], [a(())], bytes(4)),
    "tensors without elements, which share an offset": g.gguf([], [a((0,)), g.tensor(b"b", (4, 0), g.F16, 0)]),
    "a last tensor without padding": g.gguf([], [A, B], bytes(36)),
    "padding that is not zero": g.gguf([], [A])[:57] + b"padding" + bytes(24),
    "every kind of value": g.small(),
}
taken = pytest.mark.parametrize("whole", TAKEN.values(), ids=TAKEN.keys())


@taken
def test_an_odd_but_sound_file_is_taken_with_its_bytes_preserved(whole: bytes, path: Path, oracle: Oracle) -> None:
    path.write_bytes(whole)
    assert oracle.takes(path)
    assert refusal(path) is None


def test_text_that_is_not_utf8_is_marked_and_comes_back_to_the_byte(path: Path) -> None:
    odd = b"\xff\xed\xb2\x80a\xc3"
    texts = g.array(g.STRING, 3, g.strings(b"fine", odd * 30, b"x"))
    path.write_bytes(
        g.gguf([g.text(b"one", odd), g.pair(b"many", g.ARRAY, texts), g.text(odd, b""), g.text(b"ok", "ж".encode())])
    )
    header = read_header(path)
    one_text, many = header.get("one"), header.get("many")
    assert isinstance(one_text, str)
    assert isinstance(many, list)
    assert one_text.encode("utf-8", "surrogateescape") == odd
    assert many[1].encode("utf-8", "surrogateescape") == odd * 30
    assert [entry.utf8 for entry in header.entries.values()] == [False, False, False, True]


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_byte_is_noticed_in_a_text_of_any_length_and_place(length: int, place: int, path: Path) -> None:
    texts = ["я".encode() * 70, b"", b"plain", "я".encode() * 70]
    for bad, fine in (b"\xd1", False), (b"\x7f", True):
        texts[place] = b"x" * (length - 1) + bad  # a first byte of two that the next length must not complete
        path.write_bytes(g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 4, g.strings(*texts)))]))
        assert read_header(path).entries["k"].utf8 is fine


def test_text_is_judged_across_the_steps_in_which_it_is_looked_at(path: Path) -> None:
    for shift in range(4):
        text = b"x" * shift + "😀".encode() * 700_000  # 2.8 MB, four bytes each, so that steps end within a character
        for cut in (0, 1):
            path.write_bytes(g.gguf([g.text(b"k", text[: len(text) - cut])]))
            assert read_header(path).entries["k"].utf8 is (cut == 0)


def test_a_bool_is_true_whatever_byte_but_zero_it_is_stored_as(path: Path) -> None:
    path.write_bytes(g.gguf([g.pair(b"k", g.BOOL, b"\2"), g.pair(b"a", g.ARRAY, g.array(g.BOOL, 3, b"\0\2\xff"))]))
    header = read_header(path)
    assert header.get("k") is True
    array = header.get("a")
    assert not isinstance(array, (str, int, float, list, type(None)))
    assert array.tolist() == [False, True, True]
    assert array.sum() == 2


@pytest.mark.parametrize("count", [0, 1, 31, 32, 5000])
def test_trailing_bytes_are_counted_past_the_padding_of_the_last_tensor(count: int, path: Path) -> None:
    path.write_bytes(g.gguf([], [A], bytes(32)) + b"\1" * count)
    assert read_header(path).trailing == count
    path.write_bytes(g.gguf([], [A], bytes(24 + min(count, 8))))
    assert read_header(path).trailing == 0


def test_the_padding_that_ggml_writes_after_a_header_without_tensors_is_not_trailing(path: Path) -> None:
    head = g.gguf([g.u32(b"k", 1)])
    path.write_bytes(head + bytes(-len(head) % 32))
    assert read_header(path).trailing == 0
    path.write_bytes(head + bytes(-len(head) % 32) + b"more")
    assert read_header(path).trailing == 4


def test_a_file_cut_short_at_any_byte_is_refused_unless_only_padding_is_missing(path: Path, oracle: Oracle) -> None:
    whole = g.small()
    ours, ggml = [], []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        error = refusal(path)
        assert error is None or isinstance(error, InputError)
        if error is None:
            ours.append(length)
        if oracle.takes(path):
            ggml.append(length)
    assert ours == list(range(len(whole) - 30, len(whole)))  # 34 bytes of Q8_0 in a space of 64
    assert ggml == list(range(len(whole) - 96, len(whole)))  # ggml does not look for the data


# where ggml takes what we refuse: it is asked for no data, its sizes go up to 2^64, and it minds no names
STRICTER: Final = re.compile(
    r"needs the file to have|overflows$|a name of \d+ bytes; 1 to 63|general.alignment must be"
)


def agree(path: Path, oracle: Oracle) -> bool:
    """Holds our answer against ggml's, both ways; whether the file was taken."""
    error = refusal(path)
    assert error is None or isinstance(error, InputError)
    if oracle.takes(path):
        assert error is None or STRICTER.search(error.text), error.text
    else:
        assert error is not None
    return error is None


def test_any_header_byte_changed_ends_in_success_or_a_refusal_just_as_in_ggml(path: Path, oracle: Oracle) -> None:
    whole = g.small()
    outcomes = []
    for at in range(len(whole) - 96):
        old = whole[at]
        for new in sorted({old ^ (1 << bit) for bit in range(8)} | {0x00, 0x80, 0xFF} - {old}):
            path.write_bytes(whole[:at] + bytes([new]) + whole[at + 1 :])
            outcomes.append(agree(path, oracle))
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.8  # texts and numbers may be anything, lengths and types may not


edge = st.sampled_from([0, 1, 2, 8, 255, 1 << 16, 1 << 30, 1 << 31, 1 << 32, 1 << 61, 1 << 63, HUGE - 7, HUGE])
keys = st.sampled_from([b"k", b"general.alignment", b"general.architecture", b"", b"\xff", b"a" * 200]) | st.binary(
    max_size=9
)
words = st.binary(max_size=12) | st.sampled_from([b"", b"x" * 127, b"x" * 128, "語".encode() * 50])


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """A type and bytes that may or may not be of it."""
    kind = draw(st.sampled_from([*g.WIDTHS, g.STRING, g.ARRAY, g.ARRAY]))
    width = g.WIDTHS.get(kind, 0)
    body = draw(st.binary(min_size=width, max_size=width))
    if kind == g.STRING:
        word = draw(words)
        body = g.string(word, length=draw(st.just(None) | edge) if draw(st.integers(0, 9)) == 0 else None)
    if kind == g.ARRAY:
        body = draw(arrays())
    if draw(st.integers(0, 19)) == 0:
        kind = draw(st.integers(0, 14) | st.just(0xFFFFFFFF))
    return struct.pack("<I", kind) + body


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([*g.WIDTHS, g.STRING, g.STRING]))
    if kind == g.STRING:
        texts = draw(st.lists(words, max_size=5))
        count, items = len(texts), g.strings(*texts)
    else:
        count = draw(st.integers(0, 5))
        items = draw(st.binary(min_size=count * g.WIDTHS[kind], max_size=count * g.WIDTHS[kind]))
    lie = draw(st.integers(0, 29))
    if lie == 0:
        count = draw(edge)
    if lie == 1:
        kind = draw(st.integers(0, 14))
    if lie == 2:
        items = items[: draw(st.integers(0, len(items)))]
    return g.array(kind, count, items)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A header of a few entries and at times two tensors, mostly sound, with a lie here and there."""
    distinct = draw(st.lists(keys, max_size=4, unique=draw(st.integers(0, 4)) > 0))
    pairs = [g.string(key) + draw(values()) for key in distinct]
    infos = [A, B] if draw(st.booleans()) else []
    n_pairs = draw(edge) if draw(st.integers(0, 19)) == 0 else len(pairs) + draw(st.sampled_from([0] * 18 + [1, 2]))
    whole = g.gguf(pairs, infos, bytes(36), n_pairs=n_pairs)
    return whole[: -draw(st.integers(1, 99))] if draw(st.integers(0, 9)) == 0 else whole


@st.composite
def layouts(draw: st.DrawFn) -> bytes:
    """Tensors of any shape and type where they belong, or elsewhere."""
    infos, expected = [], 0
    align = draw(st.sampled_from([32, 32, 1, 8, 64]))
    for n in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([g.F32, g.F16, g.Q4_0, g.Q8_0, g.Q4_K, 24, 28]) | st.integers(0, 50))
        block, size = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 24: (1, 1), 28: (1, 8)}.get(
            kind, (1, 1)
        )
        dims = draw(st.lists(st.integers(0, 3) if draw(st.integers(0, 9)) else edge, max_size=4 + (n == 3)))
        dims[:1] = [draw(st.integers(0, 2)) * block] if draw(st.integers(0, 9)) else dims[:1]
        offset = expected if draw(st.integers(0, 14)) else draw(edge | st.just((expected + 1) & HUGE))
        infos.append(
            g.tensor(draw(st.sampled_from([b"a", b"b"])) + b"%d" % n * draw(st.integers(0, 30)), dims, kind, offset)
        )
        bytes_ = size
        for dim in dims:
            bytes_ *= dim
        expected = (expected + -(-bytes_ // block // align) * align) & HUGE
    pairs = [g.u32(b"general.alignment", align)] if align != 32 else []
    return g.gguf(pairs, infos, bytes(min(expected, 1 << 12)), alignment=align)


quick = settings(
    max_examples=800,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],  # each example writes the file anew
)


def test_any_edit_of_keys_and_values_ends_as_it_does_in_ggml(path: Path, oracle: Oracle) -> None:
    outcomes = []

    @quick
    @given(files())
    def hold(whole: bytes) -> None:
        path.write_bytes(whole)
        outcomes.append(agree(path, oracle))

    hold()
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.8, "the files are all sound, or all broken"


def test_any_layout_of_tensors_ends_as_it_does_in_ggml(path: Path, oracle: Oracle) -> None:
    outcomes = []

    @quick
    @given(layouts())
    def hold(whole: bytes) -> None:
        path.write_bytes(whole)
        outcomes.append(agree(path, oracle))

    hold()
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.8, "the files are all sound, or all broken"


# what a small or a sparse file could make a careless reader spend; the second is the file's size, 0 for its bytes alone
BOMBS: Final[dict[str, tuple[bytes, int]]] = {
    "2^63 entries": (g.gguf(n_pairs=1 << 63) + bytes(99), 0),
    "2^35 tensors in a sparse terabyte": (g.gguf(n_tensors=1 << 35), 1 << 40),
    "2^20 tensors in a sparse gigabyte": (g.gguf(n_tensors=1 << 20), 1 << 30),
    "2^26 entries in a sparse gigabyte": (g.gguf(n_pairs=1 << 26), 1 << 30),
    "4 million u8": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.U8, 4_000_000, b""))]), 0),
    "4 million u32": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.U32, 4_000_000, b""))]), 0),
    "2^30 u32": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.U32, 1 << 30, b""))]), 0),
    "4 million texts": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 4_000_000, b""))]), 0),
    "2^30 u64 in a sparse terabyte": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.U64, 1 << 30, b""))]), 1 << 40),
    "2^30 texts in a sparse terabyte": (g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 1 << 30, b""))]), 1 << 40),
    "a key of 2^30 bytes in a sparse terabyte": (g.gguf([g.string(b"", length=1 << 30)]) + bytes(99), 1 << 40),
    "a text of 2^30 bytes in a sparse terabyte": (
        g.gguf([g.pair(b"k", g.STRING, g.string(b"", length=1 << 30))]),
        1 << 40,
    ),
    "a text of 2^39 bytes in a sparse terabyte": (
        g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 2, g.string(b"", length=1 << 39)))]),
        1 << 40,
    ),
    "a tensor name of 2^30 bytes in a sparse terabyte": (g.gguf([], [g.string(b"", length=1 << 30)]), 1 << 40),
    "arrays nested 2^20 deep": (g.gguf([g.pair(b"k", g.ARRAY, BOMB * (1 << 20))]), 0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_neither_time_nor_memory(name: str, path: Path) -> None:
    """Bounds from the list of faults; measured: under 5 ms and 1 MiB each."""
    data, size = BOMBS[name]
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    read = read_in_child(path)
    assert read.exit == 3, read.text
    assert read.seconds < 0.1
    assert read.peak - read.before < 64


@pytest.mark.parametrize("counts", [(1 << 18, 0), (0, 1 << 20)])
def test_more_entries_or_tensors_than_any_model_has_are_refused_by_their_count(
    counts: tuple[int, int], path: Path
) -> None:
    path.write_bytes(g.gguf(n_pairs=counts[0], n_tensors=counts[1]))
    os.truncate(path, 1 << 30)
    with pytest.raises(InputError, match=r"at byte 8: declares .*; up to 65536 and 262144 are read"):
        read_header(path)


def test_a_header_that_goes_on_through_a_sparse_file_is_given_up_in_bounded_memory(path: Path) -> None:
    """Arrays of 64 MiB of zeros that are not on the disk; the fourth is too many. Measured: 450 MiB, 1.1 s."""
    with path.open("wb") as file:
        file.write(g.gguf(n_pairs=9))
        for n in range(9):
            file.write(g.pair(b"%d" % n, g.ARRAY, g.array(g.U8, 1 << 26, b"")))
            file.seek(1 << 26, os.SEEK_CUR)
        file.truncate()
    read = read_in_child(path)
    assert read.exit == 3
    assert "key '3' declares 67108864 items, no model has a header" in read.text
    assert read.peak - read.before < 640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs in its folders")
def test_a_fifo_without_a_writer_is_refused_at_once(path: Path) -> None:
    os.mkfifo(path)
    read = read_in_child(path)
    assert (read.exit, read.text) == (3, "is not a regular file; give a GGUF file")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets in its folders")
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name may have a hundred bytes at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(InputError, match="is not a regular file") as caught:
            read_header("socket")
    assert caught.value.code == "not_regular"


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "."])
def test_a_device_or_a_folder_is_refused(name: str) -> None:
    if not Path(name).exists():
        pytest.skip("this system has no such device")
    with pytest.raises(InputError, match="is not a regular file") as caught:
        read_header(name)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["missing.gguf", "file.gguf/below", "dangling", "with\0nul", "with\ud800surrogate"])
def test_a_file_that_cannot_be_there_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_bytes(g.small())
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError) as caught:
        read_header(tmp_path / name)
    assert caught.value.code == "not_found"
    assert str(caught.value).isprintable()


def test_a_symlink_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    """The hub's cache is made of them, each blob under a name that is its hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123abcd").write_bytes(g.small())
    (tmp_path / "link").symlink_to(Path("blobs", "0123abcd"))
    (tmp_path / "model.gguf").symlink_to("link")
    header = read_header(tmp_path / "model.gguf")
    assert list(header.tensors) == ["first", "second"]
    assert header.path == tmp_path / "model.gguf"


def test_a_symlink_to_itself_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ResourceError, match="cannot be opened") as caught:
        read_header(tmp_path / "loop")
    assert caught.value.exit_code == 4


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_file_that_may_not_be_read_is_an_error_of_the_system(path: Path) -> None:
    path.write_bytes(g.small())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody: permissions do not bind root
    try:
        with pytest.raises(ResourceError, match="cannot be opened: Permission denied"):
            read_header(path)
    finally:
        os.seteuid(user)


def test_bytes_that_the_system_will_not_give_are_an_error_of_the_system() -> None:
    path = Path("/sys/class/net/lo/speed")  # a regular file of 4096 bytes, each read of which is EINVAL
    if not path.is_file():
        pytest.skip("this system has no file that cannot be read")
    with pytest.raises(ResourceError, match="cannot be read: ") as caught:
        read_header(path)
    assert caught.value.code == "read_failed"


def test_a_file_that_has_fewer_bytes_than_the_system_says_is_an_error_of_the_system() -> None:
    path = Path("/sys/class/net/lo/mtu")  # six bytes, said to be 4096
    if not path.is_file():
        pytest.skip("this system has no file that is shorter than it says")
    with pytest.raises(ResourceError, match="became shorter while it was read"):
        read_header(path)


LONG: Final = g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 3_000_000, g.string(b"word") * 3_000_000))])  # 36 MB


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"\xff" * (len(LONG) - MIB))


CHANGES: Final[dict[str, Callable[[Path], None]]] = {
    "cut short": lambda path: os.truncate(path, 3 * MIB),
    "made longer": lambda path: os.truncate(path, len(LONG) + 1),
    "overwritten with nonsense": overwrite,
    "touched": os.utime,
}


def read_while(path: Path, change: Callable[[], None]) -> Header:
    """Reads LONG, with `change` done by a signal when 20 ms of the 150 that it takes have been worked."""
    path.write_bytes(LONG)
    os.utime(path, (0, 0))  # long ago, so that a change shows whatever the filesystem's clock ticks in
    done: list[bool] = []

    def act(*_: object) -> None:
        change()
        done.append(True)

    before = signal.signal(signal.SIGPROF, act)
    signal.setitimer(signal.ITIMER_PROF, 0.02)
    try:
        return read_header(path)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        assert done


timed = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers to interrupt a read")


@timed
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_said_to_have_changed(name: str, path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        read_while(path, lambda: CHANGES[name](path))
    assert (caught.value.exit_code, caught.value.code) == (4, "input_changed")


@timed
def test_a_file_that_is_replaced_while_it_is_read_is_still_read_whole(path: Path) -> None:
    def replace() -> None:
        other = path.with_name("other")
        other.write_bytes(g.small())
        other.replace(path)

    assert unpadded(read_while(path, replace)) == LONG
    assert list(read_header(path).tensors) == ["first", "second"]


def test_a_file_that_somebody_keeps_cutting_and_restoring_is_read_whole_or_not_at_all(path: Path) -> None:
    whole = g.gguf([g.pair(b"k", g.ARRAY, g.array(g.STRING, 60_000, g.string(b"word") * 60_000))])
    path.write_bytes(whole)
    stop = threading.Event()

    def disturb() -> None:
        cut = 0
        while not stop.is_set():
            cut = (cut + 99_991) % len(whole)
            os.truncate(path, cut)
            with path.open("ab") as file:
                file.write(whole[cut:])
            stop.wait(0.003)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        exits = [outcome(path, whole) for _ in range(200)]
    finally:
        stop.set()
        thread.join()
    assert set(exits) <= {0, 3, 4}
    assert outcome(path, whole) == 0


def outcome(path: Path, whole: bytes) -> int:
    try:
        assert unpadded(read_header(path)) == whole
    except YarnGgufError as error:
        return error.exit_code
    return 0
