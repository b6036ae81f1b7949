"""llama.cpp's own converter, and gguf-py: the oracles for files that nobody here wrote.

Knows where the pinned llama.cpp source comes from (the sdist of llama-cpp-python, fetched once by pip into the user's
cache folder, wherever pip is configured to look), how its converter is run, and how gguf-py copies a file with some
keys changed. Does not know any model, and nothing of `yarn_gguf` is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
OLDER = {  # releases that the patches are for as well
    "0.3.35": "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12",
    "0.3.34": "d849d286d808284f1d3ec1bd6875572430d29d1f9574a010232caa4e9cef0e35",
}
DRIVER = Path(__file__).with_name("upstream_driver.py")


class UpstreamFailed(Exception):
    """Upstream's converter, or pip, ended with an error; the message holds the end of what it said."""


def cache_folder() -> Path:
    """Outside the repository, the same for every checkout of it, made if missing."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yarn-gguf-tests"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UpstreamFailed(f"{command} ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}")


def _fetch(sdist: Path, version: str, sha256: str) -> None:
    """Leaves the sdist at this path, complete and with the recorded checksum, or raises."""
    with tempfile.TemporaryDirectory(dir=sdist.parent) as temporary:
        pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        only = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
        _run([*pip, "--dest", temporary, *only])
        fetched = Path(temporary, sdist.name)
        _check(fetched, sha256)
        fetched.replace(sdist)


def _check(sdist: Path, sha256: str) -> None:
    with sdist.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UpstreamFailed(f"{sdist}: sha256 is {found}, but {sha256} is recorded; delete the file to fetch it again")


def _unpack(sdist: Path, tree: Path) -> None:
    """The llama.cpp folder of the sdist, moved to `tree` when all of it is there."""
    inside = f"{sdist.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
    with tempfile.TemporaryDirectory(dir=tree.parent) as temporary, tarfile.open(sdist) as archive:
        members = (member for member in archive if member.name.startswith(f"{inside}/"))
        archive.extractall(temporary, members=members, filter="data")
        Path(temporary, inside).rename(tree)


@cache
def sdist(version: str = VERSION) -> Path:
    """An sdist that we know, fetched by the first call on a machine, complete and with the recorded checksum."""
    folder, sha256 = cache_folder(), {VERSION: SHA256, **OLDER}[version]
    found = folder / f"llama_cpp_python-{version}.tar.gz"
    with FileLock(folder / f"sdist-{version}.lock"):
        if found.is_file():
            _check(found, sha256)
        else:
            _fetch(found, version, sha256)
    return found


@cache
def llama_cpp_source(version: str = VERSION) -> Path:
    """The unpacked llama.cpp tree of an sdist. The first call on a machine takes half a minute."""
    folder = cache_folder()
    tree = folder / f"llama.cpp-{version}"
    with FileLock(folder / "llama.cpp.lock"):
        if not tree.is_dir():
            _unpack(sdist(version), tree)
    return tree


def convert(checkpoint: Path, out: Path, outtype: str = "f32", *arguments: str) -> Path:
    """Upstream's `convert_hf_to_gguf.py` on a checkpoint without a tokenizer; returns `out`.

    `arguments` are more of the converter's own options.
    """
    _convert(checkpoint, ["--outfile", out, "--outtype", outtype, *arguments], [])
    return out


def convert_to(checkpoint: Path, folder: Path, types: Sequence[str]) -> None:
    """Like `convert`, to several types: `f32.gguf` and so on in the folder. Much quicker than one by one."""
    _convert(checkpoint, ["--outfile", folder / "{outtype}.gguf"], ["--each", *types])


def _convert(checkpoint: Path, options: list[str | Path], last: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(checkpoint, Path(temporary, checkpoint.name), ignore=shutil.ignore_patterns("*.gguf"))
        _write_tokenizer(copy)
        # -P: the folder of the tests stays off the child's path, so that none of its modules hides one of upstream's.
        _run([sys.executable, "-P", DRIVER, llama_cpp_source(), copy, *options, *last])


def _write_tokenizer(checkpoint: Path) -> None:
    """For the converters that count a tokenizer's tokens to see how many rows of the embedding are real."""
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    tokenizer = {"model": {"vocab": {f"<{i}>": i for i in range(size)}}, "added_tokens": []}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_with_keys(
    source: Path, out: Path, keys: Mapping[str, str | int | float | bool], without: str = "GGUF."
) -> Path:
    """A copy of a GGUF with these keys (names without the architecture) set, by gguf-py's reader and writer.

    Keys that begin with `without` are left out.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    arch = str(reader.fields["general.architecture"].contents())
    settings = {f"{arch}.{name}": value for name, value in keys.items()}
    writer = gguf.GGUFWriter(out, arch)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", without)) and name not in {"general.architecture", *settings}:
            value_type = field.types[0]
            sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), value_type, sub_type=sub_type)
    for name, value in settings.items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32 if is_count else gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
