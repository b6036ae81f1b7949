"""A JSON object out of a file that somebody else wrote: bounded in size and depth, an error that says what is wrong.

A leaf: knows no field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from yarn_gguf.errors import InputError
from yarn_gguf.files import open_regular

LARGEST_NESTING: Final = 50
LFS_POINTER: Final = b"version https://git-lfs"


def read_bounded(path: Path, largest: int, wanted: str, code: str) -> bytes:
    """All of a file that is no larger than such a file ever is."""
    with open_regular(path, wanted) as file:
        found = file.read(largest + 1)
    if len(found) > largest:
        raise InputError(f"is larger than {largest >> 20} MiB, which no such file is", file=path, code=code)
    return found


def json_object(text: bytes, path: Path, code: str) -> dict[str, Any]:
    def bad(why: str) -> InputError:
        return InputError(why, file=path, code=code)

    if text.startswith(LFS_POINTER):
        raise bad("is a git-LFS pointer, not the file itself; fetch it with: git lfs pull")
    try:
        whole = json.loads(text)
        _refuse_depth(whole)
    except RecursionError as error:
        raise bad("is nested too deeply") from error
    except ValueError as error:  # bad JSON, bad UTF-8, an integer of thousands of digits
        raise bad(f"is not JSON: {error}") from error
    if not isinstance(whole, dict):
        raise bad(f"holds a JSON {type(whole).__name__}, not an object")
    return whole


def _refuse_depth(value: object) -> None:
    """Level by level, not recursively; only what can hold more is kept."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(LARGEST_NESTING):
        inside = (each for one in level for each in (one.values() if isinstance(one, dict) else one))
        level = [each for each in inside if isinstance(each, (dict, list))]
        if not level:
            return
    raise RecursionError
