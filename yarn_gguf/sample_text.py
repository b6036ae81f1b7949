"""The built-in text: English that nobody has trained on, the same on every machine, as long as is asked for.

A town's chronicle with letters, ledgers, notices and code, put together from word lists by a small generator of our
own. The people, streets and prices of each chapter come back later on, so that a model with a long context has
something to find there. A leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

VERSION: Final = 1  # changes with the text
_NAMES: Final = [
    "Adela",
    "Bram",
    "Corin",
    "Dessa",
    "Edmund",
    "Fara",
    "Gideon",
    "Hanne",
    "Ilse",
    "Jorin",
    "Katla",
    "Lorenz",
    "Mirek",
    "Nadia",
    "Oswin",
    "Petra",
]
_FAMILIES: Final = [
    "Aldersey",
    "Brockmann",
    "Calloway",
    "Dunmore",
    "Eskilsen",
    "Farrow",
    "Grantham",
    "Hollis",
    "Ivarson",
    "Jessup",
    "Keswick",
]
_PLACES: Final = (
    "the old ferry landing",
    "the grain exchange",
    "Saltmarsh Street",
    "the upper locks",
    "the glassworks",
    "the north signal box",
    "Tanner's Yard",
    "the reading room",
    "the harbour office",
    "the weather station on the hill",
    "the bakery behind the chapel",
    "the rope walk",
)
_GOODS: Final = [
    "barley",
    "rope",
    "lamp-oil",
    "paper",
    "copper-wire",
    "salt",
    "timber",
    "glass",
    "wool",
    "sailcloth",
    "tar",
    "candles",
]
_WEATHER: Final = (
    "fog until noon, then a light wind from the west",
    "steady rain, and the river two hands above the mark",
    "frost on the roofs, clear by day",
    "a dry heat that cracked the paint on the boats",
    "wind from the north-east, rising towards evening",
    "thunder far off, and not a drop of rain",
)
_VERBS: Final = [
    "mended",
    "sold",
    "inspected",
    "borrowed",
    "painted",
    "measured",
    "carried",
    "counted",
    "delivered",
    "lost",
    "found",
    "repaired",
]
_REASONS: Final = (
    "because the bridge was closed for repairs",
    "although nobody had asked for it",
    "since the council had voted for it twice",
    "before the last boat left",
    "as the agreement of the spring required",
    "while the others were still at dinner",
    "so that the matter could be settled without a lawyer",
)
_CODE: Final = (
    "def {f}(items):\n    total = 0\n    for item in items:\n        if item.price > {n}:\n"
    "            total += item.price * item.count\n    return total\n",
    "SELECT name, SUM(amount) FROM {f}\nWHERE year >= {n} GROUP BY name HAVING COUNT(*) > {m}\nORDER BY 2 DESC;\n",
    '{{"{f}": {{"limit": {n}, "retries": {m}, "paths": ["/srv/{f}/{m}", "/var/log/{f}.log"]}}}}\n',
    "int {f}(const int *a, int n) {{\n    int best = a[0];\n    for (int i = 1; i < n; i++)\n"
    "        if (a[i] > best + {m}) best = a[i];\n    return best;\n}}\n",
)


class _Dice:
    """A linear congruential generator: the same everywhere, whatever Python's own does."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, count: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self.state >> 33) % count

    def one(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


def sample_text(characters: int) -> str:
    """At least so many characters, cut at the end of a chapter."""
    parts, length = [], 0
    for chapter in _chapters():
        parts.append(chapter)
        length += len(chapter)
        if length >= characters:
            break
    return "".join(parts)


def _chapters() -> Iterator[str]:
    dice, known, number = _Dice(20_240_601), list[str](), 0
    while True:
        number += 1
        person = f"{dice.one(_NAMES)} {dice.one(_FAMILIES)}"
        place, code = dice.one(_PLACES), 1000 + dice.below(9000)
        title = f"Chapter {number}. {person} at {place}\n\n"
        body = [dice.one(_FORMS)(dice, person, place) for _ in range(3 + dice.below(4))]
        if known and dice.below(3):
            body.append(f"It was here that one remembered an older matter: {dice.one(known)}\n\n")
        fact = f"the box that {person} left at {place} has the number {code}."
        known.append(fact)
        body.append(f"Let it be written down for later that {fact}\n\n")
        yield title + "".join(body)


def _narrative(dice: _Dice, person: str, place: str) -> str:
    sentences = []
    for _ in range(4 + dice.below(6)):
        other = dice.one(_NAMES)
        sentences.append(
            dice.one(
                (
                    f"{person.split()[0]} {dice.one(_VERBS)} {2 + dice.below(40)} bales of {dice.one(_GOODS)}"
                    f" {dice.one(_REASONS)}.",
                    f"There was {dice.one(_WEATHER)}.",
                    f'"You will not find it at {dice.one(_PLACES)}," said {other}, "not after what happened in'
                    f' {1700 + dice.below(220)}."',
                    f"{other} {dice.one(_VERBS)} the {dice.one(_GOODS)} and went from {place} to {dice.one(_PLACES)}.",
                    f"Nobody at {dice.one(_PLACES)} knew who had {dice.one(_VERBS)} it, {dice.one(_REASONS)}.",
                )
            )
        )
    return " ".join(sentences) + "\n\n"


def _letter(dice: _Dice, person: str, place: str) -> str:
    other = dice.one(_NAMES)
    return (
        f"Dear {other},\n\nthe {dice.one(_GOODS)} came on the {1 + dice.below(28)}th, {dice.one(_REASONS)}. We have had"
        f" {dice.one(_WEATHER)}. Of the {10 + dice.below(90)} crates that you promised, {1 + dice.below(9)} were"
        f" {dice.one(_VERBS)} on the way; send the others to {place}, and write to {dice.one(_NAMES)} about the"
        f" price.\n\nYours,\n{person}\n\n"
    )


def _ledger(dice: _Dice, person: str, place: str) -> str:
    lines, total = [], 0
    for _ in range(4 + dice.below(8)):
        count, price = 1 + dice.below(60), 3 + dice.below(400)
        total += count * price
        lines.append(f"{dice.one(_GOODS):<12} {count:>4} x {price:>4} = {count * price:>7}\n")
    return f"Ledger of {person}, {place}:\n\n{''.join(lines)}{'total':<12} {'':>11} = {total:>7}\n\n"


def _notice(dice: _Dice, person: str, place: str) -> str:
    points = "".join(
        f"{number}. {dice.one(_GOODS).capitalize()} may be {dice.one(_VERBS)} at {dice.one(_PLACES)} until"
        f" {1 + dice.below(12)} o'clock, {dice.one(_REASONS)}.\n"
        for number in range(1, 3 + dice.below(5))
    )
    return f"NOTICE\n\nBy order of {person}, for all who have business at {place}:\n\n{points}\n"


def _program(dice: _Dice, person: str, place: str) -> str:
    name = f"{dice.one(_GOODS).replace('-', '_')}_{dice.below(100)}"
    text = dice.one(_CODE).format(f=name, n=dice.below(5000), m=1 + dice.below(9))
    return f"What {person} typed on the machine at {place}:\n\n{text}\n"


_FORMS: Final[tuple[Callable[[_Dice, str, str], str], ...]] = (
    _narrative,
    _narrative,
    _letter,
    _ledger,
    _notice,
    _program,
)
