"""What a person should know who starts a model so: what is not exact and what would be, what the program gets wrong.

What is said of llama.cpp follows from `start`'s account of it, which tests run. What is said of other programs was
read where each remark names it, and not run. Renders nothing.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from yarn_gguf.effective import TOLERANCE, Runtime
from yarn_gguf.findings import Finding, error, note, warning
from yarn_gguf.flags.choice import Means, choose, file_that_is_exact, judged
from yarn_gguf.flags.launch import Launch, Settings
from yarn_gguf.flags.llama_words import FLAGS, program, quantized, unflashed
from yarn_gguf.flags.other_words import KOBOLD_KV, gguf_rope_parameters
from yarn_gguf.flags.overruling import SHIFTING
from yarn_gguf.flags.start import Parameters, Start
from yarn_gguf.intent import Intent

Remarks = Callable[[Launch], Iterator[Finding]]

# llama.cpp's programs take each of these for its flag (common/arg.cpp)
VARIABLES: Final[Mapping[str, str]] = {
    "LLAMA_ARG_ROPE_SCALING_TYPE": FLAGS["scaling"],
    "LLAMA_ARG_ROPE_SCALE": FLAGS["factor"],
    "LLAMA_ARG_ROPE_FREQ_SCALE": FLAGS["factor"],
    "LLAMA_ARG_ROPE_FREQ_BASE": FLAGS["base"],
    "LLAMA_ARG_YARN_ORIG_CTX": FLAGS["original"],
    "LLAMA_ARG_YARN_EXT_FACTOR": "--yarn-ext-factor",
    "LLAMA_ARG_YARN_ATTN_FACTOR": FLAGS["attn_factor"],
    "LLAMA_ARG_YARN_BETA_FAST": FLAGS["beta_fast"],
    "LLAMA_ARG_YARN_BETA_SLOW": FLAGS["beta_slow"],
    "LLAMA_ARG_CONTEXT_SHIFT": "--context-shift",
    "LLAMA_ARG_CACHE_REUSE": "--cache-reuse",
    "LLAMA_ARG_GRP_ATTN_N": "--grp-attn-n",
}
LARGE: Final = 32.0  # the paper's, for Llama 2 over 128K tokens
# what `Settings` calls it -> what `flags` does
_GIVEN: Final = {"kv_k": "-ctk", "kv_v": "-ctv", "flash_attention": "-fa", "gpu_layers": "-ngl", "threads": "-t"}
_PYTHON_DEFAULTS: Final = Parameters(attn_factor=1.0, beta_fast=32.0, beta_slow=1.0)


def common(launch: Launch, name: str, stops: str, means: Means, *, libraries: bool) -> Iterator[Finding]:
    """What holds in every program that computes as llama.cpp does."""
    wanted, chosen = launch.wanted, launch.chosen
    yield from (warning("resolved", text) for text in wanted.notes)
    yield from wanted.before.findings
    if not wanted.inside:
        yield from large(wanted.asked)
    if launch.settings.flash_attention is False and quantized(launch.settings.kv_v):
        yield error("kv_type", unflashed(launch.settings.kv_v or ""))
    if not chosen.exact:
        way = _way_out(launch, means, libraries=libraries)
        yield error("not_exact", f"{name} will differ in {chosen.difference.text}; {way}")
    if not chosen.reaches:
        way = "" if not chosen.exact else f"; {_way_out(launch, means, libraries=libraries)}"
        yield error("context_capped", f"{name} {stops} the file's context length, {chosen.trained}{way}")
    if wanted.context > wanted.intent.context:
        text = f"a context of {wanted.context} is beyond the {wanted.intent.context} that the RoPE is meant for"
        yield warning("beyond_reach", text)
    if not chosen.start.nothing and chosen.exact:
        text = (
            "the file stays as it is, so every start needs these flags; yarn-gguf extend writes a file that needs none"
        )
        yield note("flags_only", text)
    yield from _dynamic(launch)


def large(intent: Intent) -> Iterator[Finding]:
    """Of a factor that somebody asks for; what stands in a file has been trained, for all that is known here."""
    if intent.factor > LARGE:
        text = f"a factor of {intent.factor:.6g} is beyond {LARGE:g}, the largest that the YaRN paper measured"
        yield warning("large_factor", f"{text}; what comes of it is not known: yarn-gguf verify measures it")


def _way_out(launch: Launch, means: Means, *, libraries: bool) -> str:
    """What would be exact, and reach the context: tried, not guessed."""
    ways, wanted = [], launch.wanted
    if libraries and launch.runtime is Runtime.STOCK and choose(wanted, means, Runtime.PATCHED).good:
        ways.append("--runtime patched is exact (yarn-gguf build makes it)")
    if file_that_is_exact(wanted):
        extent = "" if wanted.inside else f" --ctx {wanted.intent.context}"
        ways.append(f"a file of `{shlex.join(['yarn-gguf', 'extend', launch.path])}{extent}` is exact")
    return ", and ".join(ways) or "nothing here mends that"


def _dynamic(launch: Launch) -> Iterator[Finding]:
    intent, asked = launch.wanted.intent, launch.wanted.asked
    if not intent.dynamic:
        return
    here = f"×{asked.factor:g} in a context of {launch.wanted.context}"
    if launch.runtime is Runtime.PATCHED:
        yield note("dynamic", f"dynamic YaRN: {here}, at most ×{intent.factor:g}")
    elif launch.chosen.exact:
        text = f"dynamic YaRN is {here}; stock llama.cpp does not follow it, so another context needs other flags"
        yield warning("dynamic", text)


def magnitude(launch: Launch) -> float:
    """What a context shift on stock llama.cpp multiplies cached keys by; 1 where it does no harm."""
    found = [layers.magnitude for layers in launch.wanted.meant if abs(layers.magnitude - 1) > TOLERANCE]
    return found[0] if found and launch.runtime is Runtime.STOCK else 1.0


def _shift(launch: Launch, text: str) -> Iterator[Finding]:
    if (factor := magnitude(launch)) != 1:
        yield warning("context_shift", f"a context shift multiplies cached keys by {factor:.4g} each time: {text}")


def _shifting(launch: Launch) -> Iterator[Finding]:
    given = [word for word in launch.settings.more if word in SHIFTING]
    if given and (factor := magnitude(launch)) != 1:
        text = f"{given[0]} multiplies cached keys by {factor:.4g} with each context shift; leave it out"
        yield error("context_shift", text)
    elif not given:
        yield from _shift(launch, "leave --context-shift and --cache-reuse off, as they are unless they are given")


def _left_out(settings: Settings, name: str, *fields: str) -> Iterator[Finding]:
    """What was given, and the program has no word for."""
    given = [_GIVEN[field] for field in fields if getattr(settings, field) is not None]
    if given:
        yield warning("left_out", f"{name} has no word for {', '.join(given)}: left out")


def llama_programs(name: str) -> Remarks:
    def remarks(launch: Launch) -> Iterator[Finding]:
        yield from _shifting(launch)
        given = {FLAGS[field] for field in FLAGS if getattr(launch.chosen.start.parameters, field) is not None}
        for variable, flag in VARIABLES.items():
            if variable in launch.environment and flag not in given:
                text = f"{variable}={launch.environment[variable]} in the environment counts as {flag}; unset it"
                harmless = flag in SHIFTING and magnitude(launch) == 1
                yield (warning if harmless else error)("environment", text)
        if launch.library is not None and program(launch, name) == name:
            yield warning(
                "no_program", f"{launch.library} holds no {name}; yarn-gguf build --tools makes a patched one"
            )

    return remarks


def llama_cpp_python(launch: Launch) -> Iterator[Finding]:
    given = launch.chosen.start
    own = judged(launch.wanted, Start(_PYTHON_DEFAULTS, given.overrides), Means(), launch.runtime)
    bare = judged(launch.wanted, Start(Parameters(), given.overrides), Means(), launch.runtime)
    if bare.exact and not own.exact:
        text = "Llama(...)'s own betas, 32 and 1, override the file's on either library; without the -1.0 it would"
        yield warning("llama_cpp_python_betas", f"{text} differ in {own.difference.text}")


def typed(launch: Launch) -> bool:
    return launch.settings.kv_k is not None or launch.settings.kv_v is not None


def ollama(launch: Launch) -> Iterator[Finding]:
    yield note(
        "not_run",
        "read, not run: a Modelfile has no word for RoPE, so YaRN must be in the file (Ollama's docs/modelfile.mdx); "
        "the engines of its own that were read take fewer keys than llama.cpp does, none of them the attention factor "
        "or truncate (its model/models/*/model.go)",
    )
    yield note("create", "save it as Modelfile, then: ollama create NAME -f Modelfile")
    yield from _shift(launch, 'give "shift": false with each request, or Ollama shifts (its api/types.go)')
    if typed(launch):
        kind = launch.settings.kv or launch.settings.kv_k or launch.settings.kv_v
        setting = f"OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE={kind}"
        yield note("kv_type", f"the KV type is a setting of the server: {setting} ollama serve")
    elif launch.settings.flash_attention is not None:
        setting = f"OLLAMA_FLASH_ATTENTION={int(launch.settings.flash_attention)}"
        yield note("flash_attention", f"flash attention is a setting of the server: {setting} ollama serve")


def lm_studio(launch: Launch) -> Iterator[Finding]:
    yield note(
        "not_run",
        "read, not run: LM Studio sets RoPE's base and scale but no YaRN, so YaRN must be in the file; leave both at "
        "auto (lmstudio.ai/docs, lmstudio-js)",
    )
    yield from _shift(
        launch, "choose Stop at Limit as the context overflow policy; whether Rolling Window shifts is unknown"
    )
    if typed(launch):
        yield note("kv_type", "the K and V cache types are settings of the model's load dialog")
    if launch.settings.flash_attention is not None:
        yield note("flash_attention", "flash attention is a setting of the model's load dialog")
    if (launch.settings.gpu_layers or 0) > 0:
        yield note("gpu_layers", f"--gpu takes a share of the model's {launch.wanted.facts.layers} layers")
    yield from _left_out(launch.settings, "lms load", "threads")


def koboldcpp(launch: Launch) -> Iterator[Finding]:
    yield note(
        "not_run",
        "read, not run: KoboldCpp changes RoPE's base by itself when --contextsize exceeds the file's context length "
        "(its gpttype_adapter.cpp), and --ropeconfig has no YaRN, so both must be in the file",
    )
    if magnitude(launch) != 1:
        yield note("context_shift", "--noshift: its context shifts are on by default, and would multiply cached keys")
    if typed(launch) and launch.settings.kv not in KOBOLD_KV:
        yield warning("kv_type", f"--quantkv is for K and V alike, one of {', '.join(KOBOLD_KV)}: left out")
    if launch.settings.flash_attention is False:
        text = (
            "KoboldCpp has a word for flash attention on (--flashattention) and none for off, where it stands by itself"
        )
        yield note("flash_attention", f"{text} in most versions")


def vllm_gguf(launch: Launch) -> Iterator[Finding]:
    wanted = launch.wanted
    named = wanted.asked.method == "none" or gguf_rope_parameters(wanted.facts, wanted.asked) is not None
    if not named or wanted.asked.rope.under is not None:
        what = "factors of single frequencies (rope_freqs.weight)" if named else wanted.asked.method
        yield error("no_words", f"vLLM has no words for {what}")
    yield note(
        "not_run",
        "read, not run: of a GGUF, vLLM takes RoPE's base and dimensions but no scaling key and no rope_freqs.weight "
        "(transformers' table of GGUF keys), hence --hf-overrides; the checkpoint itself is the better thing to serve",
    )
    yield from vllm(wanted.asked, launch.settings)


def vllm(asked: Intent, settings: Settings) -> Iterator[Finding]:
    yield from _left_out(settings, "vLLM", *_GIVEN)
    yarn = asked.yarn
    if yarn is not None and yarn.attention_factor is not None:
        yield warning(
            "attention_factor",
            "only the newest vLLM honours attention_factor; before, it was dropped without a word "
            "(its rotary_embedding/__init__.py)",
        )


def environment() -> Mapping[str, str]:
    """What is set of the variables that llama.cpp's programs read."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
