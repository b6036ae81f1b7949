"""`yarn-gguf quantize`: parse, one library call, render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from yarn_gguf.cli.options import GGUF_PATH, OUTPUT_PATH, json_option
from yarn_gguf.cli.render import findings_json, print_findings, print_json, print_rows, progress_bar, result
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.quantize import Quantized, quantize, wanted_type
from yarn_gguf.rope_words import rope_json, rope_text
from yarn_gguf.sizes import size_text


@click.command("quantize", short_help="Quantize a GGUF with llama.cpp's own quantizer.")
@click.argument("source", metavar="IN", type=GGUF_PATH)
@click.argument("kind", metavar="TYPE")
@click.option("-o", "--output", type=OUTPUT_PATH, help="Where to write.  [default: IN-TYPE.gguf]")
@click.option("--imatrix", metavar="FILE", help="An importance matrix of llama-imatrix.")
@click.option("--pure", is_flag=True, help="One type for all matrices, no mix.")
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already; it loses more.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option("--jobs", type=click.IntRange(1), help="Threads.  [default: the number of cores]")
@json_option
def quantize_command(
    source: Path,
    kind: str,
    output: Path | None,
    imatrix: str | None,
    pure: bool,
    allow_requantize: bool,
    force: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Write IN (a GGUF of floats; a split set, by any of its parts) as TYPE: Q4_K_M, q8_0, IQ4_XS, …

    All that llama-quantize knows, with its bytes. What YaRN settings the file has stay as they are.

    \b
    yarn-gguf quantize qwen3-8b-f16.gguf Q4_K_M
    yarn-gguf quantize qwen3-8b-f16.gguf IQ2_S --imatrix qwen3.imatrix -o small.gguf
    """
    name = wanted_type(kind)
    final = output or source.with_name(f"{source.name.removesuffix('.gguf')}-{name}.gguf")
    total = read_model(source).bytes
    with progress_bar(total, hidden=as_json) as progress:
        done = quantize(
            source,
            name,
            final,
            imatrix=imatrix,
            requantize=allow_requantize,
            pure=pure,
            jobs=jobs or 0,
            force=force,
            progress=progress,
        )
    with result(done.path):
        if as_json:
            print_json(document(done))
        else:
            print_quantized(done)


def document(done: Quantized) -> dict[str, Any]:
    files = [{"path": str(done.path), "bytes": done.bytes, "how": "written"}]
    return {
        "outputs": [{"path": str(done.path), "files": files, "bytes": done.bytes, "type": done.type}],
        "seconds": done.seconds,
        "rope": rope_json(done.made.intent, None),
        "encoding": None,
        "tensors": len(done.made.model.tensors),
        "findings": findings_json(done.findings),
    }


def print_quantized(done: Quantized) -> None:
    old, new = done.source.model.bytes, done.bytes
    title = f"{done.source.path.name}  {done.source.type}, {size_text(old)}"
    wrote = f"{done.path}, {size_text(new)} ({new / old:.0%}), {done.seconds:.1f} s"
    print_rows(title, [("is", rope_text(done.made.intent)), ("type", done.type), ("wrote", wrote)])
    print_findings(done.findings)
