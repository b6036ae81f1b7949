"""What `run` shows: the text as it comes, a conversation, what it cost; for a person, and as JSON."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from yarn_gguf.cli.render import findings_json, rope_json
from yarn_gguf.errors import UsageError, printable
from yarn_gguf.findings import Finding, Level
from yarn_gguf.running.memory import buffers
from yarn_gguf.running.prepare import Messages, Prompt, Ready, check_shift, tokens_of
from yarn_gguf.running.scaling import Scaling
from yarn_gguf.running.session import Reply
from yarn_gguf.running.wanted import Wanted
from yarn_gguf.sizes import size_text

_COLOURS: Final = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "blue"}
LEAVE: Final = "/exit"  # llama-cli's word
_STOPS: Final = {"context": "the context is full", "length": "", "end": ""}


def say_findings(findings: Iterable[Finding], *, hidden: bool) -> None:
    """On stderr: stdout is for the text alone."""
    for found in () if hidden else findings:
        label = click.style(f"{found.level.value}:", fg=_COLOURS[found.level])
        click.echo(f"{label} {printable(found.text)}", err=True)


class Speech:
    """A text on stdout, as it comes: to a file as it is, on a terminal without what one obeys; UTF-8 in any case."""

    def __init__(self, *, hidden: bool) -> None:
        self.hidden = hidden
        self.guarded = sys.stdout.isatty()
        self.last = ""

    def say(self, text: str) -> None:
        if self.hidden:
            return
        shown = "".join(c if c in "\n\t" else printable(c) for c in text) if self.guarded else text
        sys.stdout.buffer.write(shown.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        self.last = text

    def end(self) -> None:
        """A line of its own for what follows on a terminal; a file holds the text alone, and a last line break."""
        if not self.hidden and not self.last.endswith("\n"):
            sys.stdout.buffer.write(b"\n")
            sys.stdout.buffer.flush()


def rate(tokens: int, seconds: float) -> float | None:
    """Tokens per second; None where there was nothing to be timed."""
    return tokens / seconds if tokens and seconds > 0 else None


def _rate_text(tokens: int, seconds: float) -> str:
    speed = rate(tokens, seconds)
    return f"{tokens} token{'s' * (tokens != 1)}" + ("" if speed is None else f" ({speed:.1f} tokens/s)")


def print_reply(ready: Ready, reply: Reply) -> None:
    """The line at the end, on stderr."""
    parts = [f"prompt {_rate_text(reply.read, reply.read_seconds)}"]
    if reply.reused:
        parts[0] += f", {reply.reused} more known already"
    parts.append(f"generated {_rate_text(len(reply.tokens), reply.seconds)}")
    if reply.memory is not None:
        parts.append(f"memory {size_text(reply.memory)}")
    elsewhere = [each for each in buffers(ready.speaker.said) if not each.where.startswith("CPU")]
    if elsewhere:
        places = dict.fromkeys(each.where for each in elsewhere)
        parts += [f"{place} {size_text(sum(e.bytes for e in elsewhere if e.where == place))}" for place in places]
    parts.append(scaling_text(ready.scaling, ready.context))
    if reply.shifts:
        parts.append(f"{reply.shifts} context shift{'s' * (reply.shifts > 1)}")
    parts += [text for text in (_STOPS[reply.stop],) if text]
    click.echo(click.style("; ".join(parts), dim=True), err=True)


def print_broken_off(ready: Ready) -> None:
    """The same of a reply that a signal has ended."""
    came = ready.speaker.under_way
    count = len(came.tokens)
    speed = rate(count - 1, came.last - came.first)  # from the first token to the last
    text = f"generated {count} token{'s' * (count != 1)}" + ("" if speed is None else f" ({speed:.1f} tokens/s)")
    parts = (text, scaling_text(ready.scaling, ready.context), "broken off")
    click.echo(click.style("; ".join(parts), dim=True), err=True)


def speak(ready: Ready, wanted: Wanted, tokens: Sequence[int], speech: Speech) -> Reply:
    """A reply, its text as it comes; one that is broken off ends with what is known of it."""
    try:
        return ready.speaker.generate(tokens, wanted.sampling, wanted.predict, shift=ready.shift, on_text=speech.say)
    except Exception:
        raise
    except BaseException:  # a signal
        if not speech.hidden:
            with contextlib.suppress(OSError):
                speech.end()
                print_broken_off(ready)
        raise


def scaling_text(scaling: Scaling, context: int) -> str:
    return f"{scaling.text}, context {context}"


def scaling_document(scaling: Scaling) -> dict[str, Any]:
    return {
        **rope_json(scaling.intent, None),
        "source": scaling.source,
        "overridden": {**scaling.keys, **scaling.parameters},
        "exact": not scaling.difference,
    }


def reply_document(path: Path, ready: Ready, reply: Reply) -> dict[str, Any]:
    taken = [{"where": each.where, "what": each.what, "bytes": each.bytes} for each in buffers(ready.speaker.said)]
    return {
        "path": str(path),
        "text": reply.text,
        "tokens": list(reply.tokens),
        "stop": reply.stop,
        "context": ready.context,
        "shifts": reply.shifts,
        "prompt": _speed(reply.read, reply.read_seconds),
        "generation": _speed(len(reply.tokens), reply.seconds),
        "memory": {"process": reply.memory, "buffers": taken},
        "scaling": scaling_document(ready.scaling),
        "runtime": ready.speaker.runtime.value,
        "gpu_layers": ready.gpu_layers,
        "findings": findings_json(ready.findings),
    }


def _speed(tokens: int, seconds: float) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": rate(tokens, seconds)}


# ---- a conversation


def converse(ready: Ready, wanted: Wanted) -> None:
    """Turn by turn, until the input ends: of a chat its messages, else one text that both go on with."""
    said: Messages = () if wanted.system is None else ({"role": "system", "content": wanted.system},)
    text = ""
    click.echo(click.style(f"{LEAVE} or Ctrl-D ends the conversation", dim=True), err=True)
    while (line := _heard()) is not None:
        if wanted.chat:
            said = (*said, {"role": "user", "content": line})
        else:
            text += line
        reply = _answer(ready, wanted, tokens_of(ready.speaker, Prompt(text, said)))
        said, text = (*said, {"role": "assistant", "content": reply.text}) if wanted.chat else said, text + reply.text


def _answer(ready: Ready, wanted: Wanted, tokens: Sequence[int]) -> Reply:
    if len(tokens) >= ready.context:
        text = f"the conversation has {len(tokens)} tokens, the context {ready.context}; give a larger --ctx"
        raise UsageError(text, file=ready.speaker.path, code="context_full")
    speech = Speech(hidden=False)
    reply = speak(ready, wanted, tokens, speech)
    speech.end()
    print_reply(ready, reply)
    if reply.stop == "context":
        safe = ready.speaker.shifts_exactly or not ready.scaling.spoils_shifts
        check_shift(ready.speaker.path, ready.scaling, wanted, safe=safe)
    return reply


def _heard() -> str | None:
    """A line that was typed; None at the end of the input, or of the conversation."""
    click.echo(click.style("> ", bold=True), nl=False, err=True)
    while line := sys.stdin.readline():
        if line.strip() == LEAVE:
            return None
        if line.strip():
            return line.rstrip("\n")
        click.echo(click.style("> ", bold=True), nl=False, err=True)
    click.echo("", err=True)
    return None
