"""`yarn-gguf convert`: parse, one library call, render."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from yarn_gguf.checkpoint.hub import Located, locate
from yarn_gguf.cli.conversions import conversion_document, other_document, print_conversion, print_other
from yarn_gguf.cli.options import (
    GGUF_PATH,
    OUTPUT_PATH,
    Asked,
    encoding_option,
    given_path,
    is_folder,
    json_option,
    rope_options,
    size,
)
from yarn_gguf.cli.quantizations import outtypes, override, tensor_type, unheard
from yarn_gguf.cli.render import print_json, progress_bar, result
from yarn_gguf.conversion.decided import Conversion, Version
from yarn_gguf.conversion.foreign import OUTTYPES as TOWER_TYPES
from yarn_gguf.conversion.hand_over import companion, convert_elsewhere
from yarn_gguf.conversion.wanted import Types, Wanted
from yarn_gguf.conversion.writing import write_conversion
from yarn_gguf.convert import knows, output_name, planned
from yarn_gguf.encoding import Encoding
from yarn_gguf.errors import InputError, UsageError, YarnGgufError, about
from yarn_gguf.intent import RopeOptions


@click.command(short_help="Hugging Face checkpoint to GGUF, with the RoPE asked for.")
@click.argument("checkpoint")
@click.option(
    "-o", "--output", type=OUTPUT_PATH, help="A file, or a folder for the default name.  [default: CHECKPOINT]"
)
@click.option(
    "--outtype",
    type=outtypes,
    metavar="TYPE[,TYPE…]",
    default="auto",
    show_default=True,
    help="f32, f16, bf16, q8_0, or a quantization of llama-quantize (Q4_K_M, IQ4_XS, …); auto: 16 bits, as the"
    " checkpoint has them. Several: a file for each.",
)
@click.option("--imatrix", type=given_path, metavar="FILE", help="Importance matrix, as llama-imatrix writes it.")
@click.option(
    "--tensor-type",
    "overrides",
    type=override,
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Give tensors whose name the pattern finds this type (attn_q=q8_0); can be repeated.",
)
@click.option("--output-tensor-type", "output_type", type=tensor_type, metavar="TYPE", help="Type of output.weight.")
@click.option(
    "--token-embedding-type", "embedding_type", type=tensor_type, metavar="TYPE", help="Type of the token embeddings."
)
@click.option("--pure", is_flag=True, help="One type for all tensors of a quantization, no mix.")
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
@click.pass_obj
def convert(
    asked: Asked | None,
    checkpoint: str,
    output: Path | None,
    outtype: tuple[str, ...],
    imatrix: str | None,
    overrides: tuple[tuple[str, int], ...],
    output_type: int | None,
    embedding_type: int | None,
    pure: bool,
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
    yarn-gguf convert Qwen3-8B --outtype Q8_0,Q4_K_M,IQ4_XS --imatrix imatrix.gguf
    """
    if mmproj and converter is None:
        raise UsageError("--mmproj is done by another converter: name it with --converter", code="usage")
    if no_vocab and (pre or skip_tokenizer_check):
        text = "--no-vocab leaves nothing for --pre and --skip-tokenizer-check to be about"
        raise UsageError(text, code="usage")
    _check_source(checkpoint, download=download, revision=revision)
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
        types=Types(overrides, output_type, embedding_type, pure),
        imatrix=imatrix,
    )
    end = Asked().end if asked is None else asked.end
    run = _Run(located, wanted, output, jobs or 0, end, dry_run=dry_run, as_json=as_json)
    if converter is not None and not (mmproj and knows(located.folder)):
        _elsewhere(run, converter, mmproj=mmproj)
    else:
        _here(run, converter)


def _check_source(source: str, *, download: bool, revision: str | None) -> None:
    """Says what somebody gave who did not give a checkpoint, and refuses what a folder has no use for."""
    path = Path(source)
    if not source:
        raise UsageError("CHECKPOINT is empty; name a folder or org/name", code="usage")
    if revision is not None and not revision.strip():
        raise UsageError("--revision is empty; name a branch, tag or commit", code="usage")
    if download and is_folder(path):
        text = "--download fetches a repository of the hub, but this is a folder here"
        raise UsageError(text, file=source, code="usage")
    ggufs = sorted(path.glob("*.gguf")) if is_folder(path) and not (path / "config.json").exists() else []
    for each in [path] if path.suffix == ".gguf" and _is_file(path) else ggufs[:1]:
        text = "is a GGUF already, not a checkpoint; `yarn-gguf extend` gives it a longer context"
        raise InputError(text, file=each, code="is_gguf")
    if _is_file(path):
        text = f"is a file; give the folder that it is in, {path.parent}"
        raise InputError(text, file=source, code="not_a_folder")


