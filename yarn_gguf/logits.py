"""Logits of one open model, a piece of text at a time, from whatever computes them in a child process.

    with open_llama(path, settings) as session:                       # or open_transformers
        for piece in session.stream(tokens, wanted):
            piece.positions, piece.logits                             # valid until the next piece is asked for

`runtime` and `reference` open sessions; what differs between them is the child that they start. A piece is `batch`
tokens; only the wanted positions' logits ever leave the model. Knows tokens and arrays; no metric, no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.children.process import Child
from yarn_gguf.children.room import Room
from yarn_gguf.errors import InputError, UsageError

Tokens = NDArray[np.int32]
ROOM: Final = 64 << 20  # bytes that the logits of a piece may take, where nobody says how long a piece is
LONGEST_PIECE: Final = 512
TWIN: Final = 31  # tokens at a time, where others are computed by 64 or more


def piece_length(vocabulary: int) -> int:
    """How many tokens to decode at a time, for a vocabulary of this size: a power of two."""
    length = LONGEST_PIECE
    while length > 16 and length * vocabulary * 4 > ROOM:
        length //= 2
    return length


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the wanted positions, in order, with the logits after each: [positions, vocabulary]."""

    positions: NDArray[np.int64]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a child says of the model once it is open."""

    vocabulary: int
    context: int  # as it is set up, which may be more than was asked for
    batch: int  # tokens to a piece
    micro: int  # tokens that are computed at a time
    details: dict[str, Any]  # of the library, for reports


class Session(AbstractContextManager["Session"]):
    """An open model. One request at a time; everything else is an error of the library's, told as ours."""

    def __init__(self, child: Child, room: Room, opened: dict[str, Any]) -> None:
        self.child, self.room = child, room
        self.opened = Opened(
            opened["vocabulary"], opened["context"], opened["batch"], opened["micro"], opened.get("details", {})
        )
        self.advance: Callable[[int], None] = lambda _: None  # told of every token that is decoded
        self.decoded = 0  # tokens
        self.scored = 0  # positions whose logits were handed out

    @property
    def vocabulary(self) -> int:
        return self.opened.vocabulary

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Token ids. The chat template is never touched: text is text."""
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        found = self.child.ask("tokenize", text=raw.hex(), add_special=add_special, parse_special=parse_special)
        return np.array(found["tokens"], np.int32)

    def text_of(self, tokens: Sequence[int] | Tokens) -> bytes:
        """The bytes that the tokens stand for, special ones included."""
        return bytes.fromhex(self.child.ask("text_of", tokens=[int(each) for each in tokens])["text"])

    def stream(
        self, tokens: Tokens, wanted: NDArray[np.bool_] | None = None, *, batch: int | None = None
    ) -> Iterator[Piece]:
        """Forgets what was before, decodes the tokens, yields the pieces in which a position is wanted (None: all).

        A piece's logits are overwritten by the next. `batch`: tokens to a piece, if not the session's own number.
        """
        wanted = np.ones(len(tokens), bool) if wanted is None else wanted
        self._check(tokens)
        batch = batch or self.opened.batch
        self._make_room(max((int(wanted[at : at + batch].sum()) for at in range(0, len(tokens), batch)), default=0))
        self.child.ask("reset")
        for start in range(0, len(tokens), batch):
            positions = np.flatnonzero(wanted[start : start + batch])
            self._decode(tokens[start : start + batch], start, positions)
            if len(positions):
                yield Piece(positions + start, self._logits(len(positions)))

    def twins(self, tokens: Tokens, wanted: NDArray[np.bool_]) -> Iterator[tuple[Piece, Piece]]:
        """Like `stream`, each piece twice: as this session computes it, and again with fewer tokens at a time.

        So few that llama.cpp's CPU takes other kernels, as it does while it generates. The second has its own KV cache,
        and shares the weights.
        """
        self._check(tokens)
        batch = self.opened.batch
        rows = max((int(wanted[at : at + batch].sum()) for at in range(0, len(tokens), batch)), default=0)
        self._make_room(2 * rows)
        self.child.ask("twin", context=len(tokens), batch=self._twin_batch())
        self.child.ask("reset")
        for start in range(0, len(tokens), batch):
            positions = np.flatnonzero(wanted[start : start + batch])
            for row in (0, rows):
                self._decode(tokens[start : start + batch], start, positions, row=row, twin=row > 0)
            if len(positions):
                pieces = (Piece(positions + start, self._logits(len(positions), row)) for row in (0, rows))
                yield next(pieces), next(pieces)

    def _twin_batch(self) -> int:
        micro = self.opened.micro
        return min(TWIN, micro // 2) if micro > 1 else 2

    def next_logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """[vocabulary]: the logits after the last of these tokens, which begin a text."""
        wanted = np.zeros(len(tokens), bool)
        wanted[-1] = True
        found: NDArray[np.float32] = next(iter(self.stream(tokens, wanted))).logits[0].copy()
        return found

    def generate(self, tokens: Tokens, count: int, *, stop: Sequence[int] = ()) -> Tokens:
        """The `count` tokens that follow, each the most probable one; ends early behind one of `stop`."""
        self._check(tokens, count)
        self.child.ask("reset")
        found = self.child.ask("generate", tokens=tokens.tolist(), count=count, stop=[int(each) for each in stop])
        return np.array(found["tokens"], np.int32)

    def attention_entropy(self, tokens: Tokens, edges: Sequence[int]) -> NDArray[np.float64]:
        """[layers, spans between edges], in nats. Only transformers shows its attention."""
        self._check(tokens)
        found = self.child.ask("entropy", tokens=tokens.tolist(), edges=list(edges))
        return np.array(found["entropy"], np.float64)

    def _check(self, tokens: Tokens, more: int = 0) -> None:
        if not len(tokens):
            raise UsageError("no tokens to decode", file=self.child.about, code="no_tokens")
        if len(tokens) + more > self.opened.context:
            text = f"{len(tokens) + more} tokens do not fit the context of {self.opened.context}"
            raise UsageError(text, file=self.child.about, code="context_full")
        if not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            wrong = int(tokens.max()) if tokens.max() >= self.vocabulary else int(tokens.min())
            text = f"token {wrong} is not among the {self.vocabulary} of its vocabulary"
            raise InputError(text, file=self.child.about, code="bad_token")

    def _make_room(self, rows: int) -> None:
        size = max(rows, 1) * self.vocabulary * 4
        if self.room.memory is None or len(self.room.memory) < size:
            self.room.resize(size)
            self.child.ask("room", path=self.room.path, size=size)

    def _decode(
        self, tokens: Tokens, start: int, positions: NDArray[np.int64], *, row: int = 0, twin: bool = False
    ) -> None:
        wanted = positions.tolist()
        self.child.ask("decode", tokens=tokens.tolist(), start=start, wanted=wanted, row=row, twin=twin)
        self.decoded += len(tokens)
        self.advance(len(tokens))
        self.scored += len(positions)

    def _logits(self, rows: int, first: int = 0) -> NDArray[np.float32]:
        assert self.room.memory is not None
        count, start = rows * self.vocabulary, first * self.vocabulary * 4
        found: NDArray[np.float32] = np.frombuffer(self.room.memory, np.float32, count, start)
        return found.reshape(rows, self.vocabulary)

    def close(self) -> None:
        self.child.close()
        self.room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.child.kill()
        self.close()


def opened_session(
    child: Child, room: Room, do: str = "open", *, before: Callable[[], None] = lambda: None, **request: Any
) -> Session:
    """Asks a child to open its model, once `before` is done; leaves nothing behind where it does not."""
    try:
        before()
        return Session(child, room, child.ask(do, **request))
    except BaseException:
        child.kill()
        child.close()
        room.close()
        raise
