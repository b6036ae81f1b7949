"""A decided conversion -> its files, which take their names together, or not at all.

One version is written from its own pieces; several are made of one reading of the checkpoint. Knows stages and pieces;
decides nothing about what is in the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from yarn_gguf import ggml
from yarn_gguf.conversion.decided import Conversion, Outcome, Output, Version
from yarn_gguf.conversion.file import files, frame, places
from yarn_gguf.conversion.outputs import Beside, Companion, check_no_source
from yarn_gguf.conversion.slices import spread
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.errors import ChildError, ResourceError, UsageError
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.fill import Progress
from yarn_gguf.gguf_file.shards import part_path
from yarn_gguf.gguf_file.writer import Stage, check_space, check_target, staged

End = Callable[[ChildError], None]


def write_conversion(
    conversion: Conversion,
    finals: Sequence[Path],
    *,
    wanted: Wanted,
    companion: Companion | None = None,
    dry_run: bool = False,
    jobs: int = 0,
    progress: Progress = lambda _: None,
    end: End = lambda _: None,
) -> Outcome:
    """Writes all files and gives them their names together; on a dry run only checks that it could.

    `finals`: a name for each version. `end` ends the process, where ggml breaks down in the middle of a tensor: there
    is nothing to go on with. Temporaries are gone then.
    """
    began = time.monotonic()
    outputs = tuple(_output(*pair) for pair in zip(conversion.versions, finals, strict=True))
    written = tuple(file for output in outputs for file in output.files)
    others = () if companion is None else (companion.final,)
    findings = conversion.findings + _obstacles(conversion, others, written, wanted, dry_run=dry_run)
    if dry_run:
        return Outcome(conversion, outputs, 0.0, findings, tuple(Beside(path) for path in others))
    with ExitStack() as stack:
        ready = () if companion is None else ((companion.final, stack.enter_context(companion.make())),)
        stack.callback(ggml.free)
        confirm = conversion.verify
        with staged(overwrite=wanted.force, jobs=jobs, progress=progress, confirm=confirm) as stage:
            stack.enter_context(ggml.ending(lambda what, said: _broken(stage, conversion, what, said, end)))
            _plan(stage, outputs, wanted)
            for final, theirs in ready:
                stage.adopt(final, theirs.path)
    beside = tuple(Beside(final, theirs.bytes, theirs.type) for final, theirs in ready)
    return Outcome(conversion, outputs, time.monotonic() - began, findings, beside)


def _output(version: Version, final: Path) -> Output:
    headers = version.blueprint.headers
    count = len(headers)
    paths = [final] if count == 1 else [part_path(final, i + 1, count) for i in range(count)]
    return Output(version, tuple((path, each.stamp.size) for path, each in zip(paths, headers, strict=True)))


def _plan(stage: Stage, outputs: Sequence[Output], wanted: Wanted) -> None:
    if len(outputs) == 1:
        made = files(outputs[0].version.blueprint, check=wanted.check)
        for (path, size), each in zip(outputs[0].files, made, strict=True):
            stage.write(path, size, each.pieces)
        return
    variants = []
    paths: list[Path] = []
    for output in outputs:
        blueprint = output.version.blueprint
        variants.append(places(blueprint, len(paths)))
        for (path, size), header in zip(output.files, blueprint.headers, strict=True):
            stage.write(path, size, frame(header))
            paths.append(path)
    stage.spread(paths, spread(variants, check=wanted.check))


def _broken(stage: Stage, conversion: Conversion, what: str, said: str, end: End) -> None:
    """Called on the thread that ggml has ended, while the others still run: what they write has no name any more."""
    stage.discard()
    text = f"{what}: llama.cpp's quantizer broke down over it ({said}); a larger type or another imatrix may do"
    end(ChildError(text, file=conversion.folder, code="quantizer"))


def _obstacles(
    conversion: Conversion,
    others: Sequence[Path],
    files: Sequence[tuple[Path, int]],
    wanted: Wanted,
    *,
    dry_run: bool,
) -> tuple[Finding, ...]:
    """Refuses names that cannot be given; a dry run goes on where only force or room is lacking, and says so."""
    findings: tuple[Finding, ...] = ()
    imatrix = None if wanted.imatrix is None else Path(wanted.imatrix)
    for final in (*(path for path, _ in files), *others):
        try:
            check_target(final, [path for path in (imatrix,) if path is not None], overwrite=wanted.force)
        except UsageError as problem:
            if not dry_run or problem.code != "output_exists":
                raise
            findings += (warning(problem.code, str(problem)),)
        check_no_source(final, (conversion.folder, wanted.lora))
        if imatrix is not None and final.exists() and final.samefile(imatrix):
            raise UsageError("is the importance matrix; use another name", file=final, code="output_is_input")
    if dry_run:
        try:
            check_space(files)
        except ResourceError as problem:
            findings += (warning(problem.code, str(problem)),)
    return findings
