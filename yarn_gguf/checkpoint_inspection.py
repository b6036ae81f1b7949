"""What transformers computes from a Hugging Face folder's config.json, and what is lost on the usual way to a GGUF.

Reads config.json alone. What is lost is what `effective` makes of the keys that upstream's converter would write, by
the tables below; the file itself is not there yet, and a GGUF's own exactness is `inspection`'s to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from yarn_gguf.checkpoint_ropes import meant_ropes, rope_settings, shared_scale
from yarn_gguf.config.model_config import ModelConfig, read_config
from yarn_gguf.effective import (
    TOLERANCE,
    Difference,
    LayerRope,
    Runtime,
    Tensors,
    compare,
    layer_ropes,
)
from yarn_gguf.errors import InputError
from yarn_gguf.findings import Finding, note, warning
from yarn_gguf.graphs import DEFAULT_FREQ_BASE, GRAPHS, Graph, Magnitude, RopeFreqs, Sliding
from yarn_gguf.intent import Intent, RopeOptions
from yarn_gguf.metadata import Facts
from yarn_gguf.rope import DynamicNtk, FrequencyFactors, Linear, Llama3, LongRope, Rope, Unscaled, Yarn, yarn_magnitude

# What llama.cpp 0c1e57098's converter makes of a model type, measured on a toy model of each (internlm3: read in its
# source): the architecture, where it has another name, and what becomes of YaRN. Other types go by the usual rule.
KEPT: Final = """
    afmoe apertus arcee deepseek_v2=deepseek2 deepseek_v3=deepseek2 dots1 ernie4_5 ernie4_5_moe=ernie4_5-moe exaone4
    gemma3_text=gemma3 glm4 glm4_moe=glm4moe gpt_oss=gpt-oss granite granite_swa granitemoe granitemoeshared=granitemoe
    hunyuan_v1_dense=hunyuan-dense hy_v3 internlm3=llama jais2 laguna lfm2 llama mellum minimax_m2=minimax-m2
    ministral3=mistral3 mistral=llama mistral4 mixtral=llama olmo olmo2 olmo3=olmo2 olmoe phi3 qwen2 qwen2_moe=qwen2moe
    qwen3 qwen3_moe=qwen3moe seed_oss smollm3 starcoder2
