"""`flags` as one call: a model and a program -> the words that start it there, and what there is to say about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from yarn_gguf.checkpoint_ropes import meant_ropes
from yarn_gguf.config.model_config import read_config
from yarn_gguf.effective import Difference, Runtime
from yarn_gguf.errors import UsageError, about
from yarn_gguf.findings import Finding, Level
from yarn_gguf.flags import other_words, overruling, remarks
from yarn_gguf.flags.choice import choose
from yarn_gguf.flags.launch import Launch, Settings
from yarn_gguf.flags.programs import Program
from yarn_gguf.flags.wanted import read_wanted
from yarn_gguf.intent import Intent, RopeOptions


@dataclass(frozen=True)
class Library:
    """What computes: as stock or as patched llama.cpp, from a folder or from the program's own."""

    runtime: Runtime = Runtime.STOCK
    folder: Path | None = None


@dataclass(frozen=True)
class Advice:
    """Everything that `flags` says."""

    path: Path
    program: Program
    intent: Intent
    source: str
    context: int
    runtime: Runtime | None  # None: nothing of llama.cpp computes
    commands: tuple[tuple[str, ...], ...]
    text: str | None  # where it is no command
    difference: Difference | None  # from what is meant; None where that is not known
    trained: int | None
    findings: tuple[Finding, ...]

    @property
    def exact(self) -> bool | None:
        """Whether the program computes what is meant; None where that is not known."""
        return None if self.difference is None else self.difference.exact and not self.overruled

    @property
    def overruled(self) -> bool:
        """Whether the environment changes the RoPE that the words ask for."""
        return any(found.level is Level.ERROR and found.code == "environment" for found in self.findings)

    @property
    def sound(self) -> bool:
        return not any(found.level is Level.ERROR for found in self.findings)


def advise(
    path: Path, program: Program, options: RopeOptions, context: int | None, library: Library, settings: Settings
) -> Advice:
    overruling.check(program.name, settings.more)
    if path.is_dir():
        return _checkpoint_advice(path, program, options, context, settings)
    wanted = read_wanted(path, options, context)
    with about(path):
        chosen = choose(wanted, program.means, library.runtime)
        launch = Launch(wanted, chosen, library.runtime, library.folder, settings, remarks.environment())
        findings = tuple(_findings(launch, program))
    return Advice(
        path=path,
        program=program,
        intent=wanted.asked,
        source=wanted.source,
        context=wanted.context,
        runtime=library.runtime if program.judged else None,
        commands=tuple(tuple(words) for words in program.words(launch)),
        text=None if program.text is None else program.text(launch),
        difference=chosen.difference if program.judged else None,
        trained=chosen.trained if program.judged else None,
        findings=findings,
    )


def _findings(launch: Launch, program: Program) -> Iterator[Finding]:
    if program.judged:
        yield from remarks.common(launch, program.name, program.stops, program.means, libraries=program.libraries)
    yield from program.remarks(launch)


def _checkpoint_advice(
    folder: Path, program: Program, options: RopeOptions, context: int | None, settings: Settings
) -> Advice:
    """vLLM serves checkpoints; every other program here wants a GGUF."""
    if program.name != "vllm":
        text = f"is a checkpoint, and {program.name} opens GGUFs; yarn-gguf convert makes one"
        raise UsageError(text, file=folder, code="not_a_gguf")
    config = read_config(folder)
    own = meant_ropes(config, RopeOptions()).intent
    if context is not None and context > own.context and options.factor is None:
        options = replace(options, ctx=context)
    asked = meant_ropes(config, options).intent
    rope = other_words.checkpoint_rope_parameters(config, asked) if options.given else None
    words = other_words.vllm(str(folder), asked, context or asked.context, rope, settings)
    return Advice(
        path=folder,
        program=program,
        intent=asked,
        source="the options given" if options.given else "config.json",
        context=context or asked.context,
        runtime=None,
        commands=(tuple(words),),
        text=None,
        difference=None,
        trained=None,
        findings=tuple(remarks.vllm(asked, settings)),
    )
