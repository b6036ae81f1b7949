"""What several commands share: the rope options as one decorator, and the types of their values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from yarn_gguf.encoding import ENCODINGS
from yarn_gguf.errors import UsageError, YarnGgufError
from yarn_gguf.intent import METHODS, RopeOptions

F = TypeVar("F", bound=Callable[..., Any])
_SUFFIXES = {"": 1, "k": 1024, "m": 1024**2}


def tokens(text: str) -> int:
    """A number of tokens: 131072, 128k or 128K (× 1024), 1M."""
    lower = text.strip().lower()
    suffix = lower[-1] if lower[-1:] in ("k", "m") else ""
    try:
        number = float(lower.removesuffix(suffix)) * _SUFFIXES[suffix]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of tokens such as 131072, 128k or 1M") from None
    if not 0 < number < 1 << 32 or number != int(number):
        raise click.BadParameter(f"{text!r} is not a whole number of tokens from 1 to {(1 << 32) - 1}")
    return int(number)


_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def size(text: str) -> int:
    """A number of bytes: 4G and 500M as llama.cpp counts them (× 1000), 4GiB (× 1024), or plain."""
    upper = text.strip().upper()
    binary = upper.endswith("IB")
    stem = upper[:-2] if binary else upper.removesuffix("B")
    unit = stem[-1:] if stem[-1:] in _UNITS else ""
    base = 1024 ** (list(_UNITS).index(unit)) if binary else _UNITS[unit]
    try:
        count = int(float(stem.removesuffix(unit) if unit else stem) * base)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a size such as 4G, 500M or 8GiB") from None
    if count < 1:
        raise click.BadParameter(f"{text!r} is no size above 0")
    return count


class _Name(click.Path):
    """A path, which `pathlib` would take for the current folder if it were empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


def given_path(text: str) -> str:
    """A path, exactly as it was given."""
    if not text:
        raise click.BadParameter("is empty; name a file")
    return text


class _Output(_Name):
    """A path that is written to; one that ends like a folder must be one, as `pathlib` drops the slash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if isinstance(value, str) and value.endswith(_FOLDER_ENDS) and not is_folder(found):
            text = "is a file, not a folder" if found.is_file() else "its folder does not exist; create it first"
            raise UsageError(text, file=value, code="no_folder")
        return found


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL; what opens it has a word for that
        return False


_FOLDER_ENDS = tuple({end for sep in (os.sep, os.altsep) if sep for end in (sep, f"{sep}.")})
GGUF_PATH = _Name(path_type=Path)
OUTPUT_PATH = _Output(path_type=Path)

_CTX_OPTION = click.option(
    "--ctx", type=tokens, metavar="N", help="Extended context (32k, 128K, 131072); F = N / original."
)
_ROPE_OPTIONS = (
    click.option(
        "--factor", type=float, metavar="F", help="Context extension factor, relative to the original context."
    ),
    _CTX_OPTION,
    click.option("--method", type=click.Choice(METHODS), help="Scaling method.  [default: yarn]"),
    click.option(
        "--original-ctx",
        type=tokens,
        metavar="N",
        help="Context the model was first trained at.  [default: the file's]",
    ),
    click.option("--beta-fast", type=float, metavar="X", help="Turns from which a pair is kept.  [default: 32]"),
    click.option(
        "--beta-slow", type=float, metavar="X", help="Turns below which a pair is interpolated.  [default: 1]"
    ),
    click.option(
        "--attention-factor", type=float, metavar="M", help="What multiplies cos and sin.  [default: 0.1 ln F + 1]"
    ),
    click.option(
        "--mscale", type=float, metavar="X", help="With --mscale-all-dim: DeepSeek's way to the attention factor."
    ),
    click.option(
        "--mscale-all-dim", type=float, metavar="X", help="The pair's other half; scales the softmax there as well."
    ),
    click.option(
        "--truncate/--no-truncate", default=None, help="Round the ramp's ends to whole pairs.  [default: truncate]"
    ),
    click.option(
        "--dynamic/--no-dynamic",
        default=None,
        help="A patched llama.cpp scales only as far as the context that is opened.  [default: no]",
    ),
)


def rope_options(command: F) -> F:
    """The rope options, gathered into one `RopeOptions` argument named `rope`."""
    return _rope(command, _ROPE_OPTIONS)


def _rope(command: F, options: tuple[Any, ...], without: tuple[str, ...] = ()) -> F:
    names = [f.name for f in fields(RopeOptions) if f.name not in without]

    def gathered(*args: Any, **kwargs: Any) -> Any:
        rope = RopeOptions(**{name: kwargs.pop(name) for name in names})
        return command(*args, rope=rope, **kwargs)

    gathered.__doc__, gathered.__name__ = command.__doc__, command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # where click keeps them
    for option in reversed(options):
        gathered = option(gathered)
    return gathered  # type: ignore[return-value]  # click's decorators keep the callable's own type


encoding_option = click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    default="auto",
    show_default=True,
    help="How the scaling is written: standard keys, or baked into rope_freqs.weight.",
)


@dataclass
class Asked:
    """What was typed, and what click made of `--json`; None while it had not come so far.

    `end`: ends the process with an error, from whatever thread, where nothing can go on.
    """

    json: bool | None = None
    arguments: tuple[str, ...] = ()
    end: Callable[[YarnGgufError], None] = lambda _: None
    writes: bool = True  # whether the command makes files


def command_line() -> str:
    """What was typed, so that a shell takes it again."""
    asked = click.get_current_context().obj
    return shlex.join(["yarn-gguf", *(asked.arguments if isinstance(asked, Asked) else ())])


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    if isinstance(ctx.obj, Asked):
        ctx.obj.json = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,  # before another option's value can be refused
    callback=_remember,
    help="Print one JSON document and nothing else.",
)
strict_option = click.option("--strict", is_flag=True, help="Refuse bytes behind the last tensor.")


def reference_rope_options(command: F) -> F:
    """The rope options of a Hugging Face reference, as `rope`; --ctx is the length of the text there."""
    return _rope(command, tuple(option for option in _ROPE_OPTIONS if option is not _CTX_OPTION), ("ctx",))
