"""Where the tensors of a pickled `.bin` lie. The pickle is read in a child process, and no tensor data with it.

`torch.save` writes a zip whose members are stored as they are, so a tensor's numbers are a range of the file and can be
read like those of a safetensors file: no copy is made, on disk or in memory. The child checks that members really are
stored, loads the pickle with `weights_only` (tensors and nothing else) into tensors without data, and says where
each lies. Needs torch in the child only. Knows one file; nothing of checkpoints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from yarn_gguf.checkpoint.stored import Stored
from yarn_gguf.errors import ChildError, InputError
from yarn_gguf.files import Stamp, changed, open_regular, stamp_of

SECONDS: Final = 600.0
REFUSED: Final = 3  # the child's exit code when it has a reason to tell
# torch's names of dtypes → safetensors'
DTYPES: Final = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint64": "U64",
    "torch.uint32": "U32",
    "torch.uint16": "U16",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def read_pickled(path: Path) -> list[Stored]:
    """The tensors of one file, in its order. Raises ChildError when the child dies, InputError when it refuses."""
    with open_regular(path, "a .bin file") as file:
        stamp = stamp_of(file.fileno())
    answer = _ask(path)
    with open_regular(path, "a .bin file") as file:
        if stamp_of(file.fileno()) != stamp:
            raise changed(path)
    return [_stored(entry, path, stamp) for entry in answer]


def _ask(path: Path) -> list[Any]:
    # -P and our own folder: what lies in the current folder must not be imported in the place of torch
    paths = [os.fspath(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-P", "-m", "yarn_gguf.checkpoint.pickled", os.fspath(path)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"its pickle was not read in {SECONDS:.0f} s", file=path, code="child_timeout") from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == REFUSED:
        raise InputError(said[-2000:], file=path, code="bad_pickle")
    try:
        if not done.returncode and isinstance(answer := json.loads(done.stdout), list):
            return answer
    except ValueError:
        pass  # a child that ends well and says nonsense has lied
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = said.splitlines()[-1][-500:] if said else "it said nothing"
    raise ChildError(f"the child that reads its pickle ended with {how}: {last}", file=path, code="child_died")


def _stored(entry: Any, path: Path, stamp: Stamp) -> Stored:
    name, dtype, shape, start, length = entry
    return Stored(name, dtype, tuple(shape), path, stamp, start, length)


# ---- the child


class _Refusal(Exception):
    pass


def _extents(path: Path) -> list[tuple[int, int]]:
    """Where the data of each member of the zip begin and end."""
    if not zipfile.is_zipfile(path):
        raise _Refusal("is no zip, so not what torch.save has written since 1.6; load and save it anew, as safetensors")
    found = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise _Refusal(f"its member {member.filename!r} is compressed, which torch.save never does")
            if member.filename.endswith("/byteorder") and archive.read(member) != b"little":
                raise _Refusal("was written on a big-endian machine, which is not supported")
            file.seek(member.header_offset + 26)
            lengths = file.read(4)  # of the name and the extra field in front of the data
            begin = file.tell() + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            found.append((begin, begin + member.file_size))
    return found


def _tensors(path: Path) -> Iterator[list[Any]]:
    """Name, dtype, shape, offset and length of each tensor."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode  # tensors without data, which know where theirs lie

    extents = _extents(path)
    with FakeTensorMode():
        state: Any = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise _Refusal(f"holds a {type(state).__name__}, not tensors by name")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise _Refusal(f"holds a {type(tensor).__name__} at {str(name)[:200]!r}, where a tensor must be")
            yield [name, *_place(name, tensor, extents)]


def _place(name: str, tensor: Any, extents: list[tuple[int, int]]) -> list[Any]:
    dtype = DTYPES.get(str(tensor.dtype))
    plain = str(tensor.layout) == "torch.strided" and tensor.is_contiguous() and not tensor.is_neg()
    if dtype is None or not plain:
        raise _Refusal(
            f"tensor {name[:200]!r} ({tensor.dtype}) does not lie as plain rows; save it anew, as safetensors"
        )
    length = tensor.numel() * tensor.element_size()
    if not length:
        return [dtype, list(tensor.shape), 0, 0]
    base = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if base is None:
        raise _Refusal(f"this torch does not say where tensor {name[:200]!r} lies; torch 2.6 or newer does")
    begin = base + tensor.storage_offset() * tensor.element_size()
    if not any(first <= begin and begin + length <= last for first, last in extents):
        raise _Refusal(f"tensor {name[:200]!r} reaches beyond its data")
    return [dtype, list(tensor.shape), begin, length]


def _main() -> None:
    import pickle

    # what reading a pickle or a zip of any bytes at all may raise
    broken = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError, TypeError)
    try:
        found = list(_tensors(Path(sys.argv[1])))
    except (_Refusal, *broken, AttributeError, OSError, OverflowError, AssertionError) as error:
        text = str(error) if isinstance(error, _Refusal) else f"its pickle is refused: {error}"
        sys.stderr.write(" ".join(text.split())[:1000])
        sys.exit(REFUSED)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
