"""What `plan` prints: for a person, and as JSON. Knows values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from yarn_gguf.cli.render import findings_json, print_findings, print_rows, print_verdict, rope_json, rope_text
from yarn_gguf.errors import printable
from yarn_gguf.memory.advice import FactorCost
from yarn_gguf.memory.needs import Part, most_gpu_layers
from yarn_gguf.plan import Choice, Plan
from yarn_gguf.sizes import size_text

LONGEST_SHOWN: Final = 10_000_000


# ---- for a person


def print_plan(found: Plan) -> None:
    shape, (kind, weights) = found.shape, found.file
    print_rows(
        f"{found.path.name}  {shape.arch}, {len(shape.layers)} layers, {size_text(weights)} of weights ({kind})",
        _rows(found),
    )
    click.echo("")
    for line in _table(found):
        click.echo(printable(line))
    click.echo("")
    for line in _breakdown(found.chosen):
        click.echo(line)
    for line in _factors(found):
        click.echo(line)
    if found.command is not None:
        click.echo(f"\n  {found.command}")
    click.echo("")
    print_findings(found.findings)
    print_verdict(_verdict(found), sound=found.fits)


def _rows(found: Plan) -> Iterator[tuple[str, str]]:
    room, present = found.room, found.present
    gpu = "none" if not room.vram else f"{size_text(room.vram)}, {size_text(room.reserve)} of it reserved"
    gpu += ", of the RAM" if room.vram and room.unified else ""
    names = ", ".join(each.name for each in present.gpus) if present is not None and room.vram else ""
    yield "GPU", f"{gpu} ({names})" if names else gpu
    yield "RAM", "not known, so taken as enough" if room.ram is None else size_text(room.ram)
    if found.now is not None:
        yield "asks for", rope_text(found.now)
    reach = f"factor {found.factor:.4g}" if found.factor > 1 else "no scaling needed"
    yield "context", f"{found.context} tokens: {reach}"


def _table(found: Plan) -> Iterator[str]:
    yield f"  {'weights':<8} {'cache':<10} {'longest':>8} {'GPU':>10} {'RAM':>10} {'-ngl':>7} {'KL':>7}"
    for choice in found.choices:
        mark = " ◀" if choice is found.best else "" if choice.fits else " ✗"
        yield f"{_row(choice, found)}{mark}"


def _row(choice: Choice, found: Plan) -> str:
    kv = choice.kv[0] if choice.kv[0] == choice.kv[1] else "/".join(choice.kv)
    layers = f"{choice.gpu_layers}/{most_gpu_layers(found.shape)}" if found.room.vram and not choice.idle else "-"
    price = f"{'' if choice.price.measured else '~'}{choice.price.kld:.2g}"
    longest = ">10M" if choice.longest > LONGEST_SHOWN else str(choice.longest)
    gpu, ram = size_text(choice.needs.gpu.total), size_text(choice.needs.cpu.total)
    gpu = gpu if found.room.vram else "-"
    return f"  {choice.type:<8} {kv:<10} {longest:>8} {gpu:>10} {ram:>10} {layers:>7} {price:>7}"


def _breakdown(choice: Choice) -> Iterator[str]:
    kv = "/".join(dict.fromkeys(choice.kv))
    yield f"  {choice.type} with a cache of {kv}, {choice.needs.setting.context} tokens"
    yield f"  {'':<8} {'weights':>10} {'cache':>10} {'compute':>10} {'in all':>10}"
    for name, part in (("GPU", choice.needs.gpu), ("RAM", choice.needs.cpu)):
        if part.total:
            sizes = (part.weights, part.kv, part.compute, part.total)
            yield f"  {name:<8} " + " ".join(f"{size_text(each):>10}" for each in sizes)


def _factors(found: Plan) -> Iterator[str]:
    if len(found.factors) < 2:
        return
    yield ""
    yield f"  {'factor':>8} {'context':>9} {'pairs changed':>14} {'magnitude':>10} {'KL inside':>10}"
    for cost in found.factors:
        inside = "-" if cost.inside is None else f"{cost.inside:.2g}"
        pairs = f"{cost.pairs - cost.kept} of {cost.pairs}"
        mark = " ◀" if abs(cost.factor - found.factor) < 1e-9 else ""
        yield f"  {cost.factor:>8.4g} {cost.context:>9} {pairs:>14} {cost.magnitude:>10.4f} {inside:>10}{mark}"


def _verdict(found: Plan) -> str:
    best = found.best
    if best is None:
        longest = f"the longest that fits is {found.longest}" if found.longest else "no context fits at all"
        return f"{found.context} tokens do not fit; {longest}"
    kv = "/".join(dict.fromkeys(best.kv))
    where = ", GPU not used" if best.idle else f", -ngl {best.gpu_layers}" if found.room.vram else ""
    return f"{found.context} tokens fit: {best.type} with a cache of {kv}{where}"


# ---- for a program


def document(found: Plan) -> dict[str, Any]:
    chosen = found.chosen
    return {
        "path": str(found.path),
        "arch": found.shape.arch,
        "context": found.context,
        "original_context": found.original,
        "rope": None if found.now is None else rope_json(found.now, None),
        "vram": found.room.vram,
        "ram": found.room.ram,
        "reserve": found.room.reserve,
        "unified": found.room.unified,
        "weights": chosen.needs.weights,
        "kv": chosen.needs.kv,
        "compute": chosen.needs.compute,
        "total": chosen.needs.total,
        "gpu": _part_json(chosen.needs.gpu),
        "cpu": _part_json(chosen.needs.cpu),
        "layers": [
            {"weights": layer.weights, "kv": kv}
            for layer, kv in zip(found.shape.layers, found.layer_caches, strict=True)
        ],
        "fits": found.fits,
        "longest_context": found.longest,
        "recommendation": None if found.best is None else _recommendation(found.best, found),
        "choices": [_choice_json(choice) for choice in found.choices],
        "factors": [_factor_json(cost) for cost in found.factors],
        "findings": findings_json(found.findings),
    }


def _part_json(part: Part) -> dict[str, int]:
    return {"weights": part.weights, "kv": part.kv, "compute": part.compute, "total": part.total}


def _recommendation(best: Choice, found: Plan) -> dict[str, Any]:
    return {**_choice_json(best), "factor": found.factor, "flags": list(best.flags), "command": found.command}


def _choice_json(choice: Choice) -> dict[str, Any]:
    return {
        "type": choice.type,
        "kv_k": choice.kv[0],
        "kv_v": choice.kv[1],
        "gpu_layers": choice.gpu_layers,
        "gpu_used": choice.needs.setting.gpu,
        "fits": choice.fits,
        "longest_context": choice.longest,
        "kld": choice.price.kld,
        "measured": choice.price.measured,
        "gpu": _part_json(choice.needs.gpu),
        "cpu": _part_json(choice.needs.cpu),
    }


def _factor_json(cost: FactorCost) -> dict[str, Any]:
    return {
        "factor": cost.factor,
        "context": cost.context,
        "pairs": cost.pairs,
        "kept": cost.kept,
        "magnitude": cost.magnitude,
        "kld_inside": cost.inside,
    }
