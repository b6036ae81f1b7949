"""Conversions by another converter: it writes the unscaled file, `extend` the RoPE; and the vision tower's file.

Composes `foreign` and `extend`; knows neither's details.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.before import read_before
from yarn_gguf.conversion.foreign import converted
from yarn_gguf.conversion.wanted import Wanted
from yarn_gguf.convert import check_no_source
from yarn_gguf.errors import UsageError
from yarn_gguf.extend import Outcome, plan_extension, write_extension
from yarn_gguf.files import open_regular, stamp_of
from yarn_gguf.findings import Finding, warning
from yarn_gguf.gguf_file.fill import Progress
from yarn_gguf.gguf_file.writer import check_target, staged
from yarn_gguf.tokenizer.files import json_object

SCALINGS: Final = ("yarn", "linear", "dynamic")


@dataclass(frozen=True)
class Unscaled:
    """A converter's file that was left as it is."""

    path: Path
    findings: tuple[Finding, ...]


def convert_elsewhere(
    converter: Path,
    folder: Path,
    name: Callable[[str], Path],
    wanted: Wanted,
    *,
    jobs: int = 0,
    progress: Progress = lambda _: None,
) -> Outcome | Unscaled:
    """What `extend` made of the converter's file; or, where there is nothing to scale, that file as it is.

    `name` gives the final path for what is put behind the name: the scaling, or nothing.
    """
    plain = name("")
    if not plain.parent.is_dir():
        raise UsageError("its folder does not exist; create it first", file=plain, code="no_folder")
    if plain == name("-scaled"):  # the name that the file will have, so this shows before the converter has run
        check_target(plain, (), overwrite=wanted.force)
        check_no_source(plain, (folder,))
    with converted(converter, folder, plain, wanted.outtype) as made:
        before = read_before(made)
        if not wanted.rope.given and before.current.method == "none":
            publish(made, plain, force=wanted.force)
            return Unscaled(plain, tuple(_dropped(folder)))
        extension = plan_extension(before, wanted.rope, wanted.encoding)
        intent = extension.intent
        suffix = "" if intent is None else f"-{intent.method}{intent.factor:.4g}x".replace("+", "")
        return write_extension(extension, name(suffix), force=wanted.force, jobs=jobs, progress=progress)


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


def convert_tower(converter: Path, folder: Path, final: Path, outtype: str, *, force: bool) -> Path:
    """The vision (or audio) part of a checkpoint as a file of its own."""
    check_target(final, (), overwrite=force)
    check_no_source(final, (folder,))
    with converted(converter, folder, final, outtype, mmproj=True) as made:
        publish(made, final, force=force)
    return final


def publish(made: Path, final: Path, *, force: bool) -> None:
    """Gives a finished temporary its name, as every output gets it."""
    check_target(final, (), overwrite=force)
    with open_regular(made) as file:
        stamp = stamp_of(file.fileno())
    with staged(overwrite=force) as stage:
        stage.duplicate(final, made, stamp)
