"""`verify` and `record`: one pass over the reference, every candidate beside it, figures by position, a verdict.

    report = verify(Path("reference"), [Path("candidate.gguf")], Wanted(context=8192))

In lockstep, a piece of text at a time, where all models fit in memory; else the reference is recorded first and the
candidates are held against the record, one by one. A short composition of `verification`'s parts, which know how.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.gguf_file.writer import check_target, staged
from yarn_gguf.runtime import LlamaSettings, check_servers
from yarn_gguf.steps import Steps, silent
from yarn_gguf.verification import about
from yarn_gguf.verification.fits import all_fit, cache_bytes, reference_bytes
from yarn_gguf.verification.judging import Judged, candidate_report, histogram_reach
from yarn_gguf.verification.recording import Record, read_record
from yarn_gguf.verification.results import Report
from yarn_gguf.verification.running import Run, cache_type
from yarn_gguf.verification.sides import Sides, read_sides
from yarn_gguf.verification.tokenizing import Tokenized, read_text, read_tokens, tokenize
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verification.windows import Windows, chosen, cut

LONGEST_DEFAULT: Final = 32768
BUILT_IN: Final = "the built-in text"


def verify(reference: Path, candidates: Sequence[Path], wanted: Wanted, steps: Steps = silent) -> Report:
    """Raises CheckFailed only where nothing can be measured: a candidate over its limits is a verdict in the report."""
    started = time.monotonic()
    check_servers(candidates[0], _plain(wanted, wanted.rpc))
    sides = read_sides(reference, candidates, wanted.rope, runtime=wanted.runtime)
    text, windows = _windows(sides, wanted)
    sides = sides.at(windows.context)
    alone = _one_by_one(sides, wanted)
    together = not alone and (wanted.lockstep if wanted.lockstep is not None else _fit(sides, windows.context, wanted))
    run = Run(sides, windows, text, wanted, steps)
    recorded = isinstance(sides.reference, Record) and not alone
    run.score_together() if together or recorded else run.score_apart()
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
    check_servers(model, _plain(wanted, wanted.rpc))
    sides = read_sides(model, [], wanted.rope, runtime=wanted.runtime)
    if isinstance(sides.reference, Record):
        raise UsageError("is a record already", file=model, code="is_record")
    text, windows = _windows(sides, wanted)
    sides = sides.at(windows.context)
    run = Run(sides, windows, text, wanted, steps)
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


def _plain(wanted: Wanted, rpc: tuple[str, ...] = ()) -> LlamaSettings:
    return LlamaSettings(library=wanted.library, deadline=wanted.deadline, rpc=rpc)


def _one_by_one(sides: Sides, wanted: Wanted) -> bool:
    """RPC servers serve one model at a time."""
    several = bool(wanted.rpc) and len(sides.candidates) > 1
    if several and wanted.lockstep:
        text = "an RPC server serves one model at a time; without --lockstep the candidates follow one another"
        raise UsageError(text, code="rpc_lockstep")
    return several


def _fit(sides: Sides, context: int, wanted: Wanted) -> bool:
    needs = [reference_bytes(sides.reference, context, cache_type(sides.reference, None), wanted.dtype)]
    needs += [each.model.bytes + cache_bytes(each, context, cache_type(each, wanted.kv)) for each in sides.candidates]
    return all_fit(needs)
