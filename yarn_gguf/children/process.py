"""The parent's end of a child: start, ask, and tell what became of it when it does not answer.

However a child ends, hangs or floods, the parent gets one ChildError with the cause: the signal or the time, and the
last thing of meaning that it said. Knows no request by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from yarn_gguf.errors import ChildError, InputError, ResourceError, UsageError, YarnGgufError

DEADLINE: Final = 300.0  # seconds without a sign of life
FLOOD: Final = 64 << 20  # bytes of stderr; loading a model takes about 50,000
KEPT: Final = 400  # lines of stderr
LONGEST: Final = 2000  # characters of a line
SHOWN: Final = 300  # characters of what it said last
GRACE: Final = 5.0  # seconds in which a child that is told to end does
SETTLING: Final = 0.2  # seconds
PACKAGE: Final = Path(__file__).resolve().parent.parent.parent
_KILLED: Final = -getattr(signal, "SIGKILL", 9)
_TELLING: Final = re.compile(
    r"error|fail|abort(?!_callback)|assert|invalid|exception|unsupported|unable|cannot|out of memory", re.I
)
_ERRORS: Final[Mapping[int, type[YarnGgufError]]] = {2: UsageError, 3: InputError, 4: ResourceError}


class Child:
    """A module of ours as a process. `about`: the file that its errors name; `what`: what it is to a person."""

    def __init__(
        self,
        module: str,
        about: str | os.PathLike[str],
        *,
        what: str,
        environment: Mapping[str, str | None] | None = None,
        inherited: Sequence[int] = (),
        deadline: float = DEADLINE,
    ) -> None:
        self.about, self.what, self.deadline = about, what, deadline
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.said = 0
        self.on_progress: Callable[[int, int], None] = lambda *_: None
        self.on_part: Callable[[dict[str, Any]], None] = lambda _: None  # of an answer that comes bit by bit
        self.blame: Callable[[], str] = str  # who else may be the cause of its end, for the error's text
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: what lies in the current folder is not imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(environment or {}),
            pass_fds=tuple(inherited),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.readers = [
            threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._hear, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def _listen(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.answers.put(line)
        self.answers.put(None)

    def _hear(self, pipe: IO[str]) -> None:
        """Reads stderr so that nobody waits for it, keeps its end, and counts."""
        while text := pipe.readline(LONGEST):
            self.lines.append(text.rstrip())
            self.said += len(text)
            if self.said > FLOOD:
                self.process.kill()
                break
        for _ in iter(lambda: pipe.read(1 << 16), ""):
            pass

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request; raises what the child refuses, and ChildError when there is none."""
        self.send(do, **request)
        return self.receive()

    def send(self, do: str, **request: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except OSError as error:  # it has died; how is told by its end
            raise self._death() from error

    def receive(self) -> dict[str, Any]:
        while True:
            try:
                line = self.answers.get(timeout=self.deadline)
            except queue.Empty:
                self.kill()
                how = f"gave no sign of life for {self.deadline:g} s and was stopped"
                text = f"{self.blame()}{self.what} {how}{self._last()}"
                raise ChildError(text, file=self.about, code="child_hangs") from None
            answer = self._parsed(line)
            if "refused" in answer:
                raise self._refusal(answer["refused"])
            if "progress" in answer:
                self.on_progress(*answer["progress"])
            if "part" in answer:
                self.on_part(answer["part"])
            if "ok" in answer:
                return dict(answer["ok"])

    def _refusal(self, found: dict[str, Any]) -> YarnGgufError:
        text = found["text"]
        if found["said"]:
            time.sleep(SETTLING)  # what it wrote before this answer may still be on its way
            text += self._last()
        return _ERRORS.get(found["exit"], ChildError)(text, file=self.about, code=found["code"])

    def _parsed(self, line: str | None) -> dict[str, Any]:
        if line is None:
            raise self._death()
        try:
            found = json.loads(line)
            if isinstance(found, dict):
                return found
        except ValueError:
            pass
        self.kill()
        raise ChildError(f"{self.what} answered nonsense: {line[:SHOWN]!r}", file=self.about, code="child_lies")

    def _death(self) -> ChildError:
        """How it ended, and the cause as it told it."""
        try:
            status = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it closed its line and lives on
            self.kill()
            status = self.process.wait()
        for reader in self.readers:
            reader.join(GRACE)
        if self.said > FLOOD:
            text = f"{self.what} wrote over {FLOOD >> 20} MiB to stderr and was stopped"
            return ChildError(f"{text}{self._last()}", file=self.about, code="child_floods")
        names = {int(each): each.name for each in signal.Signals}
        how = f"signal {names.get(-status, -status)}" if status < 0 else f"exit code {status}"
        # SIGKILL comes from outside, and what was said before it has nothing to do with it
        said = "" if status == _KILLED else self._last()
        text = f"{self.blame()}{self.what} ended with {how}{said}"
        return ChildError(text, file=self.about, code="child_died")

    def _last(self) -> str:
        found = telling(self.lines)[:SHOWN]
        return f"; the last it said: {found}" if found else "; it said nothing"

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        """Ends it, gently first; can be done twice."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        for reader in self.readers:
            reader.join(GRACE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def telling(said: Sequence[str]) -> str:
    """The last line that speaks of a failure; else the last one."""
    lines = [" ".join(line.split()) for line in tuple(said) if line.strip()]
    return next((line for line in reversed(lines) if _TELLING.search(line)), lines[-1] if lines else "")


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Ours with these changes; None removes a variable."""
    paths = [os.fspath(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    found: dict[str, str | None] = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}
    return {name: value for name, value in found.items() if value is not None}
