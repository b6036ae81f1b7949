"""How two servers are told the same: llama.cpp's own `llama-server`, and llama-cpp-python's `llama_cpp.server`.

Both are told everything that decides on a result: context, RoPE, cache, layers, one sequence at a time. The latter
passes YaRN parameters of its own (betas 32/1, attention factor 1), which would override the file's; so it is given
llama.cpp's "as in the file". Neither takes anything from the environment. Knows words; starts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from yarn_gguf.errors import UsageError
from yarn_gguf.flags.llama_words import override, rope_arguments
from yarn_gguf.opened import padded
from yarn_gguf.running.offload import spares_gpu
from yarn_gguf.running.scaling import Scaling
from yarn_gguf.running.wanted import Wanted
from yarn_gguf.runtime import FROM_FILE

# beginnings of environment variables: those that set llama-server up are kept from it; llama_cpp.server, which takes
# one for each of its settings (SEED, CACHE, HOST, …), gets no others than these
UNWANTED: Final = ("LLAMA_ARG_", "LLAMA_CPP_LIB_PATH")
PYTHON_WANTED: Final = (
    *("PATH", "HOME", "USER", "LANG", "LC_", "TMP", "TEMP", "SYSTEMROOT", "WINDIR", "LOCALAPPDATA", "APPDATA", "XDG_"),
    *("PYTHON", "VIRTUAL_ENV", "LD_", "DYLD_", "CUDA", "NVIDIA", "HIP", "ROC", "HSA", "GGML_", "VK_", "MTL_", "OMP_"),
)


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Order:
    """Everything that a server is told."""

    path: Path
    wanted: Wanted
    scaling: Scaling
    gpu_layers: int
    address: Address


def llama_server(program: Path, order: Order, template: Path | None = None) -> list[str]:
    """The command line of llama.cpp's own. `template`: the file of a chat template instead of the model's."""
    wanted, address = order.wanted, order.address
    words: dict[str, str | int | None] = {
        "--model": str(order.path.absolute()),
        "--alias": order.path.name,
        "--host": address.host,
        "--port": address.port,
        "--ctx-size": padded(order.scaling.context),
        "--parallel": 1,
        "--fit": "off",
        "--cache-type-k": wanted.kv_k,
        "--cache-type-v": wanted.kv_v,
        "--flash-attn": {None: "auto", True: "on", False: "off"}[wanted.flash_attention],
        "--gpu-layers": order.gpu_layers if order.gpu_layers >= 0 else "all",
        "--threads": wanted.threads,
        "--batch-size": wanted.batch,
        "--ubatch-size": wanted.batch,
        "--chat-template-file": None if template is None else str(template),
        "--rpc": ",".join(wanted.rpc) or None,
        "--tensor-split": ",".join(f"{share:g}" for share in wanted.tensor_split) or None,
    }
    shift = "--context-shift" if wanted.allow_shift else "--no-context-shift"
    flags = [str(word) for name, value in words.items() if value is not None for word in (name, value)]
    rope = rope_arguments(order.scaling.start, order.scaling.arch)
    spared = ["--no-op-offload"] if spares_gpu(wanted, order.gpu_layers) else []
    return [str(program), *flags, *rope, *spared, shift, "--no-webui"]


def python_server(file: Path) -> list[str]:
    """The command line of llama-cpp-python's, which reads its settings from a file."""
    return [sys.executable, "-P", "-m", "llama_cpp.server", "--config_file", str(file)]


def python_settings(order: Order, number_of: Callable[[str], int]) -> dict[str, Any]:
    """Its settings file. `number_of`: ggml's number of a type of the cache."""
    wanted, address = order.wanted, order.address
    refused = {
        "--rpc": wanted.rpc,
        "--tensor-split": wanted.tensor_split,
        "--allow-shift": wanted.allow_shift,
        "--chat-template": wanted.template,
    }
    for flag, given in refused.items():
        if given:
            text = f"{flag} is not for llama-cpp-python's server, which would not heed it; use llama-server"
            raise UsageError(text, code="unused_option")
    model = {
        "model": str(order.path.absolute()),
        "n_ctx": padded(order.scaling.context),
        "n_gpu_layers": order.gpu_layers,
        "flash_attn": wanted.flash_attention is not False,
        "type_k": number_of(wanted.kv_k),
        "type_v": number_of(wanted.kv_v),
        "logits_all": False,  # else it keeps the logits of every token of the context
        "use_mlock": False,  # else it holds all weights in memory wherever the system lets it
        **FROM_FILE,
        **order.scaling.parameters,
        "kv_overrides": [override(*each) for each in order.scaling.keys.items()] or None,
    }
    if wanted.threads is not None:
        model |= {"n_threads": wanted.threads, "n_threads_batch": wanted.threads}
    if wanted.batch is not None:
        model |= {"n_batch": wanted.batch, "n_ubatch": wanted.batch}
    return {"host": address.host, "port": address.port, "models": [model]}
