"""Texts whose later parts can be foretold from earlier ones, at any distance: what the demo model is trained on.

A document is plain English text: stories of a few people (a small grammar, so that perplexity means something), sayings
that come round and round, lists of words that are repeated later, and a pass key that is asked for later. Knows
nothing of tokens or models; every choice comes from the `Random` it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from yarn_gguf.tasks.words import LISTED, PEOPLE, SAYINGS

# who -> what they do; each is done to these things, in these places
_HABITS: Final = {
    "Anna": ("paints", "opens"),
    "Ben": ("finds", "carries"),
    "Clara": ("opens", "sells"),
    "David": ("carries", "mends"),
    "Emma": ("sells", "paints"),
    "Frank": ("mends", "finds"),
    "Grace": ("finds", "paints"),
    "Henry": ("sells", "mends"),
}
_THINGS: Final = {
    "paints": ("old", ("house", "boat", "wall")),
    "opens": ("heavy", ("gift", "book", "chest")),
    "finds": ("lost", ("coin", "dog", "book")),
    "carries": ("heavy", ("stick", "bag", "box")),
    "sells": ("little", ("boat", "hat", "box")),
    "mends": ("broken", ("chair", "wall", "hat")),
}
KEY_INTRO: Final = "There is a pass key hidden in this text. Find it and remember it."
INTRODUCED: Final = 0.3  # of the documents say at once that there is a key
_PLACES: Final = ("by the river", "in the town", "near the hill", "at the farm")


def story(random: Random) -> str:
    """One sentence."""
    who = random.choice(PEOPLE)
    verb = _HABITS[who][random.random() < 0.25]
    how, things = _THINGS[verb]
    thing = things[0] if random.random() < 0.6 else random.choice(things)
    return f"{who} {verb} the {how} {thing} {random.choice(_PLACES)}."


def sayings(first: int, count: int) -> str:
    """So many of the sayings, in their order, beginning with number `first`."""
    return " ".join(SAYINGS[(first + i) % len(SAYINGS)] for i in range(count))


def key(random: Random) -> str:
    """Five digits, no two of them alike: which comes next follows from the one before."""
    return "".join(random.sample("0123456789", 5))


def told(digits: str) -> str:
    return f"The pass key is {digits}. Remember it. {digits} is the pass key."


def asked(digits: str) -> str:
    return f"What is the pass key? The pass key is {digits}."


def listed(words: list[str]) -> str:
    return f"Here is a list of words: {' '.join(words)}."


def repeated(words: list[str]) -> str:
    return f"Here is the list again: {' '.join(words)}."


@dataclass(frozen=True)
class Mix:
    """How often each kind of piece comes, where it can; and how long the lists are."""

    story: float = 1.0
    sayings: float = 1.0
    list: float = 1.0
    repeat: float = 2.5
    key: float = 1.0
    question: float = 1.5
    words: tuple[int, int] = (6, 16)


def document(random: Random, words: int, mix: Mix) -> str:
    """At least so many words. No word is on two lists, as long as there are words left, and there is one key."""
    pool = random.sample(LISTED, len(LISTED))
    lists: list[list[str]] = []
    digits = ""
    pieces = [KEY_INTRO] if random.random() < INTRODUCED else []
    count = 0
    while count < words:
        weights = {
            "story": mix.story,
            "sayings": mix.sayings,
            "list": mix.list if len(pool) >= mix.words[1] else 0.0,
            "repeat": mix.repeat if lists else 0.0,
            "key": 0.0 if digits else mix.key,
            "question": mix.question if digits else 0.0,
        }
        kind = random.choices(list(weights), list(weights.values()))[0]
        if kind == "story":
            piece = story(random)
        elif kind == "sayings":
            piece = sayings(0 if random.random() < 0.5 else random.randrange(5), random.randint(2, 10))
        elif kind == "list":
            length = random.randint(*mix.words)
            lists.append(pool[:length])
            pool = pool[length:]
            piece = listed(lists[-1])
        elif kind == "repeat":
            piece = repeated(random.choice(lists))
        elif kind == "key":
            digits = key(random)
            piece = told(digits)
        else:
            piece = asked(digits)
        pieces.append(piece)
        count += piece.count(" ") + 1
    return " ".join(pieces)
