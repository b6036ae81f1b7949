"""Child process: token ids of texts, from HF `tokenizers` and from llama.cpp. `python -m yarn_gguf.tokenizer.child`.

Reads one JSON request on stdin, writes one JSON answer on stdout; its parent is `check`. It is a process of
its own because llama.cpp may abort on a vocabulary, and because neither library should be loaded for a conversion.

    request  gguf: path   json: path or null   added: [[text, special, normalized]]
             texts: [[utf-8 for both] or [text, hex bytes]]
    answer   refused: what tokenizers says of the JSON, and nothing else; or
             llama: [ids]   original: [ids] or null   around: {llama, original}: ids of "a" with what is put around it
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

AROUND = "a"
SAID = 200  # characters of what a library says


class Refused(Exception):
    """The original tokenizer cannot be read, or makes no tokens of a text."""


def original_ids(request: dict[str, Any]) -> tuple[list[list[int]], list[int]] | None:
    if request["json"] is None:
        return None
    content = Path(request["json"]).read_bytes()  # tokenizers opens no file whose name is not UTF-8
    texts = [text for text, _ in request["texts"]]
    try:
        return encoded(content, request["added"], texts)
    except Exception as error:  # tokenizers has no kind of its own
        raise Refused(" ".join(str(error).split())[:SAID]) from error


def encoded(content: bytes, added: list[tuple[str, bool, bool]], texts: list[str]) -> tuple[list[list[int]], list[int]]:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text, special, normalized in added:
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=normalized)])
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [each.ids for each in encodings], tokenizer.encode(AROUND).ids


class Llama:
    """A vocabulary-only load."""

    def __init__(self, path: str) -> None:
        from llama_cpp import llama_cpp

        self.library = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise SystemExit("llama.cpp refuses the vocabulary")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def ids(self, text: bytes, add_special: bool = False) -> list[int]:
        room = 2 * len(text) + 16
        buffer = (self.library.llama_token * room)()
        count = self.library.llama_tokenize(self.vocabulary, text, len(text), buffer, room, add_special, True)
        if count < 0:
            raise SystemExit(f"llama.cpp makes {-count} tokens of {len(text)} bytes")
        return list(buffer[:count])


def llama_ids(request: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    llama = Llama(request["gguf"])
    raw = (
        text.encode() if hexadecimal is None else bytes.fromhex(hexadecimal) for text, hexadecimal in request["texts"]
    )
    return [llama.ids(each) for each in raw], llama.ids(AROUND.encode(), add_special=True)


def main() -> None:
    request = json.load(sys.stdin)
    with ThreadPoolExecutor(1) as pool:  # both spend their time outside of Python
        pending = pool.submit(original_ids, request)
        llama, llama_around = llama_ids(request)
        try:
            original = pending.result()
        except Refused as refused:
            json.dump({"refused": str(refused)}, sys.stdout)
            return
    ids, around = original if original is not None else (None, None)
    json.dump({"llama": llama, "original": ids, "around": {"llama": llama_around, "original": around}}, sys.stdout)


if __name__ == "__main__":
    main()
