"""Tokens -> logits through llama.cpp, in a child process: a crash, a hang or a flood there is one error here.

    settings = LlamaSettings(context=4096)
    with open_llama(path, settings) as session:
        tokens = session.tokenize(text)
        for piece in session.stream(tokens): …

Everything of RoPE comes from the file, unless a setting says otherwise: llama.cpp gets its own "from the file" (−1 for
the YaRN parameters, where 0 would count as given). The chat template is never rendered. This is the parent's end; the
child is `runtime_child`, the only place where llama.cpp computes. Knows no metric.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from yarn_gguf import rpc
from yarn_gguf.children.process import DEADLINE, Child
from yarn_gguf.children.room import Room
from yarn_gguf.errors import ChildError, ResourceError, UsageError
from yarn_gguf.gguf_file.shards import Model, read_model
from yarn_gguf.logits import LONGEST_PIECE, Session, opened_session, piece_length
from yarn_gguf.metadata import read_facts

LIBRARY: Final = "LLAMA_CPP_LIB_PATH"
MODULE: Final = "yarn_gguf.runtime_child"
KV_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MOST_THREADS: Final = 512  # ggml.h: GGML_MAX_N_THREADS; more end the process
FLASH: Final[Mapping[bool | None, int]] = {None: -1, False: 0, True: 1}  # llama.h: auto, disabled, enabled
# llama.cpp's "as the file has it", by the name of the context parameter
FROM_FILE: Final[Mapping[str, float]] = {
    "rope_scaling_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
}
JOINING: Final = 30.0  # seconds that an RPC server has to greet; one that serves somebody else does not
Key = bool | int | float | str
_VOCABULARY: Final = ("tokenizer.ggml.tokens", "vocab_size")


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How a model is opened. What is None is llama.cpp's own default, or found from the model."""

    context: int | None = None  # tokens; None: the file's context_length
    batch: int | None = None  # tokens that are decoded per request, and so the most logits in memory
    ubatch: int | None = None  # tokens that llama.cpp computes at a time; None: `batch`
    threads: int | None = None  # None: the number of cores
    gpu_layers: int | None = None  # −1: all; None: none, or all where there are RPC servers
    flash_attention: bool | None = None
    kv_k: str = "f16"
    kv_v: str = "f16"
    rpc: tuple[str, ...] = ()  # HOST:PORT of llama.cpp's RPC servers, where the library has them
    tensor_split: tuple[float, ...] = ()  # shares of the devices, RPC servers first; (): by their free memory
    library: Path | None = None  # a folder of libraries; None: llama-cpp-python's own
    rope: Mapping[str, float] = field(default_factory=dict)  # overrides, by a name of `FROM_FILE`
    keys: Mapping[str, Key] = field(
        default_factory=dict
    )  # what the file's metadata are taken for, by their whole names
    op_offload: bool = True  # a GPU that is there also computes large batches of the CPU's layers
    deadline: float = DEADLINE  # seconds without a sign of life

    def __post_init__(self) -> None:
        for name in (self.kv_k, self.kv_v):
            if name not in KV_TYPES:
                raise UsageError(f"{name!r} is no type of a KV cache; there are {', '.join(KV_TYPES)}", code="kv_type")
        unknown = [name for name in self.rope if name not in FROM_FILE]
        if unknown:
            text = f"{unknown[0]!r} is no RoPE parameter of llama.cpp; there are {', '.join(FROM_FILE)}"
            raise UsageError(text, code="rope_parameter")

    @property
    def layers(self) -> int:
        """How many are offloaded, as llama.cpp counts them. Servers that get none would do nothing."""
        return (-1 if self.rpc else 0) if self.gpu_layers is None else self.gpu_layers


def open_llama(path: str | os.PathLike[str], settings: LlamaSettings) -> Session:
    """An open model; to be closed, or used as a context manager.

    The header is proven first: what is wrong with a file is an InputError before llama.cpp sees it.
    """
    model = read_model(path)
    facts = read_facts(model)
    return _started(model, settings, settings.context or facts.context_length)


