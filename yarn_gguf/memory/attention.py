"""The part of a layer in which tokens look at each other: the tensors of it, in llama.cpp's order.

Plain, grouped and fused projections; sliding layers by their masks; MLA with its projections absorbed into the queries,
or with keys and values expanded. Knows the tensors that a layer has, and no architecture.
"""

from __future__ import annotations

from yarn_gguf.memory.allocate import Tensor
from yarn_gguf.memory.cache import cells, row_bytes
from yarn_gguf.memory.graph import Graph
from yarn_gguf.memory.shape import Layer


def attention(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    if g.shape.latent:
        return latent_attention(g, layer, x)
    heads, heads_kv, n = layer.heads, layer.heads_kv, g.n
    sizes = ((heads, layer.head_key), (heads_kv, layer.head_key), (heads_kv, layer.head_value))
    if layer.has("attn_kv_b"):
        q, *rest = expanded(g, layer, x)
    else:
        q, *rest = fused(g, layer, x, sizes) if layer.has("attn_qkv") else separate(g, layer, x, sizes)
        q = turned(g, layer, "attn_q_norm", q)
    if g.inputs.turn_k is not None:
        q = rotated(g, q, g.inputs.turn_k)
    if layer.key:  # else it looks at what another layer has stored
        remember(g, layer, rest)
    made = scores(g, layer, q, layer.head_value)
    if g.inputs.turn_v is not None:
        made = rotated(g, made, g.inputs.turn_v)
    flat = g.view(made, (heads * layer.head_value, n))
    name = "attn_output" if layer.has("attn_output") else "attn_out"
    return g.multiplied(layer, name, flat, (g.shape.width, n)) if layer.has(name) else flat


def remember(g: Graph, layer: Layer, pair: list[Tensor]) -> None:
    """Keys and values, into the cache."""
    k, v = pair
    if not layer.has("attn_kv_b"):
        k = turned(g, layer, "attn_k_norm", k)
    if g.inputs.turn_k is not None:
        k = rotated(g, k, g.inputs.turn_k)
    if g.inputs.turn_v is not None:
        v = rotated(g, v, g.inputs.turn_v)
    stored(g, k, g.inputs.keys_at[layer.sliding])
    if layer.sliding in g.inputs.values_at:
        stored(g, v, g.inputs.values_at[layer.sliding])


def separate(g: Graph, layer: Layer, x: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    found: list[Tensor] = []
    names = ("attn_q", "attn_k", "attn_v") if layer.key else ("attn_q",)
    for name, (heads, dims) in zip(names, sizes, strict=False):
        if not layer.has(name):  # values that are the keys
            found.append(found[-1])
            continue
        made = g.multiplied(layer, name, x, (layer.rows(name), g.n))
        found.append(g.view(made, (dims, heads, g.n)))
    return found


def fused(g: Graph, layer: Layer, x: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    whole = g.multiplied(layer, "attn_qkv", x, (layer.rows("attn_qkv"), g.n))
    return [g.view(whole, (dims, heads, g.n), strided=True) for heads, dims in sizes]


def turned(g: Graph, layer: Layer, norm: str, x: Tensor) -> Tensor:
    """RoPE, behind a norm where there is one."""
    return g.over(g.norm(x) if layer.has(norm) else x, g.inputs.positions)


def rotated(g: Graph, x: Tensor, turn: Tensor) -> Tensor:
    """Hadamard's rotation, before what is quantized."""
    rows = g.view(x, (turn.shape[0], x.size // (4 * turn.shape[0])))
    return g.view(g.node(rows.shape, turn, rows), x.shape)


def stored(g: Graph, x: Tensor, at: Tensor) -> None:
    """Into the cache, which has its place."""
    cache = Tensor((1,), place=g.weights_at, stored=True, pins=False)
    rows = g.view(x, (x.size // 4,), strided=x.strided)
    made = Tensor(x.shape, (rows, at, cache), place=g.weights_at, base=cache)
    g.nodes.append(made)


def scores(g: Graph, layer: Layer, q: Tensor, value: int) -> Tensor:
    """Queries held against all keys, and the values weighted so: heads · value numbers for each token."""
    heads, n, mask = layer.heads, g.n, g.inputs.masks[layer.sliding]
    kept, sinks = cached(g, layer), [g.matrix(4 * heads)] if layer.has("attn_sinks") else []
    first = len(g.nodes)
    if g.batch.flash:
        made = g.node((value, heads, n), q, *kept, mask, *sinks)
    else:
        found = g.node((mask.shape[0], n, heads), *kept[:1], q)
        for _ in range(3 if g.shape.soft_cap else 0):
            found = g.over(found)
        found = g.over(found, mask, *sinks)
        made = g.node((value, n, heads), *kept[1:], found)
        made = made if g.shape.latent else g.node((value * heads, n), made)
    if g.shape.recurrent:  # a state's bookkeeping comes next in the graph, and keeps a GPU away from what is before it
        g.pin(g.nodes[first:])
    return made


def cached(g: Graph, layer: Layer) -> list[Tensor]:
    """The layer's keys and values, of which a device that is not theirs needs a copy."""
    room = cells(g.shape, layer, g.batch.context, g.batch.ubatch, swa_full=g.batch.swa_full)
    pairs = zip((layer.key, layer.value), g.batch.kv, strict=True)
    sizes = [room * row_bytes(numbers, kind) for numbers, kind in pairs if numbers]
    sizes += sizes if g.shape.latent else []  # as keys, and once more as values
    return [Tensor((size,), width=1, place=g.weights_at, stored=True, pins=False) for size in sizes]


def latent_attention(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    """MLA with its projections absorbed: every head looks at one latent."""
    heads, n, latent = layer.heads, g.n, g.shape.latent
    turned = layer.key - latent
    q = latent_queries(g, layer, x)
    content = g.view(q, (q.shape[0] - turned, heads, n), strided=True)
    absorbed = g.node((latent, n, heads), g.matrix(layer.parts["attn_k_b.weight"].bytes), content)
    place = g.over(g.view(q, (turned, heads, n), strided=True), g.inputs.positions)
    whole = g.node((layer.key, heads, n), absorbed, place)
    latent_k, k_place = compressed(g, layer, x, latent)
    k = g.node((layer.key, 1, n), latent_k, k_place)
    stored(g, k, g.inputs.keys_at[layer.sliding])
    made = scores(g, layer, whole, latent)
    value = layer.parts["attn_output.weight"].dims[0] // heads
    made = g.node((value, n, heads), g.matrix(layer.parts["attn_v_b.weight"].bytes), made)
    flat = g.node((value * heads, n), made)
    return g.multiplied(layer, "attn_output", flat, (g.shape.width, n))


def latent_queries(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    if layer.has("attn_q_a"):
        x = g.norm(g.multiplied(layer, "attn_q_a", x, (layer.rows("attn_q_a"), g.n)))
    name = "attn_q_b" if layer.has("attn_q_b") else "attn_q"
    q = g.multiplied(layer, name, x, (layer.rows(name), g.n))
    return g.view(q, (q.shape[0] // layer.heads, layer.heads, g.n))


def compressed(g: Graph, layer: Layer, x: Tensor, latent: int) -> tuple[Tensor, Tensor]:
    """The latent, and the part of the keys that is turned and that all heads share."""
    down = g.multiplied(layer, "attn_kv_a_mqa", x, (layer.rows("attn_kv_a_mqa"), g.n))
    place = g.view(down, (down.shape[0] - latent, 1, g.n), strided=True)
    place = g.over(place, g.inputs.positions)
    return g.norm(g.view(down, (latent, g.n), strided=True)), place


def expanded(g: Graph, layer: Layer, x: Tensor) -> list[Tensor]:
    """MLA with keys and values of their own for each head, which the cache then has as well."""
    heads, n, latent = layer.heads, g.n, layer.parts["attn_kv_b.weight"].dims[0]
    q = g.over(latent_queries(g, layer, x), g.inputs.positions)
    latent_kv, place = compressed(g, layer, x, latent)
    both = g.multiplied(layer, "attn_kv_b", latent_kv, (layer.rows("attn_kv_b"), n))
    v = g.node((layer.head_value, heads, n), g.view(both, (layer.head_value, heads, n), strided=True))
    content = g.view(both, (layer.head_key - place.shape[0], heads, n), strided=True)
    k = g.node((layer.head_key, heads, n), content, g.node((place.shape[0], heads, n), place))
    return [q, k, v]
