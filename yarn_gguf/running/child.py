"""Child process: a model that goes on with a text. `python -m yarn_gguf.running.child`, see `children.inside`.

    features {} -> {features, gpu}     rpc {}     server {endpoint}     load {…} -> {vocabulary, details, template}
    set_up {kv, parameters} -> {context, can_shift}        tokenize {…}        text_of {…}
    chat {messages, template} -> {text}           speak {tokens, sampling, count, shift} -> {stop, …}, a part per token

The template of a chat is rendered here, where it can harm nobody: Jinja's sandbox, in llama-cpp-python's own formatter,
which is set up as transformers sets up its own. llama.cpp's `llama_chat_apply_template` renders nothing: it looks for
words of some fifty known templates and writes what those would, which fails on any other. A token at a time is chosen
by llama.cpp's samplers. Bytes of tokens go to the parent as they are: a character may end in the next token.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from yarn_gguf.children.inside import Line, Refusal
from yarn_gguf.runtime_child import Llama

ROOM: Final = 1 << 30  # bytes that rendering a template may take
SEQUENCE: Final = 0
GPUS: Final = (1, 2)  # ggml-backend.h: GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU


class Speaker(Llama):
    """One model, one context, and the tokens that are in it."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.held: list[int] = []  # what the cache holds, in order
        self.size = 0  # tokens of context

    # ---- what there is

    def features(self) -> dict[str, Any]:
        """What the library does for YaRN beyond the stock one, and where it can compute."""
        named = getattr(self.lib._lib, "llama_yarn_features", None)
        if named is not None:
            named.restype = ctypes.c_char_p
        names = [] if named is None else [each for each in named().decode().split(",") if each]
        return {"features": names, "gpu": self._has_gpu()}

    def _has_gpu(self) -> bool:
        """llama.cpp's own answer is yes wherever RPC is built in."""
        try:
            of_type = self._function("ggml_backend_dev_by_type", [ctypes.c_int])
        except AttributeError:  # a system that finds no function through another library
            return bool(self.lib.llama_supports_gpu_offload())
        return any(of_type(kind) is not None for kind in GPUS)

    def load_words(self, path: str) -> dict[str, Any]:
        """The vocabulary alone."""
        super().load(path, vocab_only=True, gpu_layers=0, tensor_split=[], keys={})
        return self._loaded()

    def load_model(self, **request: Any) -> dict[str, Any]:
        if self.model:
            self.lib.llama_model_free(self.model)
        with self.line.working():
            super().load(vocab_only=False, **request)
        return self._loaded()

    def _loaded(self) -> dict[str, Any]:
        template = self.lib.llama_model_chat_template(self.model, None)
        return {
            "vocabulary": self.vocabulary,
            "template": template is not None,
            "details": self.details(),
        }

    def prepare(self, kv: list[str], parameters: dict[str, float]) -> dict[str, Any]:
        with self.line.working():
            self.set_up(kv, parameters)
        self.size = self.lib.llama_n_ctx(self.context)
        return {"context": self.size, "can_shift": bool(self.lib.llama_memory_can_shift(self._memory()))}

    def _memory(self) -> Any:
        return self.lib.llama_get_memory(self.context)

    # ---- chat

    def chat(self, messages: list[dict[str, str]], template: str | None) -> dict[str, Any]:
        """The text that asks for the next reply; `template`: instead of the file's."""
        from jinja2.exceptions import TemplateError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        source = template
        if source is None:
            own = self.lib.llama_model_chat_template(self.model, None)
            if own is None:
                raise Refusal("no_template", "has no chat template (tokenizer.chat_template); leave out --chat")
            source = own.decode("utf-8", "replace")
        whose = "its" if template is None else "the"
        try:
            with _little_memory():
                rendered = Jinja2ChatFormatter(source, self._special("eos"), self._special("bos"))(messages=messages)
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refusal("bad_template", f"{whose} chat template cannot be rendered: {error}") from error
        except (MemoryError, RecursionError, OverflowError) as error:
            raise Refusal("bad_template", f"{whose} chat template takes too much: {type(error).__name__}") from error
        return {"text": rendered.prompt.encode("utf-8", "surrogatepass").hex()}

    def _special(self, name: str) -> str:
        token = getattr(self.lib, f"llama_vocab_{name}")(self.words)
        text = self.lib.llama_vocab_get_text(self.words, token) if token >= 0 else None
        return "" if text is None else str(text.decode("utf-8", "replace"))

    # ---- generation

    def speak(self, tokens: list[int], sampling: dict[str, Any], count: int | None, shift: bool) -> dict[str, Any]:
        """Goes on behind `tokens`, which begin a text; what the cache holds of them is not computed again.

        `shift`: when the context is full, its older half is dropped.
        """
        began = time.perf_counter()
        reused = self._keep(tokens)
        with self.line.working():
            self._read(tokens, reused)
        read, first = time.perf_counter() - began, time.perf_counter()
        chain = self._chain(sampling)
        for token in tokens[-self._remembered(sampling) :]:
            self.lib.llama_sampler_accept(chain, token)
        try:
            found, shifts, stop = self._go_on(chain, count, shift=shift, keep=self._kept(tokens))
        finally:
            self.lib.llama_sampler_free(chain)
        return {
            "stop": stop,
            "reused": reused,
            "read_seconds": read,
            "generated": found,
            "seconds": time.perf_counter() - first,
            "shifts": shifts,
            "memory": peak_memory(),
        }

    def _kept(self, tokens: list[int]) -> int:
        """What a shift leaves at the beginning."""
        return int(bool(tokens) and tokens[0] == self.lib.llama_vocab_bos(self.words))

    def _keep(self, tokens: list[int]) -> int:
        """How many tokens at the beginning the cache holds already; the others are taken out of it."""
        same = 0
        while same < min(len(self.held), len(tokens) - 1) and self.held[same] == tokens[same]:
            same += 1
        if not self.lib.llama_memory_seq_rm(self._memory(), SEQUENCE, same, -1):  # no part of a recurrent state
            self.lib.llama_memory_clear(self._memory(), True)
            same = 0
        self.held = tokens[:same]
        return same

    def _read(self, tokens: list[int], start: int) -> None:
        for at in range(start, len(tokens), self.n_batch):
            part = tokens[at : at + self.n_batch]
            last = at + len(part) == len(tokens)
            self._decode(self.context, part, at, [last and i == len(part) - 1 for i in range(len(part))])
            self.held += part
            self.line.say(progress=[len(self.held), len(tokens)])

    def _go_on(self, chain: Any, count: int | None, *, shift: bool, keep: int) -> tuple[int, int, str]:
        """How many tokens came, how often the context was shifted, and why it ended."""
        found = shifts = 0
        while count is None or found < count:
            token = int(self.lib.llama_sampler_sample(chain, self.context, -1))
            if self.lib.llama_vocab_is_eog(self.words, token):
                return found, shifts, "end"
            found += 1
            self.line.say(part={"token": token, "text": self._bytes(token).hex()})
            if count is not None and found == count:
                break
            if len(self.held) >= self.size:
                if not shift:
                    return found, shifts, "context"
                self._shift(keep)
                shifts += 1
            self._decode(self.context, [token], len(self.held), [True])
            self.held.append(token)
        return found, shifts, "length"

    def _bytes(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(1 << 10)
        count = self.lib.llama_token_to_piece(self.words, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]

    def _shift(self, keep: int) -> None:
        """The older half is dropped, as llama.cpp's server does it; what is left moves to the front."""
        gone = (len(self.held) - keep) // 2
        memory, end = self._memory(), len(self.held)
        self.lib.llama_memory_seq_rm(memory, SEQUENCE, keep, keep + gone)
        self.lib.llama_memory_seq_add(memory, SEQUENCE, keep + gone, end, -gone)
        del self.held[keep : keep + gone]

    def _remembered(self, sampling: dict[str, Any]) -> int:
        """How many tokens penalties look at."""
        return self.size if sampling["repeat_last_n"] < 0 else max(sampling["repeat_last_n"], 1)

    def _chain(self, sampling: dict[str, Any]) -> Any:
        """llama.cpp's default chain, without the samplers that nobody can set here."""
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling["ignore_eos"]:
            lib.llama_sampler_chain_add(chain, self._without_ends())
        penalties = (sampling["repeat_penalty"], sampling["frequency_penalty"], sampling["presence_penalty"])
        if sampling["repeat_last_n"] and penalties != (1.0, 0.0, 0.0):
            count = self._remembered(sampling)
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_penalties(self.vocabulary, count, *penalties))
        if sampling["temp"] <= 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        for each in (
            lib.llama_sampler_init_top_k(sampling["top_k"]),
            lib.llama_sampler_init_top_p(sampling["top_p"], 1),
            lib.llama_sampler_init_min_p(sampling["min_p"], 1),
            lib.llama_sampler_init_temp(sampling["temp"]),
            lib.llama_sampler_init_dist(sampling["seed"]),
        ):
            lib.llama_sampler_chain_add(chain, each)
        return chain

    def _without_ends(self) -> Any:
        lib = self.lib
        ends = [token for token in range(self.vocabulary) if lib.llama_vocab_is_eog(self.words, token)]
        biases = (lib.llama_logit_bias * max(len(ends), 1))(
            *(lib.llama_logit_bias(each, float("-inf")) for each in ends)
        )
        return lib.llama_sampler_init_logit_bias(self.vocabulary, len(ends), biases)


@contextmanager
def _little_memory() -> Iterator[None]:
    """No more than `ROOM` on top of what is taken already, where the system has such limits."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError):
        yield
        return
    most = taken + ROOM if before[1] == resource.RLIM_INFINITY else min(taken + ROOM, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak_memory() -> int | None:
    """Bytes of this machine's memory that this process held at most; mapped weights count as far as they were read."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:
        return None


def main() -> None:
    line = Line()
    speaker = Speaker(line)
    line.serve(
        {
            "features": speaker.features,
            "rpc": speaker.can_rpc,
            "server": speaker.server,
            "load_words": speaker.load_words,
            "load": speaker.load_model,
            "set_up": speaker.prepare,
            "tokenize": speaker.tokenize,
            "text_of": speaker.text_of,
            "chat": speaker.chat,
            "speak": speaker.speak,
        }
    )


if __name__ == "__main__":
    main()
