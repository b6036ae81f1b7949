"""`yarn-gguf flags`: parse, one library call, render."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from yarn_gguf.cli.options import GGUF_PATH, json_option, reference_rope_options, tokens
from yarn_gguf.cli.render import findings_json, print_findings, print_json, print_rows, print_verdict, result
from yarn_gguf.effective import Runtime
from yarn_gguf.errors import UsageError
from yarn_gguf.flags.advice import Advice, Library, advise
from yarn_gguf.flags.launch import Settings
from yarn_gguf.flags.llama_words import program_file
from yarn_gguf.flags.programs import PROGRAMS
from yarn_gguf.flags.shells import SHELLS
from yarn_gguf.intent import RopeOptions
from yarn_gguf.llamacpp.libraries import abilities, built, current, library_folder
from yarn_gguf.rope_words import rope_json, rope_text
from yarn_gguf.runtime import KV_TYPES, MOST_THREADS

_SHELL: Final = "powershell" if sys.platform == "win32" else "posix"
_KV: Final = click.Choice(KV_TYPES)
_CACHE: Final = f"Of cached keys: {', '.join(KV_TYPES)}."


def _layers(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """A number, `all`, or `auto`: the program's own choice."""
    names = {None: None, "auto": None, "all": -1}
    if text in names:
        return names[text]
    if text is not None and text.removeprefix("-").isdecimal() and int(text) >= -1:
        return int(text)
    raise click.BadParameter(f"{text!r} is neither a number of layers nor auto or all")


@click.command("flags", short_help="Print what starts a model in the program you use.")
@click.argument("path", metavar="MODEL", type=GGUF_PATH)
@click.option("--for", "name", type=click.Choice(list(PROGRAMS)), required=True, help="The program.")
@click.option("-c", "--ctx", type=tokens, metavar="N", help="Context to open (32k).  [default: the file's]")
@reference_rope_options
@click.option(
    "--runtime", default="stock", show_default=True, help="What computes: stock, patched, or a folder of libraries."
)
@click.option("-ctk", "--cache-type-k", type=_KV, metavar="TYPE", help=_CACHE)
@click.option("-ctv", "--cache-type-v", type=_KV, metavar="TYPE", help="Of cached values; most need flash attention.")
@click.option(
    "-fa", "--flash-attention", "--flash-attn", type=click.Choice(("auto", "on", "off")), help="Of llama.cpp."
)
@click.option("-ngl", "--gpu-layers", callback=_layers, metavar="N", help="Layers on a GPU: a number, all, or auto.")
@click.option("-t", "--threads", type=click.IntRange(1, MOST_THREADS), help="For computing.")
@click.option("-p", "--prompt", metavar="TEXT", help="A prompt (llama-cli, llama-cpp-python).")
@click.option(
    "--shell", type=click.Choice(list(SHELLS)), default=_SHELL, help="Whose quoting.  [default: this system's]"
)
@json_option
@click.argument("more", metavar="[-- MORE]", nargs=-1, type=click.UNPROCESSED)
def flags(
    path: Path,
    name: str,
    ctx: int | None,
    rope: RopeOptions,
    runtime: str,
    cache_type_k: str | None,
    cache_type_v: str | None,
    flash_attention: str | None,
    gpu_layers: int | None,
    threads: int | None,
    prompt: str | None,
    shell: str,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Print the command line, Python program, Modelfile or steps that start MODEL so that it gets its RoPE.

    MODEL is a GGUF with YaRN inside, or one without: then --ctx or --factor asks for it, and flags do what a new file
    would. (For vLLM, a Hugging Face folder as well.) Stdout holds nothing else; what the program would get wrong is
    said on stderr. What is not given is left to the program; what stands behind -- is passed on. Exits with 1 where
    the program cannot compute what is asked for.

    \b
    yarn-gguf flags qwen3-8b-Q4_K_M.gguf --for llama-server --ctx 128k
    yarn-gguf flags qwen3-8b-Q4_K_M.gguf --for llama-cli --ctx 64k -ctk q8_0 -ctv q8_0 -p "Hello" | sh
    yarn-gguf flags long.gguf --for ollama > Modelfile
    """
    program = PROGRAMS[name]
    flash = {"on": True, "off": False}.get(flash_attention or "")
    settings = Settings(cache_type_k, cache_type_v, flash, gpu_layers, threads, prompt, more)
    if prompt is not None and name not in _PROMPTED:
        raise UsageError(f"{name} takes no prompt when it starts; leave --prompt out", code="no_prompt")
    found = advise(path, program, rope, ctx, _library(runtime, name, program.libraries), settings)
    with result():
        if as_json:
            print_json(_document(found, shell))
        else:
            _print(found, shell)
    if not found.sound:
        click.get_current_context().exit(1)


_PROMPTED: Final = ("llama-cli", "llama-cpp-python")


def _library(runtime: str, name: str, chooses: bool) -> Library:
    """What `--runtime` names; a folder is asked what it can do."""
    if runtime == "stock":
        return Library()
    if not chooses:
        raise UsageError(f"{name} has a library of its own; --runtime is for the others", code="own_library")
    if runtime == "patched":
        complete = (each.path for each in built() if current(each) and program_file(each.path, name) is not None)
        return Library(Runtime.PATCHED, next(complete, None) or library_folder(runtime))
    folder = library_folder(runtime)
    return Library() if folder is None else Library(Runtime(abilities(folder).kind), folder)


def _text(found: Advice, shell: str) -> str:
    quote: Callable[[tuple[str, ...]], str] = SHELLS[shell]
    return found.text if found.text is not None else "\n".join(quote(words) for words in found.commands)


def _print(found: Advice, shell: str) -> None:
    """The words alone on stdout, for a pipe or a file."""
    asks = f"{rope_text(found.intent)}  (by {found.source})"
    print_rows(f"{found.path.name}  for {found.program.name}", [("asks for", asks)], err=True)
    print_findings(found.findings, err=True)
    print_verdict(_verdict(found), sound=found.exact is not False and found.sound, err=True)
    click.echo(_text(found, shell))


def _verdict(found: Advice) -> str:
    if found.exact is None:
        if not found.sound:
            return f"{found.program.name} has no words for what is asked for; see the error above"
        return f"{found.program.name} is told exactly what is asked for, in the words of transformers; it was not run"
    runtime = "" if found.runtime is None else found.runtime.value
    what = f"{runtime} llama.cpp" if found.program.libraries else f"{found.program.name}, as {runtime} llama.cpp,"
    if found.exact and not found.sound:
        return f"{what} would compute exactly what is asked for, if it were not for the error above"
    if found.exact:
        return f"{what} computes exactly what is asked for"
    return f"{what} computes something else than is asked for"


def _document(found: Advice, shell: str) -> dict[str, Any]:
    difference = found.difference
    return {
        "path": str(found.path),
        "for": found.program.name,
        "runtime": None if found.runtime is None else found.runtime.value,
        "context": found.context,
        "trained_context": found.trained,
        "rope": rope_json(found.intent, None),
        "rope_source": found.source,
        "commands": [list(words) for words in found.commands],
        "text": _text(found, shell),
        "exact": found.exact,
        "difference": None
        if difference is None
        else {
            "frequency": difference.frequency,
            "phase": difference.phase,
            "magnitude": difference.magnitude,
            "score": difference.score,
        },
        "run_by_tests": found.program.run,
        "findings": findings_json(found.findings),
    }
