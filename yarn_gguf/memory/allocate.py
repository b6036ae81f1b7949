"""How much memory a compute graph takes: ggml's graph allocator, replayed on the sizes of its tensors.

ggml gives each tensor the smallest hole that holds it, frees it behind its last use, and lets some operations write
where they read. The largest extent that comes of it is the compute buffer. As in ggml-alloc.c and in the scheduler of
ggml-backend.cpp of llama.cpp 0c1e57098, but for several chunks. Knows no model and no operation by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from yarn_gguf.gguf_file.format import pad

ALIGNMENT: Final = 128  # of a tensor in a buffer; CUDA's, and four times the CPU's
ENDLESS: Final = 1 << 62


class Tensor:
    """A tensor of a graph. `place`: the device that computes it, 0 the CPU; a `pinned` one has it from its weight or
    its cache, of the others the scheduler decides.

    `base` is what a view looks at, with gaps between its rows where it is `strided`; a `stored` one (a weight, the
    cache) lies in a buffer of its own, and what reads it is computed there where it `pins`, as weights do.
    """

    __slots__ = (
        "address",
        "allocated",
        "base",
        "children",
        "pinned",
        "pins",
        "place",
        "reuses",
        "shape",
        "size",
        "sources",
        "stored",
        "strided",
        "views",
        "width",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        sources: tuple[Tensor, ...] = (),
        *,
        width: float = 4,
        place: int = 0,
        reuses: bool = False,
        base: Tensor | None = None,
        stored: bool = False,
        strided: bool = False,
        pins: bool = True,
    ) -> None:
        count = 1
        for extent in shape:
            count *= extent
        self.shape, self.sources, self.width = shape, sources, width
        self.size = int(count * width)
        self.place, self.reuses, self.stored, self.strided = place, reuses, stored, strided
        self.pins = stored and pins
        self.pinned = any(source.pins for source in sources) or (base is not None and base.stored)
        self.base: Tensor | None = None if base is None else base.base or base
        self.children = self.views = 0
        self.allocated, self.address = False, 0

    def keep(self) -> None:
        """It is read after the graph, so nobody gets its memory."""
        self.children += 1


# what is copied, by its identity and the device, with itself, lest another one gets its identity
_Copies = dict[tuple[int, int], tuple[Tensor, Tensor]]


class Heap:
    """The buffer of one device: holes by address, the last one endless."""

    def __init__(self) -> None:
        self.holes: list[list[int]] = [[0, ENDLESS]]
        self.extent = 0

    def take(self, size: int) -> int:
        size = pad(size, ALIGNMENT)
        fitting = [hole for hole in self.holes[:-1] if hole[1] >= size]
        hole = min(reversed(fitting), key=lambda each: each[1]) if fitting else self.holes[-1]
        address = hole[0]
        hole[0] += size
        hole[1] -= size
        if not hole[1]:
            self.holes.remove(hole)
        self.extent = max(self.extent, address + size)
        return address

    def give(self, address: int, size: int) -> None:
        size = pad(size, ALIGNMENT)
        if not size:
            return
        at = next((i for i, hole in enumerate(self.holes) if hole[0] >= address), len(self.holes))
        self.holes.insert(at, [address, size])
        self._join(at)
        self._join(at - 1)

    def _join(self, at: int) -> None:
        """One hole of two that touch."""
        if at < 0 or at + 1 >= len(self.holes):
            return
        hole, following = self.holes[at], self.holes[at + 1]
        if hole[0] + hole[1] == following[0]:
            hole[1] += following[1]
            del self.holes[at + 1]


def extents(leaves: Sequence[Tensor], nodes: Sequence[Tensor], places: int) -> list[int]:
    """Bytes of the compute buffer of each device. `leaves`: the inputs; `nodes`: in the order of computing."""
    schedule(nodes)
    order = with_copies(nodes)
    heaps = [Heap() for _ in range(places)]
    for leaf in leaves:
        _allocate(leaf, heaps)
    for node in order:
        if node.base is not None:
            node.base.views += 1
        for source in node.sources:
            source.children += 1
    for node in order:
        _allocate(node, heaps)
        for source in node.sources:
            source.children -= 1
            _release(source, heaps)
    return [heap.extent for heap in heaps]


def schedule(nodes: Sequence[Tensor]) -> None:
    """Gives every node that has no weight a place: a GPU's neighbours go with it, up to the next that has one."""
    own = [node for node in nodes if node.base is None or node.base.stored]
    known = {id(node) for node in own if node.pinned}
    for order, gpu_only in ((own, True), (own[::-1], True), (own, False), (own[::-1], False)):
        place: int | None = None
        for node in order:
            if id(node) in known:
                place = None if gpu_only and not node.place else node.place
            elif place is not None:
                node.place = place
                known.add(id(node))
    for node in nodes:
        if node.base is not None and not node.base.stored:
            node.place = node.base.place