@dataclass(frozen=True)
class _Run:
    located: Located
    wanted: Wanted
    output: Path | None
    jobs: int
    end: Callable[[YarnGgufError], None]
    dry_run: bool
    as_json: bool


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_elsewhere(run: _Run) -> None:
    """Refuses what the other converter is not told."""
    wanted, usual = run.wanted, Wanted()
    asked = {
        "--lora": wanted.lora != usual.lora,
        "--fold-magnitude": wanted.fold,
        "--dry-run": run.dry_run,
        "--split-max-size": wanted.split != usual.split,
        "--pre": wanted.pre != usual.pre,
        "--skip-tokenizer-check": not wanted.check_tokenizer,
        "--allow-pickle": wanted.allow_pickle,
        "--no-vocab": not wanted.tokenizer,
        "--model-name": wanted.name != usual.name,
        "--check": wanted.check,
        "--imatrix": wanted.imatrix is not None,
        "--tensor-type": bool(wanted.types.overrides),
        "--output-tensor-type": wanted.types.output is not None,
        "--token-embedding-type": wanted.types.embedding is not None,
        "--pure": wanted.types.pure,
        "more than one --outtype": len(wanted.outtypes) > 1,
    }
    if refused := [option for option, given in asked.items() if given]:
        raise UsageError(f"--converter takes no {', '.join(refused)}", code="usage")


def _here(run: _Run, converter: Path | None) -> None:
    """Our own conversion; the other converter makes the vision tower, if there is one."""
    folder, wanted = run.located.folder, run.wanted
    with about(folder), planned(folder, wanted) as conversion:
        if wanted.encoding != "auto" and conversion.written.encoded is None:
            text = f"--encoding {wanted.encoding}, but nothing is scaled; give --factor or --ctx"
            raise UsageError(text, code="nothing_to_encode")
        finals = [_final(run, conversion, version) for version in conversion.versions]
        _check_names(finals)
        tower = None if converter is None else companion(converter, folder, finals[0], _tower_type(wanted.outtype))
        with unheard() as heard, progress_bar(conversion.bytes, hidden=run.as_json or run.dry_run) as progress:

            def end(error: YarnGgufError) -> None:
                heard()
                run.end(error)

            outcome = write_conversion(
                conversion,
                finals,
                wanted=wanted,
                companion=tower,
                dry_run=run.dry_run,
                jobs=run.jobs,
                progress=progress,
                end=end,
            )
    paths = [*(each.path for each in outcome.outputs), *(each.path for each in outcome.beside)]
    written = [] if run.dry_run else paths
    with result(*written):
        if run.as_json:
            print_json(conversion_document(outcome, dry_run=run.dry_run))
        else:
            print_conversion(outcome, _called(converter), dry_run=run.dry_run, jobs=run.jobs)


def _called(converter: Path | None) -> str:
    return "" if converter is None else converter.name


def _elsewhere(run: _Run, converter: Path, *, mmproj: bool) -> None:
    """The other converter's file, extended."""
    _check_elsewhere(run)
    began, folder = time.monotonic(), run.located.folder
    done = convert_elsewhere(
        converter, folder, lambda kind, suffix: _named(run, kind, suffix), run.wanted, mmproj=mmproj, jobs=run.jobs
    )
    seconds = time.monotonic() - began
    with result(done.path, *(each.path for each in done.beside)):
        if run.as_json:
            print_json({**other_document(done), "seconds": seconds})
        else:
            print_other(done, _name(run.located), converter.name)


def _name(located: Located) -> str:
    """What a checkpoint is called."""
    whole = located.folder.resolve().name if located.repository is None else located.repository
    return whole.rpartition("/")[2]


def _named(run: _Run, kind: str, suffix: str) -> Path:
    """The output of the other converter, by the checkpoint's name where none was given."""
    output = run.output or (run.located.folder if run.located.repository is None else Path())
    if is_folder(output):
        return output / f"{_name(run.located)}-{kind.upper()}{suffix}.gguf"
    if not output.name:
        raise UsageError("names no file", file=output, code="usage")
    return output.with_name(_templated(output.name, kind))


def _origin(located: Located) -> tuple[str, str] | None:
    return None if located.repository is None else (located.repository, located.revision or "")


def _tower_type(outtype: str) -> str:
    """Of the vision part, which is never quantized."""
    return outtype if outtype in TOWER_TYPES else "auto"


def _check_names(finals: Sequence[Path]) -> None:
    """Several files need several names."""
    if len(set(finals)) < len(finals):
        text = "would be the name of several files; name a folder, or put {ftype} in the name"
        raise UsageError(text, file=finals[0], code="one_name")


def _final(run: _Run, conversion: Conversion, version: Version) -> Path:
    """Beside the checkpoint, as upstream has it; what comes from the hub's cache goes to the current folder."""
    output = run.output or (run.located.folder if run.located.repository is None else Path())
    if is_folder(output):
        return output / output_name(conversion, version, run.wanted)
    if not output.name:
        raise UsageError("names no file", file=output, code="usage")
    return output.with_name(_templated(output.name, version.outtype))


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
