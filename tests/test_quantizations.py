"""`convert` to every quantization against llama.cpp: its own converter to f32 or bf16, then its own `llama-quantize`.

Models with rows that fit every block, rows that make the quantizer fall back to smaller blocks and to f16, and experts;
from f32 and from bf16; without and with an importance matrix, of either format. Every tensor's type and bytes, and the
keys; nothing is compared loosely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from yarn_gguf.demo import demo_model
from yarn_gguf.gguf_file.header import TensorInfo
from yarn_gguf.gguf_file.shards import Model, read_model
from yarn_gguf.quant_names import FTYPES

from .command import run
from .conversions import as_published
from .make_checkpoints import WEIGHTS, as_bf16, load, store
from .quantize_tool import importances, quantized, write_gguf_imatrix, write_legacy_imatrix
from .test_convert_upstream import ALLOWED, differing_keys, differing_tensors
from .toys import TOYS, save_checkpoint
from .upstream import convert

QUANTIZED: Final = {"general.file_type", "general.quantization_version"}
EMBEDDING: Final = "token_embd.weight"
CONVERTERS: Final = ("F32", "F16", "BF16", "Q8_0")
QUANTIZATIONS: Final = tuple(name for name in FTYPES if name not in CONVERTERS)
# as small as they can be: 256 columns make the largest block, four layers all of the mixes' differences
WIDE: Final[dict[str, Any]] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8}
# one of each kind of quantizer, and those that llama.cpp falls back to
SOME: Final = ("Q4_0", "Q2_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "IQ3_S", "TQ1_0", "MXFP4_MOE")
WEIGHTED: Final = ("IQ1_S", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL")  # between them, all but IQ1_M
FEW: Final = ("IQ2_XXS", "IQ3_S", "Q4_K_M")
OTHERS: Final = ("Q8_0", "Q2_K_S", "Q3_K_L", "Q4_0", "Q5_1", "Q4_K_M", "Q6_K")  # that take an importance, and need none


@dataclass(frozen=True)
class Case:
    toy: str
    settings: dict[str, Any]
    names: tuple[str, ...]
    dtype: str = "f32"


CASES: Final = {
    "rows of whole blocks": Case("llama", {**WIDE, "intermediate_size": 512}, QUANTIZATIONS),
    "as few rows as can be": Case("llama", {**WIDE, "intermediate_size": 256, "num_hidden_layers": 2}, FEW),
    "rows of 10.5 small blocks, bf16": Case(
        "qwen3", {**WIDE, "intermediate_size": 336, "head_dim": 32, "tie_word_embeddings": True}, SOME, "bf16"
    ),
    "experts with rows of small blocks, bf16": Case(
        "mixtral", {**WIDE, "intermediate_size": 96}, QUANTIZATIONS, "bf16"
    ),
    "experts and shared ones": Case(
        "qwen2moe", {**WIDE, "num_hidden_layers": 2, "num_experts": 4, "moe_intermediate_size": 256}, SOME
    ),
}


@dataclass(frozen=True)
class Made:
    checkpoint: Path
    upstream: Path  # what llama.cpp's converter makes of it, in its own type
    matrices: dict[str, tuple[int, int]]  # of every tensor that can have an importance: how many, and their columns


Cases = Callable[[str], Made]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    found: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in found:
            case, folder = CASES[name], tmp_path_factory.mktemp("case") / "checkpoint"
            save_checkpoint(TOYS[case.toy], folder, **case.settings)
            if case.dtype == "bf16":
                store(folder / WEIGHTS, as_bf16(load(folder / WEIGHTS)))
            theirs = convert(folder, folder.with_name("upstream.gguf"), case.dtype)
            found[name] = Made(folder, theirs, _matrices(read_model(theirs)))
        return found[name]

    return make


def _matrices(model: Model) -> dict[str, tuple[int, int]]:
    """As `llama-imatrix` sees them: the matrices of layers, and the output."""
    tensors = [tensor for _, tensor in model.tensors.values() if len(tensor.dims) > 1]
    return {t.name: (t.elements // t.dims[0] // t.dims[1], t.dims[0]) for t in tensors if t.name != EMBEDDING}


def difference(ours: Path, theirs: Path) -> tuple[list[str], dict[str, tuple[object, object]]]:
    """Dimensions of 1 at the end are no difference: `llama-quantize` drops them, the converter keeps them."""
    one, other = read_model(ours), read_model(theirs)
    keys = {key: pair for key, pair in differing_keys(one, other).items() if key not in ALLOWED}
    return differing_tensors(_squeezed(one), _squeezed(other)), keys


def _squeezed(model: Model) -> Model:
    def squeezed(tensor: TensorInfo) -> TensorInfo:
        dims = tensor.dims
        while len(dims) > 1 and dims[-1] == 1:
            dims = dims[:-1]
        return replace(tensor, dims=dims)

    return Model(
        tuple(replace(part, tensors={n: squeezed(t) for n, t in part.tensors.items()}) for part in model.parts)
    )


def all_equal(case: Made, names: Sequence[str], folder: Path, *options: str) -> None:
    """One run of ours for all of them, against one run of `llama-quantize` for each."""
    out = folder / "{ftype}.gguf"
    done = run("convert", case.checkpoint, "--no-vocab", "-o", out, "--outtype", ",".join(names), *options)
    assert (done.code, done.err) == (0, ""), done
    for name in names:
        theirs = folder / "theirs.gguf"
        assert quantized(case.upstream, theirs, name, *options) == ""
        ours = folder / f"{name.lower() if name in CONVERTERS else name}.gguf"
        assert (name, *difference(ours, theirs)) == (name, [], {})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.names) > len(FEW)])
def test_every_quantization_has_the_types_bytes_and_keys_of_llama_quantize(
    name: str, made: Cases, tmp_path: Path
) -> None:
    case, names, theirs = made(name), CASES[name].names, tmp_path / "theirs.gguf"
    refused = {each: said for each in names if (said := quantized(case.upstream, theirs, each))}
    assert len(names) - len(refused) > 9
    all_equal(case, [each for each in names if each not in refused], tmp_path)
    for each, said in refused.items():
        done = run("convert", case.checkpoint, "--no-vocab", "-o", tmp_path / "none.gguf", "--outtype", each)
        assert (done.code, done.out) == (3, ""), done
        assert ("--imatrix" if "requires an imatrix" in said else "no tensor type fallback") in done.err
        assert not (tmp_path / "none.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "names"),
    [
        ("as few rows as can be", write_gguf_imatrix, WEIGHTED + OTHERS),
        ("as few rows as can be", write_legacy_imatrix, FEW),
        ("experts and shared ones", write_gguf_imatrix, FEW),
        ("experts and shared ones", write_legacy_imatrix, FEW),
    ],
)
def test_with_an_importance_matrix_too(
    name: str, write: Callable[..., Path], names: Sequence[str], made: Cases, tmp_path: Path
) -> None:
    case = made(name)
    matrix = write(tmp_path / "imatrix", importances(case.matrices))
    all_equal(case, names, tmp_path, "--imatrix", str(matrix))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Q4_K_M", ["--pure"]),
        ("Q4_K_M", ["--output-tensor-type", "q8_0", "--token-embedding-type", "Q3_K"]),
        ("Q4_0", ["--tensor-type", "attn_[qk]=q6_K", "--tensor-type", r"blk\.(0|3)\.FFN_DOWN=bf16"]),
        ("Q8_0", ["--tensor-type", "ffn_up=q5_1", "--tensor-type", "attn_v=mxfp4"]),
        ("F16", ["--output-tensor-type", "q6_k"]),
        ("BF16", ["--token-embedding-type", "q4_1"]),
    ],
)
def test_types_can_be_chosen_as_in_llama_quantize(name: str, options: list[str], made: Cases, tmp_path: Path) -> None:
    all_equal(made("rows of whole blocks"), [name], tmp_path, *options)


# ---- every architecture; the model in the package; what is done to the weights beforehand


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_every_architecture_is_quantized_as_llama_quantize_does(
    name: str, toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The toys' rows are short: what a K-quant falls back to is decided for every tensor that an architecture has.

    Their other keys are compared where nothing is quantized.
    """
    folder = toy_folder(name)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    checkpoint = as_published(folder, tmp_path / "checkpoint")
    done = run("convert", checkpoint, "--no-vocab", "-o", ours, "--outtype", "Q4_K_M")
    said = quantized(folder / "f32.gguf", theirs, "Q4_K_M")
    assert (done.code == 0) == (said == ""), (done, said)
    if done.code == 0:
        tensors, keys = difference(ours, theirs)
        assert (tensors, keys.keys() & QUANTIZED) == ([], set())
    else:
        assert done.code == 3, done