"""
DROPPED: Final = "falcon gemma gemma2 glm=chatglm gpt_neox=gptneox minicpm3 phi=phi2 stablelm"  # and rope_theta with it
MADE_NONE: Final = "cohere=command-r cohere2 exaone_moe=exaone-moe"
MADE_LINEAR: Final = "nemotron"
USUAL_ARCH: Final = "qwen2"  # most graphs are like this one


class Fate(StrEnum):
    """What becomes of a checkpoint's YaRN on the way to a GGUF's keys."""

    KEPT = "kept"
    DROPPED = "dropped"
    NONE = "none"
    LINEAR = "linear"


_BY_FATE: Final = {Fate.KEPT: KEPT, Fate.DROPPED: DROPPED, Fate.NONE: MADE_NONE, Fate.LINEAR: MADE_LINEAR}
FATES: Final = {each.partition("=")[0]: fate for fate, names in _BY_FATE.items() for each in names.split()}
ARCHS: Final = {
    each.partition("=")[0]: each.rpartition("=")[2] for names in _BY_FATE.values() for each in names.split()
}
LONGROPE_KEPT: Final = frozenset(("phi3",))
LONGROPE_LISTS: Final = frozenset(("minicpm3",))  # the lists alone, without context and magnitude; read in its source
BETA_DROPPED: Final = frozenset(("mistral4",))  # llama_4_scaling_beta
SCORING_GRAPHS: Final = (Magnitude.DEEPSEEK2, Magnitude.MISTRAL4)
COMMAND: Final = "yarn-gguf extend model.gguf"
EITHER: Final = f"use yarn-gguf convert, or on upstream's file: {COMMAND}"


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
    def under(self) -> str | None:
        """What the frequencies are rescaled with before the method is applied."""
        return None if self.intent.rope.under is None else "llama3"

    @property
    def rope_at_context(self) -> Rope:
        """The same at every length: what one that depends on it is at the context."""
        rope = self.intent.rope
        if rope.is_static:
            return rope
        stretch = tuple(rope.frequency_factors(self.intent.context).tolist())
        return Rope(rope.dim, rope.base, FrequencyFactors(stretch, rope.magnitude(self.intent.context)))

    @property
    def verdict(self) -> str:
        lost = [f for f in self.findings if f.code == "lost_in_gguf"]
        how = "; some of it is lost on the usual way to a GGUF" if lost else ""
        return f"this is what transformers computes{how}"


def inspect_checkpoint(path: Path, options: RopeOptions) -> CheckpointInspection:
    """The RoPE that transformers gives each kind of layer; with options, the one that they ask for."""
    config = read_config(path)
    meant = meant_ropes(config, options)
    intent, layers, share = meant.intent, meant.layers, meant.share
    findings = [note("config", text) for text in config.notes] + [note("resolved", text) for text in meant.notes]
    findings += _lost(config, intent, meant.main, share)
    source = "the options given" if options.given else "config.json"
    return CheckpointInspection(path, config, intent, source, layers, tuple(findings))


# ---- what is lost


def _lost(config: ModelConfig, intent: Intent, meant: LayerRope, share: float | None) -> Iterator[Finding]:
    """At most one warning: what stock llama.cpp would compute from upstream's converter's file is something else."""
    scaling, parts = intent.rope.scaling, list[str]()
    if isinstance(scaling, DynamicNtk):
        parts.append(_lost_dynamic(intent, scaling))
    elif isinstance(scaling, LongRope) and not _keeps_longrope(config.model_type, scaling, meant.magnitude):
        text = f"longrope: upstream's converter does not write all of it for {config.model_type}; nothing mends that"
        parts.append(text)
    elif isinstance(scaling, Unscaled | Linear | Yarn):
        parts += _lost_static(config, intent, meant, share)
    if config.model_type in BETA_DROPPED and rope_settings(config).get("llama_4_scaling_beta"):
        parts.insert(0, "llama_4_scaling_beta: upstream's converter drops it, and nothing brings it back")
    if parts:
        yield warning("lost_in_gguf", ". ".join(parts))


def _keeps_longrope(model_type: str, scaling: LongRope, magnitude: float) -> bool:
    one_list = scaling.short_factors == scaling.long_factors and magnitude == 1
    return model_type in LONGROPE_KEPT or (model_type in LONGROPE_LISTS and one_list)


def _lost_dynamic(intent: Intent, scaling: DynamicNtk) -> str:
    remedy = f"convert, then run: {COMMAND} --factor {_plain(scaling.factor)} --original-ctx {scaling.max_context}"
    what = "dynamic scaling: llama.cpp has none, and upstream's converter writes nothing for it"
    return f"{what}. Up to {intent.context} tokens that changes nothing; for YaRN instead beyond them, {remedy}"


def _lost_static(config: ModelConfig, intent: Intent, meant: LayerRope, share: float | None) -> Iterator[str]:
    graph = GRAPHS[ARCHS.get(config.model_type, USUAL_ARCH)]
    if graph.magnitude is Magnitude.NORMED:
        meant = replace(meant, magnitude=1.0)  # it cancels
    stock = _stock(_converted(config, intent, graph, share), intent, graph, meant)
    if stock is None:
        what = _what(config, intent, graph, meant, Difference(math.inf))
        yield f"{what}; stock llama.cpp can make no RoPE of it. {_remedy(config, intent, graph, meant)}"
        return
    difference = compare((meant,), (stock,), intent.context)
    if not difference.exact:
        what = _what(config, intent, graph, meant, difference)
        yield f"{what}; stock llama.cpp would be off in {difference.text}. {_remedy(config, intent, graph, meant)}"


def _converted(config: ModelConfig, intent: Intent, graph: Graph, share: float | None) -> Facts:
    """The keys that matter here, as upstream's converter writes them."""
    rope, yarn, fate = intent.rope, intent.yarn, _fate(config)
    kind = intent.method if fate is Fate.KEPT else fate.value
    said: dict[str, Any] = dict.fromkeys(f.name for f in fields(Facts))
    said |= {"arch": graph.arch, "layers": config.layers, "context_length": intent.context}
    said |= {"head_dim": rope.dim, "window": config.sliding_window}
    said["pattern"] = tuple(each == "sliding_attention" for each in config.layer_types)
    said["base"] = None if fate is Fate.DROPPED else rope.base
    if intent.method != "none" and fate is not Fate.DROPPED:
        said |= {"type": kind, "factor": intent.factor, "original_context": intent.original}
    if yarn is not None:
        said |= {"beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow}
    if graph.log_multiplier is not None and (m_all := shared_scale(rope, share)):
        said["log_multiplier"] = m_all / graph.log_multiplier
    return Facts(**said)


def _stock(facts: Facts, intent: Intent, graph: Graph, meant: LayerRope) -> LayerRope | None:
    """What stock llama.cpp computes of these keys on the layers that scale; None where they make no RoPE."""
    under = intent.rope.under
    held = under is not None and graph.rope_freqs is RopeFreqs.USED
    stretch = tuple(Rope(intent.rope.dim, intent.rope.base, under=under).frequency_factors().tolist())
    try:
        found = layer_ropes(facts, Tensors(rope_freqs=stretch if held else None), Runtime.STOCK)
    except (ValueError, InputError):
        return None
    by_kind = {each.kind: each for each in found if each.rope is not None}
    return by_kind.get(meant.kind) or next(iter(by_kind.values()), None)


def _what(config: ModelConfig, intent: Intent, graph: Graph, meant: LayerRope, difference: Difference) -> str:
    """What becomes of the settings, by the converter or by the graph."""
    name, fate = config.model_type, _fate(config)
    if fate is Fate.DROPPED:
        lost = [intent.method] * (intent.method != "none") + ["rope_theta"] * (_base_dropped(config, intent))
        return f"upstream's converter drops {' and '.join(lost or ['the scaling'])} for {name}"
    if fate is Fate.NONE and intent.method != "none":
        return f"upstream's converter writes type none in place of {intent.method} for {name}"
    if fate is Fate.LINEAR and intent.method == "yarn":
        return f"upstream's converter turns yarn into linear for {name}"
    lost = list(_settings_lost(intent, graph, meant, difference))
    if name in ARCHS:
        return f"{', '.join(lost)}: llama.cpp's {graph.arch} does not compute it from what upstream's converter writes"
    return f"{', '.join(lost)}: usually stock llama.cpp does not read the keys that upstream's converter writes for it"


def _settings_lost(intent: Intent, graph: Graph, meant: LayerRope, difference: Difference) -> Iterator[str]:
    yarn = intent.yarn
    if difference.frequency > TOLERANCE and yarn is not None:
        if not graph.beta_keys and (yarn.beta_fast, yarn.beta_slow) != (graph.beta_fast, 1.0):
            yield f"betas {yarn.beta_fast:g}/{yarn.beta_slow:g}"
        if not yarn.truncate:
            yield "truncate false"
    elif difference.frequency > TOLERANCE:
        yield "llama3 scaling" if isinstance(intent.rope.under, Llama3) else f"{intent.method} scaling"
    if difference.magnitude > TOLERANCE:
        yield f"magnitude {meant.magnitude:.5g}"
    if difference.score > TOLERANCE:
        yield "softmax scale"


def _fate(config: ModelConfig) -> Fate:
    return FATES.get(config.model_type, Fate.KEPT)


def _base_dropped(config: ModelConfig, intent: Intent) -> bool:
    return _fate(config) is Fate.DROPPED and intent.rope.base != DEFAULT_FREQ_BASE


# ---- what brings it back


def _remedy(config: ModelConfig, intent: Intent, graph: Graph, meant: LayerRope) -> str:
    """What to do, in sentences; a command line is last."""
    base = f"Run llama.cpp with --rope-freq-base {_plain(intent.rope.base)}"
    lacks_base = _base_dropped(config, intent)
    if intent.method == "none":
        return base if lacks_base and intent.rope.under is None else "Nothing mends that"
    start = f"{base}. " if lacks_base else ""
    as_keys = _convert(intent, "--encoding keys")
    if not _can_be_written(intent, graph, meant):
        return f"{start}On {graph.arch} nothing mends all of it; to come near, {as_keys}"
    if _needs_patch(intent, graph, meant):
        return (
            f"{start}On {graph.arch} only the patched llama.cpp of `yarn-gguf build` computes that; for it, {as_keys}"
        )
    return f"{start}To mend it, {_convert(intent)}"


def _can_be_written(intent: Intent, graph: Graph, meant: LayerRope) -> bool:
    """Keys can say the magnitude, unless it would reach layers that stay unscaled; the softmax scale on few graphs."""
    usual = math.isclose(meant.magnitude, yarn_magnitude(intent.factor), rel_tol=TOLERANCE) or intent.method != "yarn"
    leaks = graph.sliding is Sliding.UNSCALED and not usual
    return not leaks and (meant.score == 1 or graph.magnitude in SCORING_GRAPHS)


def _needs_patch(intent: Intent, graph: Graph, meant: LayerRope) -> bool:
    """Stock llama.cpp takes another ramp than the default one from a tensor alone, on some graphs."""
    yarn = intent.yarn
    if yarn is None or graph.rope_freqs is RopeFreqs.USED:
        return False
    default = yarn if graph.beta_keys else replace(yarn, beta_fast=graph.beta_fast, beta_slow=1.0)
    try:
        ramp = replace(intent.rope, scaling=replace(default, truncate=True))
    except ValueError:
        return True
    return not compare((meant,), (replace(meant, rope=ramp),), intent.context).exact


def _convert(intent: Intent, *more: str) -> str:
    unknown = "with the context before scaling for N, " if intent.original is None else ""
    return unknown + " ".join([EITHER, *_options(intent), *more])


def _options(intent: Intent) -> Iterator[str]:
    """The command line's options that lead to this intent, whatever of it is in the file already."""
    yarn = intent.yarn
    if intent.method == "linear":
        yield "--method linear"
    yield f"--factor {_plain(intent.factor)}"
    yield f"--original-ctx {intent.original or 'N'}"
    if yarn is None:
        return
    for name, value, default in (("fast", yarn.beta_fast, 32.0), ("slow", yarn.beta_slow, 1.0)):
        if value != default:
            yield f"--beta-{name} {_plain(value)}"
    if not yarn.truncate:
        yield "--no-truncate"
    yield from _magnitude_options(intent, yarn)


def _magnitude_options(intent: Intent, yarn: Yarn) -> Iterator[str]:
    """The pair where it does the whole of it; else the half that scales the softmax, and the magnitude as it is."""
    if yarn.attention_factor is None and yarn.mscale and yarn.mscale_all_dim:
        yield f"--mscale {_plain(yarn.mscale)} --mscale-all-dim {_plain(yarn.mscale_all_dim)}"
        return
    if yarn.mscale_all_dim:
        yield f"--mscale-all-dim {_plain(yarn.mscale_all_dim)}"
    magnitude = intent.rope.magnitude(intent.context)
    if yarn.mscale_all_dim or not math.isclose(magnitude, yarn_magnitude(yarn.factor), rel_tol=TOLERANCE):
        yield f"--attention-factor {_plain(magnitude)}"


def _plain(value: float) -> str:
    """As short as it can be said exactly."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
