"""Fills one file: pieces at known offsets, in bounded memory, from several workers. Copies are made by the kernel.

Knows descriptors and pieces; nothing of names, temporaries or GGUF.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.files import Stamp, changed, open_regular, stamp_of
from yarn_gguf.gguf_file import fs
from yarn_gguf.gguf_file.forked import Workers, can_fork, forked, shared_lock

SLICE: Final = 32 << 20  # bytes per step of a worker: what bounds the wait after Ctrl-C, and the memory in flight
_EARLY: Final = 1 << 20  # bytes of a slice from which on the disk is told to begin with it
_FORKED: Final = 64 << 20  # bytes of stepwise slices that are worth processes of their own
_WAITING: Final = 2  # processes more than there are jobs: so many wait for the disk while the others compute
# writes to one file wait for each other in the kernel anyway, and there they wait by burning the processor
_WRITING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is filled. `direct`: a descriptor of the same whose writes go past the cache, where there is one."""

    fd: int
    direct: int | None = None


Progress = Callable[[int], None]  # called with the bytes just done


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that we hold."""

    data: bytes
    to: int

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of another file, which must still be the one it was."""

    source: Path
    stamp: Stamp
    start: int
    length: int
    to: int


@dataclass(frozen=True, slots=True)
class Made:
    """Bytes that a worker computes when their turn comes, at most one slice of them.

    They come in steps, each good until the next: a step that fits the processor's cache is written from there.
    `short`: it is computed by many calls of short duration, so that threads would stand in each other's way.
    """

    make: Callable[[], Iterable[bytes | memoryview]]
    length: int
    to: int
    short: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes of the same length in several files: which, and where they go."""

    length: int
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Bytes for several files that a worker computes from one reading: steps of one result and another, by turns."""

    make: Callable[[], Iterable[tuple[int, bytes | memoryview]]]
    results: tuple[Result, ...]
    short: bool = False

    @property
    def length(self) -> int:
        return sum(each.length * len(each.places) for each in self.results)


Piece = Held | Copy | Made


def can_share(fd: int, pieces: Sequence[Piece]) -> bool:
    """Whether the filesystem shares the extents of the largest copy; tried with one block, written over later."""
    copies = [p for p in pieces if isinstance(p, Copy) and p.length >= 2 * fs.BLOCK]
    if not copies:
        return False
    largest = max(copies, key=lambda p: p.length)
    skip = -largest.start % fs.BLOCK
    if (largest.to + skip) % fs.BLOCK:
        return False
    with open_regular(largest.source) as source:
        return fs.clone_range(source.fileno(), largest.start + skip, fd, largest.to + skip, fs.BLOCK)


def _slices(pieces: Iterable[Piece | Spread]) -> Iterator[Piece | Spread]:
    """The pieces in steps of at most SLICE bytes, cut at blocks so that extents can be shared."""
    for piece in pieces:
        if not isinstance(piece, Copy):
            yield piece
            continue
        done = 0
        while done < piece.length:
            cut = min(piece.length, pad_down(piece.start + done + SLICE) - piece.start)
            yield Copy(piece.source, piece.stamp, piece.start + done, cut - done, piece.to + done)
            done = cut


def pad_down(offset: int) -> int:
    return offset - offset % fs.BLOCK


def fill(
    targets: Sequence[Target], pieces: Iterable[Piece | Spread], jobs: int, progress: Progress, *, shared: bool = False
) -> None:
    """Puts the pieces in place on `jobs` workers, some more than two slices for each in flight.

    What is no `Spread` goes to the first file.
    """
    slices = list(_slices(pieces))
    with contextlib.ExitStack() as stack:
        sources = _Sources(stack)
        workers = stack.enter_context(_processes(targets, slices, jobs))  # before there are threads
        pool = stack.enter_context(ThreadPoolExecutor(jobs, "write"))
        running: set[Future[int]] = set()
        try:
            for number, piece in enumerate(slices):
                if workers is not None and _is_short(piece):
                    running.add(workers.submit(number))
                else:
                    source = sources.open(piece) if isinstance(piece, Copy) else -1
                    running.add(pool.submit(_put, targets, piece, source, shared))
                if len(running) >= 2 * (jobs + _WAITING):
                    running = _drain(running, progress)
            while running:
                running = _drain(running, progress)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        sources.check()


