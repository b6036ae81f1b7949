"""docs/methods.json -> docs/methods.md and its plots. Every figure in the text comes from the JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (256, 512, 1024, 2048)
METHODS = ("none", "linear ×8", "NTK-aware ×8", "NTK-by-parts ×8", "YaRN ×8", "YaRN ×8, fine-tuned")
PLOTS = {"copy": "words copied", "passkey": "keys found", "ppl": "perplexity"}

INTRO = """# What each method does

Made by `scripts/make_methods.py` from [measured figures](methods.json): the demo model of this package (a Llama of two
layers, 1.2 million parameters, trained on texts of 256 tokens), as f32 GGUFs that `yarn-gguf convert` wrote, run by
stock llama.cpp. `yarn-gguf eval` measures the same of any model. A toy with one skill, copying: what holds of how the
methods compare was measured here and is what the paper (arXiv 2309.00071) reports; how large the differences are on a
large model was **not run**.

- **copy**: {lists} lists of 16 words at the beginning of a text, to be repeated at its end, for each of the seeds
  {seeds}; the share of words, mean over the seeds and ± half of the range between them.
- **passkey**: a five-digit key at five depths, {keys} texts each; the share of keys found whole.
- **perplexity**: of the same 2048 tokens, from windows of each length that slide over the text.

