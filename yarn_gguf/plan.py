"""Which context of a model fits a computer: with which weights, which cache, how many layers on the GPU, which factor.

By headers alone: a GGUF, a split set, or a checkpoint that is not converted yet, whose tensors are planned as `convert`
would write them. Choices are compared by what they cost in quality (`memory.quality`); bytes are `memory.needs`'.
Opens no model and reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from yarn_gguf.errors import UsageError, about
from yarn_gguf.findings import Finding, warning
from yarn_gguf.intent import Intent, RopeOptions
from yarn_gguf.memory.advice import FactorCost, factor_costs, made_file, option_words, quoted, smallest_factor, steps
from yarn_gguf.memory.cache import QUANTIZED, ROWS
from yarn_gguf.memory.devices import Devices, devices
from yarn_gguf.memory.needs import (
    RESERVE,
    UBATCH,
    Needs,
    Room,
    Setting,
    layer_caches,
    longest_context,
    most_gpu_layers,
    needs,
    placed,
)
from yarn_gguf.memory.quality import Price, Prices
from yarn_gguf.memory.reading import read_per_token
from yarn_gguf.memory.shape import Shape
from yarn_gguf.memory.sources import Source, of_this_model, sources

# the usual types of cache; without flash attention values cannot be quantized
CACHES: Final = (("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"))
CACHES_WITHOUT_FLASH: Final = (("f16", "f16"), ("q8_0", "f16"), ("q4_0", "f16"))
ACCEPTABLE: Final = 0.2  # nats; what a GPU holds whole is taken up to here
LITTLE: Final = 0.05  # nats; up to here speed counts where a GPU does not hold it all
NEARLY: Final = 1.5  # times what the fastest of them reads per token: as fast, for who weighs it against quality
QUICK: Final = 256 << 20  # bytes that any memory reads some hundred times a second: fast enough
OUTPUTS: Final = 1  # of a batch, whose logits are kept: as llama-server and llama-cli do for each sequence
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What was asked for. What is None is found out."""

    rope: RopeOptions = field(default_factory=RopeOptions)  # its ctx is the context that is to fit
    vram: int | None = None
    ram: int | None = None
    reserve: int = RESERVE
    unified: bool | None = None
    types: tuple[str, ...] = ()  # of weights; none: the file's own, or those that are usual
    caches: tuple[tuple[str, str], ...] = ()  # none: the usual ones
    flash: bool = True
    gpu_layers: int | None = None
    ubatch: int = UBATCH
    outputs: int | None = OUTPUTS  # None: all of a batch
    swa_full: bool = False
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class Choice:
    """One way to run the model at the context that was asked for. `longest`: what fits so, whatever was asked for."""

    type: str
    shape: Shape
    kv: tuple[str, str]
    needs: Needs
    fits: bool
    longest: int
    price: Price
    whole: bool  # everything but the token embedding on the GPU
    idle: bool = False  # a GPU is there and is not used at all

    @property
    def gpu_layers(self) -> int:
        return self.needs.setting.gpu_layers

    @property
    def read(self) -> float:
        """For every token."""
        return read_per_token(self.shape, self.needs.setting)

    @property
    def flags(self) -> tuple[str, ...]:
        """What llama.cpp's programs are started with, to run the model so."""
        return (*self.words, *self.more)

    @property
    def words(self) -> tuple[str, ...]:
        """Of them, those that `yarn-gguf flags` knows as well."""
        setting = self.needs.setting
        found = ["-c", str(setting.context), "-ngl", str(setting.gpu_layers), "-fa", "on" if setting.flash else "off"]
        found += ["-ctk", self.kv[0], "-ctv", self.kv[1]] if self.kv != ("f16", "f16") else []
        return tuple(found)

    @property
    def more(self) -> tuple[str, ...]:
        """And those that it passes on. What is planned is one text at a time."""
        setting = self.needs.setting
        found = ["-np", "1", *(["-ub", str(setting.ubatch)] if setting.ubatch != UBATCH else [])]
        found += ["--swa-full"] if setting.swa_full else []
        return (*found, *(["--device", "none"] if self.idle else []))


