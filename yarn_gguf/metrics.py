"""How far one distribution over a vocabulary is from another: logits -> one row of figures per position.

    rows = score(reference, [candidate, …], following, positions)     one array of `ROW` per candidate

`summary` makes of them what a report prints. A leaf: arrays in, arrays out; knows no models and no files. Logits come
as float32, everything is summed in float64, so that a divergence of 1e-13 is told from 0. They are looked at a tile at
a time: what is held beside them stays in the processor's cache, however large the vocabulary. Natural logarithms
everywhere: nats.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]  # [positions, vocabulary]
Rows = NDArray[Any]  # of dtype ROW

ROW: Final = np.dtype(
    [
        ("position", "<i4"),  # how many tokens the model had seen, less one
        ("kld", "<f8"),  # KL(reference‖candidate)
        ("reference", "<f8"),  # log-probability of the token that follows, NaN where none does
        ("candidate", "<f8"),
        ("drift", "<f4"),  # the largest change of any word's log-probability
        ("top1", "?"),  # both have the same most probable word
        ("top5", "u1"),  # how many of the reference's five most probable words are among the candidate's
    ]
)
NONE: Final = -1  # the token that follows the last one
# logits that are worked on at a time: few enough for the processor's cache in float64, and so many that two threads
# are not always waiting for the interpreter's lock
TILE: Final = 38016
SAFE: Final = 300.0  # a logit up to which exp, and a vocabulary's sum of it, is far from what float64 holds
SEGMENT: Final = 512  # words of which only the largest logit matters at first
TOP: Final = 5
LEAST: Final = 1e-16  # of a probability that is what others leave of 1


class NotFinite(Exception):
    """A logit of the reference is NaN or infinite. (Of a candidate: its row's divergence is NaN.)"""

    def __init__(self, position: int) -> None:
        super().__init__(f"position {position}")
        self.position = position


def score(
    reference: Logits, candidates: Sequence[Logits], following: NDArray[np.int64], positions: NDArray[np.int64]
) -> list[Rows]:
    """One `ROW` per position and candidate. `following`: the token behind each position, or `NONE`."""
    rows = [np.zeros(len(reference), ROW) for _ in candidates]

    def block(here: slice) -> None:
        sides = [each[here] for each in (reference, *candidates)]
        _compare(sides, following[here], positions[here], [each[here] for each in rows])

    _in_threads(block, reference)
    for out in rows:
        out["position"] = positions
    return rows


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="metrics")


