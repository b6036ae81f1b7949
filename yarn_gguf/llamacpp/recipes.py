"""Backend → what CMake is told, and what is built. Data: nothing runs here, nothing is looked up.

The scripts beside the patches say the same to people who have no Python; a test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# everywhere: shared libraries that find each other in their own folder, and nothing that would want a network
COMMON: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
RPATH: Final[Mapping[str, str]] = MappingProxyType({"darwin": "@loader_path", "win32": ""})
LIBRARIES_ONLY: Final = (
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_MTMD=ON",
)
WITH_TOOLS: Final = ("-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON")
BACKENDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cpu": ("-DGGML_METAL=OFF",),
        "cuda": ("-DGGML_METAL=OFF", "-DGGML_CUDA=ON"),
        "metal": ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"),
        "vulkan": ("-DGGML_METAL=OFF", "-DGGML_VULKAN=ON"),
    }
)
NEEDS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = MappingProxyType(  # a program, and where it comes from
    {
        "cpu": (),
        "cuda": (("nvcc", "the CUDA toolkit, with its bin folder on PATH"),),
        "metal": (),
        "vulkan": (("glslc", "the Vulkan SDK, or the packages glslc and libvulkan-dev"),),
    }
)
TARGETS: Final = ("llama", "mtmd")
TOOLS: Final = (
    "llama-server", "llama-cli", "llama-completion", "llama-quantize", "llama-imatrix", "llama-perplexity",
)  # fmt: skip
RPC: Final = "-DGGML_RPC=ON"
RPC_SERVER: Final = "ggml-rpc-server"
# compute capabilities of current cards: Turing, Ampere, Ada, Hopper, Blackwell
CUDA_ARCHITECTURES: Final = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides how a tree becomes libraries."""

    backend: str
    rpc: bool = False
    tools: bool = False
    platform: str = "linux"  # as sys.platform has it
    cuda_architectures: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What a build is called by: cuda-rpc-tools."""
        return "-".join([self.backend, *(["rpc"] if self.rpc else []), *(["tools"] if self.tools else [])])

    @property
    def flags(self) -> tuple[str, ...]:
        """What CMake is configured with."""
        rpath = RPATH.get(self.platform, "$ORIGIN")
        return (
            *COMMON,
            *([f"-DCMAKE_INSTALL_RPATH={rpath}"] if rpath else []),
            *(WITH_TOOLS if self.tools else LIBRARIES_ONLY),
            *BACKENDS[self.backend],
            *([f"-DCMAKE_CUDA_ARCHITECTURES={self._architectures}"] if self.backend == "cuda" else []),
            *([RPC] if self.rpc else []),
        )

    @property
    def targets(self) -> tuple[str, ...]:
        tools = (*TOOLS, *([RPC_SERVER] if self.rpc else [])) if self.tools else ()
        return (*TARGETS, *tools)

    @property
    def _architectures(self) -> str:
        """Real code for each, and for cards to come the newest as an intermediate one."""
        known = sorted(self.cuda_architectures or CUDA_ARCHITECTURES)
        return ";".join([*(f"{number}-real" for number in known[:-1]), str(known[-1])])


def configure(recipe: Recipe, tree: str, build: str, *, ninja: bool) -> tuple[str, ...]:
    """The command that configures a tree."""
    return ("cmake", "-S", tree, "-B", build, *(["-G", "Ninja"] if ninja else []), *recipe.flags)


def compile_(recipe: Recipe, build: str, jobs: int) -> tuple[str, ...]:
    """The command that builds what was configured."""
    return ("cmake", "--build", build, "--config", "Release", "-j", str(jobs), "--target", *recipe.targets)
