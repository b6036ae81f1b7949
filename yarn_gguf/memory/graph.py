"""The tensors of llama.cpp's compute graph for a batch, in the order in which it computes them.

As src/llama-graph.cpp and src/models/*.cpp of llama.cpp 0c1e57098 build it, for the worst batch that a context
reserves room for: `ubatch` tokens that look at a full cache. A layer's graph follows from the tensors that it has
(norms, biases, experts, a latent); of architectures that do it in another order, the sizes are right and their sum
nearly. Knows sizes only: which are freed when is `allocate`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from yarn_gguf.gguf_file.format import pad
from yarn_gguf.memory.allocate import Tensor
from yarn_gguf.memory.cache import CELLS, QUANTIZED, cells
from yarn_gguf.memory.shape import Layer, Shape


@dataclass(frozen=True, slots=True)
class Batch:
    """How a context is opened, as far as its graph goes."""

    context: int
    ubatch: int = 512
    outputs: int | None = None  # tokens whose logits are wanted; None: all of a batch, as a bare context reserves
    kv: tuple[str, str] = ("f16", "f16")
    flash: bool = True
    swa_full: bool = False

    @property
    def tokens(self) -> int:
        return min(self.ubatch, pad(self.context, CELLS))


@dataclass
class _Inputs:
    """What the caller fills in before the graph is computed; on the CPU."""

    positions: Tensor
    outputs: Tensor
    masks: dict[bool, Tensor]  # by whether they are those of sliding layers
    keys_at: dict[bool, Tensor]
    values_at: dict[bool, Tensor]
    turn_k: Tensor | None  # the rotations before a cache that is quantized
    turn_v: Tensor | None


class Graph:
    """Nodes as they are appended. `place`: where those that come next are computed."""

    def __init__(self, shape: Shape, batch: Batch) -> None:
        self.shape, self.batch, self.n = shape, batch, batch.tokens
        self.place = self.weights_at = 0
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.inputs = self._inputs()
        self.beside: Tensor | None = None  # what each layer gets of the tokens besides the stream

    # ---- what ggml has

    def node(self, extents: tuple[int, ...], *sources: Tensor, width: float = 4, reuses: bool = False) -> Tensor:
        made = Tensor(extents, sources, width=width, place=self.place, reuses=reuses)
        self.nodes.append(made)
        return made

    def view(self, of: Tensor, extents: tuple[int, ...], *, strided: bool = False) -> Tensor:
        made = Tensor(extents, (of,), width=of.width, place=of.place, base=of, strided=strided)
        self.nodes.append(made)
        return made

    def matrix(self, bytes: int) -> Tensor:
        """A weight, where its layer has it."""
        return Tensor((bytes,), width=1, place=self.weights_at, stored=True)

    def multiplied(self, layer: Layer, name: str, x: Tensor, extents: tuple[int, ...]) -> Tensor:
        """`name`.weight times x, and its bias."""
        made = self.node(extents, self.matrix(layer.parts[f"{name}.weight"].bytes), x)
        return self.weighted(made) if f"{name}.bias" in layer.parts else made

    def over(self, x: Tensor, *more: Tensor) -> Tensor:
        """An operation that may write where it reads."""
        return self.node(x.shape, x, *more, reuses=True)

    def pin(self, nodes: list[Tensor]) -> None:
        """Computed where the layer's weights and cache are."""
        for node in nodes:
            node.pinned, node.place = True, self.weights_at

    def weighted(self, x: Tensor) -> Tensor:
        """With a vector of the layer's: a bias, or a norm's scale."""
        return self.over(x, self.matrix(4 * x.shape[0]))

    def norm(self, x: Tensor) -> Tensor:
        return self.weighted(self.over(x))

    # ---- inputs

    def leaf(self, extents: tuple[int, ...], width: float = 4) -> Tensor:
        made = Tensor(extents, width=width)
        self.leaves.append(made)
        return made

    def _inputs(self) -> _Inputs:
        """In the order in which the graph first wants them, which is how they lie."""
        shape, batch, n = self.shape, self.batch, self.n
        self.leaf((n,))  # token ids
        self.leaf((shape.width, n))  # embeddings in their place; reserved, whichever of the two a batch has
        positions = self.leaf((n,))
        turn_k = self.leaf((128, 128)) if batch.kv[0] in QUANTIZED and not shape.latent else None
        turn_v = self.leaf((64, 64)) if batch.kv[1] in QUANTIZED and not shape.latent else None
        keys_at, values_at, masks = {}, {}, {}
        for sliding in dict.fromkeys(layer.sliding for layer in shape.layers if layer.key):
            layer = next(each for each in shape.layers if each.key and each.sliding == sliding)
            room = cells(shape, layer, batch.context, batch.ubatch, swa_full=batch.swa_full)
            keys_at[sliding] = self.leaf((n,), 8)
            if not shape.latent:  # without flash attention values lie turned, and each number has its own place
                values_at[sliding] = self.leaf((n if batch.flash else n * shape.value_largest,), 8)
            masks[sliding] = self.leaf((room, n), 2 if batch.flash else 4)
        outputs = self.leaf((n if batch.outputs is None else min(batch.outputs, n),))
        return _Inputs(positions, outputs, masks, keys_at, values_at, turn_k, turn_v)
