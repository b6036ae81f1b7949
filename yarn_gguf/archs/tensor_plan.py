"""A row of `archs` and the weights of a checkpoint -> the plan: every GGUF tensor, or all that is wrong at once.

The tables say what must be there, in which shape; what is there and in no table is an error too, so nothing is left out
unseen. Opens nothing: weights are values that can be read later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from yarn_gguf.archs import Row
from yarn_gguf.archs.tensor_tables import Choice, Group, Line
from yarn_gguf.archs.tensors import Part, Planned
from yarn_gguf.archs.transforms import REARRANGEMENTS, Added, Rows
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.errors import InputError
from yarn_gguf.gguf_file.format import TENSOR_TYPES

NUMBERS: Final = {kind.name: number for number, kind in TENSOR_TYPES.items()}
MOST_MISSING: Final = 10_000  # from here on nobody needs to know them all
LISTED: Final = 12  # of each kind of fault, in one line
MXFP4: Final = "MXFP4"
# what has the same name in every architecture and stays float32, besides vectors and norms, in upstream's converter
_FLOAT32: Final = re.compile(r".*\.(ffn_gate_inp|ffn_gate_inp_shexp|shortconv\.conv)\.weight")
_BUFFERS: Final = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")  # that older checkpoints hold
_TOWERS: Final = ("vision", "visual", "audio", "projector", "image_newline", "vit.", "patch_embed")
_COUNT: Final = re.compile(r"\{(\w+)\}")
STEP: Final = 1 << 22  # numbers compared at a time
HEAD: Final = "lm_head.weight"
EMBEDDING: Final = "model.embed_tokens.weight"


def tensor_type(name: str, shape: Sequence[int], wanted: int) -> int:
    """Upstream's rule: vectors, norms, routers and what is no weight stay float32."""
    stays = len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight")
    if stays or _FLOAT32.fullmatch(name):
        return NUMBERS["F32"]
    row, block = shape[-1], TENSOR_TYPES[wanted].block
    return wanted if row % block == 0 else NUMBERS["F16"]


def plan_tensors(row: Row, h: Hyperparameters, weights: Mapping[str, Weight], wanted: int) -> tuple[Planned, ...]:
    """All tensors in the order of the model's layers. `wanted` is the type of the matrices."""
    named = {name: weight for name, weight in _named(h, weights).items() if not row.left_out(h, name)}
    planner = _Planner(h, named, wanted)
    planned = [each for line, layer in _lines(row, h, planner.weights) for each in planner.planned(line, layer)]
    planner.refuse_faults()
    order = {"token_embd.weight": -1, "output_norm.weight": 1 << 30, "output.weight": 1 << 31}
    return tuple(sorted(planned, key=lambda each: order.get(each.name, _layer_of(each.name))))


