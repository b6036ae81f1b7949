"""The magnitude of YaRN's cos and sin, multiplied into the weights that make queries and keys.

llama.cpp's context shift turns cached keys once more and so multiplies them by the magnitude once more. With the
magnitude in the weights, cos and sin have none, and a shift is a turn and nothing else. What is multiplied: the weights
of QK norms where the graph has them before RoPE, else the projections with their biases; of each head only what turns;
only the layers that YaRN scales. `WAYS` says where that is, by llama.cpp's architecture. Rows are counted as in the
checkpoint: whatever rearranges them comes after. Knows no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from yarn_gguf.archs.tensors import Planned
from yarn_gguf.archs.transforms import as_numbers
from yarn_gguf.checkpoint.weights import Weight
from yarn_gguf.checkpoint_ropes import MeantRopes
from yarn_gguf.config.hyperparameters import Hyperparameters
from yarn_gguf.conversion.file import Blueprint
from yarn_gguf.effective import TOLERANCE, LayerRope, Runtime, Tensors, compare, layer_ropes
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.gguf_file.format import TENSOR_TYPES, ValueType
from yarn_gguf.gguf_file.header import entry
from yarn_gguf.metadata import ATTN_FACTOR, ORIGINAL, TYPE, Changes, read_facts
from yarn_gguf.provenance import FOLDED
from yarn_gguf.rope import Yarn, yarn_magnitude

Array = np.ndarray[Any, Any]
# (sizes, how many dimensions of a head turn, rows of the weight) -> which rows turn
Turning: TypeAlias = Callable[[Hyperparameters, int, int], Array]
Way: TypeAlias = tuple[tuple[str, Turning], ...]  # tensors that hold both sides of the scores
# type -> the largest mean KL to the same file without folding that was measured, without and with experts
ROUNDING: Final = {"BF16": (7e-4, 3e-2), "F16": (1e-5, 6e-4), "Q8_0": (2.5e-3, 3e-2)}
CLAMP: Final = "clip_qkv"  # queries and keys are cut off at this, after what could be multiplied


def _heads(h: Hyperparameters, dim: int, rows: int) -> Array:
    """The first of each head: what transformers turns, in halves or in neighbours."""
    return np.arange(rows) % h.size("head_dim") < dim


def _whole(h: Hyperparameters, dim: int, rows: int) -> Array:
    return np.ones(rows, bool)


def _by_head(h: Hyperparameters, dim: int, rows: int) -> Array:
    """Query, key and value of each head together."""
    return _heads(h, dim, rows) & (np.arange(rows) // h.size("head_dim") % 3 < 2)


def _by_group(h: Hyperparameters, dim: int, rows: int) -> Array:
    """The queries that share a key, their key, their value."""
    queries = h.size("heads") // h.size("kv_heads")
    return _heads(h, dim, rows) & (np.arange(rows) // h.size("head_dim") % (queries + 2) <= queries)


def _latent_queries(h: Hyperparameters, dim: int, rows: int) -> Array:
    """The last of each head."""
    return np.arange(rows) % h.size("qk_nope_head_dim+qk_rope_head_dim") >= h.size("qk_nope_head_dim")


def _latent_keys(h: Hyperparameters, dim: int, rows: int) -> Array:
    """The one key that all heads share stands behind the short vector."""
    return np.arange(rows) >= h.size("kv_lora_rank")


_PROJECTED: Final[Way] = (("attn_q", _heads), ("attn_k", _heads))
_NORMED: Final[Way] = (("attn_q_norm", _heads), ("attn_k_norm", _heads))
_NORMED_WHOLE: Final[Way] = (("attn_q_norm", _whole), ("attn_k_norm", _whole))  # a matrix, and nothing but heads turns
_LATENT: Final[tuple[Way, ...]] = tuple(
    ((name, _latent_queries), ("attn_kv_a_mqa", _latent_keys)) for name in ("attn_q_b", "attn_q")
)
_PROJECTED_ARCHS: Final = """
    arcee chatglm cohere2 ernie4_5 ernie4_5-moe gemma gemma2 glm4 gpt-oss granite granite_swa granitemoe jais2 llama
    mistral3 nemotron olmo phi2 qwen2 qwen2moe seed_oss smollm3 starcoder2
"""
_NORMED_ARCHS: Final = """
    afmoe apertus dots1 exaone-moe exaone4 gemma3 hy_v3 laguna lfm2 mellum minimax-m2 olmo2 olmoe qwen3 qwen3moe
