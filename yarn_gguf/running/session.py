"""The parent's end of a model that goes on with a text: load, set up, ask, and take the reply token by token.

    with Speaker(path, settings) as speaker:
        speaker.load(settings); speaker.set_up(settings, context)
        reply = speaker.generate(tokens, sampling, on_text=print)

Knows no options and decides nothing. Text comes whole: the bytes of a character that is not finished wait for the rest.
"""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from yarn_gguf.effective import Runtime
from yarn_gguf.logits import piece_length
from yarn_gguf.running.wanted import Sampling
from yarn_gguf.runtime import LlamaSettings, context_request, join_servers, load_request, start_child

MODULE: Final = "yarn_gguf.running.child"
RENDERING: Final = 20.0  # seconds that a chat template may take
BETAS: Final = "betas"  # a feature of patched libraries
SHIFT: Final = "shift"


@dataclass(frozen=True)
class Reply:
    """What was generated, and at what cost."""

    tokens: tuple[int, ...]
    text: str
    stop: str  # "end": the model ended it; "length": as many as were asked for; "context": no room left
    read: int  # tokens of the prompt that were computed
    reused: int  # tokens of it that the cache held already
    read_seconds: float
    seconds: float
    shifts: int
    memory: int | None  # bytes at most, of the process


@dataclass
class UnderWay:
    """A reply that is coming: what is known of it where it is broken off."""

    tokens: list[int]
    first: float = 0.0  # when its first token came, and its last
    last: float = 0.0


@dataclass(frozen=True)
class Ready:
    """A context that is set up."""

    context: int
    can_shift: bool


class Speaker(AbstractContextManager["Speaker"]):
    """A child with one model."""

    def __init__(self, path: Path, settings: LlamaSettings) -> None:
        self.path, self.settings = path, settings
        self.child = start_child(MODULE, path, settings)
        try:
            found = self.child.ask("features")
        except BaseException:
            self._end()
            raise
        self.features: tuple[str, ...] = tuple(found["features"])
        self.gpu: bool = found["gpu"]
        self.details: dict[str, Any] = {}
        self.template = False  # whether the file has one
        self.chat_template: str | None = None  # what is taken in its place
        self.vocabulary = 0
        self.under_way = UnderWay([])

    @property
    def runtime(self) -> Runtime:
        return Runtime.PATCHED if BETAS in self.features else Runtime.STOCK

    @property
    def shifts_exactly(self) -> bool:
        """Whether a context shift leaves cached keys as long as they are."""
        return SHIFT in self.features

    @property
    def said(self) -> tuple[str, ...]:
        """The last lines of the library's log."""
        return tuple(self.child.lines)

    def load_words(self) -> None:
        """The vocabulary alone, to tokenize with before anything is decided."""
        self._note(self.child.ask("load_words", path=self._name))

    def load(self, settings: LlamaSettings) -> None:
        join_servers(self.child, settings.rpc)
        self.settings = settings
        self._note(self.child.ask("load", path=self._name, **load_request(settings)))

    @property
    def _name(self) -> str:
        return os.fspath(self.path.absolute())

    def _note(self, found: dict[str, Any]) -> None:
        self.details, self.template, self.vocabulary = found["details"], found["template"], found["vocabulary"]

    def set_up(self, context: int) -> Ready:
        batch = self.settings.batch or piece_length(self.vocabulary)
        return Ready(**self.child.ask("set_up", **context_request(self.settings, context, batch)))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode("utf-8", "surrogatepass").hex()
        asked = self.child.ask("tokenize", text=raw, add_special=add_special, parse_special=parse_special)
        return list(asked["tokens"])

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that the template makes of a conversation."""
        patience, self.child.deadline = self.child.deadline, min(self.child.deadline, RENDERING)
        found = self.child.ask("chat", messages=list(messages), template=self.chat_template)
        self.child.deadline = patience
        return bytes.fromhex(found["text"]).decode("utf-8", "replace")

    def generate(
        self,
        tokens: Sequence[int],
        sampling: Sampling,
        count: int | None,
        *,
        shift: bool,
        on_text: Callable[[str], None] = lambda _: None,
        on_read: Callable[[int, int], None] = lambda *_: None,
    ) -> Reply:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        found: list[int] = []
        texts: list[str] = []
        self.under_way = UnderWay(found)

        def take(text: str) -> None:
            if text:
                texts.append(text)
                on_text(text)

        def part(each: dict[str, Any]) -> None:
            found.append(each["token"])
            self.under_way.last = time.monotonic()
            if len(found) == 1:
                self.under_way.first = self.under_way.last
            take(decode(bytes.fromhex(each["text"])))

        self.child.on_part, self.child.on_progress = part, on_read
        got = self.child.ask("speak", tokens=list(tokens), sampling=asdict(sampling), count=count, shift=shift)
        take(decode(b"", True))
        return Reply(
            tuple(found),
            "".join(texts),
            got["stop"],
            len(tokens) - got["reused"],
            got["reused"],
            got["read_seconds"],
            got["seconds"],
            got["shifts"],
            got["memory"],
        )

    def _end(self) -> None:
        self.child.kill()
        self.child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.child.kill()
        self.child.close()
