"""A layer of a model, and a whole one: the tensors of the graph in llama.cpp's order, and the buffers that they take.

As src/models/*.cpp build it, for what the layer's own tensors say of it (norms, biases, experts); of architectures that
do it in another order, the sizes are right and their sum nearly. Layers with a state are known roughly.
"""

from __future__ import annotations

from yarn_gguf.memory.allocate import Tensor, extents
from yarn_gguf.memory.attention import attention
from yarn_gguf.memory.graph import Batch, Graph
from yarn_gguf.memory.shape import Layer, Shape

# whose graph lets go of tokens without wanted logits behind the last layer, not in it; what all tokens have is kept,
# for a head that foretells further ones (behind the layers it lies where something else was, and needs no more)
PICKED_BEHIND_LAYERS = frozenset(("gpt-oss", "mimo2", "step35"))
PICKED_BEHIND_NORM = frozenset(
    ("gemma4", "qwen3next", "qwen35", "qwen35moe", "bailingmoe3", "nemotron_h", "nemotron_h_moe", "hy_v3", "cohere2moe")
)
REPEATED = 3  # of layers that are all alike, so many show what the rest take


def layer(g: Graph, layer: Layer, x: Tensor, *, last: bool) -> Tensor:
    """What the layer makes of the stream `x`."""
    parallel = not (layer.has("ffn_norm") or layer.has("post_attention_norm"))
    normed = g.norm(x) if layer.has("attn_norm") else x
    made = mixture(g, layer, normed)
    if last:
        made, x = picked(g, made), picked(g, x)
        normed = picked(g, normed) if parallel else normed
    post = layer.has("post_attention_norm") and (layer.has("ffn_norm") or layer.has("post_ffw_norm"))
    if post:
        made = g.norm(made)
    if parallel:
        return g.over(g.over(feed_forward(g, layer, normed), made), x)
    stream = g.over(made, x)
    before = g.norm(stream) if layer.has("ffn_norm") or not post else stream
    after = feed_forward(g, layer, before)
    if layer.has("post_ffw_norm"):
        after = g.norm(after)
    return reminded(g, layer, g.over(after, stream))