def _in_threads(block: Callable[[slice], None], logits: Logits) -> None:
    """numpy lets go of the interpreter's lock while it is in a tile."""
    step = max(1, TILE // logits.shape[1])
    slices = [slice(start, start + step) for start in range(0, len(logits), step)]
    for _ in _pool().map(block, slices) if len(slices) > 1 else map(block, slices):
        pass


def _largest(logits: Logits) -> NDArray[np.float64]:
    """The largest logit of each row; NaN where one is not finite."""
    largest = logits.max(axis=1)
    good = np.isfinite(largest) & np.isfinite(logits.min(axis=1))  # a NaN is both the largest and the smallest
    return np.where(good, largest, np.nan)


def _shift(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to take from a row's logits so that none overflows: mostly nothing, which costs nothing."""
    return np.where(np.abs(largest) <= SAFE, largest * 0, largest)  # a NaN stays one


class _Scratch(threading.local):
    """What one thread computes a tile in, used again for the next: fresh memory costs more than the sums."""

    def __init__(self) -> None:
        self.wide = np.empty((3, TILE))
        self.narrow = np.empty(TILE, np.float32)


_SCRATCH: Final = _Scratch()


def _wide(logits: Logits, shift: NDArray[np.float64], number: int = 0) -> NDArray[np.float64]:
    """In one of the thread's places; good until the next in the same."""
    wide = _place(_SCRATCH.wide[number], logits)
    np.copyto(wide, logits)
    if shift.any():
        wide -= shift[:, None]
    return wide


def _place(scratch: NDArray[Any], logits: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = scratch[: logits.size].reshape(logits.shape)
    return found


def _refuse_bad(largest: NDArray[np.float64], positions: NDArray[np.int64]) -> None:
    bad = np.isnan(largest)
    if bad.any():
        raise NotFinite(int(positions[np.argmax(bad)]))


def _tiles(vocabulary: int) -> Iterator[slice]:
    return (slice(start, start + TILE) for start in range(0, vocabulary, TILE))


def _compare(
    sides: Sequence[Logits], following: NDArray[np.int64], positions: NDArray[np.int64], out: Sequence[Rows]
) -> None:
    """Σ p·(log p − log q) from sums that need no normaliser: Σ e, Σ e·x and Σ e·y, where e = exp(x).

    Each is right to 1e-15 of a logit; logits differ by less than 1e3, so the divergence is right to 1e-12.
    """
    shifts = [_shift(_largest(side)) for side in sides]
    _refuse_bad(shifts[0], positions)
    totals, weighted = np.zeros((len(sides), len(positions))), np.zeros((len(sides), len(positions)))
    high, low = np.full(weighted.shape, -np.inf, np.float32), np.full(weighted.shape, np.inf, np.float32)
    for tile in _tiles(sides[0].shape[1]):
        x = _wide(sides[0][:, tile], shifts[0])
        e = np.exp(x, out=_place(_SCRATCH.wide[1], x))
        totals[0] += e.sum(axis=1)
        weighted[0] += np.einsum("ij,ij->i", e, x)
        for number, side in enumerate(sides[1:], 1):
            y = _wide(side[:, tile], shifts[number], 2)
            weighted[number] += np.einsum("ij,ij->i", e, y)
            totals[number] += np.exp(y, out=y).sum(axis=1)
            d = np.subtract(sides[0][:, tile], side[:, tile], out=_place(_SCRATCH.narrow, y))
            np.maximum(high[number], d.max(axis=1), out=high[number])
            np.minimum(low[number], d.min(axis=1), out=low[number])
    logs = np.log(totals)
    top = [top_words(side, TOP) for side in sides]
    known = _log_probability(sides[0], shifts[0] + logs[0], following)
    for number, row in enumerate(out, 1):
        row["kld"] = (weighted[0] - weighted[number]) / totals[0] - (logs[0] - logs[number])
        change = shifts[0] + logs[0] - (shifts[number] + logs[number])
        row["drift"] = np.maximum(high[number] - change, change - low[number])
        row["reference"] = known
        row["candidate"] = _log_probability(sides[number], shifts[number] + logs[number], following)
        row["top1"] = top[0][:, 0] == top[number][:, 0]
        row["top5"] = _common(top[0], top[number])


def _log_probability(logits: Logits, log_total: NDArray[np.float64], words: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of one word per row; NaN for `NONE`."""
    found = logits[np.arange(len(words)), words].astype(np.float64) - log_total
    return np.where(words == NONE, np.nan, found)


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many words each row has in both."""
    found: NDArray[np.int64] = (one[:, :, None] == other[:, None, :]).sum(axis=(1, 2))
    return found


def top_words(logits: Logits, count: int) -> NDArray[np.int64]:
    """[rows, count]: the words with the largest logits, the largest first; of equal ones the first word comes first.

    A segment of the vocabulary can only hold one of them if its largest logit is among the `count` largest ones.
    """
    rows, vocabulary = logits.shape
    count = min(count, vocabulary)
    segments = vocabulary // SEGMENT
    if segments <= 4 * count:
        return _ordered(logits, _any_largest(logits, count), count)
    whole = segments * SEGMENT
    largest = logits[:, :whole].reshape(rows, segments, SEGMENT).max(axis=2)
    chosen = np.sort(_any_largest(largest, count), axis=1)
    inside = (chosen[:, :, None] * SEGMENT + np.arange(SEGMENT)).reshape(rows, count * SEGMENT)
    behind = np.broadcast_to(np.arange(whole, vocabulary), (rows, vocabulary - whole))
    words = np.concatenate([inside, behind], axis=1)
    values = np.take_along_axis(logits, words, axis=1)
    return np.take_along_axis(words, _ordered(values, _any_largest(values, count), count), axis=1)


def _any_largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.argpartition(values, values.shape[1] - count, axis=1)[:, -count:]
    return found


def _ordered(values: NDArray[Any], chosen: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The chosen columns by falling value, then by rising number."""
    chosen = np.sort(chosen, axis=1)
    order = np.argsort(-np.take_along_axis(values, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)[:, :count]


# ---- a recorded distribution in the reference's place: its most probable words, and the rest as one


@dataclass(frozen=True, slots=True)
class Recorded:
    """Some positions of a record, which need not have equally many words.

    `words` and `log_probabilities` have those of one position behind those of another, the most probable first.
    """

    counts: NDArray[np.int64]  # words of each position
    words: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    rest: NDArray[np.float64]  # log-probability of all other words of a position together
    following: NDArray[np.float64]  # log-probability of the token that follows, NaN where none does

    @property
    def starts(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.cumsum(self.counts) - self.counts
        return found

    def part(self, here: slice) -> Recorded:
        starts, rows = self.starts, range(*here.indices(len(self.counts)))
        inside = slice(starts[rows[0]], starts[rows[-1]] + self.counts[rows[-1]])
        words, logs = self.words[inside], self.log_probabilities[inside]
        return Recorded(self.counts[here], words, logs, self.rest[here], self.following[here])


def record(logits: Logits, count: int, following: NDArray[np.int64], positions: NDArray[np.int64]) -> Recorded:
    """The most probable words of these positions: `count` of each on average, where the probability is.

    A position that is decided needs few words, and one that is not may have what they leave. All together they are
    the `count` × positions largest probabilities, and the first few of each position.
    """
    largest = _largest(logits)
    _refuse_bad(largest, positions)
    log_total = np.empty(len(logits))

    def block(here: slice) -> None:
        log_total[here] = _log_total(logits[here], largest[here])

    _in_threads(block, logits)
    rows, words = _most_probable(logits, log_total, count)
    found = logits[rows, words].astype(np.float64) - log_total[rows]
    counts = np.bincount(rows, minlength=len(logits))
    rest = _log_rest(_sums(rows, np.exp(found), len(logits)), counts, logits.shape[1])
    return Recorded(counts, words, found, rest, _log_probability(logits, log_total, following))


def _most_probable(
    logits: Logits, log_total: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and word of exactly `count` × rows of them, row by row, the most probable of a row first."""
    vocabulary = logits.shape[1]
    values = logits - log_total[:, None].astype(np.float32)
    size = min(count, vocabulary) * len(logits)
    first = top_words(logits, min(TOP, count))
    np.put_along_axis(values, first, np.float32(1), axis=1)  # above any logarithm of a probability
    flat = values.reshape(-1)
    least = np.partition(flat, flat.size - size)[flat.size - size]
    chosen = np.flatnonzero(flat > least)
    equal = np.flatnonzero(flat == least)[: size - len(chosen)]
    rows, words = np.divmod(np.concatenate([chosen, equal]), vocabulary)
    order = np.lexsort((words, -logits[rows, words], rows))
    return rows[order], words[order]


def _log_total(logits: Logits, largest: NDArray[np.float64]) -> NDArray[np.float64]:
    total, shift = np.zeros(len(logits)), _shift(largest)
    for tile in _tiles(logits.shape[1]):
        x = _wide(logits[:, tile], shift)
        total += np.exp(x, out=x).sum(axis=1)
    found: NDArray[np.float64] = shift + np.log(total)
    return found


def _sums(rows: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Of the values of each row."""
    return np.asarray(np.bincount(rows, values, count), np.float64)


def _log_rest(sums: NDArray[np.float64], counts: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """The log-probability of what the words that sum to this leave; −inf where they are all that there are.

    What is below `LEAST` is unknown.
    """
    return np.where(counts >= vocabulary, -np.inf, np.log(np.maximum(1 - sums, LEAST)))


def score_recorded(
    reference: Recorded, candidates: Sequence[Logits], following: NDArray[np.int64], positions: NDArray[np.int64]
) -> list[Rows]:
    """Like `score`. `kld` and `drift` are lower bounds: words that are not recorded count as one word.

    Merging words never raises a divergence (the log-sum inequality), so the true one is at least this.
    """
    rows = [np.zeros(len(following), ROW) for _ in candidates]
    for candidate, out in zip(candidates, rows, strict=True):

        def block(here: slice, candidate: Logits = candidate, out: Rows = out) -> None:
            _compare_recorded(reference.part(here), candidate[here], following[here], out[here])

        _in_threads(block, candidate)
        out["position"] = positions
    return rows


def _compare_recorded(known: Recorded, logits: Logits, following: NDArray[np.int64], out: Rows) -> None:
    size, log_total = len(logits), _log_total(logits, _largest(logits))
    rows = np.repeat(np.arange(size), known.counts)
    log_q = logits[rows, known.words].astype(np.float64) - log_total[rows]
    t = known.log_probabilities - log_q
    kld = _sums(rows, np.exp(known.log_probabilities) * t, size)
    log_rest = _log_rest(_sums(rows, np.exp(log_q), size), known.counts, logits.shape[1])
    left = np.isfinite(known.rest) & np.isfinite(log_rest)
    kld += np.where(left, np.exp(known.rest) * (np.where(left, known.rest, 0) - np.where(left, log_rest, 0)), 0)
    out["kld"] = np.where(np.isfinite(log_total), kld, np.nan)
    out["drift"] = np.maximum.reduceat(np.abs(t), known.starts)
    out["reference"], out["candidate"] = known.following, _log_probability(logits, log_total, following)
    top = top_words(logits, TOP)
    first = known.starts[:, None] + np.arange(min(TOP, int(known.counts.min())))
    out["top1"] = known.words[known.starts] == top[:, 0]
    out["top5"] = _common(known.words[first], top)
