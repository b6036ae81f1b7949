"""`yarn-gguf run`: parse, one library call, stream or serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from yarn_gguf.cli.model_options import rpc_options, runtime_library
from yarn_gguf.cli.options import GGUF_PATH, Asked, json_option, tokens
from yarn_gguf.cli.render import print_json, result
from yarn_gguf.cli.runs import Speech, converse, print_reply, reply_document, say_findings, speak
from yarn_gguf.cli.serve import serve
from yarn_gguf.errors import UsageError
from yarn_gguf.running.prepare import Prompt, prepared
from yarn_gguf.running.server_words import Address
from yarn_gguf.running.wanted import SEED, Sampling, Wanted
from yarn_gguf.runtime import KV_TYPES, MOST_THREADS
from yarn_gguf.verification.tokenizing import read_text

F = TypeVar("F", bound=Callable[..., Any])
STDIN: Final = "-"
LONGEST: Final = 1 << 28
_FLASH: Final = {"auto": None, "on": True, "off": False}
_SAMPLING: Final = Sampling()


def _layers(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """A number, `all`, or `auto`: what fits."""
    names = {"auto": None, "all": -1}
    if text in names:
        return names[text]
    try:
        if (number := int(text)) >= -1:
            return number
    except ValueError:
        pass
    raise click.BadParameter(f"{text!r} is neither a number of layers nor auto or all")


def _sampler(flags: str, kind: Any, help: str) -> Any:
    """An option with the default of `Sampling`'s field of that name."""
    name = flags.split()[-1].removeprefix("--").replace("-", "_")
    default = getattr(_SAMPLING, name)
    return click.option(*flags.split(), type=kind, default=default, show_default=True, help=help)


_PROMPT_OPTIONS: Final = (
    click.option("-p", "--prompt", metavar="TEXT", help="The text to go on with, or what is said in a chat."),
    click.option("-f", "--file", type=GGUF_PATH, metavar="FILE", help="The same from a file of UTF-8 text."),
    click.option("--chat", is_flag=True, help="Talk, in the form that the file's own chat template gives it."),
    click.option("--chat-template", metavar="FILE|TEXT", help="Jinja, instead of the chat template of the file."),
    click.option("-sys", "--system", "--system-prompt", metavar="TEXT", help="What a chat begins with."),
    click.option(
        *("-n", "--predict", "--n-predict"),
        type=click.IntRange(-1),
        metavar="N",
        help="Tokens at most.  [default: -1, till it ends, or the context does]",
    ),
)
_OPENING_OPTIONS: Final = (
    click.option(
        *("-c", "--ctx", "--ctx-size"),
        type=tokens,
        metavar="N",
        help="Context (32k). Longer than the file's: YaRN that covers it, without another file.",
    ),
    click.option("-ctk", "--cache-type-k", type=click.Choice(KV_TYPES), default="f16", metavar="TYPE",
                 help=f"Of cached keys: {', '.join(KV_TYPES)}.  [default: f16]"),
    click.option("-ctv", "--cache-type-v", type=click.Choice(KV_TYPES), default="f16", metavar="TYPE",
                 help="Of cached values; most need flash attention.  [default: f16]"),
    click.option("-fa", "--flash-attention", "--flash-attn", type=click.Choice(tuple(_FLASH)), default="auto",
                 show_default=True, help="Of llama.cpp."),
    click.option("-t", "--threads", type=click.IntRange(1, MOST_THREADS),
                 help="For computing.  [default: the number of cores, as llama.cpp counts them]"),
    click.option("-b", "--batch", type=click.IntRange(1), help="Tokens at a time.  [default: 16 to 512]"),
    click.option("-ngl", "--gpu-layers", default="auto", callback=_layers, metavar="N", show_default=True,
                 help="Layers on a GPU: a number, all, or auto: what fits."),
    click.option("--runtime", default="stock", show_default=True, help="stock, patched, or a folder of libraries."),
    click.option("--allow-shift", is_flag=True,
                 help="Drop the older half of a full context, even where that spoils what is cached of the rest."),
    click.option("--deadline", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
                 metavar="SECONDS", help="Without a sign of life, after which the model is given up."),
)  # fmt: skip
_SAMPLING_OPTIONS: Final = (
    _sampler("--temp", float, "Temperature; 0: always the most probable token."),
    _sampler("--top-k", click.IntRange(0), "Of so many most probable tokens; 0: of all."),
    _sampler("--top-p", float, "Of the most probable with this much probability together."),
    _sampler("--min-p", float, "Of those with this share of the most probable one's."),
    click.option("-s", "--seed", type=click.IntRange(-1), default=-1, show_default=True, help="-1: another each time."),
    _sampler("--repeat-penalty", float, "Of tokens that stood among the last ones; 1: none."),
    _sampler("--repeat-last-n", click.IntRange(-1), "How many are the last ones; -1: the context."),
    _sampler("--presence-penalty", float, "Of them, once."),
    _sampler("--frequency-penalty", float, "Of them, each time."),
    click.option("--ignore-eos", is_flag=True, help="Never choose a token that ends the text."),
)
_SERVER_OPTIONS: Final = (
    click.option("--serve", "served", is_flag=True, help="Start an OpenAI-compatible server with these settings."),
    click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens."),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free."),
)


_OF_SERVERS: Final = ("host", "port")
_OF_TEXTS: Final = ("predict", "chat", "system", *Sampling.__dataclass_fields__)


def _options(command: F) -> F:
    for options in (_SERVER_OPTIONS, _SAMPLING_OPTIONS):
        for option in reversed(options):
            command = option(command)
    command = rpc_options(command)
    for option in reversed((*_PROMPT_OPTIONS, *_OPENING_OPTIONS)):
        command = option(command)
    return command


