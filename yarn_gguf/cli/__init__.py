"""The command line: parse, one library call, render. Errors and signals become exit codes here and nowhere else."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from yarn_gguf import __version__
from yarn_gguf.cli.options import Asked
from yarn_gguf.cli.render import print_json
from yarn_gguf.errors import ResourceError, UsageError, YarnGgufError
from yarn_gguf.process import SIGNALS, farewell, hold_streams, on_signals

BUG: Final = 70
COMMANDS: Final = {  # where each is
    "build": "build:build",
    "convert": "convert:convert",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "eval": "evaluate:evaluation",
    "extend": "extend:extend",
    "flags": "flags:flags",
    "inspect": "inspect:inspect",
    "patch": "patch:patch",
    "plan": "plan:plan_command",
    "quantize": "quantize:quantize_command",
    "record": "record:record",
    "run": "run:run",
    "verify": "verify:verify",
}
SIGPIPE: Final = 13  # not in `signal` on Windows


class Stopped(BaseException):
    """A signal, raised where the program stands, so that temporaries are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Unread(Exception):
    """Whoever read our output has gone. Not an OSError: click would end the program itself, with another code."""


@contextlib.contextmanager
def _reader_wanted() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise Unread from error


class _Group(click.Group):
    """Commands that are loaded when they are asked for, and whose broken pipes get past click."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(f"{__name__}.{module}"), name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _reader_wanted():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_wanted():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="yarn-gguf")
def cli() -> None:
    """Give a GGUF model a longer context with YaRN, and prove that it did.

    Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad or unsupported input, 4 I/O or resources, 5 a child
    process died, 70 a bug of ours; 129, 130, 141 and 143 on SIGHUP, SIGINT, SIGPIPE and SIGTERM.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, once all of it is loaded."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    hold_streams()
    on_signals(_stop)
    sys.exit(_run(args))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # an impatient second Ctrl-C must not stop the tidying up
    raise Stopped(number)


def _run(args: list[str]) -> int:
    """Runs a command; whatever comes out of it becomes one line and an exit code."""
    asked = Asked(arguments=tuple(args), end=lambda error: os._exit(_fail(error, as_json=_wants_json(asked, args))))
    try:
        code: Any = cli.main(args, prog_name="yarn-gguf", standalone_mode=False, obj=asked)
        sys.stdout.flush()
    except (BrokenPipeError, Unread):
        _silence_stdout()
        return 128 + SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        return _stopped(signal.SIGINT, asked)
    except Stopped as stopped:
        return _stopped(stopped.number, asked)
    except Exception as error:  # noqa: BLE001 - told apart by `_told`
        return _fail(error, as_json=_wants_json(asked, args))
    return code if isinstance(code, int) else 0


def _wants_json(asked: Asked, args: Sequence[str]) -> bool:
    """What click found; what it looks like where click gave up before it knew."""
    return asked.json if asked.json is not None else "--json" in itertools.takewhile(lambda arg: arg != "--", args)


def _told(error: Exception) -> YarnGgufError | None:
    """The error as one of ours; None for a bug."""
    match error:
        case YarnGgufError():
            return error
        case click.ClickException():
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context is not None else ""
            return UsageError(error.format_message() + hint, code="usage")
        case OSError():
            where = None if error.filename is None else os.fsdecode(error.filename)
            return ResourceError(error.strerror or str(error), file=where, code="io")
        case MemoryError():
            return ResourceError("out of memory", code="memory")
    return None


def _stopped(number: int, asked: Asked) -> int:
    with contextlib.suppress(OSError):  # the terminal may be what has gone
        click.echo(farewell(number, writes=asked.writes), err=True)
    return 128 + number


def _fail(error: Exception, *, as_json: bool) -> int:
    """One line on stderr, of a bug its traceback; and one document on stdout where that was asked for."""
    told = _told(error)
    if told is None:
        traceback.print_exception(error)
        told = YarnGgufError("".join(traceback.format_exception_only(error)), code="bug")
    else:
        click.echo(f"error: {told}", err=True)
    try:
        sys.stdout.flush()
        if as_json:
            print_json({"error": {"code": told.code, "exit": told.exit_code, "file": told.file, "text": told.text}})
    except OSError:  # stdout itself is what failed
        _silence_stdout()
    return told.exit_code


def _silence_stdout() -> None:
    """Nobody can read what is still buffered; the flush at exit must not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