def _layer_of(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else 1 << 29


def _named(h: Hyperparameters, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The language model's tensors, by the names that they have where there is nothing else in the checkpoint."""
    nested = any("language_model." in name for name in weights)
    found = {}
    for name, weight in weights.items():
        if name.endswith(_BUFFERS) or (nested and any(part in name for part in _TOWERS)):
            continue
        plain = name.replace("language_model.model.", "model.").replace("language_model.", "")
        found[plain if nested else name] = weight
    return found


def _lines(row: Row, h: Hyperparameters, weights: Mapping[str, Weight]) -> Iterator[tuple[Line, int]]:
    for item in row.tensors:
        groups = item.groups if isinstance(item, Choice) else (item,)
        fitting = [group for group in groups if _is_there(group, h, weights)]
        yield from (fitting or groups)[0].each(h)


def _is_there(group: Group, h: Hyperparameters, weights: Mapping[str, Weight]) -> bool:
    """Whether the first tensor of a group is in the checkpoint."""
    for line, i in group.each(h):
        names = _expanded(line.sources[0], i, h, len(weights))
        return bool(names) and names[0] in weights
    return True


def _expanded(source: str, layer: int, h: Hyperparameters, most: int) -> list[str]:
    """The names that a source of a table stands for, where the checkpoint can have as many tensors."""
    name = source.replace("{i}", str(layer))
    match = _COUNT.search(name)
    if match is None:
        return [name]
    count = h.size(match[1])
    if count > most:
        raise h.fail(f"{match[1]} is {count}, but the checkpoint has {most} tensors in all")
    return [name[: match.start()] + str(n) + name[match.end() :] for n in range(count)]


@dataclass
class _Planner:
    """Collects what is wrong, so that all of it can be said at once."""

    h: Hyperparameters
    weights: Mapping[str, Weight]
    wanted: int
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def planned(self, line: Line, layer: int) -> Iterator[Planned]:
        columns = [_expanded(source, layer, self.h, len(self.weights)) for source in line.sources]
        shape = tuple(self.h.size(axis) for axis in line.shape)
        steps = [
            [self.weight(name, shape, first=i == 0) for i, name in enumerate(row)] for row in zip(*columns, strict=True)
        ]
        if line.target == "-" or not steps or any(weight is None for step in steps for weight in step):
            return
        known = [tuple(weight for weight in step if weight is not None) for step in steps]
        stacked = (len(steps),) if _COUNT.search(line.sources[0].replace("{i}", "")) else ()
        shape, parts = self.parts(line, known, shape)
        name, full = line.target.replace("{i}", str(layer)), (*stacked, *shape)
        kind = NUMBERS[MXFP4] if line.transform.startswith("mxfp4") else tensor_type(name, full, self.wanted)
        yield Planned(name, full, kind, parts)

    def parts(
        self, line: Line, steps: list[tuple[Weight, ...]], shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[Part, ...]]:
        """The result's shape (of one of several that are stacked), and its parts."""
        word, _, argument = line.transform.partition(":")
        if word == "+1":
            return shape, tuple(Part((Added(step[0], 1.0),)) for step in steps)
        if word == "rows":  # rows:FIRST:COUNT, in sizes
            first, count = (self.h.size(each) for each in argument.split(":"))
            return (count, *shape[1:]), tuple(Part((Rows(step[0], first, count),)) for step in steps)
        if not word:
            return shape, tuple(Part(step) for step in steps)
        result, transforms = REARRANGEMENTS[word](self.h, shape)
        return result, tuple(Part(step, transform) for step in steps for transform in transforms)

    def weight(self, name: str, shape: tuple[int, ...], *, first: bool) -> Weight | None:
        """The checkpoint's tensor, if it is there in the shape that it must have."""
        self.used.add(name)
        weight = self.weights.get(name)
        if weight is None:
            self.missing.append(name)
            if len(self.missing) > MOST_MISSING:
                self.refuse_faults()
        elif first and weight.shape != shape:
            self.misshapen.append(f"{name} is {_text(weight.shape)}, {_text(shape)} expected")
            return None
        return weight

    def refuse_faults(self) -> None:
        unknown = [name for name in self.weights if name not in self.used and not self.is_tied_head(name)]
        faults = (("missing", self.missing), ("of another shape", self.misshapen), ("unknown", unknown))
        texts = [f"{len(names)} {what}: {_listed(names)}" for what, names in faults if names]
        if texts:
            text = f"tensors do not fit config.json: {'; '.join(texts)}"
            raise InputError(text, file=self.h.config.path.parent, code="tensors_mismatch")

    def is_tied_head(self, name: str) -> bool:
        """A head beside an embedding that is said to be the same: `check_tied_head` sees whether it is."""
        return name == HEAD and self.h.tied


def check_tied_head(h: Hyperparameters, weights: Mapping[str, Weight]) -> None:
    """A head that is stored although the embedding serves as the head must equal it: which is meant is not guessed."""
    named = _named(h, weights)
    head, embedding = named.get(HEAD), named.get(EMBEDDING)
    if not h.tied or head is None or embedding is None:
        return
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    rows = max(1, STEP // max(1, math.prod(head.shape[1:])))
    for begin in range(0, head.shape[0], rows) if same else ():
        end = min(begin + rows, head.shape[0])
        same = same and bool((head.read(begin, end) == embedding.read(begin, end)).all())
    if not same:
        text = f"config.json ties {HEAD} to the embedding, but it differs from it; correct tie_word_embeddings"
        raise InputError(text, file=h.config.path.parent, code="tied_head")


def _text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
