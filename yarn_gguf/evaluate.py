"""What a model can still do at a length: find a key, copy a list, foretell a text, feel a change far away.

    with opened(path, ...) as session:
        cells = score_grid(session, TASKS["passkey"], Grid((2048, 8192), (0, 0.5, 1), samples=4))

Each function takes an open `Session` (llama.cpp or transformers, it cannot tell) and gives frozen values; every choice
comes from a seed, so two models with one tokenizer get the same texts. Knows no files and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.logits import Session
from yarn_gguf.tasks.prompts import Prompt, Task, Tokens, make
from yarn_gguf.tasks.text import Mix, document

Progress: TypeAlias = Callable[[int], None]  # tokens that were decoded
WINDOWS: Final = 4  # per context, so that each token is foretold from at least three quarters of it


def silent(_: int) -> None:
    """Nobody wants to know how far it is."""


@dataclass(frozen=True)
class Grid:
    """Lengths × depths, some prompts each."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 4
    seed: int = 0

    @property
    def tokens(self) -> int:
        """That are decoded for it, at most."""
        return sum(self.lengths) * len(self.depths) * self.samples


@dataclass(frozen=True)
class Cell:
    """The prompts of one length and depth. `score`: the share that was right; `distance`: to the needle, on average."""

    length: int
    depth: float
    distance: float
    score: float
    samples: int


@dataclass(frozen=True)
class Perplexity:
    """Of the same `tokens` at every `length`; each foretold from what a window of `length` shows."""

    length: int
    ppl: float
    nll: float
    tokens: int


@dataclass(frozen=True)
class Change:
    """What another token `distance` back does to the last logits: the largest change of one, and the KL divergence."""

    length: int
    distance: int
    change: float
    kld: float
    samples: int


@dataclass(frozen=True)
class Entropy:
    """Of the attention of a layer, averaged over heads and the positions from `first` up to `end`; in nats."""

    length: int
    layer: int
    first: int
    end: int
    entropy: float


def prompts(session: Session, task: Task, grid: Grid, length: int, depth: float) -> Iterator[Prompt]:
    for number in range(grid.samples):
        random = Random(f"{grid.seed} {task.name} {length} {depth:.6f} {number}")
        yield make(task, session.tokenize, length=length, depth=depth, random=random)


def predicted(session: Session, prompt: Prompt) -> Tokens:
    """The most probable token at each place of the answer, the right ones standing before it."""
    wanted = np.zeros(len(prompt.tokens), bool)
    wanted[prompt.start - 1 : -1] = True
    parts = [piece.logits.argmax(axis=1) for piece in session.stream(prompt.tokens, wanted)]
    return np.concatenate(parts).astype(np.int32)


def score_grid(session: Session, task: Task, grid: Grid, progress: Progress = silent) -> tuple[Cell, ...]:
    return tuple(
        _cell(session, task, grid, length, depth, progress) for length in grid.lengths for depth in grid.depths
    )


def _cell(session: Session, task: Task, grid: Grid, length: int, depth: float, progress: Progress) -> Cell:
    scores, distances = [], []
    for prompt in prompts(session, task, grid, length, depth):
        right = predicted(session, prompt) == prompt.tokens[prompt.start :]
        scores.append(float(right.all()) if task.whole else float(right.mean()))
        distances.append(prompt.distance)
        progress(length)
    return Cell(length, depth, float(np.mean(distances)), float(np.mean(scores)), len(scores))


# ---- perplexity


def running_text(session: Session, tokens: int, seed: int) -> Tokens:
    """A text of our own, of at least so many tokens, in which much of what comes can be known from what was."""
    random, words = Random(f"{seed} text"), tokens
    while True:
        found = session.tokenize(document(random, words, Mix()), add_special=False)
        if len(found) >= tokens:
            return found
        words = words * 2


def opening(session: Session) -> Tokens:
    """The special tokens that the tokenizer puts before a text."""
    bare, whole = session.tokenize("a", add_special=False), session.tokenize("a")
    at = len(whole) - len(bare)
    while at > 0 and not np.array_equal(whole[at : at + len(bare)], bare):
        at -= 1  # it puts some behind it as well
    return whole[:at]