def with_copies(nodes: Sequence[Tensor]) -> list[Tensor]:
    """The nodes with what crosses from one device to another copied, once, at the start of the run that wants it."""
    copies: _Copies = {}
    order: list[Tensor] = []
    for run in _runs(nodes):
        made: list[Tensor] = []
        for node in run:
            node.sources = tuple(_here(source, node.place, copies, made) for source in node.sources)
        order += (*made, *run)
    return order


def _runs(nodes: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Nodes of one device. One that wants a weight from elsewhere begins anew, so that its copy can be freed before."""
    run: list[Tensor] = []
    place, copied = None, False
    for node in nodes:
        if node.base is not None and not node.base.stored:
            run.append(node)
            continue
        foreign = any(source.pins and source.place != node.place for source in node.sources)
        if run and place is not None and (node.place != place or (foreign and copied)):
            yield run
            run, copied = [], False
        place = node.place
        copied = copied or any(source.place != node.place for source in node.sources)
        run.append(node)
    yield run


def _here(source: Tensor, place: int, copies: _Copies, made: list[Tensor]) -> Tensor:
    """The source, or its copy on a device. Of a view with gaps all that it spans is copied."""
    if source.place == place:
        return source
    key = (id(source), place)
    if key not in copies:
        known = () if source.stored else (source,)
        whole = source.base if source.strided and source.base is not None else source
        copies[key] = (source, Tensor(whole.shape, known, width=whole.width, place=place))
        made.append(copies[key][1])
    return copies[key][1]


def _allocate(node: Tensor, heaps: list[Heap]) -> None:
    if node.allocated or node.stored or node.base is not None:
        return
    node.allocated = True
    if node.reuses and any(_reused(node, source, heaps) for source in node.sources):
        return
    node.address = heaps[node.place].take(node.size)


def _reused(node: Tensor, source: Tensor, heaps: list[Heap]) -> bool:
    """Whether the node has taken the memory of a source that nobody else wants any more."""
    owner = source.base or source
    if owner.stored or source.shape != node.shape or source.place != node.place or source.width != node.width:
        return False
    if source.children != 1 or source.views or source.strided:
        return False
    if source.base is not None and (owner.views != 1 or owner.children):
        return False
    if not owner.allocated:
        return False
    node.address, owner.allocated = owner.address, False
    kept, whole = pad(node.size, ALIGNMENT), pad(owner.size, ALIGNMENT)
    heaps[node.place].give(node.address + kept, whole - kept)
    return True


def _release(source: Tensor, heaps: list[Heap]) -> None:
    if source.children or source.views:
        return
    owner = source.base
    if owner is None:
        _free(source, heaps)
        return
    owner.views -= 1
    if not owner.views and not owner.children:
        _free(owner, heaps)


def _free(tensor: Tensor, heaps: list[Heap]) -> None:
    if tensor.allocated and not tensor.stored:
        heaps[tensor.place].give(tensor.address, tensor.size)
        tensor.allocated = False
