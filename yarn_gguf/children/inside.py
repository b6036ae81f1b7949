"""The child's end: requests are lines of JSON on stdin, answers on what was stdout; libraries print to stderr instead.

    {"do": NAME, …} -> {"ok": {…}} | {"refused": {code, text, exit, said}}       {"alive": true} while it takes long,
                                                   or {"progress": [n, of]}, or {"part": {…}} of an answer

A child that loses its parent reads the end of stdin, and ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

EVERY: Final = 1.0  # seconds between two signs of life
LEAST_WORK: Final = 0.01  # seconds of the processor between them


class Refusal(Exception):
    """What the parent is to tell, with the exit code: 3 for the input, 4 for resources, 5 for the library.

    `said`: the library has said why on stderr.
    """

    def __init__(self, code: str, text: str, exit_code: int = 3, *, said: bool = False) -> None:
        super().__init__(text)
        self.told = {"code": code, "text": text, "exit": exit_code, "said": said}


class Line:
    """The line to the parent."""

    def __init__(self) -> None:
        self.out: TextIO = os.fdopen(os.dup(1), "w", encoding="ascii")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
        os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
        self.last = time.monotonic()
        self.lock = threading.Lock()

    def say(self, **message: Any) -> None:
        self.last = time.monotonic()
        with self.lock:
            print(json.dumps(message), file=self.out, flush=True)

    def alive(self) -> None:
        """To be called while something takes long, as often as is convenient."""
        if time.monotonic() - self.last > EVERY:
            self.say(alive=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While this lasts, work of the processor counts as a sign of life."""
        over = threading.Event()

        def watch() -> None:
            before = time.process_time()
            while not over.wait(EVERY):
                now = time.process_time()
                if now > before + LEAST_WORK:
                    self.alive()
                before = now

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def serve(self, commands: Mapping[str, Callable[..., dict[str, Any] | None]]) -> None:
        for text in sys.stdin:
            request = json.loads(text)
            try:
                self.say(ok=commands[request.pop("do")](**request) or {})
            except Refusal as refusal:
                self.say(refused=refusal.told)
