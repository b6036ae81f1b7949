"""`yarn-gguf convert`: parse, one library call, render."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click

from yarn_gguf.checkpoint.hub import Located, locate
from yarn_gguf.cli.conversions import conversion_document, other_document, print_conversion
from yarn_gguf.cli.extend import print_extension
from yarn_gguf.cli.options import GGUF_PATH, encoding_option, json_option, rope_options, size
from yarn_gguf.cli.render import (
    print_findings,
    print_json,
    print_rows,
    progress_bar,
    size_text,
)
from yarn_gguf.conversion.hand_over import Unscaled, convert_elsewhere, convert_tower
from yarn_gguf.conversion.wanted import OUTTYPES, Wanted
from yarn_gguf.convert import Conversion, knows, output_name, planned, write_conversion
from yarn_gguf.encoding import Encoding
from yarn_gguf.errors import UsageError
from yarn_gguf.intent import RopeOptions


@click.command(short_help="Hugging Face checkpoint to GGUF, with the RoPE asked for.")
@click.argument("checkpoint")
@click.option("-o", "--output", type=GGUF_PATH, help="A file, or a folder for the default name.  [default: CHECKPOINT]")
@click.option(
    "--outtype",
    type=click.Choice(OUTTYPES),
    default="auto",
    show_default=True,
    help="Type of the matrices; auto: 16 bits, as the checkpoint has them.",
)
@rope_options
@encoding_option
@click.option("--model-name", metavar="NAME", help="general.name.  [default: from the model card or the folder]")
@click.option("--split-max-size", type=size, metavar="SIZE", help="Write a split set of files of at most so much (4G).")
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, in place of the one that is recognised.")
@click.option("--skip-tokenizer-check", is_flag=True, help="Do not hold llama.cpp's token ids against the tokenizer's.")
@click.option("--no-vocab", is_flag=True, help="Write no vocabulary; for a model that is run on token ids.")
@click.option("--download", is_flag=True, help="Fetch org/name from the Hugging Face hub if it is not in its cache.")
@click.option("--revision", metavar="REV", help="Of org/name: a branch, tag or commit.  [default: main]")
@click.option("--lora", type=GGUF_PATH, metavar="DIR", help="Merge this PEFT adapter while converting.")
@click.option("--converter", type=GGUF_PATH, help="llama.cpp's convert_hf_to_gguf.py, for what is not known here.")
@click.option("--mmproj", is_flag=True, help="Have --converter write the vision part too.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read .bin weights too, in a child process that only builds tensors."
)
@click.option("--check", is_flag=True, help="Look for NaN and infinities in what is copied as it is, too.")
@click.option(
    "--fold-magnitude", is_flag=True, help="Put YaRN's magnitude into the weights, so that context shifts are exact."
)
@click.option("--dry-run", is_flag=True, help="Print the plan: every tensor's source and type; write nothing.")
@click.option("--force", is_flag=True, help="Replace an output; convert settings that llama.cpp does not honour.")
@click.option("--jobs", type=click.IntRange(1), help="Threads.  [default: the number of cores]")
@json_option
def convert(
    checkpoint: str,
    output: Path | None,
    outtype: str,
    rope: RopeOptions,
    encoding: Encoding,
    model_name: str | None,
    split_max_size: int | None,
    pre: str | None,
    skip_tokenizer_check: bool,
    no_vocab: bool,
    download: bool,
    revision: str | None,
    lora: Path | None,
    converter: Path | None,
    mmproj: bool,
    allow_pickle: bool,
    check: bool,
    fold_magnitude: bool,
    dry_run: bool,
    force: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Convert a Hugging Face checkpoint, a folder or org/name, to a GGUF with the RoPE asked for.

    Without rope options the checkpoint's own scaling is kept. What llama.cpp would compute differently is refused, or
    said; the tokenizer is proven against the original before anything is written.

    \b
    yarn-gguf convert Qwen3-8B --factor 4
    yarn-gguf convert Qwen/Qwen3-8B --download --ctx 128k --outtype q8_0 -o .
    """
    if mmproj and converter is None:
        raise UsageError("--mmproj is done by another converter: name it with --converter", code="usage")
    located = locate(checkpoint, download=download, revision=revision, allow_pickle=allow_pickle)
    wanted = Wanted(
        rope,
        encoding,
        outtype,
        model_name or None,
        pre or None,
        tokenizer=not no_vocab,
        check_tokenizer=not skip_tokenizer_check,
        split=split_max_size,
        check=check,
        allow_pickle=allow_pickle,
        lora=lora,
        fold=fold_magnitude,
        force=force,
        origin=_origin(located),
    )
    run = _Run(located, wanted, output, jobs or 0, dry_run=dry_run, as_json=as_json)
    if converter is not None and not (mmproj and knows(located.folder)):
        _elsewhere(run, converter, mmproj=mmproj)
        return
    final = _here(run)
    if mmproj and converter is not None and not dry_run:
        _tower(run, converter, final)