def open_vocabulary(path: str | os.PathLike[str], settings: LlamaSettings) -> Session:
    """A session that can only tokenize; no weights are loaded."""
    model = read_model(path)
    read_facts(model)
    return _started(model, settings, 0, vocab_only=True)


def vocabulary_size(model: Model) -> int:
    """How many words the file has, as llama.cpp counts them; 0 where it does not say."""
    tokens = model.entries.get(_VOCABULARY[0])
    if tokens is not None:
        return tokens.count
    arch = model.first.get("general.architecture")
    size = model.first.get(f"{arch}.{_VOCABULARY[1]}")
    return size if isinstance(size, int) else 0


def _started(model: Model, settings: LlamaSettings, context: int, *, vocab_only: bool = False) -> Session:
    room = Room()
    try:
        child = start_child(MODULE, model.path, settings, room.inherited)
    except BaseException:
        room.close()
        raise
    request = _request(model, settings, context)
    path = os.fspath(model.path.absolute())
    return opened_session(
        child, room, path=path, vocab_only=vocab_only, before=lambda: join_servers(child, settings.rpc), **request
    )


def start_child(module: str, path: Path, settings: LlamaSettings, inherited: Sequence[int] = ()) -> Child:
    """A process that loads the library which the settings name; whether RPC servers can be reached is known at once."""
    library = None if settings.library is None else os.fspath(Path(settings.library).absolute())
    child = Child(
        module,
        path,
        what="llama.cpp",
        environment={LIBRARY: library, "GGML_NO_BACKTRACE": "1"},
        inherited=inherited,
        deadline=settings.deadline,
    )
    child.blame = lambda: rpc.gone(settings.rpc)
    try:
        if settings.rpc:
            child.ask("rpc")
            rpc.check(settings.rpc)
    except BaseException:
        child.kill()
        child.close()
        raise
    return child


def check_servers(path: Path, settings: LlamaSettings) -> None:
    """Raises where RPC servers cannot be reached, or not by this library: before anything that takes long is done."""
    if settings.rpc:
        start_child(MODULE, path, settings).close()


def join_servers(child: Child, servers: Sequence[str]) -> None:
    """One after the other, so that whoever does not greet is known by name."""
    blame, patience = child.blame, child.deadline
    child.deadline = min(JOINING, patience)
    for endpoint in servers:
        child.blame = partial(_silent, endpoint)
        try:
            child.ask("server", endpoint=endpoint)
        except ChildError as error:
            if error.code != "child_hangs":
                raise
            raise ResourceError(error.text, code="rpc_busy") from error
    child.blame, child.deadline = blame, patience


def _silent(endpoint: str) -> str:
    return f"RPC server {endpoint} does not greet (another version, or busy with another client?): "


def load_request(settings: LlamaSettings) -> dict[str, Any]:
    """How weights are loaded."""
    return {
        "gpu_layers": settings.layers,
        "tensor_split": list(settings.tensor_split),
        "keys": dict(settings.keys),
    }


def context_request(settings: LlamaSettings, context: int, batch: int) -> dict[str, Any]:
    """How a context is set up."""
    threads = settings.threads or os.cpu_count() or 1
    return {
        "kv": [settings.kv_k, settings.kv_v],
        "parameters": {
            "n_ctx": context,
            "n_batch": settings.ubatch or batch,
            "n_ubatch": settings.ubatch or batch,
            "n_threads": threads,
            "n_threads_batch": threads,
            "flash_attn_type": FLASH[settings.flash_attention],
            "op_offload": settings.op_offload,
            **FROM_FILE,
            **settings.rope,
        },
    }


def _request(model: Model, settings: LlamaSettings, context: int) -> dict[str, Any]:
    batch = settings.batch or min(piece_length(vocabulary_size(model)), LONGEST_PIECE)
    return {"batch": batch, **load_request(settings), **context_request(settings, context, batch)}
