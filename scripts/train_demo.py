"""Trains the demo models: a small Llama with a tokenizer of its own, and YaRN fine-tunes of it. Torch on the CPU alone.

python scripts/train_demo.py OUT              # OUT/base, OUT/yarn8, OUT/yarn4: within 20 minutes on two cores
python scripts/train_demo.py OUT --steps 0.01 # a hundredth of the steps, to see that it runs

The model learns to copy first, from chants of few words; then the same of all words, then texts. Two things make the
copying heads form within a few hundred steps: queries and keys of a head begin alike, as do values and outputs (after
Trockman and Kolter, arXiv 2305.09828), so that heads begin by looking for what resembles them and passing it on; and
the first head begins by looking one token back. The YaRN fine-tunes follow the paper (arXiv 2309.00071): the same
weights, factor 8 (or 4), and few steps on texts of which 40 % are short and the rest up to the factor times as long.

Everything follows from the seed and the number of threads (one: the matrices are small).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from yarn_gguf.tasks.chants import chant
from yarn_gguf.tasks.text import Mix, document
from yarn_gguf.tasks.words import LISTED
from yarn_gguf.tokenizer.pre_tokenizers import QWEN2

CONTEXT, VOCABULARY, WIDTH, LAYERS, HEADS, BASE = 256, 1280, 256, 2, 4, 10000.0
BEGIN, END = "<|begin|>", "<|end|>"
FEW = (*LISTED[:54], *"0123456789")  # words of the first chants
LOOK_BACK = (10, 6.2)  # the first head: how many of its fastest pairs look one token back, and how sharply
ALIKE = 1.5  # queries and keys of a head begin alike, this much larger than other weights
LONGEST, LATEST = 8, 10  # times the steps of a stage; losses that are averaged
IGNORED = -100  # a label that torch leaves out

Batch = tuple[torch.Tensor, torch.Tensor]
Make = Callable[[Random], Batch]


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, cut like Qwen 2's, over the words of the texts; every word is one token, every digit too."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    random = Random(0)
    texts = [document(random, 2000, Mix()) for _ in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return tokenizer


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj.weight.mul_(ALIKE)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        _look_back(model)
    return model


def _look_back(model: LlamaForCausalLM) -> None:
    """The first head scores a key by Σ cos(θᵢ·(distance − 1)), whatever the tokens: all share a direction for that."""
    pairs, sharpness = LOOK_BACK
    shared = torch.randn(WIDTH) * model.config.initializer_range
    model.model.embed_tokens.weight.add_(shared)
    direction = shared / shared.norm()
    half = WIDTH // HEADS // 2
    theta = BASE ** (-torch.arange(half) / half)[:pairs]
    query, key = torch.zeros(2 * half), torch.zeros(2 * half)
    query[:pairs], query[half : half + pairs], key[:pairs] = torch.cos(theta), -torch.sin(theta), 1.0
    scale = sharpness / math.sqrt(WIDTH / 2)  # a normed embedding has half of its square along the direction
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight[: 2 * half].add_(scale * query[:, None] * direction)
    attention.k_proj.weight[: 2 * half].add_(scale * key[:, None] * direction)


@dataclass(frozen=True)
class Texts:
    """Makes batches."""

    tokenizer: Tokenizer

    def chants(self, tokens: int, length: int, words: Sequence[str], count: tuple[int, int]) -> Make:
        """Only words that can be known are learned."""

        def make(random: Random) -> Batch:
            rows, labels = [], []
            for _ in range(tokens // length):
                said, known = chant(random, length - 1, words, count)
                ids = self.tokenizer.encode("".join(word if word.isdigit() else f" {word}" for word in said)).ids
                assert len(ids) == length  # each word is one token
                rows.append(ids)
                labels.append([IGNORED, *(i if k else IGNORED for i, k in zip(ids[1:], known, strict=True))])
            return torch.tensor(rows), torch.tensor(labels)

        return make

    def documents(self, tokens: int, length: Callable[[Random], int], mix: Mix) -> Make:
        def make(random: Random) -> Batch:
            size = length(random)
            rows = torch.tensor([self._document(random, size, mix) for _ in range(max(tokens // size, 1))])
            return rows, rows

        return make

    def _document(self, random: Random, size: int, mix: Mix) -> list[int]:
        ids: list[int] = []
        while len(ids) < size:
            ids = self.tokenizer.encode(document(random, size, mix)).ids
        return ids[:size]


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    make: Make
    rates: tuple[float, float]  # of learning, at its beginning and its end
    until: float = math.inf  # goes on at its last rate, up to `LONGEST` times as long, until the loss is below this


def base_stages(texts: Texts) -> list[Stage]:
    dense = Mix(list=2, repeat=4, story=0.5, sayings=0.5, key=1, question=2, words=(4, 12))
    return [
        Stage("chants of few words", 150, texts.chants(1024, 64, FEW, (6, 12)), (1e-3, 1e-3), 1.0),
        Stage("chants of all words", 80, texts.chants(2048, 128, LISTED, (8, 24)), (1e-3, 1e-3)),
        Stage("half texts", 80, texts.documents(2048, lambda _: CONTEXT // 2, dense), (1e-3, 1e-3)),
        Stage("texts", 420, texts.documents(4096, lambda _: CONTEXT, Mix()), (1e-3, 5e-5)),
    ]


def yarn_stages(texts: Texts, factor: int) -> list[Stage]:
    def length(random: Random) -> int:
        return CONTEXT if random.random() < 0.4 else CONTEXT * random.choice([n for n in (2, 4, 8) if n <= factor])

    return [Stage(f"yarn x{factor}", 100, texts.documents(4096, length, Mix()), (2e-4, 2e-5))]


def train(
    model: LlamaForCausalLM, stages: Sequence[Stage], seed: int, share: float, log: list[dict[str, object]]
) -> None:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    random, began = Random(seed), (time.monotonic(), time.process_time())
    model.train()
    for stage in stages:
        losses, steps = list[float](), max(round(stage.steps * share), 1)
        for step in range(LONGEST * steps):
            latest = losses[-LATEST:]
            if step >= steps and sum(latest) < stage.until * len(latest):
                break
            rate = _rate(stage, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, labels = stage.make(random)
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if step % 25 == 24:
                print(f"{stage.name}: step {step + 1}, loss {loss.item():.3f}", flush=True)
        spent = {"seconds": time.monotonic() - began[0], "cpu_seconds": time.process_time() - began[1]}
        log.append(
            {
                "stage": stage.name,
                "steps": len(losses),
                "loss": loss.item(),
                **{name: round(value, 1) for name, value in spent.items()},
            }
        )


def _rate(stage: Stage, step: int, steps: int) -> float:
    """Up within 30 steps, then along a cosine, and on at the last rate."""
    first, last = stage.rates
    rate = last + (first - last) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2
    return rate * min(1.0, (step + 1) / 30)


def set_yarn(model: LlamaForCausalLM, factor: int) -> LlamaForCausalLM:
    """The same weights under YaRN."""
    config = LlamaConfig(**model.config.to_dict())
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": BASE,
        "factor": float(factor),
        "original_max_position_embeddings": CONTEXT,
    }
    config.max_position_embeddings = CONTEXT * factor
    scaled = LlamaForCausalLM(config)
    scaled.load_state_dict(model.state_dict())
    return scaled


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)
    wrapped.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=float, default=1.0, metavar="SHARE", help="of the steps")
    parser.add_argument("--factors", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--base", type=Path, help="a trained base to fine-tune, instead of training one")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    texts, log = Texts(make_tokenizer()), list[dict[str, object]]()
    if given.base is None:
        model = make_model(given.seed)
        train(model, base_stages(texts), given.seed, given.steps, log)
        save(model, texts.tokenizer, given.out / "base")
    else:
        model = LlamaForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    for factor in given.factors:
        scaled = set_yarn(model, factor)
        train(scaled, yarn_stages(texts, factor), given.seed + factor, given.steps, log)
        save(scaled, texts.tokenizer, given.out / f"yarn{factor}")
    (given.out / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(log, indent=1))


if __name__ == "__main__":
    main()
