"""Child process: llama.cpp at work for `runtime`. `python -m yarn_gguf.runtime_child`, see `children.inside`.

    rpc {}                   server {endpoint}                            before anything is opened
    open {path, vocab_only, gpu_layers, tensor_split, keys, kv, parameters, batch} -> {vocabulary, context, batch, …}
    tokenize {text: hex, add_special, parse_special} -> {tokens}        text_of {tokens} -> {text: hex}
    room {path, size}      reset {}      decode {tokens, start, wanted, row, twin}
    twin {context, batch}                generate {tokens, count, stop} -> {tokens}

`decode` leaves the wanted tokens' logits in the room, one row behind the other from `row` on. `n_batch` tokens go to
llama.cpp at a time and their logits are copied at once, so no more than that ever exist twice. `twin` sets up a second
context of the same weights, with another batch.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.children.inside import Line, Refusal
from yarn_gguf.children.room import opened

RPC_ADD = "ggml_backend_rpc_add_server"
_OVERRIDES = {  # of metadata, by the type of the value: llama.cpp's word for it, and the member that holds it
    bool: ("BOOL", "val_bool"),
    int: ("INT", "val_i64"),
    float: ("FLOAT", "val_f64"),
    str: ("STR", "val_str"),
}


class Llama:
    """One model, and one context of it."""

    def __init__(self, line: Line) -> None:
        from llama_cpp import llama_cpp

        self.lib, self.line = llama_cpp, line
        self.lib.llama_backend_init()
        self.model: Any = None
        self.context: Any = None
        self.twin_context: Any = None
        self.twin_batch = 1
        self.chosen: Any = None  # parameters of the context
        self.vocabulary = 0
        self.n_batch = 1
        self.room: NDArray[np.float32] = np.empty(0, np.float32)
        self.watch = llama_cpp.ggml_abort_callback(self._alive)
        self.loading = llama_cpp.llama_progress_callback(lambda *_: not self._alive(None))

    def _alive(self, _: Any) -> bool:
        self.line.alive()
        return False

    def open(
        self,
        path: str,
        vocab_only: bool,
        batch: int,
        kv: list[str],
        parameters: dict[str, float],
        **load: Any,
    ) -> dict[str, Any]:
        self.load(path, vocab_only=vocab_only, **load)
        if not vocab_only:
            self.set_up(kv, parameters)
        found = {"vocabulary": self.vocabulary, "batch": batch, "micro": self.n_batch, "details": self.details()}
        return {**found, "context": self.lib.llama_n_ctx(self.context) if self.context else 0}

    def load(
        self, path: str, vocab_only: bool, gpu_layers: int, tensor_split: list[float], keys: dict[str, Any]
    ) -> None:
        chosen = self.lib.llama_model_default_params()
        chosen.n_gpu_layers, chosen.vocab_only = gpu_layers, vocab_only
        chosen.progress_callback = self.loading
        if tensor_split:
            chosen.tensor_split = self._split(tensor_split)
        if keys:
            chosen.kv_overrides = self._overrides(keys)
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), chosen)
        if not self.model:
            raise Refusal("llama_refuses", "llama.cpp does not load it", said=True)
        self.words = self.lib.llama_model_get_vocab(self.model)
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.words)

    def _split(self, shares: list[float]) -> Any:
        most = self.lib.llama_max_devices()
        if len(shares) > most:
            raise Refusal("tensor_split", f"{len(shares)} shares, but llama.cpp knows at most {most} devices", 2)
        return (ctypes.c_float * most)(*shares)

    def _overrides(self, keys: dict[str, Any]) -> Any:
        """As llama.cpp takes them: an array that ends with an empty name."""
        found = (self.lib.llama_model_kv_override * (len(keys) + 1))()
        for place, (key, value) in zip(found, keys.items(), strict=False):
            kind, name = _OVERRIDES[type(value)]
            place.key, place.tag = key.encode(), getattr(self.lib, f"LLAMA_KV_OVERRIDE_TYPE_{kind}")
            setattr(place.value, name, value.encode() if isinstance(value, str) else value)
        return found

    def set_up(self, kv: list[str], parameters: dict[str, float]) -> None:
        if self.vocabulary < 1:
            raise Refusal("no_vocabulary", "says nothing of how many words its vocabulary has")
        if self.lib.llama_model_has_encoder(self.model):
            raise Refusal("has_encoder", "is a model with an encoder, which is not supported here")
        chosen = self.lib.llama_context_default_params()
        for name, value in parameters.items():
            getattr(chosen, name)  # ctypes would take any name
            setattr(chosen, name, value)
        chosen.type_k, chosen.type_v = (getattr(self.lib, f"GGML_TYPE_{name.upper()}") for name in kv)
        chosen.abort_callback = self.watch
        chosen.no_perf = True
        self.context = self.lib.llama_init_from_model(self.model, chosen)
        if not self.context:
            text = f"llama.cpp sets up no context of {parameters['n_ctx']:g} tokens (KV cache {'/'.join(kv)}) for it"
            raise Refusal("no_context", text, 4, said=True)
        self.n_batch, self.chosen = int(parameters["n_batch"]), chosen

    def twin(self, context: int, batch: int) -> None:
        self.chosen.n_ctx, self.chosen.n_batch, self.chosen.n_ubatch = context, batch, batch
        self.twin_context, self.twin_batch = self.lib.llama_init_from_model(self.model, self.chosen), batch
        if not self.twin_context:
            raise Refusal("no_context", f"no second context of {context} tokens can be set up", 4, said=True)

    def can_rpc(self) -> None:
        if not self.lib.llama_supports_rpc():
            raise Refusal("no_rpc", "this llama.cpp library has no RPC; build one with: yarn-gguf build --rpc")

    def server(self, endpoint: str) -> None:
        """One more machine whose devices weights may go to."""
        registry = self._function("ggml_backend_reg_by_name", [ctypes.c_char_p])(b"RPC")
        address = self._function("ggml_backend_reg_get_proc_address", [ctypes.c_void_p, ctypes.c_char_p])
        add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address(registry, RPC_ADD.encode()))
        found = add(endpoint.encode())
        if not found:
            raise Refusal("rpc_unreachable", f"the RPC server at {endpoint} has no device", 4)
        self._function("ggml_backend_register", [ctypes.c_void_p])(found)

    def _function(self, name: str, arguments: list[Any]) -> Any:
        """One of ggml's, through the library that has pulled it in."""
        found = getattr(self.lib._lib, name)
        found.argtypes, found.restype = arguments, ctypes.c_void_p
        return found

    def details(self) -> dict[str, Any]:
        text = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self.model, text, len(text))
        return {
            "description": text.value.decode(errors="replace"),
            "system": self.lib.llama_print_system_info().decode(errors="replace"),
            "adds_bos": bool(self.lib.llama_vocab_get_add_bos(self.words)),
            "bos": self.lib.llama_vocab_bos(self.words),
        }

    # ---- tokens

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> dict[str, Any]:
        raw = bytes.fromhex(text)
        if self.lib.llama_vocab_type(self.words) == self.lib.LLAMA_VOCAB_TYPE_NONE:
            raise Refusal("no_tokenizer", "has no vocabulary, so no text can be given to it")
        room = len(raw) + 16
        buffer = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.words, raw, len(raw), buffer, room, add_special, parse_special)
        if count < 0:
            raise Refusal("tokenizer", f"llama.cpp makes {-count} tokens of {len(raw)} bytes")
        return {"tokens": buffer[:count]}

    def text_of(self, tokens: list[int]) -> dict[str, Any]:
        parts, buffer = [], ctypes.create_string_buffer(1 << 12)
        for token in tokens:
            count = self.lib.llama_token_to_piece(self.words, token, buffer, len(buffer), 0, True)
            parts.append(buffer.raw[: max(count, 0)])
        return {"text": b"".join(parts).hex()}

    # ---- logits

    def set_room(self, path: str, size: int) -> None:
        self.room = np.frombuffer(opened(path, size), np.float32)

    def reset(self) -> None:
        for context in filter(None, (self.context, self.twin_context)):
            self.lib.llama_memory_clear(self.lib.llama_get_memory(context), True)

    def decode(self, tokens: list[int], start: int, wanted: list[int], row: int = 0, twin: bool = False) -> None:
        context, step = (self.twin_context, self.twin_batch) if twin else (self.context, self.n_batch)
        chosen = set(wanted)
        for at in range(0, len(tokens), step):
            part = tokens[at : at + step]
            flags = [at + i in chosen for i in range(len(part))]
            self._decode(context, part, start + at, flags)
            count = sum(flags)
            if count:
                self.room[row * self.vocabulary : (row + count) * self.vocabulary] = self._logits(context, count)
                row += count

    def _logits(self, context: Any, count: int) -> NDArray[np.float32]:
        pointer = self.lib.llama_get_logits(context)
        if not pointer:
            raise Refusal("no_logits", "llama.cpp gave no logits", 5)
        found: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(count * self.vocabulary,))
        return found

    def _decode(self, context: Any, tokens: list[int], start: int, wanted: list[bool]) -> None:
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, flag) in enumerate(zip(tokens, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = flag
        status = self.lib.llama_decode(context, batch)
        self.lib.llama_batch_free(batch)
        if status:
            text = f"llama.cpp's llama_decode returned {status} at position {start}"
            raise Refusal("decode_failed", text, 5, said=True)
        self.line.alive()

    def generate(self, tokens: list[int], count: int, stop: list[int]) -> dict[str, Any]:
        found: list[int] = []
        for at in range(0, len(tokens), self.n_batch):
            part = tokens[at : at + self.n_batch]
            last = at + len(part) == len(tokens)
            self._decode(self.context, part, at, [last and i == len(part) - 1 for i in range(len(part))])
        while True:
            found.append(int(self._logits(self.context, 1).argmax()))
            if len(found) == count or found[-1] in stop:
                return {"tokens": found}
            self._decode(self.context, found[-1:], len(tokens) + len(found) - 1, [True])


def main() -> None:
    line = Line()
    llama = Llama(line)
    line.serve(
        {
            "rpc": llama.can_rpc,
            "server": llama.server,
            "open": llama.open,
            "tokenize": llama.tokenize,
            "text_of": llama.text_of,
            "room": llama.set_room,
            "reset": llama.reset,
            "decode": llama.decode,
            "generate": llama.generate,
            "twin": llama.twin,
        }
    )


if __name__ == "__main__":
    main()