def reminded(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    """With what the layer gets of the tokens themselves, where it gets anything."""
    if g.beside is None or not layer.has("inp_gate"):
        return x
    small = layer.rows("inp_gate")
    gate = g.over(g.multiplied(layer, "inp_gate", x, (small, x.shape[-1])))
    made = g.over(gate, g.view(g.beside, (small, x.shape[-1]), strided=True))
    return g.over(x, g.norm(g.multiplied(layer, "proj", made, x.shape)))


def embedded(g: Graph, x: Tensor) -> Tensor:
    """What all layers get of the tokens, looked up and made of the stream."""
    extents = (g.shape.per_layer, g.n)
    looked_up = g.over(g.node(extents, g.matrix(0), g.leaf((g.n,))))
    made = g.norm(g.over(g.node(extents, g.matrix(0), x)))
    return g.node(extents, g.over(made, looked_up))


def mixture(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    """What tokens learn of each other: by attention, by a state, by both; of a layer without either, `x`."""
    made = x
    if layer.attends and (layer.key or not layer.state):
        made = attention(g, layer, x)
    if layer.state:
        other = mixed(g, layer, x)
        made = other if made is x else g.over(made, other)
    return made


def picked(g: Graph, x: Tensor) -> Tensor:
    """The tokens whose logits are wanted."""
    outputs = g.inputs.outputs
    return g.node((x.shape[0], outputs.shape[0]), x, outputs)


def convolved(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    """A short convolution between two gates."""
    width, n = g.shape.width, x.shape[-1]
    whole = g.multiplied(layer, "shortconv.in_proj", x, (3 * width, n))
    first, gate, second = (g.view(whole, (width, n), strided=True) for _ in range(3))
    gated = g.node((width, n), first, second)
    back = layer.parts["shortconv.conv.weight"].dims[0] - 1
    joined = g.node((n + back, width), g.node((back * width,)), gated)
    made = g.over(g.node((width, n), joined), gate)
    return g.multiplied(layer, "shortconv.out_proj", made, (width, n))


def mixed(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    """A layer with a state. Three streams as wide as its widest matrix stand for its inner steps."""
    if layer.has("shortconv.in_proj"):
        return convolved(g, layer, x)
    own = (part.dims[1] for name, part in layer.parts.items() if len(part.dims) == 2 and name[:3] != "ffn")
    widest = max(own, default=g.shape.width)
    n = x.shape[-1]
    inner = g.node((widest, n), x)
    joined = g.node((widest, n), inner)
    made = g.node((widest, n), joined, inner)
    state = Tensor((layer.state // 4,), place=g.weights_at, stored=True, pins=False)
    return g.node((g.shape.width, n), made, state)


def feed_forward(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    if not layer.has("ffn_gate_inp"):
        return dense(g, layer, x)
    made = experts(g, layer, x)
    for beside in ("_shexp", ""):  # experts that every token has, or a whole network
        if layer.has(f"ffn_up{beside}"):
            made = g.over(made, dense(g, layer, x, beside))
    return made


def dense(g: Graph, layer: Layer, x: Tensor, suffix: str = "") -> Tensor:
    n, up, gate, down = x.shape[-1], f"ffn_up{suffix}", f"ffn_gate{suffix}", f"ffn_down{suffix}"
    inner = layer.parts[f"{down}.weight"].dims[0] if layer.has(down) else 0
    if not inner:
        return g.over(x)
    if layer.has(gate):
        first = g.multiplied(layer, gate, x, (inner, n))
        made = g.node((inner, n), first, g.multiplied(layer, up, x, (inner, n)))
    else:
        made = g.multiplied(layer, up, x, (layer.rows(up), n))
        made = g.over(made) if layer.rows(up) == inner else g.node((inner, n), made)
    return g.multiplied(layer, down, made, (g.shape.width, n))


def experts(g: Graph, layer: Layer, x: Tensor) -> Tensor:
    n, used, width = x.shape[-1], max(g.shape.experts_used, 1), g.shape.width
    count = layer.rows("ffn_gate_inp")
    logits = g.multiplied(layer, "ffn_gate_inp", x, (count, n))
    chances = g.over(logits)
    biased = g.weighted(chances) if "exp_probs_b.bias" in layer.parts else chances
    sorted_ = g.node((count, n), biased)
    chosen = g.view(sorted_, (used, n), strided=True)
    weights = g.node((1, used, n), g.view(chances, (1, count, n)), chosen)
    flat = g.view(weights, (used, n))
    weights = g.view(g.over(flat, g.over(g.node((1, n), flat))), (1, used, n))
    rows = g.view(x, (width, 1, n))
    inner = layer.parts["ffn_down_exps.weight"].dims[0]
    if layer.has("ffn_gate_up_exps"):
        both = each(g, layer, "ffn_gate_up_exps", rows, chosen, 2 * inner)
        halves = [g.view(both, (inner, used, n), strided=True) for _ in range(2)]
    else:
        names = [name for name in ("ffn_gate_exps", "ffn_up_exps") if layer.has(name)]
        halves = [each(g, layer, name, rows, chosen, inner) for name in names]
    made = g.node((inner, used, n), *halves) if len(halves) > 1 else g.over(halves[0])
    out = g.over(each(g, layer, "ffn_down_exps", made, chosen, width), weights)
    views = [g.view(out, (width, n), strided=True) for _ in range(used)]
    total = views[0]
    for view in views[1:]:
        total = g.node((width, n), total, view, reuses=True)
    return total if used > 1 else g.node((width, n), total)


def each(g: Graph, layer: Layer, name: str, x: Tensor, chosen: Tensor, rows: int) -> Tensor:
    """Of each token, the chosen experts' rows."""
    weight = g.matrix(layer.parts[f"{name}.weight"].bytes)
    made = g.node((rows, chosen.shape[0], x.shape[-1]), weight, x, chosen)
    bias = layer.parts.get(f"{name}.bias")
    return made if bias is None else g.over(made, chosen, g.matrix(bias.bytes))


def compute_bytes(shape: Shape, batch: Batch, gpu_layers: int, *, offload_ops: bool = False) -> tuple[int, int]:
    """The compute buffers of the CPU and of a GPU; `gpu_layers` as llama.cpp counts them: the head, then the last ones.

    `offload_ops`: the GPU also computes what belongs to the CPU's layers, whose weights are copied to it in turn, as
    CUDA, Vulkan and Metal do it for batches of 32 and more.
    """
    graph, count = Graph(shape, batch), len(shape.layers)
    x = graph.node((shape.width, graph.n), graph.matrix(0), graph.leaves[0])
    graph.beside = embedded(graph, x) if shape.per_layer else None
    for number in _representative(shape, count + 1 - gpu_layers):
        graph.weights_at = int(number > count - gpu_layers)
        graph.place = int(offload_ops) or graph.weights_at
        early = number == count - 1 and shape.arch not in PICKED_BEHIND_LAYERS | PICKED_BEHIND_NORM
        x = layer(graph, shape.layers[number], x, last=early)
    graph.weights_at = int(gpu_layers > 0)
    graph.place = int(offload_ops) or graph.weights_at
    if shape.arch in PICKED_BEHIND_LAYERS:
        x = picked(graph, x)
    final = graph.norm(x)
    if shape.arch in PICKED_BEHIND_NORM:
        final.keep()
        final = picked(graph, final)
    final.keep()
    logits = graph.node((shape.vocabulary, final.shape[-1]), graph.matrix(shape.tied or shape.output), final)
    if shape.logit_cap:
        graph.over(graph.over(graph.over(logits)))
    cpu, gpu = extents(graph.leaves, graph.nodes, 2)
    return cpu, gpu


def _representative(shape: Shape, first_gpu: int) -> list[int]:
    """The first few layers of each kind on each device, and the last one, in their order."""
    seen: dict[tuple[object, ...], int] = {}
    chosen = []
    for number, layer in enumerate(shape.layers):
        key = (number >= first_gpu, *layer.kind)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= REPEATED or number == len(shape.layers) - 1:
            chosen.append(number)
    return chosen