@pytest.mark.slow
def test_the_demo_model_is_quantized_as_llama_quantize_does(tmp_path: Path) -> None:
    between = convert(demo_model("yarn8"), tmp_path / "upstream.gguf", "bf16")
    for name in ("Q4_K_M", "Q8_0", "IQ4_XS"):
        ours, theirs = tmp_path / f"{name}.gguf", tmp_path / f"theirs-{name}.gguf"
        done = run("convert", demo_model("yarn8"), "--no-vocab", "-o", ours, "--outtype", name)
        assert done.code == 0, done
        assert quantized(between, theirs, name) == ""
        tensors, keys = difference(ours, theirs)
        assert (tensors, [key for key in keys if not key.startswith("yarn_gguf.")]) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--factor", "8", "--attention-factor", "1.5", "--fold-magnitude"), ("--lora",)])
def test_folded_and_merged_weights_are_quantized_like_any_others(
    options: tuple[str, ...], made: Cases, tmp_path: Path
) -> None:
    """Against `llama-quantize` of our own float32 file, which is held against other oracles elsewhere."""
    case = made("rows of whole blocks")
    if options == ("--lora",):
        options = ("--lora", str(_adapter(case.checkpoint, tmp_path / "adapter")))
    common: tuple[str | Path, ...] = ("convert", case.checkpoint, "--no-vocab", *options)
    between, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("between", "ours", "theirs"))
    assert run(*common, "-o", between, "--outtype", "f32").code == 0
    assert run(*common, "-o", ours, "--outtype", "Q4_K_M").code == 0
    assert quantized(between, theirs, "Q4_K_M") == ""
    assert differing_tensors(_squeezed(read_model(ours)), _squeezed(read_model(theirs))) == []
    assert differing_tensors(_squeezed(read_model(between)), _squeezed(read_model(case.upstream))) != []


def _adapter(checkpoint: Path, folder: Path) -> Path:
    """Of PEFT, for the attention, drawn at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), settings).save_pretrained(folder)
    return folder