@dataclass(frozen=True)
class _Run:
    located: Located
    wanted: Wanted
    output: Path | None
    jobs: int
    dry_run: bool
    as_json: bool


def _check_elsewhere(run: _Run) -> None:
    """Refuses what the other converter is not told."""
    wanted, usual = run.wanted, Wanted()
    asked = {
        "--lora": wanted.lora != usual.lora,
        "--fold-magnitude": wanted.fold,
        "--dry-run": run.dry_run,
        "--split-max-size": wanted.split != usual.split,
        "--pre": wanted.pre != usual.pre,
        "--no-vocab": not wanted.tokenizer,
        "--model-name": wanted.name != usual.name,
        "--check": wanted.check,
    }
    if refused := [option for option, given in asked.items() if given]:
        raise UsageError(f"--converter takes no {', '.join(refused)}", code="usage")


def _here(run: _Run) -> Path:
    """Our own conversion; returns the name of its first file."""
    with planned(run.located.folder, run.wanted) as conversion:
        final = _final(run.output, run.located, conversion)
        with progress_bar(conversion.bytes, hidden=run.as_json or run.dry_run) as progress:
            outcome = write_conversion(
                conversion, final, wanted=run.wanted, dry_run=run.dry_run, jobs=run.jobs, progress=progress
            )
    if run.as_json:
        print_json(conversion_document(outcome, dry_run=run.dry_run))
    else:
        print_conversion(outcome, dry_run=run.dry_run, jobs=run.jobs)
    return final


def _elsewhere(run: _Run, converter: Path, *, mmproj: bool) -> None:
    """The other converter's file, extended."""
    _check_elsewhere(run)
    began = time.monotonic()
    outcome = convert_elsewhere(
        converter, run.located.folder, lambda suffix: _named(run, suffix), run.wanted, jobs=run.jobs
    )
    seconds = time.monotonic() - began
    if run.as_json:
        print_json({**other_document(outcome), "seconds": seconds})
    elif isinstance(outcome, Unscaled):
        print_rows(run.located.folder.resolve().name, [("wrote", f"{outcome.path}, by {converter.name}, unscaled")])
        print_findings(outcome.findings)
    else:
        print_extension(outcome, dry_run=False)
    if mmproj:
        _tower(run, converter, _named(run, ""))


def _named(run: _Run, suffix: str) -> Path:
    """The output of the other converter, by the folder's name where none was given."""
    output = run.output or (run.located.folder if run.located.repository is None else Path())
    if _is_folder(output):
        name = run.located.folder.resolve().name if run.located.repository is None else run.located.repository
        return output / f"{name.rpartition('/')[2]}-{run.wanted.outtype.upper()}{suffix}.gguf"
    return output


def _tower(run: _Run, converter: Path, final: Path) -> None:
    made = final.with_name(f"mmproj-{final.name}")
    convert_tower(converter, run.located.folder, made, run.wanted.outtype, force=run.wanted.force)
    if not run.as_json:
        print_rows(made.name, [("wrote", f"{made}, {size_text(made.stat().st_size)}, by {converter.name}")])


def _origin(located: Located) -> tuple[str, str] | None:
    return None if located.repository is None else (located.repository, located.revision or "")


def _final(output: Path | None, located: Located, conversion: Conversion) -> Path:
    """Beside the checkpoint, as upstream has it; what comes from the hub's cache goes to the current folder."""
    if output is None:
        output = located.folder if located.repository is None else Path()
    if _is_folder(output):
        return output / output_name(conversion)
    if not output.name:
        raise UsageError("names no file", file=output, code="usage")
    return output.with_name(_templated(output.name, conversion.outtype))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, which `check_target` has a word for
        return False


def _templated(name: str, outtype: str) -> str:
    """`{ftype}` and its like, as upstream's converter fills them in."""
    for word, text in {
        "ftype": outtype,
        "outtype": outtype,
        "FTYPE": outtype.upper(),
        "OUTTYPE": outtype.upper(),
    }.items():
        name = name.replace(f"{{{word}}}", text)
    return name
