"""The command line as processes of their own.

`run` forks each from one server that has the package loaded, which takes a tenth of the time that an interpreter
takes to start and import; `run_fresh` starts an interpreter, for what is decided there: limits, environment, signals.
Run as a script this file is the server: it reads one JSON array of [arguments, seconds, mebibytes] per line, and
answers with one of [exit status, stdout, stderr]; a process that a signal ended has its negative number as the status.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
COMMAND: Final = (sys.executable, "-m", "yarn_gguf")


@dataclass(frozen=True)
class Done:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        assert found["schema"] == 1
        return found

    @property
    def words(self) -> str:
        """Stdout as one line, however it was wrapped."""
        return " ".join(self.out.split())


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


@cache
def _server() -> subprocess.Popen[str]:
    # -P: the folder of the tests stays off the path, so that none of its modules hides an installed one
    command = [sys.executable, "-P", __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen[str]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            pipe.close()
    server.wait()


def run(*arguments: str | Path, seconds: int = 0, mebibytes: int = 0) -> Done:
    """`yarn-gguf ARGUMENTS`; with so much processor time and address space, where that is not 0."""
    if not hasattr(os, "fork"):
        return run_fresh(*arguments)
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([list(map(str, arguments)), seconds, mebibytes]) + "\n")
    server.stdin.flush()
    return Done(*json.loads(server.stdout.readline()))


def run_fresh(*arguments: str | Path, before: Callable[[], None] | None = None, **env: str) -> Done:
    """`yarn-gguf ARGUMENTS` in an interpreter of its own; `before` is called in it first."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment(**env),
        preexec_fn=before,
        check=False,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def extended(*arguments: str | Path) -> Done:
    """`yarn-gguf extend ARGUMENTS`, which must succeed without a word on stderr."""
    done = run("extend", *arguments)
    assert (done.code, done.err) == (0, ""), done
    return done


# ---- from here on: the server


def _serve() -> None:
    import yarn_gguf.cli  # noqa: F401 - what the children have by being forked

    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            arguments, seconds, mebibytes = json.loads(line)
            child = os.fork()
            if not child:
                _limit("RLIMIT_CPU", seconds)
                _limit("RLIMIT_AS", mebibytes << 20)
                _run(arguments, out, err)
            _, status = os.waitpid(child, 0)
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)  # noqa: T201 - the answer


def _limit(name: str, most: int) -> None:
    if most:
        import resource

        number = getattr(resource, name)
        resource.setrlimit(number, (most, resource.getrlimit(number)[1]))


def _run(arguments: list[str], out: BinaryIO, err: BinaryIO) -> NoReturn:
    from yarn_gguf.cli import main

    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    code: Any = 70
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


if __name__ == "__main__":
    _serve()
