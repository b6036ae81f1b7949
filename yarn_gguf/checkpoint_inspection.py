"""What transformers computes from a Hugging Face folder's config.json, and what is lost on the usual way to a GGUF.

Reads config.json alone. Says nothing of a GGUF's exactness: that is a GGUF's to answer (`inspection`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from yarn_gguf.effective import LayerClass, LayerRope
from yarn_gguf.errors import InputError, UsageError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.intent import Intent, RopeOptions, resolve
from yarn_gguf.model_config import Kind, ModelConfig, read_config

KINDS: dict[Kind | None, LayerClass] = {"full": LayerClass.FULL, "sliding": LayerClass.SLIDING, None: LayerClass.NONE}


@dataclass(frozen=True)
class CheckpointInspection:
    """Everything that `inspect` says of a checkpoint."""

    path: Path
    config: ModelConfig
    intent: Intent
    source: str
    layers: tuple[LayerRope, ...]
    findings: tuple[Finding, ...]

    @property
    def arch(self) -> str:
        return self.config.architectures[0] if self.config.architectures else self.config.model_type

    @property
    def verdict(self) -> str:
        lost = [f for f in self.findings if f.code == "lost_in_gguf"]
        how = "; some of it is lost on the usual way to a GGUF" if lost else ""
        return f"this is what transformers computes{how}"


def inspect_checkpoint(path: Path, options: RopeOptions) -> CheckpointInspection:
    """The RoPE that transformers gives each kind of layer; with options, the one that they ask for."""
    config = read_config(path)
    if not config.ropes:
        raise InputError(f"no RoPE here: {config.no_rope}", file=path, code="no_rope")
    kind: Kind = "full" if "full" in config.ropes else "sliding"
    ropes = dict(config.ropes)
    try:
        resolved = resolve(ropes[kind], options)
    except (UsageError, InputError) as problem:
        raise type(problem)(problem.text, file=path, code=problem.code) from problem
    own = ropes[kind]
    ropes = {name: _with_scaling(found, resolved.intent, own) for name, found in ropes.items()}
    layers = tuple(_layers(config, ropes))
    findings = [note("config", text) for text in config.notes] + [note("resolved", text) for text in resolved.notes]
    findings += _lost(resolved.intent)
    source = "the options given" if options.given else "config.json"
    return CheckpointInspection(path, config, resolved.intent, source, layers, tuple(findings))


def _with_scaling(found: Intent, wanted: Intent, own: Intent) -> Intent:
    """Layers that were scaled like the main kind get the new scaling as well; others stay."""
    if found is own:
        return wanted
    alike = found.rope.scaling == own.rope.scaling and found.original == own.original
    return replace(wanted, rope=replace(found.rope, scaling=wanted.rope.scaling)) if alike else found


def _layers(config: ModelConfig, ropes: dict[Kind, Intent]) -> Iterator[LayerRope]:
    for kind, name in KINDS.items():
        layers = tuple(i for i, rope in enumerate(config.layer_ropes) if rope == kind)
        if layers and kind is None:
            yield LayerRope(name, layers, None)
        elif layers and kind is not None:
            intent = ropes[kind]
            yield LayerRope(name, layers, intent.rope, intent.rope.magnitude(intent.context))


def _lost(intent: Intent) -> Iterator[Finding]:
    """Settings that upstream's converter writes into keys that almost no graph of llama.cpp reads."""
    yarn = intent.yarn
    if yarn is None or intent.method != "yarn":
        return
    lost = []
    if (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0):
        lost.append(f"betas {yarn.beta_fast:g}/{yarn.beta_slow:g}")
    if not yarn.truncate:
        lost.append("truncate false")
    if yarn.attention_factor is not None or yarn.mscale or yarn.mscale_all_dim:
        lost.append(f"magnitude {intent.rope.magnitude():.5g}")
    if lost:
        text = f"{', '.join(lost)}: stock llama.cpp does not read the keys that upstream's converter writes for this"
        yield warning("lost_in_gguf", f"{text}; yarn-gguf extend mends the GGUF where that can be done")
