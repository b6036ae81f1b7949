"""What this process is to its surroundings from its first moment: signals end it with a word, no stream is missing.

A leaf that imports nothing heavy, so that a Ctrl-C during the imports of everything else finds a handler already.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by the number of their descriptors


def on_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Sets the handler of whatever may end us; what `nohup` or a shell has us ignore, we go on to ignore."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def farewell(number: int, *, writes: bool = True) -> str:
    """The last word; `writes`: whether the command makes files."""
    return f"stopped by {signal.Signals(number).name}" + ("; no unfinished file was left behind" if writes else "")


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at once; for the time in which nothing has been done that must be tidied up."""
    with contextlib.suppress(OSError):  # the terminal may be what has gone
        os.write(2, f"{farewell(number)}\n".encode())
    os._exit(128 + number)


def hold_streams() -> None:
    """A standard stream that was closed (`>&-`) becomes the null device: no file that is opened gets its number."""
    for number, (name, mode) in enumerate(STREAMS):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)
        setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115 - a descriptor, for good