def _is_short(piece: Piece | Spread) -> bool:
    return isinstance(piece, Made | Spread) and piece.short


@contextlib.contextmanager
def _processes(targets: Sequence[Target], slices: Sequence[Piece | Spread], jobs: int) -> Iterator[Workers | None]:
    """For the slices that threads are no help with, where there is enough of them; None where threads do all."""
    lock = None
    if jobs > 1 and can_fork() and sum(each.length for each in slices if _is_short(each)) >= _FORKED:
        with contextlib.suppress(OSError, ImportError):
            lock = shared_lock()
    if lock is None:
        yield None
        return

    def work(number: int) -> int:
        global _WRITING  # noqa: PLW0603 - in a worker, whose writes are in step with those of the others
        _WRITING = lock
        return _put(targets, slices[number], -1, shared=False)

    with forked(jobs + _WAITING, work) as workers:
        yield workers


def _drain(running: set[Future[int]], progress: Progress) -> set[Future[int]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        progress(future.result())
    return rest


class _Sources:
    """The files that are copied from, each open once, and proof that they are still what they were."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.files: dict[Path, tuple[int, Copy]] = {}

    def open(self, piece: Copy) -> int:
        if piece.source not in self.files:
            file = self.stack.enter_context(open_regular(piece.source))
            if stamp_of(file.fileno()) != piece.stamp:
                raise changed(piece.source)
            self.files[piece.source] = file.fileno(), piece
        return self.files[piece.source][0]

    def check(self) -> None:
        for path, (fd, piece) in self.files.items():
            if stamp_of(fd) != piece.stamp:
                raise changed(path)


def _put(targets: Sequence[Target], piece: Piece | Spread, source: int, shared: bool) -> int:
    """Writes one slice; returns its length."""
    if isinstance(piece, Spread):
        _write_all(targets, piece)
        return piece.length
    fd = targets[0].fd
    if isinstance(piece, Copy):
        if not (shared and _clone(fd, piece, source)):
            done = fs.copy_range(source, piece.start, fd, piece.to, piece.length)
            if done != piece.length:
                raise changed(piece.source)
    else:
        _write(targets[0], piece)
    if piece.length >= _EARLY:
        fs.start_writing(fd, piece.to, piece.length)
    return piece.length


def _write(target: Target, piece: Held | Made) -> None:
    done = 0
    for data in (piece.data,) if isinstance(piece, Held) else piece.make():
        _write_step(target, data, piece.to + done)
        done += len(data)
    if done != piece.length:
        raise AssertionError(f"a slice of {piece.length} bytes was made {done} long")


def _write_all(targets: Sequence[Target], piece: Spread) -> None:
    done = [0] * len(piece.results)
    for number, data in piece.make():
        for file, to in piece.results[number].places:
            _write_step(targets[file], data, to + done[number])
        done[number] += len(data)
    for result, made in zip(piece.results, done, strict=True):
        if made != result.length:
            raise AssertionError(f"a slice of {result.length} bytes was made {made} long")
        if made >= _EARLY:
            for file, to in result.places:
                fs.start_writing(targets[file].fd, to, made)


def _write_step(target: Target, data: bytes | memoryview, to: int) -> None:
    begin = end = 0
    if target.direct is not None and isinstance(data, memoryview):
        begin, end = fs.write_past_cache(target.direct, data, to)
    for first, last in ((0, begin), (end, len(data))):
        if first < last:
            with _WRITING:
                fs.pwrite(target.fd, data[first:last], to + first)


def _clone(fd: int, piece: Copy, source: int) -> bool:
    """Shares the whole blocks of a slice and copies its ragged ends; False when no block can be shared."""
    head = -piece.start % fs.BLOCK
    middle = pad_down(piece.length - head) if piece.length > head else 0
    if middle <= 0 or (piece.to + head) % fs.BLOCK:
        return False
    if not fs.clone_range(source, piece.start + head, fd, piece.to + head, middle):
        return False
    for begin, length in ((0, head), (head + middle, piece.length - head - middle)):
        if fs.copy_range(source, piece.start + begin, fd, piece.to + begin, length) != length:
            raise changed(piece.source)
    return True
