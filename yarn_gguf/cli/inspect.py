"""`yarn-gguf inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from yarn_gguf.checkpoint_inspection import CheckpointInspection, inspect_checkpoint
from yarn_gguf.cli.options import GGUF_PATH, json_option, rope_options, strict_option
from yarn_gguf.cli.render import (
    findings_json,
    print_findings,
    print_json,
    print_rows,
    print_verdict,
    result,
    rope_json,
    rope_text,
)
from yarn_gguf.effective import LayerClass, LayerRope, Runtime
from yarn_gguf.extend import main_type
from yarn_gguf.inspection import Inspection, inspect_gguf
from yarn_gguf.intent import RopeOptions
from yarn_gguf.plot import Picture, check_plot_name, plot_rope
from yarn_gguf.sizes import size_text


@click.command(short_help="Say what RoPE a model will really get, and what is wrong with it.")
@click.argument("path", type=GGUF_PATH)
@rope_options
@click.option(
    "--runtime",
    type=click.Choice([r.value for r in Runtime]),
    default="stock",
    show_default=True,
    help="Whose computation to show.",
)
@click.option(
    "--plot", type=GGUF_PATH, metavar="FILE", help="Draw frequencies before and after, by pair (.svg or .png)."
)
@strict_option
@json_option
def inspect(path: Path, rope: RopeOptions, runtime: str, plot: Path | None, strict: bool, as_json: bool) -> None:
    """Say what RoPE each layer of a GGUF will really get, which keys are honoured, and what is wrong.

    PATH is a GGUF, any part of a split set, or a Hugging Face folder. With rope options, the model is held against
    what they ask for instead of against its own settings.
    """
    if plot is not None:
        check_plot_name(plot)
    folder = path.parent if path.name == "config.json" and path.is_file() else path
    if folder.is_dir():
        _inspect_checkpoint(folder, rope, plot, as_json)
        return
    found = inspect_gguf(path, rope, strict=strict)
    if plot is not None:
        plot_rope(_picture(found, Runtime(runtime)), plot)
    with result(*[] if plot is None else [plot]):
        if as_json:
            print_json(_document(found))
        else:
            _print(found, Runtime(runtime), plot)


def _inspect_checkpoint(path: Path, rope: RopeOptions, plot: Path | None, as_json: bool) -> None:
    found = inspect_checkpoint(path, rope)
    intent, name = found.intent, path.resolve().name
    plain_llama3 = found.under is not None and intent.method == "none"
    text = f"llama3 scaling, context {intent.context}" if plain_llama3 else rope_text(intent)
    if plot is not None:
        plot_rope(Picture(f"{name}: {text}", found.rope_at_context, intent.original, intent.context), plot)
    with result(*[] if plot is None else [plot]):
        if as_json:
            print_json(_checkpoint_document(found))
        else:
            _print_checkpoint(found, name, text, plot)


def _print_checkpoint(found: CheckpointInspection, name: str, text: str, plot: Path | None) -> None:
    title = f"{name}  {found.arch}, {found.config.layers} layers"
    rows = [("asks for", f"{text}  (by {found.source})")]
    rows += [("layers", _layer_text(rope, None)) for rope in found.layers]
    if plot is not None:
        rows.append(("plot", str(plot)))
    print_rows(title, rows)
    print_findings(found.findings)
    print_verdict(found.verdict, sound=True)


def _picture(found: Inspection, runtime: Runtime) -> Picture:
    """What is meant; and what full layers get, if that is something else."""
    intent = found.intent
    full = next((r for r in found.effective[runtime] if r.kind is LayerClass.FULL), None)
    differs = full is not None and not found.exactness(runtime, LayerClass.FULL)
    shown = (f"{runtime.value} llama.cpp", full.inverse_frequencies) if full is not None and differs else None
    return Picture(f"{found.model.path.name}: {rope_text(intent)}", intent.rope, intent.original, intent.context, shown)


def _document(found: Inspection) -> dict[str, Any]:
    return {
        "path": str(found.model.path),
        "files": len(found.model.parts),
        "bytes": found.model.bytes,
        "type": main_type(found.model),
        "arch": found.facts.arch,
        "context_length": found.facts.context_length,
        "rope": rope_json(found.intent, found.encoding),
        "rope_source": found.source,
        "effective": {
            runtime.value: [_layer_json(rope, exact=found.exactness(runtime, rope.kind)) for rope in ropes]
            for runtime, ropes in found.effective.items()
        },
        "findings": findings_json(found.findings),
        "exact": {r.value: found.exact_on(r) for r in Runtime},
        "verdict": found.verdict(),
    }


def _checkpoint_document(found: CheckpointInspection) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "files": 1,
        "bytes": None,
        "type": None,
        "arch": found.arch,
        "context_length": found.config.max_position_embeddings,
        "rope": {**rope_json(found.intent, None), "under": found.under},
        "rope_source": found.source,
        "effective": {
            "stock": None,
            "patched": None,
            "transformers": [_layer_json(rope, exact=True) for rope in found.layers],
        },
        "findings": findings_json(found.findings),
        "exact": None,
        "verdict": found.verdict,
    }


def _layer_json(rope: LayerRope, *, exact: bool) -> dict[str, Any]:
    return {
        "layers": list(rope.layers),
        "class": rope.kind.value,
        "inverse_frequencies": [float(f) for f in rope.inverse_frequencies],
        "magnitude": rope.magnitude,
        "score": rope.score,
        "exact": exact,
    }


def _print(found: Inspection, runtime: Runtime, plot: Path | None) -> None:
    facts, model = found.facts, found.model
    parts = f", {len(model.parts)} parts" if len(model.parts) > 1 else ""
    title = (
        f"{model.path.name}  {facts.arch}, {facts.layers} layers, {main_type(model)}, {size_text(model.bytes)}{parts}"
    )
    rows = [
        ("asks for", f"{rope_text(found.intent)}  (by {found.source})"),
        ("context", f"context_length {facts.context_length}"),
    ]
    rows += [
        (runtime.value, _layer_text(rope, found.exactness(runtime, rope.kind))) for rope in found.effective[runtime]
    ]
    if plot is not None:
        rows.append(("plot", str(plot)))
    print_rows(title, rows)
    print_findings(found.findings)
    print_verdict(found.verdict(runtime), sound=found.sound(runtime))


def _layer_text(rope: LayerRope, exact: bool | None) -> str:
    """`full layers 0-31: 64 pairs, 20 kept, 23 blended, 21 interpolated; magnitude 1.2079; exact`"""
    where = f"layer{'s' * (len(rope.layers) > 1)} {_ranges(rope.layers)}"
    if rope.rope is None:
        return f"{where}: no RoPE"
    parts = ", ".join(f"{count} {name.value}" for name, count in rope.tally.items())
    score = f", softmax × {rope.score:.5g}" if abs(rope.score - 1) > 1e-9 else ""
    verdict = {True: ": exact", False: ": differs", None: ""}[exact]
    pairs = f"{rope.rope.dim // 2} pairs ({parts})"
    return f"{rope.kind.value} {where}: {pairs}, magnitude {rope.magnitude:.5g}{score}{verdict}"


def _ranges(layers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> 0-2, 5; a long list is cut."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(texts) if len(texts) <= 6 else f"{', '.join(texts[:4])}, … ({len(layers)})"