@dataclass(frozen=True)
class Plan:
    path: Path
    model: Path  # what is to be started: the file, or what is to be made of it
    file: tuple[str, int]  # the type of the file as it is, or as it would be made first, and the bytes of its weights
    rope: RopeOptions
    room: Room
    present: Devices | None  # what was found; None where all was said
    now: Intent | None  # what the file asks for; None without RoPE
    original: int | None
    context: int  # that is planned for
    factor: float  # that was asked for; else the smallest that covers it
    choices: tuple[Choice, ...]
    best: Choice | None
    factors: tuple[FactorCost, ...]
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        return self.best is not None

    @property
    def chosen(self) -> Choice:
        """The best; where nothing fits, what needs the least."""
        return self.best or min(self.choices, key=lambda each: each.needs.total)

    @property
    def shape(self) -> Shape:
        return self.chosen.shape

    @property
    def command(self) -> str | None:
        """What says how the best is started."""
        if self.best is None:
            return None
        scaled = self.now is not None and (self.context > self.now.context or self.rope.factor or self.rope.method)
        words = [*self.best.words, *(option_words(self.rope) if scaled else ())]
        return quoted(["yarn-gguf", "flags", str(self.model), "--for", "llama-server", *words, "--", *self.best.more])

    @property
    def layer_caches(self) -> tuple[int, ...]:
        """Bytes of each layer's cache, as chosen."""
        return layer_caches(self.shape, self.chosen.needs.setting)

    @property
    def longest(self) -> int:
        return max((choice.longest for choice in self.choices), default=0)


def plan(path: Path, wanted: Wanted, progress: Progress = lambda *_: None) -> Plan:
    """Everything that `yarn-gguf plan` says."""
    _check(wanted)
    found = sources(path, wanted.types)
    room, present = _room(wanted)
    own = found[0].own
    original = wanted.rope.original_ctx or (None if own is None else own.original)
    context = _context(wanted, found[0])
    factor = wanted.rope.factor or smallest_factor(context, original)
    if wanted.rope.factor is not None and original is not None and context > round(factor * original):
        text = f"--ctx {context} is beyond what --factor {factor:g} reaches, {round(factor * original)}; leave one out"
        raise UsageError(text, code="factor_and_ctx")
    prices, foreign = of_this_model(wanted.prices, found, factor)
    with about(path):
        factors = tuple(factor_costs(found[0], factor, wanted.rope, prices))
    findings = [*(finding for source in found for finding in source.findings), *_about_room(present, room)]
    caches, refused = _usable(wanted.caches or usual_caches(flash=wanted.flash), found[0].shape)
    findings += (*refused, *foreign)
    wanted = replace(wanted, prices=prices)
    total, choices = len(found) * len(caches), []
    for source in found:
        for kv in caches:
            choices.append(_choice(source, kv, context, room, wanted))
            progress(len(choices), total)
    best = _best(choices)
    chosen = next((source for source in found if best is not None and source.type == best.type), found[0])
    findings += steps(chosen, context, factor, original, wanted.rope)
    return Plan(
        path=path,
        model=made_file(chosen),
        file=found[0].file or (found[0].type, found[0].shape.weights),
        rope=wanted.rope,
        room=room,
        present=present,
        now=found[0].now,
        original=original,
        context=context,
        factor=factor,
        choices=tuple(choices),
        best=best,
        factors=factors,
        findings=tuple(findings),
    )


def _check(wanted: Wanted) -> None:
    for name in (name for pair in wanted.caches for name in pair):
        if name not in ROWS:
            raise UsageError(f"{name!r} is no type of a KV cache; there are {', '.join(ROWS)}", code="kv_type")
    for _, value in wanted.caches:
        if value in QUANTIZED and not wanted.flash:
            text = f"values in {value} need flash attention, or llama.cpp opens no context; leave it on"
            raise UsageError(text, code="kv_needs_flash")


def _room(wanted: Wanted) -> tuple[Room, Devices | None]:
    if wanted.vram is not None and wanted.ram is not None:
        return Room(wanted.vram, wanted.ram, wanted.reserve, bool(wanted.unified)), None
    found = devices()
    vram = found.vram if wanted.vram is None else wanted.vram
    ram = wanted.ram
    if ram is None and found.ram is not None:
        ram = found.ram.free
    unified = found.unified if wanted.unified is None else wanted.unified
    return Room(vram, ram, wanted.reserve, unified), found


