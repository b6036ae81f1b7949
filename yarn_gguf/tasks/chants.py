"""Chants: a few words that come again and again in one order, begun anywhere. What a model learns to copy from first.

After a jump, which word comes next follows from the one before, wherever it last stood; there is no other way to know.
So almost every token asks for what copying over a distance is made of. Knows words alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

RUN = (3, 12)  # words between two jumps


def chant(random: Random, length: int, words: Sequence[str], count: tuple[int, int]) -> tuple[list[str], list[bool]]:
    """So many words, and of each whether it can be known from those before it. `count`: how many different ones."""
    ring = random.sample(words, random.randint(*count))
    said: list[str] = []
    known: list[bool] = []
    seen: set[int] = set()  # words whose next one has been heard
    while len(said) < length:
        at = random.randrange(len(ring))
        for step in range(random.randint(*RUN)):
            before = (at + step - 1) % len(ring)
            said.append(ring[(at + step) % len(ring)])
            known.append(step > 0 and before in seen)
            if step:
                seen.add(before)
    return said[:length], known[:length]
