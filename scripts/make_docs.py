"""Writes what the docs take from the code: docs/cli.md from `--help`, docs/exactness.md from the table of graphs.

python scripts/make_docs.py            # write them
python scripts/make_docs.py --check    # exit 1 where one is stale
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from yarn_gguf.archs import ARCHITECTURES
from yarn_gguf.cli import cli
from yarn_gguf.effective import Tensors
from yarn_gguf.encoding import Encoded, encode
from yarn_gguf.errors import YarnGgufError
from yarn_gguf.files import Stamp
from yarn_gguf.gguf_file.format import F32, ValueType
from yarn_gguf.gguf_file.header import Entry, Header, TensorInfo, array_entry, entry
from yarn_gguf.gguf_file.shards import Model
from yarn_gguf.gguf_intent import own_intent
from yarn_gguf.graphs import GRAPHS, LLAMA_CPP, TESTED, Graph, Magnitude, Pattern, RopeFreqs, Sliding, SlidingBase
from yarn_gguf.intent import RopeOptions, resolve
from yarn_gguf.metadata import read_facts

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH = 100
SETTINGS = {
    "YaRN, defaults": RopeOptions(factor=8),
    "betas": RopeOptions(factor=8, beta_fast=6, beta_slow=2),
    "no truncate": RopeOptions(factor=8, truncate=False),
    "attention factor": RopeOptions(factor=8, attention_factor=1.0),
    "linear": RopeOptions(factor=8, method="linear"),
    "NTK-aware": RopeOptions(factor=8, method="ntk"),
    "NTK-by-parts": RopeOptions(factor=8, method="ntk-by-parts"),
}


def cli_page() -> str:
    """Every command's help, as the terminal shows it at 100 columns."""
    parts = ["# Command line\n\nMade from `--help`; `make docs` writes it anew.\n"]
    settings = {**cli.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    for path, command in _commands(cli, ["yarn-gguf"]):
        context = click.Context(command, info_name=" ".join(path), **settings)
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child, [*path, name])


def sample_model(graph: Graph) -> Model:
    """The header of a model of this architecture that exists nowhere: 32 layers, heads of 128, context 4096."""
    layers = 32
    numbers = {
        "block_count": layers,
        "context_length": 4096,
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.sliding_window": 1024,
    }
    entries: dict[str, Entry] = {
        "general.architecture": entry("general.architecture", ValueType.STRING, graph.arch),
        **{f"{graph.arch}.{k}": entry(f"{graph.arch}.{k}", ValueType.UINT32, v) for k, v in numbers.items()},
    }
    if graph.windows is not None and graph.windows.pattern is Pattern.REQUIRED:
        key = f"{graph.arch}.attention.sliding_window_pattern"
        entries[key] = array_entry(key, ValueType.BOOL, [i % 6 != 5 for i in range(layers)])
    tensors = {"token_embd.weight": TensorInfo("token_embd.weight", (4096, 32), F32, 0)}
    return Model((Header(Path(f"{graph.arch}.gguf"), 3, entries, tensors, 32, 0, Stamp(0, 0, 0)),))


def exactness_page() -> str:
    """One row per architecture: how each kind of setting can be written so that stock llama.cpp computes it."""
    head = f"""# What each architecture can do exactly

Made from the table in `yarn_gguf/graphs.py` by `make docs`, for llama.cpp {LLAMA_CPP}. For every architecture that it
knows: whether an extended GGUF makes **stock** llama.cpp compute these settings, and by which encoding (`--encoding
auto` picks it).

- **keys**: exact with the standard keys. **baked**: exact with `rope_freqs.weight`.
- **patched**: not on stock, but exact with standard keys on the llama.cpp that `yarn-gguf build` makes
  ([what its patches mend](llama-cpp.md)); `tests/test_patched.py` holds it for betas on every row with a test, and for
  truncate false on gpt-oss and Qwen 3.
- **no**: on neither, for the reason in the last column. **–**: the architecture has no RoPE that could be scaled.

Without another reason in the last column: almost no loader reads the betas or knows truncate false, so those need
`rope_freqs.weight`; and where that is not an option, the loader refuses a file that holds one.

Settings: factor 8, betas 6/2, truncate false, attention factor 1. *Test*: a logits test of ours holds the row on a toy
model against transformers (`tests/test_exactness.py`); a row without one is read in llama.cpp's source and **not run**.

| architecture | {" | ".join(SETTINGS)} | test | why |
| --- | {" | ".join("---" for _ in SETTINGS)} | --- | --- |
"""
    return head + "".join(_exactness_row(graph) for graph in GRAPHS.values())


