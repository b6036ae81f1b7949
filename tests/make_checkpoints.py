"""Whole checkpoints, small and real: a toy's config and weights with a tokenizer that was trained here.

Knows the files of a checkpoint and the bytes of safetensors, to put any fault into them. The weights are the toys',
the tokenizers have as many tokens as these have rows. Nothing of `yarn_gguf` is imported.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests.make_tokenizers import added_token, corpus, pieces_json, tokenizer_json
from tests.toys import VOCABULARY

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
SPECIAL: Final = ("<|pad|>", "<|begin|>", "<|end|>")  # ids 0, 1 and 2, as the toys' configs have them
TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# asks the machine for what no template may have; text that nothing may ever render
HOSTILE_TEMPLATE: Final = (
    "{{ cycler.__init__.__globals__.os.system('touch rendered') }}{% for x in range(10**9) %}{% endfor %}"
)
_NUMPY: Final = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64, "U8": np.uint8}


# ---- tokenizers


@cache
def tokenizer(kind: str, tokens: int = VOCABULARY) -> Mapping[str, bytes]:
    """The files of a tokenizer of so many tokens. `kind`: "pieces" is SentencePiece, all else the family of a BPE."""
    with tempfile.TemporaryDirectory() as folder:
        (_pieces if kind == "pieces" else _bytes)(Path(folder), kind, tokens)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _bytes(folder: Path, kind: str, tokens: int) -> None:
    """Trained without cuts, so that a pre-tokenizer that cuts in the wrong place shows."""
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=tokens, show_progress=False, initial_alphabet=alphabet, special_tokens=list(SPECIAL)
    )
    texts = [text[n : n + 24] for text in corpus()[:3] for n in range(0, len(text), 24)]
    # tokens over a boundary that only some pre-tokenizers draw, and the digits of which some take three
    bpe.train_from_iterator([*texts, *(["1234"] * 9000), *(["don't a  b\n\n"] * 9000)], trainer)
    model = json.loads(bpe.to_str())["model"]
    assert len(model["vocab"]) == tokens
    added = [added_token(n, text, True) for n, text in enumerate(SPECIAL)]
    whole = tokenizer_json(kind, model["vocab"], [" ".join(pair) for pair in model["merges"]], added)
    _write(folder / "tokenizer.json", whole)
    _settings(folder, "PreTrainedTokenizerFast", SPECIAL)


def _pieces(folder: Path, _: str, tokens: int) -> None:
    import sentencepiece

    lines = [re.sub("[^a-z ]", "", line.lower()) for text in corpus()[:3] for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=tokens,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    kinds = ((2, model.IsUnknown), (3, model.IsControl), (5, model.IsUnused), (6, model.IsByte))
    pieces = [
        (model.IdToPiece(n), model.GetScore(n), next((kind for kind, is_one in kinds if is_one(n)), 1))
        for n in range(model.GetPieceSize())
    ]
    assert len(pieces) == tokens
    _write(folder / "tokenizer.json", pieces_json(pieces))
    _settings(folder, "LlamaTokenizer", ("<unk>", "<s>", "</s>"))


def _settings(folder: Path, name: str, special: Iterable[str]) -> None:
    _, begin, end = special
    settings = {"tokenizer_class": name, "bos_token": begin, "eos_token": end, "chat_template": TEMPLATE}
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# ---- checkpoints


def checkpoint(toy: Path, folder: Path, kind: str = "llama-bpe", tokens: int = VOCABULARY) -> Path:
    """A toy of `toy_folder` with a tokenizer; `folder` is made and given back."""
    folder.mkdir(parents=True)
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(toy / name, folder / name)
    for name, content in tokenizer(kind, tokens).items():
        (folder / name).write_bytes(content)
    return folder


def edit_json(path: Path, **changes: Any) -> Path:
    """Lays these over what a file has; returns the file's folder."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    _write(path, {**whole, **changes})
    return path.parent


def configure(folder: Path, **changes: Any) -> Path:
    return edit_json(folder / "config.json", **changes)


# ---- weights, byte by byte


@dataclass(frozen=True)
class Raw:
    """A tensor as safetensors has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def array(self) -> npt.NDArray[Any]:
        """The numbers; bfloat16 as bits."""
        return np.frombuffer(self.data, _NUMPY[self.dtype]).reshape(self.shape)

    def with_number(self, index: int, bits: npt.NDArray[Any]) -> Raw:
        """With another number at this index of the flat tensor; bfloat16 as bits."""
        found = self.array.reshape(-1).copy()
        found[index] = bits
        return replace(self, data=found.tobytes())


Tensors = dict[str, Raw]


def load(path: Path) -> Tensors:
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, told in header.items():
        begin, end = told["data_offsets"]
        found[name] = Raw(told["dtype"], tuple(told["shape"]), whole[start + begin : start + end])
    return found


def store(path: Path, tensors: Mapping[str, Raw]) -> Path:
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))
    return path


def as_bf16(tensors: Mapping[str, Raw]) -> Tensors:
    """Float32 weights, cut to bfloat16: what a checkpoint of today holds. No rounding is needed of random numbers."""
    return {
        name: Raw("BF16", tensor.shape, (tensor.array.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        for name, tensor in tensors.items()
    }


def as_f16(tensors: Mapping[str, Raw]) -> Tensors:
    return {
        name: Raw("F16", tensor.shape, tensor.array.astype(np.float16).tobytes()) for name, tensor in tensors.items()
    }


def sharded(folder: Path, count: int) -> Path:
    """The one file of weights, cut into shards with an index."""
    tensors = load(folder / WEIGHTS)
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for n in range(count):
        name = f"model-{n + 1:05}-of-{count:05}.safetensors"
        part = names[n::count]
        store(folder / name, {each: tensors[each] for each in part})
        weight_map |= dict.fromkeys(part, name)
    (folder / WEIGHTS).unlink()
    _write(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    return folder
