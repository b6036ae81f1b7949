"""Small GGUFs for the tests of what we write, by gguf-py's writer or by hand; and what gguf-py reads back.

`rewritten` passes any file through gguf-py (what "another tool edited it" means here, and how split sets are made);
`Raw` puts a llama together byte by byte, with every liberty that the format allows. Shares nothing with the package.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt

from tests import gguf_bytes as g

CONTEXT: Final = 128
PAIRS: Final = 16  # of a head of 32
ROPE_FREQS: Final = "rope_freqs.weight"
Array = npt.NDArray[Any]


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path.relative_to(folder)): _identity(path) for path in files}


def _identity(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- by gguf-py


def read_keys(path: Path) -> dict[str, Any]:
    """All keys as gguf-py reads them."""
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def read_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Name → type, shape and sha256 of the data, as gguf-py reads them."""
    return {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape)), hashlib.sha256(t.data.tobytes()).hexdigest())
        for t in gguf.GGUFReader(path).tensors
    }


def rope_freqs_of(path: Path) -> list[float]:
    found = next(t for t in gguf.GGUFReader(path).tensors if t.name == ROPE_FREQS)
    return [float(v) for v in found.data]


def rewritten(
    source: Path,
    out: Path,
    keys: Mapping[str, Any] | None = None,
    *,
    drop: Sequence[str] = (),
    backwards: bool = False,
    split: int = 0,
    tensors: Mapping[str, Array] | None = None,
    tensors_first: bool = False,
) -> list[Path]:
    """A file after gguf-py has read and written it: with other keys, keys or tensors dropped, in parts of `split`."""
    reader = gguf.GGUFReader(source)
    fields = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.") and name not in drop}
    writer = gguf.GGUFWriter(out, str(fields["general.architecture"].contents()), split_max_tensors=split)
    for name in reversed(fields) if backwards else fields:
        field = fields[name]
        if name != "general.architecture" and name not in (keys or {}):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for name, value in (keys or {}).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value))
    old = {t.name: (t.data, t.tensor_type) for t in reader.tensors if t.name not in drop}
    new = {name: (data, gguf.GGMLQuantizationType.F32) for name, data in (tensors or {}).items()}
    for name, (data, kind) in ({**new, **old} if tensors_first else {**old, **new}).items():
        writer.add_tensor(name, np.asarray(data), raw_dtype=kind)
    _write(writer)
    return sorted(out.parent.glob(f"{out.stem}-0*-of-*.gguf")) if split else [out]


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def small_model(path: Path, arch: str = "llama", keys: Mapping[str, Any] | None = None, *, tokens: int = 40) -> Path:
    """Metadata of a model with one layer, a vocabulary, and tensors of several types; too little to be loaded."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"a small {arch}")
    for name, value in {**_NUMBERS, **(keys or {})}.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        kind = gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value)
        if value is not None:
            writer.add_key_value(
                name if "." in name and name.split(".")[0] in _GLOBAL else f"{arch}.{name}", value, kind
            )
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{n}" for n in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_token_merges(["w 1", "w 2"])
    rng = np.random.default_rng(1)
    for name, shape, kind in _TENSORS:
        values = rng.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    _write(writer)
    return path


_GLOBAL: Final = ("general", "tokenizer", "adapter", "imatrix", "split", "clip")
_NUMBERS: Final[dict[str, Any]] = {
    "context_length": CONTEXT,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 2 * PAIRS,
}
_T: Final = gguf.GGMLQuantizationType
_TENSORS: Final = (
    ("token_embd.weight", (40, 64), _T.Q8_0),
    ("blk.0.attn_q.weight", (64, 64), _T.F16),
    ("blk.0.attn_k.weight", (32, 64), _T.BF16),
    ("blk.0.attn_v.weight", (32, 64), _T.Q4_0),
    ("blk.0.attn_norm.weight", (64,), _T.F32),
    ("blk.0.ffn_norm.weight", (3,), _T.F32),  # 12 bytes: padding follows
    ("output_norm.weight", (5,), _T.F32),
)


# ---- by hand


@dataclass(frozen=True)
class Raw:
    """A llama that nobody could load, and every reader can read; all that the format leaves open is set here."""

    version: int = 3
    alignment: int = 32
    state_alignment: bool = True
    pairs: tuple[bytes, ...] = ()  # come first
    gap: int = 0  # the byte that fills the space between header and data
    padding: int = 0  # the byte that fills the space behind a tensor
    padded_end: bool = True
    trailing: bytes = b""
    rope_freqs: str = ""  # "first", "last", or not there
    blob: int = 5000  # bytes of the tensor that makes most of the file

    def write(self, path: Path) -> Path:
        path.write_bytes(self.data())
        return path

    def data(self) -> bytes:
        tensors = [
            (b"token_embd.weight", _numbers(40)),
            (b"blob", _noise(self.blob)),
            (b"output_norm.weight", _numbers(5)),
        ]
        if self.rope_freqs:
            factors = struct.pack(f"<{PAIRS}f", *(1 + n / 4 for n in range(PAIRS)))
            tensors.insert(0 if self.rope_freqs == "first" else len(tensors), (ROPE_FREQS.encode(), factors))
        return self._file(tensors)

    def _file(self, tensors: Sequence[tuple[bytes, bytes]]) -> bytes:
        infos, body = [], b""
        for name, data in tensors:
            kind, count = (24, len(data)) if name == b"blob" else (g.F32, len(data) // 4)  # 24: I8
            infos.append(g.tensor(name, (count,), kind, len(body)))
            body += data + bytes([self.padding]) * (-len(data) % self.alignment)
        if not self.padded_end:
            body = body[: len(body) - (-len(tensors[-1][1]) % self.alignment)]
        head = g.gguf([*self._pairs()], infos, alignment=1, version=self.version)
        return head + bytes([self.gap]) * (-len(head) % self.alignment) + body + self.trailing

    def _pairs(self) -> list[bytes]:
        pairs = [*self.pairs, g.text(b"general.architecture", b"llama")]
        if self.state_alignment:
            pairs.append(g.u32(b"general.alignment", self.alignment))
        floats = {b"rope.freq_base": 10000.0, b"attention.layer_norm_rms_epsilon": 1e-5}
        numbers = {b"context_length": CONTEXT, b"embedding_length": 64, b"block_count": 1}
        numbers |= {b"attention.head_count": 2, b"attention.head_count_kv": 1, b"rope.dimension_count": 2 * PAIRS}
        pairs += [g.u32(b"llama." + name, value) for name, value in numbers.items()]
        return pairs + [g.pair(b"llama." + name, g.FLOAT32, struct.pack("<f", v)) for name, v in floats.items()]


def _numbers(count: int) -> bytes:
    return struct.pack(f"<{count}f", *range(1, count + 1))


def _noise(count: int) -> bytes:
    return np.random.default_rng(7).integers(1, 256, count, dtype=np.uint8).tobytes()