@dataclass(frozen=True)
class Sliding:
    """Which tokens of a text are foretold: those from `first` on, `count` of them, `stride` per window."""

    first: int
    count: int
    stride: int | None = None  # None: a quarter of the length

    def step(self, length: int) -> int:
        return min(self.stride or max(length // WINDOWS, 1), length, self.count)

    def cost(self, length: int) -> int:
        """Tokens that are decoded for it."""
        return math.ceil(self.count / self.step(length)) * length


def perplexity(
    session: Session, text: Tokens, length: int, sliding: Sliding, progress: Progress = silent
) -> Perplexity:
    """A window of `length` tokens slides over the text; in each its last `stride` tokens are foretold."""
    if sliding.first + sliding.count > len(text):
        needs = f"{sliding.first + sliding.count} tokens are needed"
        raise InputError(f"the text has {len(text)} tokens, but {needs} at this context", code="text_too_short")
    head = opening(session)
    step, end = sliding.step(length), sliding.first + sliding.count
    if length < step + len(head) + 1:
        raise UsageError(f"--stride {step} leaves nothing to foretell from in {length} tokens", code="stride")
    total = 0.0
    for start in range(sliding.first, end, step):
        stop = min(start + step, end)
        begin = max(stop - (length - len(head)), 0)
        window = np.concatenate([head, text[begin:stop]]).astype(np.int32)
        total -= _log_probability(session, window, stop - start)
        progress(length)
    return Perplexity(length, math.exp(total / sliding.count), total / sliding.count, sliding.count)


def _log_probability(session: Session, window: Tokens, last: int) -> float:
    """Of the window's last tokens, together."""
    wanted = np.zeros(len(window), bool)
    wanted[len(window) - 1 - last : -1] = True
    total = 0.0
    for piece in session.stream(window, wanted):
        rows = piece.logits.astype(np.float64)
        total += float((rows[np.arange(len(rows)), window[piece.positions + 1]] - _log_sum(rows)).sum())
    return total


def _log_sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    top = rows.max(axis=1)
    found: NDArray[np.float64] = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return found


# ---- sensitivity


def distances(length: int) -> tuple[int, ...]:
    """1, 2, 4, … back from the last token, and as far back as a text of this length goes."""
    return tuple(sorted({*(1 << power for power in range(int(math.log2(length)))), length - 2}))


def sensitivity(
    session: Session,
    length: int,
    back: Sequence[int],
    *,
    samples: int,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Change, ...]:
    """Texts of `length` tokens, each with one token changed at each distance. A token beyond sight changes nothing."""
    head = opening(session)
    found: dict[int, list[tuple[float, float]]] = {distance: [] for distance in back}
    for sample in range(samples):
        random = Random(f"{seed} sensitivity {length} {sample}")
        body = running_text(session, length, random.randrange(1 << 30))[: length - len(head)]
        text = np.concatenate([head, body]).astype(np.int32)
        before = _log_softmax(session.next_logits(text))
        progress(length)
        for distance in back:
            changed = text.copy()
            changed[-1 - distance] = _another(text, -1 - distance, random)
            after = _log_softmax(session.next_logits(changed))
            kld = float((np.exp(before[1]) * (before[1] - after[1])).sum())
            found[distance].append((float(np.abs(before[0] - after[0]).max()), kld))
            progress(length)
    return tuple(_change(length, distance, values) for distance, values in found.items())


def _change(length: int, distance: int, values: Sequence[tuple[float, float]]) -> Change:
    changes, klds = zip(*values, strict=True)
    return Change(length, distance, float(np.mean(changes)), float(np.mean(klds)), len(values))


def _another(text: Tokens, at: int, random: Random) -> int:
    """A token that the text has elsewhere, and not here."""
    others = [int(token) for token in text if token != text[at]]
    return random.choice(others)


def _log_softmax(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logits, and the logarithms of their probabilities."""
    x = logits.astype(np.float64)
    return x, x - _log_sum(x[None])[0]


# ---- attention


def attention_entropy(
    session: Session, length: int, *, samples: int, seed: int = 0, progress: Progress = silent
) -> tuple[Entropy, ...]:
    """How widely each layer looks, by position: ln n where all n tokens are looked at alike."""
    head = opening(session)
    edges = [0, *(1 << power for power in range(4, math.ceil(math.log2(length)))), length]
    total = np.zeros(())
    for sample in range(samples):
        body = running_text(session, length, seed + sample)[: length - len(head)]
        total = total + session.attention_entropy(np.concatenate([head, body]).astype(np.int32), edges)
        progress(length)
    return tuple(
        Entropy(length, layer, first, end, float(value))
        for layer, row in enumerate(total / samples)
        for (first, end), value in zip(pairwise(edges), row, strict=True)
    )
