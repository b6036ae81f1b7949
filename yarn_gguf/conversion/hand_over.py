"""Conversions by another converter: it writes the unscaled file, `extend` the RoPE; and the vision tower's file.

Composes `foreign` and `extend`; knows neither's details. Whatever it makes takes its name at the end, all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.before import Before, read_before
from yarn_gguf.conversion.foreign import converted
from yarn_gguf.conversion.outputs import Beside, Companion, Ready, check_no_source
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.errors import ChildError, InputError, UsageError, YarnGgufError
from yarn_gguf.extend import Extension, Outcome, main_type, plan_extension, write_extension
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.fill import Progress
from yarn_gguf.gguf_file.shards import Model, read_model
from yarn_gguf.gguf_file.writer import check_target, staged
from yarn_gguf.tokenizer.files import json_object

SCALINGS: Final = ("yarn", "linear", "dynamic")
Name = Callable[[str, str], Path]  # the type of the matrices, what is put behind the name -> a final path


@dataclass(frozen=True)
class HandedOver:
    """A converter's file: as `extend` made it, or left as it is."""

    path: Path
    before: Before  # the converter's own
    extended: Outcome | None
    findings: tuple[Finding, ...]
    beside: tuple[Beside, ...]


def convert_elsewhere(
    converter: Path,
    folder: Path,
    name: Name,
    wanted: Wanted,
    *,
    mmproj: bool = False,
    jobs: int = 0,
    progress: Progress = lambda _: None,
) -> HandedOver:
    """The converter's file with the RoPE that was asked for; where there is nothing to scale, as it is."""
    guess = name(wanted.outtype, "")
    if not guess.parent.is_dir():
        raise UsageError("its folder does not exist; create it first", file=guess, code="no_folder")
    _check(_settled(name, wanted.outtype, mmproj=mmproj), folder, wanted)
    with converted(converter, folder, guess, wanted.outtype) as made, ExitStack() as stack:
        before = _understood(converter, folder, made)
        with _told_of(folder, made):
            extension = _extension(before, wanted)
        kind = main_type(before.model).lower() if wanted.outtype == "auto" else wanted.outtype
        plain, final = name(kind, ""), name(kind, _suffix(extension))
        tower = companion(converter, folder, plain, wanted.outtype) if mmproj else None
        _check([final, *([] if tower is None else [tower.final])], folder, wanted)
        ready = [] if tower is None else [(tower.final, stack.enter_context(tower.make()))]
        files = [(path, each.path) for path, each in ready]
        beside = tuple(Beside(path, each.bytes, each.type) for path, each in ready)
        if extension is not None:
            done = write_extension(extension, final, force=wanted.force, jobs=jobs, progress=progress, beside=files)
            return HandedOver(done.outputs[0][0], before, done, done.findings, beside)
        with staged(overwrite=wanted.force) as stage:
            for path, source in [(final, made), *files]:
                stage.adopt(path, source)
        return HandedOver(final, before, None, tuple(_dropped(folder)), beside)


def _settled(name: Name, outtype: str, *, mmproj: bool) -> list[Path]:
    """The names that are known before the converter has run: they depend on nothing that it decides."""
    kinds = ("f16", "f32") if outtype == "auto" else (outtype,)
    mains = {name(kind, suffix) for kind in kinds for suffix in ("", "-scaled")}
    towers = {tower_path(name(kind, "")) for kind in kinds} if mmproj else set()
    return [path for names in (mains, towers) if len(names) == 1 for path in names]


def _check(finals: Sequence[Path], folder: Path, wanted: Wanted) -> None:
    for final in finals:
        check_target(final, (), overwrite=wanted.force)
        check_no_source(final, (folder,))


def _extension(before: Before, wanted: Wanted) -> Extension | None:
    """None where there is nothing to scale."""
    if wanted.rope.given or before.current.method != "none":
        return plan_extension(before, wanted.rope, wanted.encoding)
    if wanted.encoding != "auto":
        text = f"--encoding {wanted.encoding}, but nothing is scaled; give --factor or --ctx"
        raise UsageError(text, code="nothing_to_encode")
    return None


def _suffix(extension: Extension | None) -> str:
    if extension is None or extension.intent is None:
        return ""
    return f"-{extension.intent.short}"


def _understood(converter: Path, folder: Path, made: Path) -> Before:
    _read(converter, made)
    with _told_of(folder, made):
        return read_before(made)


def _read(converter: Path, made: Path) -> Model:
    """What a converter wrote; that it is no GGUF is the converter's fault."""
    try:
        return read_model(made)
    except InputError as problem:
        text = f"wrote something that is no GGUF: {problem.text}"
        raise ChildError(text, file=converter, code="converter_rubbish") from problem


@contextmanager
def _told_of(folder: Path, made: Path) -> Iterator[None]:
    """Errors about a converter's file, which nobody will find, are about what it was made of."""
    try:
        yield
    except YarnGgufError as problem:
        if problem.file in (None, str(made)):
            problem.file = str(folder)
        raise


def _dropped(folder: Path) -> Iterator[Finding]:
    """A scaling that config.json asks for, of a file that has none: some converters leave it out without a word."""
    whole = json_object(folder / "config.json") or {}
    nested = whole.get("text_config")
    raw = nested if isinstance(nested, dict) else whole
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name)
        settings = [rope, *rope.values()] if isinstance(rope, dict) else []  # some have one for each kind of layers
        kinds = [each.get("rope_type") or each.get("type") for each in settings if isinstance(each, dict)]
        if found := [kind for kind in kinds if kind in SCALINGS]:
            text = (
                f"config.json asks for {found[0]} scaling, and the converter wrote none: give it with the rope options"
            )
            yield warning("scaling_dropped", text)


def tower_path(final: Path) -> Path:
    """The vision tower's name, by that of the file that it goes with."""
    return final.with_name(f"mmproj-{final.name}")


def companion(converter: Path, folder: Path, final: Path, outtype: str) -> Companion:
    """The vision (or audio) part of a checkpoint as a file of its own, beside `final`."""
    path = tower_path(final)

    @contextmanager
    def make() -> Iterator[Ready]:
        with converted(converter, folder, path, outtype, mmproj=True) as made:
            model = _read(converter, made)
            yield Ready(made, model.bytes, main_type(model))

    return Companion(path, make)
