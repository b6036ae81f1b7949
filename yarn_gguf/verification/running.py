"""The models at work: each piece of text goes through all of them, or through the reference first; figures come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from yarn_gguf.cache import cache_folder
from yarn_gguf.errors import CheckFailed, InputError
from yarn_gguf.logits import Session, piece_length
from yarn_gguf.metrics import NotFinite, Rows, record, score, score_recorded
from yarn_gguf.reference import TransformersSettings, open_transformers
from yarn_gguf.runtime import LlamaSettings, open_llama
from yarn_gguf.steps import Steps
from yarn_gguf.summary import summarize
from yarn_gguf.verification import about
from yarn_gguf.verification.journal import Journal
from yarn_gguf.verification.recording import Record, Recorder, read_record
from yarn_gguf.verification.results import NoiseFloor
from yarn_gguf.verification.sides import Checkpoint, Reference, Side, Sides
from yarn_gguf.verification.tokenizing import Tokenized
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verification.windows import Windows

TOP: Final = 256  # words of a record


def cache_type(side: Reference, asked: str | None) -> str:
    """The cache's type: exact for a float32 file, which is there to be exact; else llama.cpp's own."""
    return asked or ("f32" if isinstance(side, Side) and side.type == "F32" else "f16")


class Run:
    """The models at work."""

    def __init__(self, sides: Sides, windows: Windows, text: Tokenized, wanted: Wanted, steps: Steps) -> None:
        self.sides, self.windows, self.text, self.wanted, self.steps = sides, windows, text, wanted, steps
        vocabulary = self._vocabulary()
        self.batch = min(wanted.batch or piece_length(vocabulary), windows.context)
        self.record = sides.reference if isinstance(sides.reference, Record) else None
        self.rows: list[Rows] | None = None
        self.scored = 0
        self.noise: NoiseFloor | None = None if self.record is None else about.recorded_noise(self.record)
        self.libraries = [""] * (1 + len(sides.candidates))
        self.findings: tuple[Any, ...] = ()

    def _vocabulary(self) -> int:
        match self.sides.reference:
            case Checkpoint(config=config):
                return config.vocab_size
            case found:
                return found.vocabulary

    def settings_of(self, side: Side) -> LlamaSettings:
        """`--kv` and `--rpc` are for the candidates: the reference keeps a cache that suits it, and stays here.

        Alone, as `record` has it, it goes to the servers too.
        """
        wanted, judge = self.wanted, side is self.sides.reference
        kv = cache_type(side, None if judge else wanted.kv)
        away = not judge or not self.sides.candidates
        flash = wanted.flash_attention
        return LlamaSettings(
            context=self.windows.context,
            batch=self.batch,
            threads=wanted.threads,
            gpu_layers=wanted.gpu_layers,
            flash_attention=False if flash is None and kv == "f32" else flash,
            kv_k=kv,
            kv_v=kv,
            rpc=wanted.rpc if away else (),
            tensor_split=wanted.tensor_split if away else (),
            library=wanted.library,
            deadline=wanted.deadline,
        )

    def _open(self, side: Side | Checkpoint) -> Session:
        if isinstance(side, Side):
            return open_llama(side.path, self.settings_of(side))
        wanted = self.wanted
        settings = TransformersSettings(
            self.windows.context, side.given, self.batch, wanted.threads, wanted.dtype, wanted.deadline
        )
        return open_transformers(side.path, settings)

    # ---- all at once

    def score_together(self) -> None:
        sides: list[Side | Checkpoint] = list(self.sides.candidates)
        if not isinstance(self.sides.reference, Record):
            sides.insert(0, self.sides.reference)
        with self._journal(self.sides.candidates) as journal, ExitStack() as stack:
            sessions = []
            for side in sides if self._pending(journal) else []:
                sessions.append(stack.enter_context(self._open(side)))
                self._check_width(sessions)
            self._name_libraries(sessions)
            if self.record is None and sessions:
                self._measure_noise(sessions[0])
            self._score(journal, sessions)
            self.rows = [journal.rows(number) for number in range(journal.candidates)]

    def _pending(self, journal: Journal) -> bool:
        return journal.resumed < self.windows.scored

    @contextmanager
    def _journal(self, candidates: Sequence[Side]) -> Iterator[Journal]:
        key = about.key(self.sides.reference, candidates, self.windows, self.wanted, self.batch, self.record)
        journal = Journal(key, len(candidates), resume=self.wanted.resume)
        finished = False
        try:
            yield journal
            finished = True
        finally:
            journal.close(finished=finished)

    def _score(self, journal: Journal, sessions: Sequence[Session]) -> None:
        models = ", ".join(each.path.name for each in self.sides.candidates)
        with self.steps(f"scoring {models}", self.windows.tokens.size * len(sessions)) as advance:
            for session in sessions:
                session.advance = advance
            for window in range(self.windows.count):
                wanted = self.windows.wanted[window] & ~journal.done(window, self.windows.context)
                if wanted.any():
                    self._score_window(journal, sessions, window, wanted)

    def _score_window(self, journal: Journal, sessions: Sequence[Session], window: int, wanted: Any) -> None:
        streams = [each.stream(self.windows.tokens[window], wanted, batch=self.batch) for each in sessions]
        for pieces in zip(*streams, strict=True):
            positions = pieces[0].positions
            following = self.windows.following(window, positions)
            logits = [each.logits for each in pieces]
            try:
                if self.record is not None:
                    rows = score_recorded(self.record.rows(window, positions), logits, following, positions)
                else:
                    rows = score(logits[0], logits[1:], following, positions)
            except NotFinite as error:
                raise self._not_finite(error) from error
            journal.add(window, rows)
            self.scored += len(positions)

    def _not_finite(self, error: NotFinite) -> CheckFailed:
        text = f"the reference's logits are not finite at position {error.position}; nothing can be held against it"
        return CheckFailed(text, file=self.sides.reference.path, code="not_finite")

    def _measure_noise(self, session: Session) -> None:
        count = min(self.wanted.noise, self.windows.context)
        if count < 1:
            return
        tokens, rows = self.windows.tokens[0][:count], list[Rows]()
        with self.steps("the noise floor", 2 * count) as advance:
            session.advance = advance
            for one, two in session.twins(tokens, np.ones(count, bool)):
                following = self.windows.following(0, one.positions)
                try:
                    rows += score(one.logits, [two.logits], following, one.positions)
                except NotFinite as error:
                    raise self._not_finite(error) from error
        self.noise = NoiseFloor(count, summarize(np.concatenate(rows)))

    def _check_width(self, sessions: Sequence[Session]) -> None:
        first, last = sessions[0], sessions[-1]
        width = self._vocabulary() if self.record is not None else first.vocabulary
        if last.vocabulary != width:
            text = f"computes logits for {last.vocabulary} words, the reference for {width}; they cannot be compared"
            raise InputError(text, file=last.child.about, code="vocabularies_differ")

    def _name_libraries(self, sessions: Sequence[Session]) -> None:
        names = [str(each.opened.details.get("description", "")) for each in sessions]
        if self.record is not None:
            names.insert(0, str(self.record.provenance.get("library", "")))
        self.libraries[: len(names)] = names

    # ---- the reference first, then one candidate after the other

    def score_apart(self) -> None:
        reference, rows = self.sides.reference, list[Rows]()
        path: Path | None = None
        if isinstance(reference, Record):
            found = reference
        else:
            key = about.key(reference, [], self.windows, self.wanted, self.batch, None)
            path = cache_folder() / "verify" / f"{about.digest(key)}.yref"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (self.wanted.resume and path.exists()):
                self.write_record(path, min(TOP, self._vocabulary()))
            found = read_record(path)
        self.record, self.noise = found, about.recorded_noise(found)
        whole = self.libraries
        for number, side in enumerate(self.sides.candidates, 1):
            one = Run(
                replace(self.sides, reference=found, candidates=(side,)),
                self.windows,
                self.text,
                self.wanted,
                self.steps,
            )
            one.batch = self.batch
            one.score_together()
            assert one.rows is not None
            rows += one.rows
            self.scored += one.scored
            whole[number], whole[0] = one.libraries[1], one.libraries[0]
        self.rows = rows
        if path is not None:
            path.unlink(missing_ok=True)

    def write_record(self, path: Path, top: int) -> None:
        """The record at this path, whole; what stood there before is not read."""
        reference = self.sides.reference
        assert not isinstance(reference, Record)
        with self._open(reference) as session:
            self._name_libraries([session])
            self._measure_noise(session)
            unfinished = path.with_name(f"{path.name}.part")
            facts = about.provenance(reference, self.sides, self.text, self.libraries[0], self.noise, self.batch)
            recorder = Recorder(
                unfinished, self.windows, min(top, session.vocabulary), session.vocabulary, self.text.text, facts
            )
            try:
                with self.steps(f"recording {reference.path.name}", self.windows.tokens.size) as advance:
                    session.advance = advance
                    for window in range(self.windows.count):
                        self._record_window(session, recorder, window)
                recorder.close()
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)

    def _record_window(self, session: Session, recorder: Recorder, window: int) -> None:
        count = recorder.top
        for piece in session.stream(self.windows.tokens[window], self.windows.wanted[window], batch=self.batch):
            following = self.windows.following(window, piece.positions)
            try:
                recorder.add(record(piece.logits, count, following, piece.positions))
            except NotFinite as error:
                raise self._not_finite(error) from error
