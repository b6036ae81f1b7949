"""Worker processes for slices that are computed in many short steps, for which threads would wait for each other.

numpy lets go of the interpreter's lock in each step, and taking it back costs more than the step: two threads of them
are no faster than one. The workers are forked: they find all slices and open files as they were, and are told a number
at a time. They die with us, and leave Ctrl-C to us. On Linux alone; elsewhere threads have to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any, Final

from yarn_gguf.errors import ChildError
from yarn_gguf.process import SIGNALS

_END_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
_OURS: Final = frozenset(SIGNALS)

Work = Callable[[int], int]
_work: Work | None = None  # in a worker


class Workers:
    """Futures of `work(number)`, done by processes that were forked by the time this exists."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool

    def submit(self, number: int) -> Future[int]:
        return self.pool.submit(_do, number)


def can_fork() -> bool:
    return sys.platform == "linux"


def shared_lock() -> Any:
    """For `work` to hold in any of its processes. Raises OSError where the system has none."""
    return get_context("fork").Lock()


@contextmanager
def forked(jobs: int, work: Work) -> Iterator[Workers]:
    """Raises ChildError where a worker dies; what `work` raises comes out of its future."""
    with ProcessPoolExecutor(jobs, get_context("fork"), _begin, (work, os.getpid())) as pool:
        try:
            with _held(), warnings.catch_warnings():  # of threads: none of ours runs yet, and numpy's can be forked
                warnings.simplefilter("ignore", DeprecationWarning)
                pool.submit(os.getpid)  # all are forked for the first
            yield Workers(pool)
        except BrokenProcessPool as error:
            text = "a process that computed a part of the file was ended from outside, perhaps for lack of memory"
            raise ChildError(f"{text}; --jobs 1 takes the least", code="child_failed") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _held() -> Iterator[None]:
    """Signals come afterwards: what their handler raises in the midst of a fork is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(work: Work, parent: int) -> None:
    """In a worker, before anything else."""
    global _work  # noqa: PLW0603 - a process of its own, whose only state this is
    _work = work
    for number in _OURS:  # SIGTERM ends it: that is what the pool sends to the others when one has died
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker than that
        os._exit(1)


def _do(number: int) -> int:
    assert _work is not None
    return _work(number)