@click.command(short_help="Go on with a text, chat, or serve, with the RoPE that the file asks for.")
@click.argument("model", type=GGUF_PATH)
@click.argument("source", required=False, metavar="[-]")
@_options
@json_option
def run(
    model: Path,
    source: str | None,
    prompt: str | None,
    file: Path | None,
    chat: bool,
    chat_template: str | None,
    system: str | None,
    served: bool,
    host: str,
    port: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Go on with a text (-p, -f, or - for standard input), as llama.cpp computes it with the file's own RoPE settings.

    With --chat a reply to it. On a terminal without a text: a conversation. The text goes to standard output as it
    comes, everything else to standard error. A context that is longer than the file's is had by YaRN with the smallest
    factor that covers it; no file is changed.

    \b
    yarn-gguf run model-yarn4x.gguf -p "Once upon a time" -n 100
    yarn-gguf run model.gguf -f book.txt --ctx 128k -ctk q8_0 -ctv q8_0 -fa on
    yarn-gguf run model-yarn4x.gguf --serve --ctx 64k
    """
    _check_given(model, served)
    wanted = _wanted(options, chat=chat, system=system, template=_template(chat_template, used=chat or served))
    if served:
        if prompt is not None or file is not None or source is not None:
            raise UsageError("--serve takes no text; requests bring theirs", code="unused_option")
        serve(model, wanted, options["runtime"], Address(host, port), as_json=as_json)
        return
    text = _text(prompt, file, source)
    if text is None and (as_json or not _is_terminal()):
        raise UsageError("no text to go on with: give -p TEXT, -f FILE, or - for standard input", code="no_prompt")
    first = _first(wanted, text)
    with prepared(model, wanted, first) as ready:
        say_findings(ready.findings, hidden=as_json)
        if first.empty:
            converse(ready, wanted)
            return
        speech = Speech(hidden=as_json)
        reply = speak(ready, wanted, ready.tokens, speech)
        with result():
            if as_json:
                print_json(reply_document(model, ready, reply))
            else:
                speech.end()
                print_reply(ready, reply)


def _check_given(model: Path, served: bool) -> None:
    """Raises for a model that is none, and for options that would change nothing."""
    context = click.get_current_context()
    if isinstance(context.obj, Asked):
        context.obj.writes = False
    if model.is_dir():
        text = "is a checkpoint, and run opens GGUFs; yarn-gguf convert makes one"
        raise UsageError(text, file=model, code="not_a_gguf")
    given = [
        param.opts[-1]
        for param in context.command.params
        if param.name in (_OF_TEXTS if served else _OF_SERVERS)
        and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if given and served:
        text = f"{' and '.join(given)}: not for --serve; each request brings its own"
        raise UsageError(text, code="unused_option")
    if given:
        verb = "has" if len(given) == 1 else "have"
        raise UsageError(f"{' and '.join(given)} {verb} no effect without --serve", code="unused_option")


def _template(given: str | None, *, used: bool) -> str | None:
    """The text, or that of the file of this name."""
    if given is None:
        return None
    if not used:
        raise UsageError("--chat-template is for --chat and --serve", code="unused_option")
    try:
        named = Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        named = False
    if not named and "{" not in given:
        raise UsageError(f"--chat-template {given!r} is neither a file nor a Jinja template", code="bad_template")
    return read_text(Path(given)).decode("utf-8") if named else given


def _wanted(options: dict[str, Any], *, chat: bool, system: str | None, template: str | None) -> Wanted:
    if system is not None and not chat:
        raise UsageError("--system is for --chat", code="unused_option")
    seed = options.pop("seed")
    sampling = Sampling(
        seed=SEED if seed < 0 else seed & SEED,
        **{name: options.pop(name) for name in Sampling.__dataclass_fields__ if name != "seed"},
    )
    return Wanted(
        context=options["ctx"],
        predict=None if options["predict"] in (None, -1) else options["predict"],
        sampling=sampling,
        chat=chat,
        system=system,
        template=template,
        kv_k=options["cache_type_k"],
        kv_v=options["cache_type_v"],
        flash_attention=_FLASH[options["flash_attention"]],
        threads=options["threads"],
        gpu_layers=options["gpu_layers"],
        batch=options["batch"],
        library=runtime_library(options["runtime"])[1],
        rpc=options["rpc"],
        tensor_split=options["tensor_split"],
        allow_shift=options["allow_shift"],
        deadline=options["deadline"],
    )


def _text(prompt: str | None, file: Path | None, source: str | None) -> str | None:
    """What was given, by one of three ways."""
    if source is not None and source != STDIN:
        raise UsageError(f"{source!r} is no text to go on with: give -p TEXT, -f FILE, or -", code="usage")
    given = [name for name, value in (("-p", prompt), ("-f", file), (STDIN, source)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both bring a text; give one of them", code="usage")
    if not given:
        return None
    text = prompt
    if file is not None and file != Path(STDIN):
        text = read_text(file).decode("utf-8").removesuffix("\n")
    elif prompt is None:
        text = _stdin().removesuffix("\n")
    if not text:
        raise UsageError("the text to go on with is empty", code="empty_prompt")
    return text


def _stdin() -> str:
    raw = sys.stdin.buffer.read(LONGEST + 1)
    if len(raw) > LONGEST:
        raise UsageError(f"is more than {LONGEST >> 20} MiB", file="<stdin>", code="text_long")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 at byte {error.start}", file="<stdin>", code="bad_text") from error


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _first(wanted: Wanted, text: str | None) -> Prompt:
    if text is None:
        return Prompt()
    if not wanted.chat:
        return Prompt(text)
    system = () if wanted.system is None else ({"role": "system", "content": wanted.system},)
    return Prompt(messages=(*system, {"role": "user", "content": text}))
