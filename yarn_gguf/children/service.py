"""Somebody else's program that goes on until it is told to end: started, listened to, and ended with all that it began.

What it says is read, so that it never waits for a reader, and its end is kept. It leads a group of its own, which no
Ctrl-C of a terminal reaches: to end it is ours. Where the system can (Linux), it ends as well when we are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import IO, Any, Final, Self

from yarn_gguf.children.command import PATIENCE, fate
from yarn_gguf.children.process import KEPT, LONGEST, SHOWN, telling
from yarn_gguf.errors import ChildError

_DIE_WITH_PARENT: Final = 1  # prctl's PR_SET_PDEATHSIG


def _with_us() -> None:
    """In the new process, before its program: end when the parent has gone."""
    import ctypes

    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


class Service(AbstractContextManager["Service"]):
    """A running program. `what`: what it is to a person; `blame`: who else may be the cause of its end."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        about: str | os.PathLike[str],
        environment: Mapping[str, str],
        blame: Callable[[], str] = str,
    ) -> None:
        self.what, self.about, self.blame = what, about, blame
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.heard = time.monotonic()  # when it said something last
        group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
        if sys.platform == "linux":
            group["preexec_fn"] = _with_us
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                text=True,
                encoding="utf-8",
                errors="replace",
                **group,
            )
        except OSError as error:
            raise ChildError(f"cannot be started: {error.strerror}", file=command[0], code="child_failed") from error
        self.reader = threading.Thread(target=self._hear, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _hear(self, pipe: IO[str]) -> None:
        while text := pipe.readline(LONGEST):
            self.lines.append(text.rstrip())
            self.heard = time.monotonic()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def death(self) -> ChildError:
        """How it ended, and why as far as it told."""
        self.reader.join(PATIENCE)
        said = telling(self.lines)[:SHOWN]
        text = f"{self.blame()}{self.what} {fate(self.process.wait())}; " + (
            f"it said: {said}" if said else "in silence"
        )
        return ChildError(text, file=self.about, code="child_died")

    def hung(self, seconds: float) -> ChildError:
        said = telling(self.lines)[:SHOWN]
        text = f"{self.blame()}{self.what} gave no answer and said nothing for {seconds:g} s; the last it said: {said}"
        return ChildError(text, file=self.about, code="child_hangs")

    def wait(self) -> None:
        """Until it ends by itself, which it should not; a signal comes out of here as an exception."""
        while not self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        raise self.death()

    def stop(self) -> None:
        """Asked first, then made to; the whole group, so that nothing is left. Can be done twice."""
        try:
            if not self.ended:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(PATIENCE)
        finally:
            self._signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            self.process.wait()
            self.reader.join(PATIENCE)
            if self.process.stdout is not None:
                self.process.stdout.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