"""
# of several ways the first whose tensors the model has
WAYS: Final[dict[str, tuple[Way, ...]]] = {
    **dict.fromkeys(_PROJECTED_ARCHS.split(), (_PROJECTED,)),
    **dict.fromkeys(_NORMED_ARCHS.split(), (_NORMED,)),
    **dict.fromkeys(("glm4moe", "stablelm"), (_NORMED, _PROJECTED)),
    "command-r": (_NORMED_WHOLE, _PROJECTED),
    "gptneox": ((("attn_qkv", _by_head),),),
    "falcon": ((("attn_qkv", _by_group),),),
    **dict.fromkeys(("deepseek2", "mistral4", "minicpm3"), _LATENT),
}


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """A weight whose rows are multiplied, each by its own number; float32, so that only the encoder rounds."""

    weight: Weight
    factors: Array  # float32, one for each entry of the first axis

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def stored(self) -> None:
        return None

    @property
    def how(self) -> str:
        """For --dry-run."""
        some = "" if (self.factors != 1).all() else "some rows "
        return f"{some}×{float(self.factors[np.abs(self.factors - 1).argmax()]):.6g}"

    def read(self, begin: int, end: int) -> Array:
        factors = self.factors[begin:end].reshape(-1, *(1,) * (len(self.shape) - 1))
        return np.multiply(as_numbers(self.weight, begin, end), factors, dtype=np.float32)


@dataclass(frozen=True)
class Fold:
    """What was done: the tensors, and the RoPE that is left to be written with them."""

    meant: MeantRopes
    tensors: tuple[Planned, ...]
    magnitude: float  # what the weights are multiplied by; 1: nothing was done
    layers: frozenset[int]
    findings: tuple[Finding, ...]
    changed: frozenset[str] = frozenset()  # the names of tensors that are multiplied


def unfolded(meant: MeantRopes, tensors: Sequence[Planned]) -> Fold:
    return Fold(meant, tuple(tensors), 1.0, frozenset(), ())


def roundings(fold: Fold, tensors: Sequence[Planned]) -> Iterator[Finding]:
    """What the types of the multiplied tensors cost, where that was measured."""
    experts = any("_exps." in tensor.name for tensor in tensors)
    kinds = {TENSOR_TYPES[tensor.type].name for tensor in tensors if tensor.name in fold.changed}
    for kind in sorted(kinds & ROUNDING.keys()):
        kl = ROUNDING[kind][experts]
        what = "small models with experts" if experts else "small models"
        text = f"folding rounds these weights in {kind.lower()}: mean KL of up to {kl:g}, measured on {what}"
        yield note("folding_rounds", f"{text}; exact in f32")


def fold_magnitude(arch: str, h: Hyperparameters, meant: MeantRopes, tensors: Sequence[Planned]) -> Fold:
    """The magnitude in the weights, and a RoPE without it; refused where that cannot be."""
    whole = meant.main.magnitude
    scaled = [each for each in meant.layers if each.rope is not None and each.magnitude == whole]
    scaling = meant.intent.rope.scaling
    if math.isclose(whole, 1.0, rel_tol=TOLERANCE):
        text = "cos and sin have a magnitude of 1: there is nothing to fold, and a context shift is exact"
        return replace(unfolded(meant, tensors), findings=(note("nothing_folded", text),))
    if not isinstance(scaling, Yarn):
        raise _refused(h, f"the magnitude of {meant.intent.method} cannot be folded into weights, only that of YaRN")
    if not whole > 0:
        raise _refused(h, f"a magnitude of {whole:g} in the weights would take all that queries and keys say")
    _check_graph(arch, h)
    left = _left_to_cos(meant, scaling)
    factor = whole / left
    if math.isclose(factor, 1.0, rel_tol=TOLERANCE):
        text = "its sliding layers stay unscaled, and llama.cpp's context shift would multiply their keys instead"
        raise _refused(h, f"--fold-magnitude cannot make a context shift exact here: {text}")
    layers = frozenset(i for each in scaled for i in each.layers)
    folded = tuple(_folded(arch, h, meant, tensors, factor, layers))
    changed = frozenset(new.name for old, new in zip(tensors, folded, strict=True) if new is not old)
    findings = tuple(_findings(len(changed), factor, left))
    return Fold(_without(meant, scaling, left, factor), folded, factor, layers, findings, changed)


def _check_graph(arch: str, h: Hyperparameters) -> None:
    if arch not in WAYS:
        raise _refused(h, f"where llama.cpp's {arch} graph could take a folded magnitude is not known")
    if h.get(CLAMP) is not None:
        raise _refused(h, f"its {CLAMP} cuts off queries and keys after the place where a magnitude could be folded in")


def _refused(h: Hyperparameters, text: str) -> InputError:
    return InputError(f"{text}; convert without --fold-magnitude", file=h.config.path.parent, code="not_foldable")


def _left_to_cos(meant: MeantRopes, yarn: Yarn) -> float:
    """1; but where some layers stay unscaled, what llama.cpp gives the others by itself: its key is for all layers."""
    unscaled = [each for each in meant.layers if each.rope is not None and each.magnitude != meant.main.magnitude]
    return yarn_magnitude(yarn.factor) if unscaled else 1.0


def _without(meant: MeantRopes, yarn: Yarn, left: float, factor: float) -> MeantRopes:
    """The same RoPE, with `left` of its magnitude."""

    def less(each: LayerRope) -> LayerRope:
        own = each.rope is not None and each.magnitude == meant.main.magnitude
        return replace(each, magnitude=each.magnitude / factor) if own else each

    rope = replace(meant.intent.rope, scaling=replace(yarn, attention_factor=left))
    layers = tuple(map(less, meant.layers))
    return replace(meant, intent=replace(meant.intent, rope=rope), layers=layers, main=less(meant.main))


def _folded(
    arch: str, h: Hyperparameters, meant: MeantRopes, tensors: Sequence[Planned], factor: float, layers: frozenset[int]
) -> Iterator[Planned]:
    """The tensors, those of queries and keys multiplied in these layers and in the ones beyond the model."""
    stems = {match[0] for tensor in tensors if (match := re.match(r"blk\.\d+\.\w+", tensor.name))}
    turned = {i: each.rope.dim for each in meant.layers if each.rope is not None for i in each.layers}
    for tensor in tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", tensor.name)
        layer = int(match[1]) if match else -1
        if match is None or not (layer in layers or layer >= h.config.layers):
            yield tensor
            continue
        turning = dict(_way(arch, h, layer, stems)).get(match[2])
        rope = meant.main.rope
        dim = turned.get(layer, 0 if rope is None else rope.dim)
        yield tensor if turning is None else _multiplied(tensor, h, dim, factor, turning)


def _way(arch: str, h: Hyperparameters, layer: int, stems: set[str]) -> Way:
    for way in WAYS[arch]:
        if all(f"blk.{layer}.{name}" in stems for name, _ in way):
            return way
    if layer >= h.config.layers:
        return ()
    raise _refused(h, f"layer {layer} has none of the tensors that a magnitude could be folded into")


def _multiplied(tensor: Planned, h: Hyperparameters, dim: int, factor: float, turning: Turning) -> Planned:
    def scaled(weight: Weight) -> Weight:
        rows = turning(h, dim, weight.shape[0])
        return Scaled(weight, np.where(rows, np.float32(factor), np.float32(1)))

    parts = (replace(part, weights=tuple(map(scaled, part.weights))) for part in tensor.parts)
    return replace(tensor, parts=tuple(parts))


def _findings(changed: int, factor: float, left: float) -> Iterator[Finding]:
    text = f"a magnitude of {factor:.6g} is in {changed} tensors of queries and keys"
    yield note("folded", f"{text}: cos and sin have {left:.6g}" + (", a context shift is exact" if left == 1 else ""))
    if left != 1:
        text = "its sliding layers stay unscaled, which llama.cpp's key for the magnitude does not know"
        yield warning("context_shift", f"{text}: a context shift still multiplies cached keys by {left:.6g}")


def with_mark(base: Blueprint, fold: Fold) -> Blueprint:
    """The unscaled model with the fold said; and undone by a magnitude of 1/M, where llama.cpp's graph has it.

    Where it has not, the file has no unscaled settings to go back to, and `extend --restore` refuses it.
    """
    if fold.magnitude == 1:
        return base
    mark = entry(FOLDED, ValueType.FLOAT64, fold.magnitude)
    marked = replace(base, entries={**base.entries, FOLDED: mark})
    facts = read_facts(base.model)
    # with a magnitude but no factor, the context that a later scaling starts from must be said
    original = facts.original_context or facts.context_length
    undo = Changes({TYPE: "none", ATTN_FACTOR: 1 / fold.magnitude, ORIGINAL: original})
    undone = replace(marked, entries=undo.apply(facts.arch, marked.entries))
    return undone if _undoes(marked, undone, fold) else marked


def _undoes(marked: Blueprint, undone: Blueprint, fold: Fold) -> bool:
    tensors = Tensors(marked.rope_freqs)
    plain, found = (layer_ropes(read_facts(each.model), tensors, Runtime.STOCK) for each in (marked, undone))

    def wanted(each: LayerRope) -> LayerRope:
        within = each.rope is not None and fold.layers.issuperset(each.layers)
        return replace(each, magnitude=each.magnitude / fold.magnitude) if within else each

    return compare(tuple(map(wanted, plain)), found, fold.meant.intent.context).exact
