"""Which folders are checkpoints, and which safetensors files are sound. For one file the oracle is safetensors."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_gguf.checkpoint.safetensors_file import BITS, read_header
from yarn_gguf.checkpoint.shards import Checkpoint, read_checkpoint, verify_unchanged
from yarn_gguf.errors import ChildError, InputError, ResourceError

Arrays = Mapping[str, Any]

SMALL: Arrays = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, 2, 3], np.int8),
    "empty": np.zeros((0, 4), np.float16),
    "scalar": np.array(7, np.int64),
}


def save(path: Path, arrays: Arrays = SMALL) -> Path:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path, metadata={"format": "pt"})
    return path


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _safetensors() -> tuple[type[Exception], Any]:
    import safetensors

    return safetensors.SafetensorError, safetensors.deserialize


def accepts(path: Path) -> bool:
    SafetensorError, deserialize = _safetensors()

    try:
        deserialize(path.read_bytes())
    except (SafetensorError, ValueError):  # ValueError: dtypes and text that Python cannot hold
        return False
    return True


def refusal(read: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        read()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return caught.value


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def sharded(folder: Path, shards: Mapping[str, Any], listed: Mapping[str, object] | None = None) -> Path:
    """Shards and, unless `listed` is given in its place, the index that belongs to them."""
    folder.mkdir(exist_ok=True)
    for name, arrays in shards.items():
        save(folder / name, arrays)
    right = {tensor: name for name, arrays in shards.items() for tensor in arrays}
    index = {"metadata": {"total_size": 1.5e3}, "weight_map": right if listed is None else listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
A, B = {"a": np.zeros(3, np.float32)}, {"b": np.ones((2, 2), np.float16)}


# ---- one file


def test_every_tensor_lies_where_safetensors_finds_it(tmp_path: Path) -> None:
    _, deserialize = _safetensors()

    path = save(tmp_path / "model.safetensors")
    content = path.read_bytes()
    found = {t.name: (t.dtype, list(t.shape), content[t.start : t.start + t.length]) for t in read_header(path)}
    assert found == {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(content)}
    assert list(found) == sorted(found)


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_a_dtype_has_the_size_that_safetensors_gives_it(tmp_path: Path, dtype: str) -> None:
    length = 8 * BITS[dtype] // 8
    good = raw(tmp_path / "good", {"x": tensor(dtype, [8], [0, length])}, bytes(length))
    bad = raw(tmp_path / "bad", {"x": tensor(dtype, [8], [0, length + 1])}, bytes(length + 1))
    assert accepts(good) and len(read_header(good)) == 1
    assert not accepts(bad)
    refusal(lambda: read_header(bad))


HUGE = 10**30
MALFORMED: dict[str, tuple[object, bytes]] = {
    "overlap": ({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)),
    "the same bytes twice": ({"a": tensor(), "b": tensor()}, bytes(8)),
    "hole": ({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)),
    "hole in front": ({"a": tensor(offsets=[4, 12])}, bytes(12)),
    "too few bytes for the shape": ({"a": tensor(shape=[3])}, bytes(8)),
    "too many bytes for the shape": ({"a": tensor(shape=[1])}, bytes(8)),
    "trailing bytes": ({"a": tensor()}, bytes(9)),
    "data missing": ({"a": tensor()}, bytes(7)),
    "negative shape": ({"a": tensor(shape=[-2])}, bytes(8)),
    "minus zero": (b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b""),
    "negative offset": ({"a": tensor(offsets=[-8, 0])}, bytes(8)),
    "backwards": ({"a": tensor(offsets=[8, 0])}, bytes(8)),
    "huge shape": ({"a": tensor(shape=[HUGE])}, bytes(8)),
    "huge offset": ({"a": tensor(offsets=[0, HUGE])}, bytes(8)),
    "number of ten thousand digits": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b"]}}", b""),
    "shape whose product overflows": ({"a": tensor(shape=[1 << 32, 1 << 32, 0], offsets=[0, 0])}, b""),
    "float in a shape": ({"a": tensor(shape=[2.0])}, bytes(8)),
    "exponent in a shape": (b'{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', bytes(8)),
    "true in a shape": ({"a": tensor("U8", [True], [0, 1])}, bytes(1)),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "infinite offset": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}', bytes(8)),
    "three offsets": ({"a": tensor(offsets=[0, 8, 8])}, bytes(8)),
    "offsets as an object": ({"a": tensor(offsets={})}, bytes(8)),
    "nested shape": ({"a": tensor(shape=[[2]])}, bytes(8)),
    "deeply nested": (b'{"a":' + b"[" * 200_000, b""),
    "unknown dtype": ({"a": tensor("F33")}, bytes(8)),
    "dtype in small letters": ({"a": tensor("f32")}, bytes(8)),
    "dtype as a list": ({"a": tensor(["F32"])}, bytes(8)),
    "half a byte": ({"a": tensor("F4", [1], [0, 1])}, bytes(1)),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a tensor that is a string": ({"a": "F32"}, b""),
    "a tensor that is null": ({"a": None}, b""),
    "a list": ([], b""),
    "a string": (b'"header"', b""),
    "nothing": (b"", b""),
    "not JSON": (b"{'a': 1}", b""),
    "two objects": (b"{}{}", b""),
    "NUL after the header": (b"{}\0", b""),
    "bad UTF-8": (b'{"\xff\xfe":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "half a surrogate pair": (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "half a pair in the metadata": (b'{"__metadata__":{"k":"\\udc00"}}', b""),
    "a line break in a name": (b'{"a\nb":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "metadata with numbers": ({"__metadata__": {"a": 1}}, b""),
    "metadata as a list": ({"__metadata__": []}, b""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_header_that_safetensors_refuses_is_refused(tmp_path: Path, case: str) -> None:
    header, data = MALFORMED[case]
    path = raw(tmp_path / "model.safetensors", header, data)
    assert not accepts(path)
    assert refusal(lambda: read_header(path)).code == "bad_safetensors"


STRICTER: dict[str, object] = {
    "a name twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "a field that nobody knows": {"a": tensor("U8", [0], [0, 0], packing="zip")},
    "a tensor as a list": {"a": ["U8", [0], [0, 0]]},
}


@pytest.mark.parametrize("case", STRICTER)
def test_three_things_are_refused_though_safetensors_takes_them(tmp_path: Path, case: str) -> None:
    path = raw(tmp_path / "model.safetensors", STRICTER[case])
    assert accepts(path)
    refusal(lambda: read_header(path))


UNUSUAL: dict[str, tuple[object, bytes]] = {
    "no tensors": ({}, b""),
    "metadata that are null": ({"__metadata__": None}, b""),
    "white space around": (b' \n\t{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}  \n  ', b"x"),
    "other letters": ({"größe.重み.😀": tensor()}, bytes(8)),
    "a pair of surrogates": (b'{"\\ud83d\\ude00":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "an empty name": ({"": tensor()}, bytes(8)),
    "many dimensions": ({"a": tensor(shape=[1] * 50 + [2])}, bytes(8)),
    "zero before huge": ({"a": tensor(shape=[0, 1 << 40, 1 << 40], offsets=[0, 0])}, b""),
    "out of order": ({"b": tensor(offsets=[8, 16]), "a": tensor()}, bytes(16)),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_unusual_but_sound_is_read(tmp_path: Path, case: str) -> None:
    path = raw(tmp_path / "model.safetensors", *UNUSUAL[case])
    assert accepts(path)
    read_header(path)


def test_a_file_cut_anywhere_is_refused_as_safetensors_does(tmp_path: Path) -> None:
    content = save(tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        assert not accepts(cut)
        refusal(lambda: read_header(cut))


def test_flipped_bytes_are_refused_when_safetensors_refuses_them_and_accepted_when_it_accepts(tmp_path: Path) -> None:
    content = save(tmp_path / "whole").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    flipped, draw = tmp_path / "flipped", random.Random(7)
    accepted = 0
    for at in range(end):
        for value in {content[at] ^ 1 << bit for bit in range(8)} | set(draw.choices(b'0123456789"{}[],:-.e\\', k=6)):
            flipped.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            try:
                read_header(flipped)
            except InputError:
                assert not accepts(flipped) or _is_stricter(flipped), (at, value)
            else:
                accepted += 1
                assert accepts(flipped), (at, value)
    assert accepted > 100  # letters of names


def _is_stricter(path: Path) -> bool:
    """Whether the header has a key twice, or a field of a tensor that is none."""
    content = path.read_bytes()
    text = content[8 : 8 + int.from_bytes(content[:8], "little")]
    objects: list[list[tuple[str, Any]]] = []
    json.loads(text, object_pairs_hook=lambda pairs: objects.append(pairs) or dict(pairs))  # type: ignore[func-returns-value]
    fields = {"dtype", "shape", "data_offsets"}
    return any(len(dict(o)) < len(o) or (fields <= dict(o).keys() and len(o) > 3) for o in objects)


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_format_allows_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = raw(tmp_path / "model.safetensors", b"{}", length=length)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse
    begin = time.process_time()
    assert "header" in refusal(lambda: read_header(path)).text
    assert time.process_time() - begin < 0.1  # measured: 0.0002 s


def test_a_git_lfs_pointer_is_named_as_one(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "lfs_pointer"
    (tmp_path / "model.safetensors.index.json").write_text(pointer)
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "lfs_pointer"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "not_regular"


def test_fifty_thousand_tensors_are_read_in_under_a_second(tmp_path: Path) -> None:
    header = {
        f"model.layers.{i}.mlp.experts.w": tensor("BF16", [64, 32], [i * 4096, i * 4096 + 4096]) for i in range(50_000)
    }
    path = raw(tmp_path / "model.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 50_000 * 4096)  # sparse: what lies behind the header costs nothing
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        assert len(read_checkpoint(tmp_path).tensors) == 50_000
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.0  # measured: 0.4 s, 0.8 s on a busy machine


# ---- a folder


def test_a_single_file_is_a_checkpoint_whatever_its_ending(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors")
    save(tmp_path / "consolidated.safetensors", A)  # Mistral ships its own format beside
    save(tmp_path / "adapter_model.safetensors", A)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert set(read_checkpoint(tmp_path).tensors) == set(SMALL)


def test_shards_are_read_in_order_each_by_name(tmp_path: Path) -> None:
    read = read_checkpoint(sharded(tmp_path, {TWO: {"c": A["a"], "a": A["a"]}, ONE: {"z": A["a"], "b": A["a"]}}))
    assert list(read.tensors) == ["b", "z", "a", "c"]
    assert [stored.file.name for stored in read.tensors.values()] == [ONE, ONE, TWO, TWO]


def test_shards_without_an_index_are_taken_when_every_number_is_there(tmp_path: Path) -> None:
    for name in (ONE, TWO):
        save(tmp_path / name, {name: A["a"]})
    assert set(read_checkpoint(tmp_path).tensors) == {ONE, TWO}
    (tmp_path / ONE).unlink()
    error = refusal(lambda: read_checkpoint(tmp_path))
    assert error.code == "missing_shards"
    assert "missing: 1" in error.text


@pytest.mark.parametrize("other", ["model.safetensors", "model-00001-of-00003.safetensors", "model_fp8.safetensors"])
def test_files_that_do_not_belong_together_are_not_guessed_about(tmp_path: Path, other: str) -> None:
    for name in (ONE, TWO, other):
        save(tmp_path / name, {name: A["a"]})
    assert other in refusal(lambda: read_checkpoint(tmp_path)).text


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", ""]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    save(tmp_path / "x.safetensors", A)
    assert refusal(lambda: read_checkpoint(sharded(folder, {ONE: A}, {"a": name}))).code == "bad_index"


def test_what_an_index_and_the_shards_disagree_about_is_listed(tmp_path: Path) -> None:
    both = {ONE: A, TWO: B}
    missing = refusal(lambda: read_checkpoint(sharded(tmp_path, both, {"a": ONE, "b": TWO, "c": "gone.safetensors"})))
    assert (missing.code, "gone.safetensors" in missing.text) == ("missing_shards", True)
    unlisted = refusal(lambda: read_checkpoint(sharded(tmp_path, both, {"a": ONE})))
    assert (unlisted.code, TWO in unlisted.text) == ("unlisted_shards", True)
    absent = refusal(
        lambda: read_checkpoint(sharded(tmp_path, both, {"a": ONE, "b": TWO, "ghost": TWO, "spirit": ONE}))
    )
    assert absent.code == "index_mismatch"
    assert "ghost" in absent.text and "spirit" in absent.text and "listed but not there" in absent.text
    stray = refusal(
        lambda: read_checkpoint(sharded(tmp_path, {ONE: A, TWO: {**B, "stray": A["a"]}}, {"a": ONE, "b": TWO}))
    )
    assert "there but not listed: stray" in stray.text
    swapped = refusal(lambda: read_checkpoint(sharded(tmp_path, both, {"a": TWO, "b": ONE})))
    assert "in another shard than listed" in swapped.text
    double = refusal(lambda: read_checkpoint(sharded(tmp_path, {ONE: A, TWO: {**A, **B}}, {"a": ONE, "b": TWO})))
    assert (double.code, "a (" in double.text) == ("double_tensors", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "bad_index"


def test_links_are_followed_to_regular_files_only(tmp_path: Path) -> None:
    folder, blob = tmp_path / "snapshot", save(tmp_path / "blob")
    folder.mkdir()
    link = folder / "model.safetensors"
    link.symlink_to("../blob")
    assert set(read_checkpoint(folder).tensors) == set(SMALL)
    blob.unlink()
    assert refusal(lambda: read_checkpoint(folder)).code == "not_found"
    link.unlink()
    link.symlink_to(tmp_path)
    assert refusal(lambda: read_checkpoint(folder)).code == "not_regular"


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "no_weights"
    assert refusal(lambda: read_checkpoint(tmp_path / "gone")).code == "not_found"
    assert refusal(lambda: read_checkpoint(save(tmp_path / "file"))).code == "not_found"
    save(tmp_path / "consolidated.safetensors", A)
    assert "consolidated.safetensors" in refusal(lambda: read_checkpoint(tmp_path)).text
    raw(tmp_path / "model.safetensors", {})
    assert refusal(lambda: read_checkpoint(tmp_path)).code == "no_weights"


def test_a_file_that_changed_since_it_was_read_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    verify_unchanged(checkpoint)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ResourceError) as caught:
        verify_unchanged(checkpoint)
    assert (caught.value.exit_code, caught.value.code) == (4, "input_changed")


# ---- pickles


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def same_as_torch(checkpoint: Checkpoint, path: Path) -> bool:
    import torch

    state = torch.load(path, weights_only=True)
    content = path.read_bytes()
    assert set(state) == set(checkpoint.tensors)
    for name, tensor in state.items():
        found = checkpoint.tensors[name]
        expected = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        if (found.shape, content[found.start : found.start + found.length]) != (tuple(tensor.shape), expected):
            return False
    return True


@pytest.mark.slow
def test_pickles_are_refused_unless_they_are_allowed_and_then_read_in_place(tmp_path: Path) -> None:
    import torch

    path, whole = tmp_path / "pytorch_model.bin", torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"a": whole, "row": whole[2], "half": whole[0].to(torch.bfloat16), "none": torch.zeros(0, 3)}
    state |= {"parameter": torch.nn.Parameter(whole), "eight": whole.to(torch.float8_e4m3fn)}
    torch.save(state, path)
    error = refusal(lambda: read_checkpoint(tmp_path))
    assert (error.code, "--allow-pickle" in error.text) == ("pickle", True)
    checkpoint = read_checkpoint(tmp_path, allow_pickle=True)
    assert list(checkpoint.tensors) == list(state)
    assert checkpoint.tensors["half"].dtype == "BF16"
    assert same_as_torch(checkpoint, path)


@pytest.mark.slow
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    import torch

    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    torch.save({"a": Evil(mark)}, path)
    assert refusal(lambda: read_checkpoint(tmp_path, allow_pickle=True)).code == "bad_pickle"
    path.write_bytes(pickle.dumps({"a": Evil(mark)}))
    assert refusal(lambda: read_checkpoint(tmp_path, allow_pickle=True)).code == "bad_pickle"
    assert not mark.exists()


@pytest.mark.slow
def test_pickles_that_do_not_lie_as_plain_rows_are_refused(tmp_path: Path) -> None:
    import torch

    path, whole = tmp_path / "pytorch_model.bin", torch.arange(24, dtype=torch.float32).reshape(4, 6)
    states: dict[str, Any] = {"turned": {"a": whole.T}, "nested": {"model": {"a": whole}}, "bare": whole}
    for state in states.values():
        torch.save(state, path)
        refusal(lambda: read_checkpoint(tmp_path, allow_pickle=True))
    torch.save({"a": whole}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "squeezed", "w", zipfile.ZIP_DEFLATED) as squeezed:
        for name in stored.namelist():
            squeezed.writestr(name, stored.read(name))
    (tmp_path / "squeezed").replace(path)
    assert "compressed" in refusal(lambda: read_checkpoint(tmp_path, allow_pickle=True)).text
    path.write_bytes(b"")
    refusal(lambda: read_checkpoint(tmp_path, allow_pickle=True))


def test_a_child_that_dies_over_a_pickle_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"any")
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(ChildError) as caught:
        read_checkpoint(tmp_path, allow_pickle=True)
    assert (caught.value.exit_code, "signal 11" in caught.value.text) == (5, True)


def test_reading_a_checkpoint_imports_no_torch_and_no_safetensors(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors")
    code = (
        "import sys, pathlib; from yarn_gguf.checkpoint.shards import read_checkpoint\n"
        "from yarn_gguf.checkpoint import hub; from yarn_gguf.checkpoint.weights import open_weights\n"
        "with open_weights(read_checkpoint(pathlib.Path(sys.argv[1])), None) as w: w['b'].read(0, 3)\n"
        "print([m for m in ('torch', 'safetensors', 'transformers', 'huggingface_hub', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
