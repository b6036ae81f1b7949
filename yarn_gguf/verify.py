"""`verify` and `record`: one pass over the reference, every candidate beside it, figures by position, a verdict.

    report = verify(Path("reference"), [Path("candidate.gguf")], Wanted(context=8192))

In lockstep, a piece of text at a time, where all models fit in memory; else the reference is recorded first and the
candidates are held against the record, one by one. A short composition of `verification`'s parts, which know how.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from yarn_gguf.effective import Runtime
from yarn_gguf.errors import CheckFailed, InputError, UsageError
from yarn_gguf.gguf_file.writer import check_target, staged
from yarn_gguf.intent import RopeOptions
from yarn_gguf.logits import Session, piece_length
from yarn_gguf.metrics import NotFinite, Rows, record, score, score_recorded, summarize
from yarn_gguf.reference import TransformersSettings, open_transformers
from yarn_gguf.runtime import LlamaSettings, open_llama
from yarn_gguf.verification import about
from yarn_gguf.verification.fits import all_fit, cache_bytes, reference_bytes
from yarn_gguf.verification.journal import Journal, cache_folder
from yarn_gguf.verification.judging import Judged, Overrides, candidate_report, histogram_reach
from yarn_gguf.verification.recording import Record, Recorder, read_record
from yarn_gguf.verification.results import NoiseFloor, Report
from yarn_gguf.verification.sides import Checkpoint, Reference, Side, Sides, read_sides
from yarn_gguf.verification.tokenizing import Tokenized, read_text, read_tokens, tokenize
from yarn_gguf.verification.windows import Ranges, Windows, chosen, cut

Advance = Callable[[int], None]
Steps = Callable[[str, int], Any]  # a context manager for a step of so many tokens; gives an `Advance`
LONGEST_DEFAULT: Final = 32768
BUILT_IN: Final = "the built-in text"
TOP: Final = 256  # words of a record


@contextmanager
def silent(name: str, tokens: int) -> Iterator[Advance]:
    """No progress shown."""
    yield lambda _: None


@dataclass(frozen=True)
class Wanted:
    """What is asked for. None: found from the models."""

    context: int | None = None
    text: Path | None = None
    tokens: Path | None = None  # ids in the place of a text
    windows: int = 1
    ranges: Ranges = ()
    stride: int = 1
    rope: RopeOptions = field(default_factory=RopeOptions)
    kv: str | None = None  # of the candidates
    flash_attention: bool | None = None
    runtime: Runtime = Runtime.STOCK
    library: Path | None = None
    threads: int | None = None
    gpu_layers: int = 0
    rpc: tuple[str, ...] = ()
    batch: int | None = None
    dtype: str = "f32"  # of a checkpoint's weights and arithmetic
    noise: int = 1024  # tokens over which the reference is held against itself; 0: not at all
    overrides: Overrides = field(default_factory=Overrides)
    resume: bool = False
    lockstep: bool | None = None
    deadline: float = 300.0


def verify(reference: Path, candidates: Sequence[Path], wanted: Wanted, steps: Steps = silent) -> Report:
    """Raises CheckFailed only where nothing can be measured: a candidate over its limits is a verdict in the report."""
    started = time.monotonic()
    sides = read_sides(reference, candidates, wanted.rope, runtime=wanted.runtime)
    text, windows = _windows(sides, wanted)
    together = wanted.lockstep if wanted.lockstep is not None else _fit(sides, windows.context, wanted)
    run = _Run(sides, windows, text, wanted, steps)
    run.score_together() if together or isinstance(sides.reference, Record) else run.score_apart()
    assert run.rows is not None
    rows, original = run.rows, sides.original
    reach = histogram_reach(rows)
    reports = tuple(
        candidate_report(
            side,
            each,
            windows.context,
            original,
            Judged(wanted.overrides, run.settings_of(side).kv_k, reach, sides.fault(side)),
        )
        for side, each in zip(sides.candidates, rows, strict=True)
    )
    top = run.record.top if run.record is not None else None
    return Report(
        reference=about.reference_info(sides.reference, run.libraries[0]),
        candidates=tuple(
            replace(each, model=replace(each.model, library=library))
            for each, library in zip(reports, run.libraries[1:], strict=True)
        ),
        noise_floor=run.noise,
        lower_bound=run.record is not None,
        top=top,
        rest=None if run.record is None else run.record.rest,
        context=windows.context,
        windows=windows.count,
        original_context=sides.original,
        tokens=windows.scored,
        scored=run.scored,
        text=text.name,
        text_sha256=about.sha256(text.text),
        tokens_sha256=windows.sha256,
        settings=about.settings(wanted, run.batch, together=together),
        versions=about.versions(),
        seconds=time.monotonic() - started,
        findings=(*sides.findings, *text.findings, *run.findings),
    )


def record_reference(
    model: Path, output: Path, wanted: Wanted, top: int, steps: Steps = silent, *, force: bool
) -> Record:
    """Writes a record of one model, whole or not at all."""
    check_target(output, [model], overwrite=force)
    sides = read_sides(model, [], wanted.rope, runtime=wanted.runtime)
    if isinstance(sides.reference, Record):
        raise UsageError("is a record already", file=model, code="is_record")
    text, windows = _windows(sides, wanted)
    run = _Run(sides, windows, text, wanted, steps)
    temporary = output.with_name(f".{output.name}.{about.token()}.yarn-gguf-tmp")
    try:
        run.write_record(temporary, top)
        with staged(overwrite=force) as stage:
            stage.adopt(output, temporary)
    finally:
        temporary.unlink(missing_ok=True)
    return read_record(output)


def _windows(sides: Sides, wanted: Wanted) -> tuple[Tokenized, Windows]:
    if isinstance(sides.reference, Record):
        return _recorded_windows(sides.reference, sides, wanted)
    context = wanted.context or min(sides.reach, LONGEST_DEFAULT)
    if wanted.tokens is not None:
        text = Tokenized(read_tokens(wanted.tokens), b"", f"the ids of {wanted.tokens.name}", None)
    else:
        given = None if wanted.text is None else read_text(wanted.text)
        name = BUILT_IN if wanted.text is None else wanted.text.name
        _need_vocabulary(sides)
        needed = context * wanted.windows
        text = tokenize(given, name, needed, sides.reference, sides.candidates, _plain(wanted))
        context = wanted.context or min(context, max(len(text.tokens) // wanted.windows, 1))
    tokens = cut(text.tokens, context, wanted.windows, text.bos)
    mask = np.tile(chosen(context, wanted.ranges, wanted.stride), (wanted.windows, 1))
    return text, Windows(tokens, mask)


def _need_vocabulary(sides: Sides) -> None:
    for each in sides.candidates:
        if each.words is None:
            text = "has no vocabulary, so no text can be given to it; give token ids with --tokens"
            raise InputError(text, file=each.path, code="no_tokenizer")


def _recorded_windows(found: Record, sides: Sides, wanted: Wanted) -> tuple[Tokenized, Windows]:
    """A record brings its text and its positions; a smaller context takes the start of each of its windows."""
    if wanted.text is not None or wanted.tokens is not None or wanted.windows != 1:
        raise UsageError("a record brings its own text and windows", file=found.path, code="unused_option")
    context, whole = wanted.context or found.windows.context, found.windows
    if context > whole.context:
        text = f"was recorded over a context of {whole.context}, not {context}"
        raise UsageError(text, file=found.path, code="record_short")
    name = str(found.provenance.get("text") or "the record's text")
    text_of = Tokenized(whole.tokens.reshape(-1), found.text, name, None)
    if found.text and all(each.words is not None for each in sides.candidates):
        made = tokenize(found.text, name, 0, found, sides.candidates, _plain(wanted))
        again = cut(made.tokens, whole.context, whole.count, made.bos)
        different = np.flatnonzero(again.reshape(-1) != whole.tokens.reshape(-1))
        if len(different):
            at = int(different[0])
            ids = f"{int(again.reshape(-1)[at])}, the record has {int(whole.tokens.reshape(-1)[at])}"
            path = sides.candidates[0].path
            raise InputError(f"makes another token {at} of the record's text: {ids}", file=path, code="tokens_differ")
    mask = whole.wanted[:, :context] & chosen(context, wanted.ranges, wanted.stride)
    if not mask.any():
        raise UsageError("none of the positions asked for is in the record", file=found.path, code="positions")
    return text_of, Windows(whole.tokens[:, :context], mask)


def _plain(wanted: Wanted) -> LlamaSettings:
    return LlamaSettings(library=wanted.library, deadline=wanted.deadline)


def _fit(sides: Sides, context: int, wanted: Wanted) -> bool:
    needs = [reference_bytes(sides.reference, context, _kv(sides.reference, None), wanted.dtype)]
    needs += [each.model.bytes + cache_bytes(each, context, _kv(each, wanted.kv)) for each in sides.candidates]
    return all_fit(needs)


def _kv(side: Reference, asked: str | None) -> str:
    """The cache's type: exact for a float32 file, which is there to be exact; else llama.cpp's own."""
    return asked or ("f32" if isinstance(side, Side) and side.type == "F32" else "f16")


class _Run:
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
        """`--kv` is for the candidates: the reference keeps a cache that suits it."""
        wanted = self.wanted
        kv = _kv(side, None if side is self.sides.reference else wanted.kv)
        flash = wanted.flash_attention
        return LlamaSettings(
            context=self.windows.context,
            batch=self.batch,
            threads=wanted.threads,
            gpu_layers=wanted.gpu_layers,
            flash_attention=False if flash is None and kv == "f32" else flash,
            kv_k=kv,
            kv_v=kv,
            rpc=wanted.rpc,
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
        key = about.key(reference, [], self.windows, self.wanted, self.batch, None)
        path = cache_folder() / "verify" / f"{about.digest(key)}.yref"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.wanted.resume and path.exists()):
            self.write_record(path, min(TOP, self._vocabulary()))
        self.record = read_record(path)
        self.noise = about.recorded_noise(self.record)
        whole = self.libraries
        for number, side in enumerate(self.sides.candidates, 1):
            one = _Run(
                replace(self.sides, reference=self.record, candidates=(side,)),
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