def architectures_page() -> str:
    """Which classes of transformers `convert` has a row for, and what they become."""
    rows: dict[str, list[str]] = {}
    for name, row in ARCHITECTURES.items():
        rows.setdefault(row.arch, []).append(name)
    head = f"""# Architectures that `convert` knows

Made from the table in `yarn_gguf/archs` by `make docs`: {len({id(row) for row in ARCHITECTURES.values()})} rows, by
the class that config.json names (and, behind a slash, its model type). For each but InternLM3, a toy model of random
weights is compared with what llama.cpp's own converter makes of it, tensor by tensor and byte by byte, and its logits
in llama.cpp with those of transformers; InternLM3 shares LLaMA's graph and tensors and has no toy: **not run**.

| llama.cpp | classes |
| --- | --- |
"""
    return head + "".join(f"| {arch} | {', '.join(names)} |\n" for arch, names in sorted(rows.items()))


def _exactness_row(graph: Graph) -> str:
    model = sample_model(graph)
    cells = [_verdict(model, options) for options in SETTINGS.values()]
    test = "yes" if graph.arch in TESTED else "not run"
    return f"| {graph.arch} | {' | '.join(cells)} | {test} | {_reason(graph)} |\n"


def _reason(graph: Graph) -> str:
    """The note of the row, and what follows from its fields."""
    found = [graph.note] if graph.note else []
    plain = graph.sliding in (Sliding.UNSCALED, Sliding.PLAIN)
    if graph.sliding is Sliding.UNSCALED:
        found.append("Sliding layers stay unscaled but take `attn_factor`.")
    if plain and graph.windows is not None and graph.windows.base is SlidingBase.FULL:
        found.append("Sliding layers share the base, so NTK-aware scaling would change them.")
    if graph.rope_freqs is RopeFreqs.IGNORED:
        found.append("Loads `rope_freqs.weight` and does not use it.")
    if graph.beta_keys:
        found.append("Reads the betas.")
    return " ".join([*found, *_MAGNITUDES.get(graph.magnitude, ())])


def _verdict(model: Model, options: RopeOptions) -> str:
    tensors = Tensors()
    try:
        facts = read_facts(model)
        intent = resolve(own_intent(model, facts, tensors), options).intent
        found: Encoded = encode(model, facts, tensors, intent, "auto", typed=False)
    except YarnGgufError as error:
        if error.code in ("no_rope", "other_kind"):
            return "–"
        raise
    return found.encoding if found.stock.exact else "patched" if found.patched.exact else "no"


_MAGNITUDES: dict[Magnitude, tuple[str, ...]] = {
    Magnitude.ONE: ("Cos and sin are multiplied by 1, whatever the keys say.",),
    Magnitude.NORMED: ("q and k are normalised after RoPE, so the magnitude cancels.",),
    Magnitude.GLM_DSA: ("The softmax scale is multiplied by the square of the magnitude as well.",),
    Magnitude.DEEPSEEK2: ("The softmax scale follows the keys too; `yarn_log_multiplier` sets it right.",),
    Magnitude.MISTRAL4: ("The softmax scale follows the keys too; `yarn_log_multiplier` sets it right.",),
}


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "exactness.md": exactness_page,
    "architectures.md": architectures_page,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a page is stale")
    check = parser.parse_args().check
    stale = [name for name, make in PAGES.items() if not _is(DOCS / name, make())]
    for name in stale:
        if not check:
            (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"docs/{name} {'is stale; run `make docs`' if check else 'written'}")
    return int(check and bool(stale))


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
