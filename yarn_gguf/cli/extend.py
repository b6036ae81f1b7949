"""`yarn-gguf extend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from yarn_gguf.before import read_before
from yarn_gguf.cli.options import (
    GGUF_PATH,
    OUTPUT_PATH,
    encoding_option,
    json_option,
    rope_options,
    strict_option,
)
from yarn_gguf.cli.render import (
    findings_json,
    print_findings,
    print_json,
    print_rows,
    progress_bar,
    result,
    rope_json,
    rope_text,
)
from yarn_gguf.encoding import Encoded, Encoding
from yarn_gguf.errors import UsageError
from yarn_gguf.extend import (
    Outcome,
    main_type,
    plan_extension,
    plan_restoration,
    write_extension,
)
from yarn_gguf.intent import RopeOptions
from yarn_gguf.sizes import size_text


@click.command(short_help="Give a GGUF a longer context, or take it back.")
@click.argument("source", metavar="IN", type=GGUF_PATH)
@click.option(
    "-o", "--output", type=OUTPUT_PATH, help="Where to write.  [default: IN-yarn8x.gguf, by method and factor]"
)
@click.option("--in-place", is_flag=True, help="Replace IN, in one step once the new file is complete.")
@rope_options
@encoding_option
@click.option("--restore", is_flag=True, help="Undo an earlier extension, byte for byte.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, write nothing.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option("--jobs", type=click.IntRange(1), help="Writing threads.  [default: the number of cores]")
@strict_option
@json_option
def extend(
    source: Path,
    output: Path | None,
    in_place: bool,
    rope: RopeOptions,
    encoding: Encoding,
    restore: bool,
    dry_run: bool,
    force: bool,
    jobs: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Give a GGUF (a split set, by any of its parts) a longer context. Tensor bytes stay as they are.

    Without rope options the file's own scaling is kept and written so that llama.cpp honours it. A second run starts
    from the original values, not from the first run's.

    \b
    yarn-gguf extend model-Q4_K_M.gguf --factor 4
    yarn-gguf extend model-Q4_K_M.gguf --ctx 128k --in-place
    yarn-gguf extend model-Q4_K_M.gguf --restore --in-place
    """
    if in_place and output is not None:
        raise UsageError("--in-place and -o exclude each other", code="usage")
    if restore and (rope.given or encoding != "auto"):
        raise UsageError("--restore takes neither rope options nor --encoding", code="usage")
    before = read_before(source, strict=strict)
    extension = plan_restoration(before) if restore else plan_extension(before, rope, encoding)
    total = sum(layout.size for layout in extension.layouts.values())
    with progress_bar(total, hidden=as_json or dry_run) as progress:
        outcome = write_extension(
            extension,
            output,
            in_place=in_place,
            force=force,
            dry_run=dry_run,
            jobs=jobs or 0,
            progress=progress,
        )
    with result(*[] if dry_run else [outcome.outputs[0][0]]):
        if as_json:
            print_json(extension_document(outcome, dry_run=dry_run))
        else:
            print_extension(outcome, dry_run=dry_run)


def extension_document(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    extension = outcome.extension
    files = [{"path": str(path), "bytes": size, "how": how} for path, size, how in outcome.outputs]
    encoding = None if extension.encoded is None else extension.encoded.encoding
    intent = extension.intent or extension.before.own
    return {
        "outputs": [
            {
                "path": str(outcome.outputs[0][0]),
                "files": files,
                "bytes": outcome.bytes,
                "type": main_type(extension.before.model),
            }
        ],
        "seconds": outcome.seconds,
        "dry_run": dry_run,
        "rope": rope_json(intent, encoding),
        "encoding": encoding,
        "exact": _exact(extension.encoded),
        "identical": extension.identical,
        "tensors": outcome.tensors,
        "findings": findings_json(outcome.findings),
    }


def _exact(encoded: Encoded | None) -> dict[str, bool] | None:
    return None if encoded is None else {"stock": encoded.exact, "patched": encoded.patched.exact}


def print_extension(
    outcome: Outcome, *, dry_run: bool, name: str | None = None, more: Sequence[tuple[str, str]] = ()
) -> None:
    """`name`: of the model, in place of the input's; `more`: rows behind those of the file."""
    extension = outcome.extension
    model, facts = extension.before.model, extension.before.facts
    path, _, how = outcome.outputs[0]
    done = f"{path}, {size_text(outcome.bytes)}" + (
        f" in {len(outcome.outputs)} parts" if len(outcome.outputs) > 1 else ""
    )
    if not dry_run:
        done += f", {outcome.seconds:.1f} s" + (", data shared with the input on disk" if how == "shared" else "")
    before = extension.before
    rows = [("was", rope_text(before.current))]
    if before.recorded is not None:
        rows.append(("original", rope_text(before.own)))
    if extension.intent is not None and extension.encoded is not None:
        rows = [*rows, ("is", rope_text(extension.intent)), ("encoding", _encoding_text(extension.encoded))]
    else:
        rows.append(("restored", "byte-identical header" if extension.identical else "original settings"))
    rows += [("would be" if dry_run else "wrote", done), *more]
    title = (
        f"{name or model.path.name}  {facts.arch}, {facts.layers} layers, {main_type(model)}, {size_text(model.bytes)}"
    )
    print_rows(title, rows)
    print_findings(outcome.findings)


def _encoding_text(encoded: Encoded) -> str:
    verdict = "exact on stock llama.cpp" if encoded.exact else "not exact on stock llama.cpp"
    what = {"keys": "standard keys", "baked": "baked into rope_freqs.weight"}[encoded.encoding]
    return f"{what}, {verdict}"