All methods have factor 8 at every length, as a file has one factor; what happens when it follows the text is
[below](#a-factor-that-follows-the-text).
"""


def page(found: dict[str, Any]) -> str:
    return "\n".join(_parts(found)) + "\n"


def _parts(found: dict[str, Any]) -> Iterator[str]:
    yield INTRO.format(lists=found["lists"], keys=found["keys"], seeds=", ".join(map(str, found["seeds"])))
    rows = {row["name"]: row for row in found["rows"]}
    shown = [rows[name] for name in METHODS]
    yield "## Copying over a distance\n\n![words copied by length](methods-copy.svg)\n"
    yield from _table(
        ["method", *(f"{n} (×{n // 256})" for n in LENGTHS)], ((row["name"], *_copies(row)) for row in shown)
    )
    if found["bases"]:
        yield "\nThe same of the base model trained again, at 2048 and 1024 tokens:\n"
        names = METHODS[:5]
        yield from _table(["how", *names], (_base_row(base, names) for base in found["bases"]))
    yield "\n## Finding a key\n\n![keys found by length](methods-passkey.svg)\n"
    yield from _table(["method", *map(str, LENGTHS)], ((row["name"], *_keys(row)) for row in shown))
    yield "\n## Perplexity\n\n![perplexity by context](methods-ppl.svg)\n"
    yield from _table(["method", *map(str, LENGTHS)], ((row["name"], *_perplexities(row)) for row in shown))
    yield "\n## A factor that follows the text\n"
    yield (
        "Dynamic YaRN takes the factor that a text needs, length / 256. A GGUF has one factor, so here is one file for "
        "each length:\n"
    )
    yield from _table(["length", "copy", "passkey", "copy with ×8"], _dynamic(rows))
    yield "\n## Beyond what it was fine-tuned for\n"
    yield from _table(["model", "length", "copy", "passkey"], _beyond(rows))
    yield "\n## Types\n"
    types = [rows["YaRN ×8, fine-tuned"], *(rows[f"fine-tuned, {kind}"] for kind in ("f16", "Q8_0", "Q4_K_M"))]
    head = ["fine-tuned ×8, as", "bytes", *(f"copy {n}" for n in LENGTHS), "passkey 2048", "perplexity 2048"]
    yield from _table(head, (_type(row) for row in types))
    yield "\n## Settings that keys cannot say on stock llama.cpp\n"
    yield (
        "At 2048 tokens, ×8 without fine-tuning. KL is to the checkpoint in transformers; a reader of the keys that "
        "takes no notice of these settings computes another model.\n"
    )
    yield from _table(["settings", "written as", "llama.cpp", "mean KL", "copy"], _settings(found))
    if not any(each["runtime"] == "patched" for each in found["settings"]):
        yield "\nWith the patched library: **not run** when this was measured."
    yield "\n## llama.cpp beside transformers\n"
    yield from _table(["f32 GGUF", "predicted tokens", "equal", "mean KL over 2048 tokens"], _agreement(found))
    yield "\n## Where YaRN loses\n"
    yield from _losses(found, rows)


def _table(head: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def scores(row: dict[str, Any], length: int) -> list[float]:
    """Of copying, one per seed."""
    return [each["score"] for each in row["copy"] if each["length"] == length]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def key_score(row: dict[str, Any], length: int) -> float:
    return mean([each["score"] for each in row["passkey"] if each["length"] == length])


def _copies(row: dict[str, Any]) -> Iterator[str]:
    for length in LENGTHS:
        found = scores(row, length)
        yield f"{mean(found):.2f} ± {(max(found) - min(found)) / 2:.2f}"


def _base_row(base: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    rows = {row["name"]: {cell["length"]: cell["score"] for cell in row["copy"]} for row in base["rows"]}
    yield base["how"]
    yield from (f"{rows[name][2048]:.2f}, {rows[name][1024]:.2f}" for name in names)


def _keys(row: dict[str, Any]) -> Iterator[str]:
    return (f"{key_score(row, length):.2f}" for length in LENGTHS)


def _ppl(row: dict[str, Any]) -> dict[int, float]:
    return {each["length"]: each["ppl"] for each in row["ppl"]}


def _perplexities(row: dict[str, Any]) -> Iterator[str]:
    return (f"{_ppl(row)[length]:.3g}" for length in LENGTHS)


def _dynamic(rows: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for length, name in ((256, "none"), (512, "YaRN ×2"), (1024, "YaRN ×4"), (2048, "YaRN ×8")):
        row, fixed = rows[name], rows["YaRN ×8"]
        figures = (mean(scores(row, length)), key_score(row, length), mean(scores(fixed, length)))
        yield (f"{length}, {name}", *(f"{figure:.2f}" for figure in figures))


def _beyond(rows: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, row in rows.items():
        if name.startswith("fine-tuned at"):
            for length in dict.fromkeys(each["length"] for each in row["copy"]):
                yield (name, str(length), f"{mean(scores(row, length)):.2f}", f"{key_score(row, length):.2f}")


def _type(row: dict[str, Any]) -> Iterator[str]:
    yield from (row["type"], f"{row['bytes']:,}")
    yield from (f"{mean(scores(row, length)):.3f}" for length in LENGTHS)
    yield from (f"{key_score(row, 2048):.2f}", f"{_ppl(row)[2048]:.4g}")


def _settings(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for each in found["settings"]:
        yield (each["name"], each["encoding"], each["runtime"], f"{each['kld']:.1e}", f"{each['copy']:.2f}")


def _agreement(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for each in found["agreement"]:
        yield (each["name"], str(each["tokens"]), str(each["equal"]), f"{each['kld']:.1e}")


def _losses(found: dict[str, Any], rows: dict[str, Any]) -> Iterator[str]:
    """Wherever another row of the tables above is better than YaRN ×8 without fine-tuning, by more than the seeds."""
    yarn, lost = rows["YaRN ×8"], []
    for name in METHODS[:4]:
        for length in LENGTHS:
            ours, theirs = scores(yarn, length), scores(rows[name], length)
            if min(theirs) > max(ours) or mean(theirs) > mean(ours) + 0.005:
                lost.append(f"- copying at {length}: {name} {mean(theirs):.3f}, YaRN ×8 {mean(ours):.3f}")
            key, own = key_score(rows[name], length), key_score(yarn, length)
            if key > own:
                lost.append(f"- keys at {length}: {name} {key:.2f}, YaRN ×8 {own:.2f}")
            one, other = _ppl(rows[name])[length], _ppl(yarn)[length]
            if one < other * 0.995:
                lost.append(f"- perplexity at {length}: {name} {one:.3g}, YaRN ×8 {other:.3g}")
    yield "Without fine-tuning, another method at the same factor (or none) is better here:\n"
    yield from lost or ["nowhere in these tables."]
    short = {each["name"]: each["nll"] for each in found["short"]}
    count = found["short"][0]["texts"]
    yield f"\nOn texts of 256 tokens, the context that it was trained for ({count} of them, whole):\n"
    yield from _table(
        ["model", "loss, nats per token", "against the base model"],
        ((name, f"{loss:.4f}", f"{100 * (loss / short['none'] - 1):+.2f} %") for name, loss in short.items()),
    )


CARD = """---
license: mit
language: en
tags: [yarn, rope, long-context, toy]
---

# {title}

A Llama of two layers and 1.2 million parameters that ships with yarn-gguf, to show on real llama.cpp what a longer
context does. It can repeat a list of words, find a five-digit key, and go on with the sentences of a small grammar;
nothing else. Its texts were made by `yarn_gguf/tasks`, none were fetched; its tokenizer is byte-level BPE of 1280
tokens over those texts, cut as Qwen 2 does.

{made}

```sh
python scripts/train_demo.py OUT     # makes it again, with its siblings
```

The run that made it, torch on one thread ({total:.0f} seconds of CPU time in all):

{stages}

## What it can do

In stock llama.cpp, from an f32 GGUF; `docs/methods.md` says how it was measured, and has more.

{figures}

Training is deterministic on one machine and one number of threads (a test trains a little, twice); anything else
rounds otherwise. {again}
"""
MADE = {
    "base": (
        "yarn-gguf demo, base",
        "Trained from nothing on texts of 256 tokens, RoPE base 10000, and never saw a longer one.",
    ),
    "yarn8": (
        "yarn-gguf demo, YaRN ×8",
        "The base model, fine-tuned for 100 steps under YaRN ×8 on texts of 256 tokens (40 %) and of 512 to 2048: the "
        "recipe of the YaRN paper (arXiv 2309.00071).",
    ),
}


def card(found: dict[str, Any], model: str) -> str:
    """The model card of a shipped model."""
    rows = {row["name"]: row for row in found["rows"]}
    names = {"base": ("none", "YaRN ×8"), "yarn8": ("YaRN ×8, fine-tuned",)}[model]
    lines: list[str] = []
    for name in names:
        row = rows[name]
        lines += [f"{'As it is' if name != 'YaRN ×8' else 'With `--factor 8`, no fine-tune'}:", ""]
        figures = (
            (str(n), f"{mean(scores(row, n)):.3f}", f"{key_score(row, n):.2f}", f"{_ppl(row)[n]:.3f}") for n in LENGTHS
        )
        lines += [*_table(["tokens", "copy", "passkey", "perplexity"], figures), ""]
    stages = found["training"][: 5 if model == "yarn8" else 4]  # four of the base model, then one for each fine-tune
    told = ((each["stage"], f"{each['loss']:.3f}", f"{each['cpu_seconds']:.0f}") for each in stages)
    title, made = MADE[model]
    return CARD.format(
        title=title,
        made=made,
        total=sum(each["cpu_seconds"] for each in found["training"][3:]),
        stages="\n".join(_table(["stage", "loss at its end", "CPU seconds so far, of base or fine-tune"], told)),
        figures="\n".join(lines).rstrip(),
        again=_again(found),
    )


def _again(found: dict[str, Any]) -> str:
    """How far the base model, trained again, is from the shipped one in copying under YaRN, at most."""
    if not found["bases"]:
        return "How far a rerun is then from these figures was **not run**."
    rows = {row["name"]: row for row in found["rows"]}
    off = max(
        abs(cell["score"] - scores(rows[row["name"]], cell["length"])[0])
        for base in found["bases"]
        for row in base["rows"]
        if row["name"] in ("none", "YaRN ×8")
        for cell in row["copy"]
    )
    ways = ", ".join(base["how"] for base in found["bases"])
    return (
        f"Trained again ({ways}), the base model copies within {off:.3f} of this at every length, with YaRN ×8 as well."
    )


def plots(found: dict[str, Any], folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {row["name"]: row for row in found["rows"]}
    for kind, label in PLOTS.items():
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for name in METHODS:
            row = rows[name]
            values = {"copy": lambda n, r=row: mean(scores(r, n)), "passkey": lambda n, r=row: key_score(r, n)}
            up = [values[kind](n) if kind in values else _ppl(row)[n] for n in LENGTHS]
            axis.plot(LENGTHS, up, marker="o", ms=4, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
        if kind == "ppl":
            axis.set_yscale("log")
        axis.set(xlabel="tokens", ylabel=label)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
        figure.savefig(folder / f"methods-{kind}.svg", metadata={"Date": None})