def _about_room(present: Devices | None, room: Room) -> Iterator[Finding]:
    if present is None:
        return
    if present.gpus and not present.usable and room.vram:
        text = "a GPU is here, but no installed llama.cpp library computes on it; yarn-gguf build --backend makes one"
        yield warning("gpu_unused", text)


def _context(wanted: Wanted, source: Source) -> int:
    """The context that is to fit: as it was asked for, else the model's own."""
    rope, own = wanted.rope, source.own
    if rope.ctx is not None:
        return rope.ctx
    if rope.factor is not None and own is not None and own.original is not None:
        return round(rope.factor * own.original)
    return source.shape.context_length if source.now is None else source.now.context


def usual_caches(*, flash: bool) -> tuple[tuple[str, str], ...]:
    return CACHES if flash else CACHES_WITHOUT_FLASH


def _usable(caches: Sequence[tuple[str, str]], shape: Shape) -> tuple[list[tuple[str, str]], list[Finding]]:
    """The types of cache that llama.cpp takes for heads of that length; the rest is told."""
    kept, told = [], []
    for kv in caches:
        wrong = next(_misfits(shape, kv), None)
        if wrong is None:
            kept.append(kv)
        else:
            told.append(warning("cache_misfit", wrong))
    if not kept:
        raise UsageError(told[0].text if told else "no type of cache was given", code="cache_misfit")
    return kept, told


def _misfits(shape: Shape, kv: tuple[str, str]) -> Iterator[str]:
    if shape.latent and kv[0] != kv[1]:
        yield f"a cache of {'/'.join(kv)} has two types, and {shape.arch} keeps keys and values as one"
    for layer in shape.layers:
        for name, length, used in ((kv[0], layer.head_key, layer.key), (kv[1], layer.head_value, layer.value)):
            if used and length % ROWS[name][0]:
                yield f"a cache of {name} has blocks of {ROWS[name][0]}, which heads of {length} are no multiple of"


def _choice(source: Source, kv: tuple[str, str], context: int, room: Room, wanted: Wanted) -> Choice:
    shape = source.shape
    setting = Setting(
        context,
        kv,
        flash=wanted.flash,
        ubatch=wanted.ubatch,
        outputs=wanted.outputs,
        swa_full=wanted.swa_full,
        gpu=room.vram != 0,
    )
    most = most_gpu_layers(shape)
    layers = None if wanted.gpu_layers is None else min(wanted.gpu_layers, most)
    found = placed(shape, setting, room, layers)
    # what does not fit is shown as it was asked for, else with everything on the GPU, where there is one
    shown = found or replace(setting, gpu_layers=layers if layers is not None else most if room.vram else 0)
    return Choice(
        type=source.type,
        shape=shape,
        kv=kv,
        needs=needs(shape, shown),
        fits=found is not None,
        longest=longest_context(shape, setting, room, layers=layers),
        price=wanted.prices.of(source.type, kv),
        whole=found is not None and bool(room.vram) and found.gpu_layers == most,
        idle=found is not None and bool(room.vram) and not found.gpu,
    )


def _best(choices: Sequence[Choice]) -> Choice | None:
    """Of what fits: the least costly that a GPU holds whole; else, of what costs little and reads hardly more for every
    token than what reads the least, the least costly; else the least costly of all."""
    fitting = [choice for choice in choices if choice.fits]
    if whole := [choice for choice in fitting if choice.whole and choice.price.kld <= ACCEPTABLE]:
        return min(whole, key=lambda each: (each.price.kld, each.needs.total))
    if cheap := [choice for choice in fitting if choice.price.kld <= LITTLE]:
        most = max(NEARLY * min(each.read for each in cheap), QUICK)
        return min((each for each in cheap if each.read <= most), key=lambda each: (each.price.kld, each.read))
    return min(fitting, key=lambda each: (each.price.kld, each.needs.total), default=None)
