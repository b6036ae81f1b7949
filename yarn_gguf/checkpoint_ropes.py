"""What transformers computes for every kind of layer of a checkpoint: its own settings, or options laid over them.

The one notion of what a checkpoint is meant to be: `inspect` shows it, `convert` is held to it. Knows config.json
through `model_config`, and nothing of GGUF keys or graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from yarn_gguf.config.model_config import Kind, ModelConfig
from yarn_gguf.effective import LayerClass, LayerRope
from yarn_gguf.errors import InputError, about
from yarn_gguf.intent import Intent, RopeOptions, resolve
from yarn_gguf.rope import Rope, Unscaled, Yarn, yarn_magnitude

KINDS: Final[dict[Kind | None, LayerClass]] = {
    "full": LayerClass.FULL,
    "sliding": LayerClass.SLIDING,
    None: LayerClass.NONE,
}
# transformers 5.23's classes that multiply the softmax scale by g(s, mscale_all_dim)², under every type but the default
SCORED: Final = frozenset(("deepseek_v2", "deepseek_v3", "mistral4", "minicpm3"))


@dataclass(frozen=True)
class MeantRopes:
    own: Intent  # of the layers that scale, as config.json has it
    intent: Intent  # with the options
    layers: tuple[LayerRope, ...]
    main: LayerRope  # of the layers that scale
    share: float | None  # mscale_all_dim of the file, where no options were given
    notes: tuple[str, ...]


def meant_ropes(config: ModelConfig, options: RopeOptions) -> MeantRopes:
    """Refuses a model without RoPE, and options that cannot be laid over its settings."""
    folder = config.path.parent
    if not config.ropes:
        raise InputError(f"no RoPE here: {config.no_rope}", file=folder, code="no_rope")
    kind: Kind = "full" if "full" in config.ropes else "sliding"
    own = config.ropes[kind]
    with about(folder):
        resolved = resolve(own, options)
    if options.given and resolved.intent.method == "yarn" and not config.takes_yarn:
        text = f"transformers makes longrope of yarn for {config.model_type}, so nothing says what it would be there"
        text = f"{text}; convert it as it is, and extend the file: yarn-gguf extend has llama.cpp's YaRN"
        raise InputError(text, file=folder, code="no_basis")
    # a class with a RoPE for each kind of layer scales that of the full ones; else all layers have one and the same
    ropes = {
        name: found if config.ropes_differ else _like(found, resolved.intent) for name, found in config.ropes.items()
    }
    ropes[kind] = resolved.intent
    share = None if options.given else rope_settings(config).get("mscale_all_dim")
    layers = tuple(_layers(config, ropes, share))
    main = next(rope for rope in layers if rope.kind is KINDS[kind])
    return MeantRopes(own, resolved.intent, layers, main, share, resolved.notes)


def rope_settings(config: ModelConfig) -> dict[str, Any]:
    """The RoPE settings as they stand, of a class with one RoPE for all layers."""
    return dict(config.raw.get("rope_scaling") or config.raw.get("rope_parameters") or {})


def _like(found: Intent, wanted: Intent) -> Intent:
    """The wanted scaling with the frequencies of another kind of layer."""
    return replace(wanted, rope=replace(found.rope, scaling=wanted.rope.scaling))


def _layers(config: ModelConfig, ropes: dict[Kind, Intent], share: float | None) -> Iterator[LayerRope]:
    for kind, name in KINDS.items():
        layers = tuple(i for i, rope in enumerate(config.layer_ropes) if rope == kind)
        if layers and kind is None:
            yield LayerRope(name, layers, None)
        elif layers and kind is not None:
            rope, length = ropes[kind].rope, ropes[kind].context
            score = _score(config.model_type, rope, share)
            yield LayerRope(name, layers, rope, rope.magnitude(length), score, length)


def shared_scale(rope: Rope, share: float | None) -> float:
    """mscale_all_dim, which transformers reads under any scaling; `share` is that of the file."""
    return (rope.scaling.mscale_all_dim if isinstance(rope.scaling, Yarn) else share) or 0.0


def _score(model_type: str, rope: Rope, share: float | None) -> float:
    """What multiplies the softmax scale."""
    if model_type not in SCORED:
        return 1.0
    scaling = rope.under if rope.under is not None and isinstance(rope.scaling, Unscaled) else rope.scaling
    return yarn_magnitude(getattr(scaling, "factor", 1.0), shared_scale(rope, share)) ** 2
