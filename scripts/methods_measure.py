"""The measurements of docs/methods.md: GGUFs that the command line writes and llama.cpp reads, as values for JSON."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

from yarn_gguf import __version__
from yarn_gguf.demo import DEPTHS, LENGTHS, demo_model
from yarn_gguf.errors import YarnGgufError
from yarn_gguf.evaluate import Sliding, perplexity, predicted, prompts
from yarn_gguf.evaluation import Job, evaluate
from yarn_gguf.intent import RopeOptions
from yarn_gguf.models import Opening, open_model
from yarn_gguf.tasks.prompts import TASKS
from yarn_gguf.tasks.text import Mix, document
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verify import verify

SEEDS = (0, 1, 2)
LISTS = 8  # per length and seed
KEYS = 2  # per length and depth
SHORT = 64  # texts of the original context
COUNT = 2048  # tokens whose perplexity is taken
LONGEST = LENGTHS[-1]


@dataclass(frozen=True)
class Row:
    """A file: what it is made of, and at which lengths it is read."""

    name: str
    model: str = "base"
    rope: RopeOptions = field(default_factory=RopeOptions)
    lengths: tuple[int, ...] = LENGTHS
    type: str = "f32"
    seeds: tuple[int, ...] = SEEDS


def _scaled(method: Any, factor: float, **more: Any) -> RopeOptions:
    return RopeOptions(method=method, factor=float(factor), **more)


METHODS = (
    Row("none"),
    Row("linear ×8", rope=_scaled("linear", 8)),
    Row("NTK-aware ×8", rope=_scaled("ntk", 8)),
    Row("NTK-by-parts ×8", rope=_scaled("ntk-by-parts", 8)),
    Row("YaRN ×8", rope=_scaled("yarn", 8)),
    Row("YaRN ×8, fine-tuned", "yarn8"),
)
DYNAMIC = (
    Row("YaRN ×2", rope=_scaled("yarn", 2), lengths=(512,)),
    Row("YaRN ×4", rope=_scaled("yarn", 4), lengths=(1024,)),
)
SIXTEEN = Row("fine-tuned at ×8, run at ×16", "yarn8", _scaled("yarn", 16), (LONGEST, 2 * LONGEST))
TRANSFER = (
    Row("fine-tuned at ×4", "yarn4", lengths=(1024, LONGEST)),
    Row("fine-tuned at ×4, run at ×8", "yarn4", _scaled("yarn", 8), (1024, LONGEST)),
)
TYPES = tuple(Row(f"fine-tuned, {kind}", "yarn8", type=kind, seeds=SEEDS[:1]) for kind in ("f16", "Q8_0", "Q4_K_M"))
SETTINGS = (
    Row("betas 16/2", rope=_scaled("yarn", 8, beta_fast=16.0, beta_slow=2.0), lengths=(LONGEST,)),
    Row("truncate false", rope=_scaled("yarn", 8, truncate=False), lengths=(LONGEST,)),
)


def measure(yarn4: Path | None) -> dict[str, Any]:
    """Everything but `measure_bases`. `yarn4`: the fine-tune at ×4, which is not shipped."""
    folders = {name: demo_model(name) for name in ("base", "yarn8")}
    rows = [*METHODS, *DYNAMIC, SIXTEEN, *TYPES]
    if yarn4 is not None:
        folders["yarn4"] = yarn4
        rows += TRANSFER
    with tempfile.TemporaryDirectory() as temporary:
        made = _Made(folders, Path(temporary))
        found: dict[str, Any] = {"version": __version__, "lists": LISTS, "keys": KEYS, "seeds": list(SEEDS)}
        found["rows"] = [_measured(row, made.file(row)) for row in rows]
        found["agreement"] = [_agreement(row, made) for row in (METHODS[4], METHODS[5])]
        found["settings"] = [each for row in SETTINGS for each in _settings(row, made)]
        found["short"] = [_short(row, made) for row in (METHODS[0], METHODS[4], METHODS[5])]
    return {**found, "bases": []}


def measure_bases(bases: dict[str, Path]) -> list[dict[str, Any]]:
    """Copying of models like `base` that were trained again, by how."""
    with tempfile.TemporaryDirectory() as temporary:
        return [_other_base(how, path, Path(temporary)) for how, path in bases.items()]


@dataclass(frozen=True)
class _Made:
    """GGUFs by what they are made of."""

    folders: dict[str, Path]
    folder: Path

    def file(self, row: Row, *more: str) -> Path:
        words = "-".join([row.model, *_words(row.rope), row.type, *more]).replace("/", "_")
        out = self.folder / f"{words}.gguf"
        if not out.exists():
            if row.type.startswith("Q"):
                whole = self.file(Row(row.name, row.model, row.rope))
                _command("quantize", whole, row.type, "-o", out)
            else:
                _command("convert", self.folders[row.model], "-o", out, "--outtype", row.type, *_words(row.rope), *more)
        return out


def _words(rope: RopeOptions) -> Iterator[str]:
    """The options as they are typed."""
    for each in fields(rope):
        value, name = getattr(rope, each.name), each.name.replace("_", "-")
        if value is False:
            yield f"--no-{name}"
        elif value is not None:
            yield from (f"--{name}", str(value))


def _command(*arguments: str | Path) -> None:
    words = [sys.executable, "-m", "yarn_gguf", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{done.stderr}")


def _measured(row: Row, path: Path) -> dict[str, Any]:
    print(row.name, flush=True)
    copies = [cell for seed in row.seeds for cell in _results(path, Job("copy", row.lengths, (0.0,), LISTS, seed))]
    keys = _results(path, Job("passkey", row.lengths, DEPTHS, KEYS))
    texts = _results(path, Job("ppl", LENGTHS, count=COUNT)) if row.lengths == LENGTHS else ()
    return {
        "name": row.name,
        "model": row.model,
        "options": list(_words(row.rope)),
        "type": row.type,
        "bytes": path.stat().st_size,
        "copy": [
            {"seed": seed, "length": cell.length, "score": cell.score}
            for seed, cell in zip([seed for seed in row.seeds for _ in row.lengths], copies, strict=True)
        ],
        "passkey": [{"length": cell.length, "depth": cell.depth, "score": cell.score} for cell in keys],
        "ppl": [{"length": each.length, "ppl": each.ppl, "nll": each.nll} for each in texts],
    }


def _results(path: Path, job: Job, library: Path | None = None) -> Sequence[Any]:
    _, done = evaluate([path], Opening(LONGEST, threads=1, library=library), job)
    return done[0].results


def _short(row: Row, made: _Made) -> dict[str, Any]:
    """Loss on texts of the original context, each whole and from its beginning."""
    with open_model(made.file(row), Opening(LENGTHS[0] + 8, threads=1)) as session:
        losses = []
        for number in range(SHORT):
            text = session.tokenize(document(Random(f"short {number}"), LENGTHS[0], Mix()), add_special=False)
            losses.append(perplexity(session, text, LENGTHS[0], Sliding(0, LENGTHS[0] - 2, LENGTHS[0] - 2)).nll)
    return {"name": row.name, "texts": SHORT, "nll": sum(losses) / len(losses)}


def _agreement(row: Row, made: _Made) -> dict[str, Any]:
    """The f32 file in llama.cpp beside the checkpoint in transformers: tokens, and the divergence over 2048 tokens."""
    print(f"agreement: {row.name}", flush=True)
    gguf, folder, context = made.file(row), made.folders[row.model], LONGEST + 8
    equal = total = 0
    with (
        open_model(gguf, Opening(context, threads=1)) as ours,
        open_model(folder, Opening(context, threads=1, rope=row.rope)) as theirs,
    ):
        for name in ("copy", "passkey"):
            job = Job(name, (LENGTHS[0], LONGEST), (0.0, 0.5), 2)
            for length, depth in ((length, depth) for length in job.lengths for depth in job.depths):
                for prompt in prompts(ours, TASKS[name], job.grid, length, depth):
                    same = predicted(ours, prompt) == predicted(theirs, prompt)
                    equal, total = equal + int(same.sum()), total + len(same)
    return {"name": row.name, "tokens": total, "equal": equal, "kld": _kld(row, gguf, made, None)}


def _kld(row: Row, gguf: Path, made: _Made, library: Path | None) -> float:
    """Mean KL to the checkpoint over 2048 tokens."""
    text = made.folder / "text.txt"
    text.write_text(document(Random(1), 2 * LONGEST, Mix()), encoding="utf-8")
    report = verify(
        made.folders[row.model], [gguf], Wanted(context=LONGEST, text=text, rope=row.rope, library=library, noise=0)
    )
    return report.candidates[0].summary.kld.mean


def _settings(row: Row, made: _Made) -> Iterator[dict[str, Any]]:
    """Settings that stock llama.cpp does not read from the keys: in keys and baked, on stock and patched libraries."""
    print(f"settings: {row.name}", flush=True)
    ways = [("baked", "stock", None)]
    patched = _patched()
    if patched is not None:
        ways += [("keys", "stock", None), ("keys", "patched", patched)]
    for encoding, runtime, library in ways:
        more = ("--encoding", encoding, *(("--force",) if encoding == "keys" else ()))
        gguf = made.file(row, *more)
        cells = _results(gguf, Job("copy", row.lengths, (0.0,), LISTS), library)
        kld = _kld(row, gguf, made, library)
        yield {"name": row.name, "encoding": encoding, "runtime": runtime, "kld": kld, "copy": cells[0].score}


def _patched() -> Path | None:
    try:
        from yarn_gguf.llamacpp.libraries import library_folder

        return library_folder("patched")
    except (ImportError, YarnGgufError):
        return None


def _other_base(how: str, model: Path, folder: Path) -> dict[str, Any]:
    print(f"base: {how}", flush=True)
    other = _Made({"base": model}, folder / str(len(list(folder.iterdir()))))
    other.folder.mkdir()
    rows = []
    for row in METHODS[:5]:
        cells = _results(other.file(row), Job("copy", LENGTHS, (0.0,), LISTS))
        rows.append({"name": row.name, "copy": [{"length": c.length, "score": c.score} for c in cells]})
    return {"how": how, "rows": rows}
