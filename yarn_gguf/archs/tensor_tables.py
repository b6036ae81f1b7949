"""The language in which `archs` says what a checkpoint's tensors are called and what becomes of them.

A table has one line per GGUF tensor:

    SOURCE  TARGET  SHAPE  [transform]  [?condition]

    self_attn.q_proj.weight                       attn_q.weight          heads*head_dim,hidden   permute
    mlp.experts.{num_experts}.up_proj.weight      ffn_up_exps.weight     moe_intermediate_size,hidden
    self_attn.q_proj.bias                         attn_q.bias            heads*head_dim          ?attention_bias

SHAPE is that of the checkpoint's tensor, an axis a product of config fields (`heads[i]`: the layer's own);
a scalar counts as `1`. `{field}` in a source stands for as many tensors as the field says, stacked; `{k}` counts the
layers beyond the model, which predict further tokens. `a&b` are two tensors that are read in step. A target of `-` is
checked and left out. Knows the language, no architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from yarn_gguf.config.hyperparameters import Hyperparameters

Where: TypeAlias = Callable[[Hyperparameters, int], bool]
Size: TypeAlias = Callable[[Hyperparameters], int]
LISTS: Final = {"heads": "num_attention_heads_per_layer"}  # sizes that a file may list by layer
LAYER: Final = "model.layers.{i}."
_ENTRY: Final = re.compile(r"(\w+)\[i\]")


@dataclass(frozen=True, slots=True)
class Line:
    sources: tuple[str, ...]
    target: str
    shape: tuple[str, ...]
    transform: str = ""
    condition: str = ""

    def at(self, h: Hyperparameters, i: int) -> Line:
        """As it is for this layer; `{i}` stays."""
        beyond = str(i - h.config.layers)
        shape = tuple(_ENTRY.sub(lambda match: str(size_at(h, match[1], i)), axis) for axis in self.shape)
        return replace(self, sources=tuple(source.replace("{k}", beyond) for source in self.sources), shape=shape)


def size_at(h: Hyperparameters, name: str, i: int) -> int:
    """A size that may differ from layer to layer: the file's list if it has one, else the one size of all."""
    entries = h.config.raw.get(LISTS[name])
    if entries is None:
        return h.size(name)
    if not isinstance(entries, list) or len(entries) != h.config.layers or not isinstance(entries[i], int):
        raise h.fail(f"{LISTS[name]} is no list of {h.config.layers} whole numbers")
    return int(entries[i])


def further_layers(h: Hyperparameters) -> int:
    """Layers behind the model's own, with which further tokens can be predicted."""
    return h.size("num_nextn_predict_layers") if h.get("num_nextn_predict_layers") is not None else 0


def is_further(h: Hyperparameters, i: int) -> bool:
    return i >= h.config.layers


@dataclass(frozen=True, slots=True)
class Group:
    """Lines for the whole model, or for every layer that `where` picks; `{i}` is the layer's number."""

    lines: tuple[Line, ...]
    per_layer: bool = False
    where: Where | None = None
    reaches_further: bool = False  # to the layers beyond the model too
    sizes: tuple[tuple[str, Size], ...] = ()  # axes that take more than arithmetic, by their names in the lines

    def sized(self, **sizes: Size) -> Group:
        return replace(self, sizes=tuple(sizes.items()))

    def on(self, where: Where) -> Group:
        return replace(self, where=where)

    def but(self, **transforms: str) -> Group:
        """With other transforms, by the target's name without `.weight`."""
        changed = (replace(line, transform=transforms.get(_stem(line.target), line.transform)) for line in self.lines)
        return replace(self, lines=tuple(changed))

    def without(self, *targets: str) -> Group:
        return replace(self, lines=tuple(line for line in self.lines if _stem(line.target) not in targets))

    def given(self, condition: str) -> Group:
        return replace(self, lines=tuple(replace(line, condition=condition) for line in self.lines))

    def further(self) -> Group:
        """For the layers beyond the model too."""
        return replace(self, reaches_further=True)

    def beyond(self, prefix: str = "") -> Group:
        """For the layers beyond the model only, which may have names of their own in the checkpoint."""
        lines = [replace(line, sources=tuple(_moved(source, prefix) for source in line.sources)) for line in self.lines]
        return replace(self, lines=tuple(lines), where=is_further, reaches_further=True)

    def each(self, h: Hyperparameters) -> Iterator[tuple[Line, int]]:
        """Every line that this model has, with the layer that it is for (0 where it is for the whole model)."""
        sizes = {name: str(size(h)) for name, size in self.sizes}
        lines = [replace(line, shape=tuple(sizes.get(axis, axis) for axis in line.shape)) for line in self.lines]
        for i in self.layers(h):
            if self.where is None or self.where(h, i):
                yield from ((line.at(h, i), i) for line in lines if not line.condition or h.has(line.condition))

    def layers(self, h: Hyperparameters) -> Iterable[int]:
        if not self.per_layer:
            return range(1)
        return range(h.config.layers + (further_layers(h) if self.reaches_further else 0))


@dataclass(frozen=True, slots=True)
class Choice:
    """Ways in which a checkpoint may hold the same; the first whose first tensor is there is taken."""

    groups: tuple[Group, ...]

    def on(self, where: Where) -> Choice:
        return Choice(tuple(group.on(where) for group in self.groups))

    def further(self) -> Choice:
        return Choice(tuple(group.further() for group in self.groups))


def _moved(source: str, prefix: str) -> str:
    return prefix + source.removeprefix(LAYER) if prefix else source


def _stem(target: str) -> str:
    """`blk.{i}.attn_q.weight` -> `attn_q`"""
    return target.removeprefix("blk.{i}.").removesuffix(".weight")


def model(text: str, prefix: str = "model.") -> Group:
    """A table of the tensors that a model has once; a source that starts with `/` has no prefix."""
    return Group(_lines(text, prefix, ""))


def layer(text: str, prefix: str = LAYER) -> Group:
    """A table of the tensors that each layer has."""
    return Group(_lines(text, prefix, "blk.{i}."), per_layer=True)


def _lines(text: str, prefix: str, target_prefix: str) -> tuple[Line, ...]:
    return tuple(_line(line.split(), prefix, target_prefix) for line in text.splitlines() if line.split())


def _line(words: list[str], prefix: str, target_prefix: str) -> Line:
    condition = next((word[1:] for word in words if word.startswith("?")), "")
    source, target, shape, *rest = [word for word in words if not word.startswith("?")]
    sources = tuple(each[1:] if each.startswith("/") else prefix + each for each in source.split("&"))
    full = target if target == "-" else target_prefix + target
    return Line(sources, full, tuple(shape.split(",")), rest[0] if rest else "", condition)
