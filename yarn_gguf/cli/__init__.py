"""The command line: parse, one library call, render. Errors and signals become exit codes here and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from yarn_gguf import __version__
from yarn_gguf.cli.extend import extend
from yarn_gguf.cli.inspect import inspect
from yarn_gguf.errors import ResourceError, UsageError, YarnGgufError

BUG = 70


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal, raised where the program stands, so that temporaries are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="yarn-gguf")
def cli() -> None:
    """Give a GGUF model a longer context with YaRN, and prove that it did.

    Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad or unsupported input, 4 I/O or resources, 5 a child
    process died, 70 a bug of ours, 130 and 143 on SIGINT and SIGTERM.
    """


cli.add_command(extend)
cli.add_command(inspect)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what `nohup` or a shell has us ignore, we ignore
            signal.signal(number, _stop)
    sys.exit(_run(args))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # an impatient second Ctrl-C must not stop the tidying up
    raise Stopped(number)


def _run(args: list[str]) -> int:
    """Runs a command; whatever comes out of it becomes one line and an exit code."""
    try:
        result: Any = cli.main(args, prog_name="yarn-gguf", standalone_mode=False)
        sys.stdout.flush()
    except YarnGgufError as error:
        return _fail(error, args)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _fail(UsageError(error.format_message() + hint, code="usage"), args)
    except BrokenPipeError:
        _silence_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = None if error.filename is None else os.fsdecode(error.filename)
        return _fail(ResourceError(error.strerror or str(error), file=where, code="io"), args)
    except MemoryError:
        return _fail(ResourceError("out of memory", code="memory"), args)
    except (KeyboardInterrupt, click.Abort):
        return _stopped(signal.SIGINT)
    except Stopped as stopped:
        return _stopped(stopped.number)
    except Exception:  # noqa: BLE001 - a bug of ours: its traceback is what we need to see
        traceback.print_exc()
        return BUG
    return result if isinstance(result, int) else 0


def _stopped(number: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be what has gone
        click.echo(f"stopped by {signal.Signals(number).name}; no unfinished file was left behind", err=True)
    return 128 + number


def _fail(error: YarnGgufError, args: Sequence[str]) -> int:
    """One line on stderr; the same as JSON on stdout where that was asked for."""
    click.echo(f"error: {error}", err=True)
    try:
        sys.stdout.flush()
        if "--json" in args:
            found = {"code": error.code, "exit": error.exit_code, "file": error.file, "text": error.text}
            click.echo(json.dumps({"schema": 1, "error": found}, ensure_ascii=True))
    except OSError:  # stdout itself is what failed
        _silence_stdout()
    return error.exit_code


def _silence_stdout() -> None:
    """Nobody can read what is still buffered; the flush at exit must not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
