"""Child process: transformers at work for `reference`. `python -m yarn_gguf.reference_child`.

    open {path, context, batch, threads, dtype, rope} -> {vocabulary, context, batch, details}
    vocabulary {path} -> the same with zeros; only `tokenize` and `text_of` can be asked for then
    tokenize, text_of, room, reset, decode, twin, generate: as in `runtime_child`

The only place where transformers computes.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yarn_gguf.children.inside import Line, Refusal
from yarn_gguf.children.room import opened

SCORES = 1 << 25  # attention scores that are held at a time: heads × chunk × context
KEPT = ("rope_theta", "partial_rotary_factor", "llama_4_scaling_beta")
FULL = "full_attention"
TOP_LEVEL = "original_max_position_embeddings"  # of a config: comes before that of the rope parameters


class Transformers:
    """One model and its KV cache."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.model: Any = None
        self.caches: dict[bool, Any] = {}  # by whether it is the twin's
        self.chunks: dict[bool, int] = {}
        self.tokenizer: Any = None
        self.room: NDArray[np.float32] = np.empty(0, np.float32)

    def open(
        self, path: str, context: int, batch: int, threads: int, dtype: str, rope: dict[str, Any] | None
    ) -> dict[str, Any]:
        try:
            import torch
            import transformers
        except ImportError as error:
            text = f"a Hugging Face reference needs torch and transformers: {error}; pip install 'yarn-gguf[reference]'"
            raise Refusal("no_transformers", text, 4) from error
        torch.set_num_threads(threads)
        with self.line.working():
            self.model = _loaded(path, dtype, rope)
        self.path = path
        text_config = self.model.config.get_text_config()
        heads = max(int(getattr(text_config, "num_attention_heads", None) or 1), 1)
        self.chunks[False] = max(1, min(batch, SCORES // (heads * context)))
        self.selects = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        for module in self.model.modules():
            if type(module).__name__.endswith("Layer"):
                module.register_forward_hook(lambda *_: self.line.alive())
        details = {"description": f"transformers {transformers.__version__}, torch {torch.__version__}, {dtype}"}
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        return {
            "vocabulary": self.vocabulary,
            "context": context,
            "batch": batch,
            "micro": self.chunks[False],
            "details": details,
        }

    def vocabulary_only(self, path: str) -> dict[str, Any]:
        self.path = path
        return {"vocabulary": 0, "context": 0, "batch": 0, "micro": 0}

    def twin(self, context: int, batch: int) -> None:
        self.chunks[True] = batch

    # ---- tokens

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            import transformers

            try:
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self.path, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # every tokenizer has its own kinds
                text = f"transformers makes no tokenizer of it: {_line(error)}"
                raise Refusal("no_tokenizer", text) from error
        return self.tokenizer

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> dict[str, Any]:
        tokenizer = self._tokenizer()
        found = tokenizer(
            bytes.fromhex(text).decode("utf-8", "replace"),
            add_special_tokens=add_special,
            split_special_tokens=not parse_special,
            verbose=False,
        )
        return {"tokens": list(found["input_ids"])}

    def text_of(self, tokens: list[int]) -> dict[str, Any]:
        found = self._tokenizer().decode(tokens, clean_up_tokenization_spaces=False)
        return {"text": found.encode("utf-8", "surrogatepass").hex()}

    # ---- logits

    def set_room(self, path: str, size: int) -> None:
        self.room = np.frombuffer(opened(path, size), np.float32)

    def reset(self) -> None:
        self.caches.clear()

    def decode(self, tokens: list[int], start: int, wanted: list[int], row: int = 0, twin: bool = False) -> None:
        step = self.chunks[twin]
        for at in range(0, len(tokens), step):
            chosen = [each - at for each in wanted if at <= each < at + step]
            logits = self._forward(tokens[at : at + step], chosen or [0], twin)
            if chosen:
                self.room[row * self.vocabulary : (row + len(chosen)) * self.vocabulary] = logits.ravel()
                row += len(chosen)
            self.line.alive()

    def _forward(self, tokens: list[int], chosen: list[int], twin: bool = False) -> NDArray[np.float32]:
        """[chosen, vocabulary]"""
        import torch

        ids = torch.tensor([tokens], dtype=torch.long)
        keep = {"logits_to_keep": torch.tensor(chosen)} if self.selects else {}
        with torch.inference_mode():
            out = self.model(ids, past_key_values=self.caches.get(twin), use_cache=True, **keep)
        self.caches[twin] = out.past_key_values
        logits = out.logits[0] if self.selects else out.logits[0, chosen]
        found: NDArray[np.float32] = logits.float().numpy()
        return found

    def generate(self, tokens: list[int], count: int, stop: list[int]) -> dict[str, Any]:
        found: list[int] = []
        logits = np.empty((1, self.vocabulary), np.float32)
        for at in range(0, len(tokens), self.chunks[False]):
            part = tokens[at : at + self.chunks[False]]
            logits = self._forward(part, [len(part) - 1])
        while True:
            found.append(int(logits[0].argmax()))
            if len(found) == count or found[-1] in stop:
                return {"tokens": found}
            logits = self._forward(found[-1:], [0])

    # ---- attention

    def entropy(self, tokens: list[int], edges: list[int]) -> dict[str, Any]:
        """Of each layer, and of the positions between each edge and the next: −Σ a·ln a, averaged over the heads."""
        import torch

        cache, found, step = None, [], self.chunks[False]
        for at in range(0, len(tokens), step):
            ids = torch.tensor([tokens[at : at + step]], dtype=torch.long)
            with torch.inference_mode():
                out = self.model(ids, past_key_values=cache, use_cache=True, output_attentions=True)
            cache = out.past_key_values
            rows = [torch.special.entr(a).sum(-1).mean((0, 1)).double().numpy() for a in out.attentions]
            found.append(np.stack(rows))
            self.line.alive()
        layers = np.concatenate(found, axis=1)
        spans = list(itertools.pairwise(edges))
        return {"entropy": [[float(layer[first:end].mean()) for first, end in spans] for layer in layers]}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _loaded(path: str, dtype: str, rope: dict[str, Any] | None) -> Any:
    import torch
    import transformers

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **options)
        if rope is not None:
            _set_rope(config.get_text_config(), rope)
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",  # the only one that has all: soft-capping, sinks
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise Refusal("transformers_refuses", f"transformers does not load it: {_line(error)}") from error
    lacking = sorted(told["missing_keys"])
    if lacking:
        text = f"transformers misses {len(lacking)} of its tensors, the first is {lacking[0]}"
        raise Refusal("transformers_refuses", text)
    if rope is not None and "frequencies" in rope:
        _set_frequencies(model, rope["frequencies"], rope["magnitude"])
    return model.eval()


def _set_rope(config: Any, rope: dict[str, Any]) -> None:
    """Replaces the scaling of the layers that scale; what else says something of rotation stays."""
    old = dict(config.rope_parameters)
    parameters = rope["parameters"]
    if FULL in old:
        old[FULL] = _laid_over(old[FULL], parameters)
        config.rope_parameters = old
    else:
        config.rope_parameters = _laid_over(old, parameters)
    original = parameters.get(TOP_LEVEL)
    if original is not None and getattr(config, TOP_LEVEL, None) is not None:
        setattr(config, TOP_LEVEL, original)
    config.max_position_embeddings = max(config.max_position_embeddings, rope["context"])


def _laid_over(old: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {**{name: old[name] for name in KEPT if name in old}, **parameters}


def _set_frequencies(model: Any, frequencies: list[float], magnitude: float) -> None:
    import torch

    given = torch.tensor(frequencies, dtype=torch.float32)
    rotary = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not rotary or any(module.inv_freq.shape != given.shape for module in rotary):
        raise Refusal("transformers_refuses", "this class keeps its RoPE frequencies where they cannot be set")
    for module in rotary:
        module.inv_freq, module.original_inv_freq = given, given
        module.attention_scaling = magnitude


def main() -> None:
    line = Line()
    model = Transformers(line)
    line.serve(
        {
            "open": model.open,
            "tokenize": model.tokenize,
            "text_of": model.text_of,
            "room": model.set_room,
            "reset": model.reset,
            "decode": model.decode,
            "generate": model.generate,
            "entropy": model.entropy,
            "twin": model.twin,
            "vocabulary": model.vocabulary_only,
        }
    )


if __name__ == "__main__":
    main()
