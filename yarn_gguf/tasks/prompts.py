"""Prompts whose answer stands at a known place of the text: the key of a passkey task, the list of a copying task.

    prompt = make(TASKS["passkey"], tokenize, length=8192, depth=0.5, random=Random(1))

A prompt is the text with its answer behind it, as many tokens as fit `length`. What is scored are the answer's tokens,
each predicted from all that stand before it: a model that gets all of them right would have written the answer
itself, greedily. Knows texts, and asks a `Tokenize` for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.errors import UsageError
from yarn_gguf.tasks.text import KEY_INTRO, asked, key, listed, repeated, sayings, told
from yarn_gguf.tasks.words import LISTED, SAYINGS

Tokens: TypeAlias = NDArray[np.int32]
Tokenize: TypeAlias = Callable[[str], Tokens]

WORDS: Final = 16  # on a list
SHOWN: Final = 2  # of them that stand before the answer, to say which list it is
TRIES: Final = 8


@dataclass(frozen=True)
class Question:
    """What is put around the filling: `before`, which opens the text, `needle`, `ask`, `answer`."""

    before: str
    needle: str
    ask: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of question. `whole`: it counts only when every token of the answer is right."""

    name: str
    whole: bool
    question: Callable[[Random], Question]


@dataclass(frozen=True)
class Prompt:
    """`tokens[start:]` is the answer; `distance`: tokens from the needle's first to the answer's first."""

    tokens: Tokens
    start: int
    distance: int


def _passkey(random: Random) -> Question:
    digits = key(random)
    ask = asked(digits)
    return Question(KEY_INTRO, told(digits), ask[: ask.index(digits) - 1], f" {digits}")


def _copy(random: Random) -> Question:
    words = random.sample(LISTED, WORDS)
    text = repeated(words)
    at = text.index(" ".join(words[SHOWN:])) - 1
    return Question("", listed(words), text[:at], text[at:].removesuffix("."))


TASKS: Final = {task.name: task for task in (Task("passkey", True, _passkey), Task("copy", False, _copy))}


def make(task: Task, tokenize: Tokenize, *, length: int, depth: float, random: Random) -> Prompt:
    """A prompt of at most `length` tokens, its needle behind the share `depth` of the filling."""
    question, first = task.question(random), random.randrange(len(SAYINGS))

    def made(count: int) -> Tokens:
        return tokenize(_text(question, first, count, depth) + question.answer)

    least = made(0)
    if len(least) > length:
        text = f"a {task.name} prompt takes {len(least)} tokens at least, so it does not fit a context of {length}"
        raise UsageError(text, code="prompt_too_long")
    count = _most(made, length, _per_saying(tokenize))
    tokens = made(count)
    text = _text(question, first, count, depth)
    start = _common(tokens, tokenize(text))
    needle = _common(tokens, tokenize(_head(question, first, count, depth)))
    return Prompt(tokens, start, start - needle)


def _head(question: Question, first: int, count: int, depth: float) -> str:
    """What stands before the needle."""
    before = round(depth * count)
    return " ".join(filter(None, (question.before, sayings(first, before))))


def _text(question: Question, first: int, count: int, depth: float) -> str:
    before = round(depth * count)
    rest = sayings(first + before, count - before)
    return " ".join(filter(None, (_head(question, first, count, depth), question.needle, rest, question.ask)))


def _per_saying(tokenize: Tokenize) -> float:
    """How many tokens a saying takes on average."""
    rounds = 4
    return (len(tokenize(sayings(0, rounds * len(SAYINGS)))) - 1) / (rounds * len(SAYINGS))


def _most(made: Callable[[int], Tokens], length: int, each: float) -> int:
    """The largest count whose text fits; texts are made of whole sayings."""
    count = max(int((length - len(made(0))) / each), 0)
    while count and (over := len(made(count)) - length) > 0:
        count = max(count - max(int(over / each), 1), 0)
    for _ in range(TRIES):
        if len(made(count + 1)) > length:
            break
        count += 1
    return count


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    short = min(len(one), len(other))
    differ = np.flatnonzero(one[:short] != other[:short])
    return int(differ[0]) if len(differ) else short
