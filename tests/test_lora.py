"""An adapter merged while reading gives the bits that PEFT's `merge_and_unload` leaves in memory.

PEFT makes the adapters, from toy models, and merges them; the weights are compared in slices of odd sizes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from yarn_gguf.checkpoint.lora import merged, read_adapter
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.weights import Weight, open_weights
from yarn_gguf.errors import InputError, ResourceError

Settings = Mapping[str, Any]
Bits = npt.NDArray[Any]

ATTENTION: Final = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTERS: Final[dict[str, tuple[str, Settings]]] = {
    "attention": ("llama", {"r": 4, "target_modules": ATTENTION}),
    "every matrix, odd scaling": ("llama", {"r": 7, "lora_alpha": 11, "target_modules": "all-linear"}),
    "a rank above the width": ("llama", {"r": 200, "target_modules": ATTENTION}),
    "rank 1": ("llama", {"r": 1, "target_modules": ["down_proj"]}),
    "rsLoRA": ("llama", {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        "llama",
        {
            "r": 8,
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 4, r"layers\.[01]\.self_attn\.v_proj": 2, "^model.layers.0.self_attn.k_proj": 3},
            "alpha_pattern": {"self_attn.o_proj": 32, "proj": 3},
        },
    ),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "biases of the adapted": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "biases of B": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True, "lora_alpha": 3}),
    "the embedding": ("llama", {"r": 5, "target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 3}),
    "a tied embedding": ("gemma", {"r": 5, "target_modules": ["embed_tokens", "up_proj"]}),
    "modules in full": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "DoRA": ("llama", {"r": 6, "lora_alpha": 9, "use_dora": True, "target_modules": "all-linear"}),
    "fan_in_fan_out, which a linear layer ignores": ("llama", {"target_modules": ["up_proj"], "fan_in_fan_out": True}),
    "a dropout": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "lora_dropout": 0.1}),
}
IN_HALF: Final = {"attention", "biases of B", "biases of the adapted", "the embedding", "modules in full", "DoRA"}
DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _base(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def _make_adapter(base: Path, out: Path, settings: Settings, dtype: torch.dtype = torch.float32) -> Path:
    """Every trained tensor is random, biases and whole modules too."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(init_lora_weights=False, **settings)
    model = get_peft_model(_base(base, dtype), config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and "lora_" not in name:
                tensor.add_(torch.randn_like(tensor) / 10)
            elif "magnitude" in name or ".bias" in name:
                tensor.mul_(1 + torch.rand_like(tensor))
    model.save_pretrained(out)
    return out


def _merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, Bits]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(_base(base, dtype), str(adapter)).merge_and_unload()
    return {name: _bits(tensor) for name, tensor in model.state_dict().items()}


def _bits(tensor: torch.Tensor) -> Bits:
    found: Bits = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return found


def _read(weight: Weight, step: int) -> Bits:
    rows = weight.shape[0]
    return np.concatenate([weight.read(at, min(rows, at + step)) for at in range(0, rows, step)])


def _same(one: Bits, other: Bits) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def checkpoint(toy_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A toy in some dtype, as transformers saves it. Not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(toy: str, dtype: torch.dtype = torch.float32) -> Path:
        folder = root / f"{toy}-{str(dtype).removeprefix('torch.')}"
        if not folder.exists():
            _base(toy_folder(toy), dtype).save_pretrained(folder)
        return folder

    return made


Checkpoint = Callable[..., Path]


@pytest.mark.parametrize(
    ("case", "dtype"), [(case, dtype) for case in ADAPTERS for dtype in DTYPES if dtype == "f32" or case in IN_HALF]
)
def test_the_weights_are_those_of_pefts_merge_bit_by_bit(
    case: str, dtype: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    toy, settings = ADAPTERS[case]
    base = checkpoint(toy, DTYPES[dtype])
    folder = _make_adapter(base, tmp_path / "adapter", settings)
    expected = _merged_by_peft(base, folder, DTYPES[dtype])
    with open_weights(read_checkpoint(base), None) as weights, read_adapter(folder) as adapter:
        ours = merged(weights, adapter)
        changed = [name for name in ours if not _same(_read(weights[name], 1000), expected[name])]
        assert changed
        for step in (1000, 37):
            wrong = [name for name in ours if not _same(_read(ours[name], step), expected[name])]
            assert not wrong, (step, wrong)
        for name in changed:
            for row in {0, 1, 33, ours[name].shape[0] - 1}:
                assert _same(ours[name].read(row, row + 1), expected[name][row : row + 1]), (name, row)
        assert {name for name in ours if ours[name] is not weights[name]} >= set(changed)
        adapter.verify()


@pytest.mark.parametrize("kept", ["bf16", "f16"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_adapters_saved_in_half_precision_are_computed_in_float32(
    kept: str, dtype: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = checkpoint("llama", DTYPES[dtype])
    folder = _make_adapter(base, tmp_path / "adapter", ADAPTERS["the embedding"][1])
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(DTYPES[kept]) for name, tensor in load_file(path).items()}, path)
    expected = _merged_by_peft(base, folder, DTYPES[dtype])
    with open_weights(read_checkpoint(base), None) as weights, read_adapter(folder) as adapter:
        ours = merged(weights, adapter)
        assert not [name for name in ours if not _same(_read(ours[name], 50), expected[name])]


def test_modules_in_full_can_be_copied_as_they_lie(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("llama")
    folder = _make_adapter(base, tmp_path / "adapter", ADAPTERS["modules in full"][1])
    with open_weights(read_checkpoint(base), None) as weights, read_adapter(folder) as adapter:
        head = merged(weights, adapter)["lm_head.weight"]
        assert head.stored is not None
        assert head.stored.file == folder / "adapter_model.safetensors"
        raw = head.stored.file.read_bytes()[head.stored.start :][: head.stored.length]
        assert raw == _read(head, 33).tobytes()


def test_the_text_tower_is_found_under_its_other_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("llama")
    folder = _make_adapter(base, tmp_path / "adapter", ADAPTERS["attention"][1])
    with open_weights(read_checkpoint(base), None) as weights, read_adapter(folder) as adapter:
        plain = merged(weights, adapter)
        for prefix in ("language_model.model.", "model.language_model."):
            inside: dict[str, Weight] = {prefix + name.removeprefix("model."): its for name, its in weights.items()}
            ours = merged(inside, adapter)
            for name in weights:
                assert _same(_read(ours[prefix + name.removeprefix("model.")], 99), _read(plain[name], 99))


# ---- what cannot be merged


def _edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.fixture(scope="module")
def attention_adapter(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_adapter(checkpoint("llama"), tmp_path_factory.mktemp("adapter"), ADAPTERS["attention"][1])


@pytest.fixture
def adapter_folder(attention_adapter: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(attention_adapter, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"made_up_tomorrow": 1}, "made_up_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights is a JSON list"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4' where a number must be"),
        ({"r": 5}, "has rank 4, but adapter_config.json says 5"),
        ({"lora_alpha": None}, "lora_alpha is null"),
        ({"rank_pattern": [1]}, "rank_pattern is a JSON list"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.q_proj is -1"),
        ({"rank_pattern": {"(": 4}}, "is no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 4}}, "too complex a pattern"),
        ({"alpha_pattern": {".*.*.*.*.*x": 4}}, "too complex a pattern"),
    ],
)
def test_what_is_more_than_a_plain_merge_is_refused_by_name(
    changes: dict[str, Any], said: str, adapter_folder: Path
) -> None:
    with pytest.raises(InputError) as error:
        read_adapter(_edited(adapter_folder, **changes))
    assert said in str(error.value)
    assert error.value.file


@pytest.mark.parametrize("text", ["", "[]", "{", '{"r": NaN}', "[" * 100_000, '{"r": 1, "r": 2}', "\ud800"])
def test_a_config_that_is_none_is_refused(text: str, adapter_folder: Path) -> None:
    (adapter_folder / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        read_adapter(adapter_folder)


def _rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return folder


FIRST: Final = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{FIRST}.lora_A.weight", f"{FIRST}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(A), "needs a pair of lora_A and lora_B, and has b"),
        (lambda t: t.update({A: t[A][:3]}), "the product of two matrices"),
        (lambda t: t.update({A: t[A][:3], B: t[B][:, :3]}), "has rank 3, but adapter_config.json says 4"),
        (lambda t: t.update({A: t[A][..., None]}), "the product of two matrices"),
        (lambda t: t.update({A: t[A].double()}), "is F64; F32, F16, BF16 can be merged"),
        (lambda t: t.update({f"{FIRST}.lora_C.weight": t[A]}), "lora_C.weight, of a kind that is not known"),
        (lambda t: t.update({"q_proj.lora_A.weight": t[A]}), "do not begin with base_model.model.: q_proj"),
        (lambda t: t.update({f"{FIRST}.lora_magnitude_vector": t[A][0, :5]}), "has 5 magnitudes for 128 rows"),
        (lambda t: t.update({f"{FIRST}.lora_B.bias": t[A][0, :5]}), "has 5 biases for 128 rows"),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_a_file_that_does_not_hang_together_is_refused(
    change: Callable[[dict[str, torch.Tensor]], Any], said: str, adapter_folder: Path
) -> None:
    with pytest.raises(InputError) as error:
        read_adapter(_rewritten(adapter_folder, change))
    assert said in str(error.value)


def _embedding_dora(tensors: dict[str, torch.Tensor]) -> None:
    module = "base_model.model.model.embed_tokens"
    tensors[f"{module}.lora_embedding_A"] = torch.ones(4, 320)
    tensors[f"{module}.lora_embedding_B"] = torch.ones(128, 4)
    tensors[f"{module}.lora_magnitude_vector"] = torch.ones(128)


def test_an_embedding_under_dora_is_refused(adapter_folder: Path) -> None:
    with pytest.raises(InputError, match="an embedding under DoRA"):
        read_adapter(_rewritten(adapter_folder, _embedding_dora))


def test_all_that_the_model_has_not_is_listed(adapter_folder: Path, checkpoint: Checkpoint) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.0.self_attn" in name]:
            tensors[name.replace("self_attn", "attention")] = tensors.pop(name)

    _rewritten(adapter_folder, rename)
    with (
        open_weights(read_checkpoint(checkpoint("llama")), None) as weights,
        read_adapter(adapter_folder) as adapter,
        pytest.raises(InputError) as error,
    ):
        merged(weights, adapter)
    assert all(f"model.layers.0.attention.{each}.weight" in str(error.value) for each in ATTENTION)
    assert "another model's adapter" in str(error.value)


def test_shapes_that_differ_are_listed(adapter_folder: Path, checkpoint: Checkpoint) -> None:
    _rewritten(adapter_folder, lambda t: t.update({A: t[A][:, :100], B: t[B][:99]}))
    with (
        open_weights(read_checkpoint(checkpoint("llama")), None) as weights,
        read_adapter(adapter_folder) as adapter,
        pytest.raises(InputError, match=r"q_proj.weight has shape 128×128, and for the adapter 99×100"),
    ):
        merged(weights, adapter)


def test_a_head_of_its_own_for_a_tied_model_is_refused_with_the_reason(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("gemma")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    folder = _make_adapter(base, tmp_path / "adapter", settings)
    with (
        open_weights(read_checkpoint(base), None) as weights,
        read_adapter(folder) as adapter,
        pytest.raises(InputError, match="one tensor for both"),
    ):
        merged(weights, adapter)


def test_a_pickled_adapter_is_refused(adapter_folder: Path) -> None:
    (adapter_folder / "adapter_model.safetensors").rename(adapter_folder / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle can run code"):
        read_adapter(adapter_folder)
    (adapter_folder / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_adapter(adapter_folder)


def test_an_adapter_that_changes_while_it_is_read_is_noticed(adapter_folder: Path, checkpoint: Checkpoint) -> None:
    with open_weights(read_checkpoint(checkpoint("llama")), None) as weights, read_adapter(adapter_folder) as adapter:
        ours = merged(weights, adapter)
        _rewritten(adapter_folder, lambda tensors: tensors.update({A: tensors[A] + 1}))
        with pytest.raises(ResourceError, match="changed while it was read"):
            ours["model.layers.0.self_attn.q_proj.weight"].read(0, 1)


# ---- memory

PEAK: Final = """
import sys
from pathlib import Path
import torch
from yarn_gguf.checkpoint.shards import read_checkpoint
from yarn_gguf.checkpoint.lora import merged, read_adapter
from yarn_gguf.checkpoint.weights import open_weights
def peak():
    # getrusage would tell of the parent's memory too, from before the exec
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
torch.ones(300, 300) @ torch.ones(300, 300)
before = peak()
with open_weights(read_checkpoint(Path(sys.argv[1])), None) as weights, read_adapter(Path(sys.argv[2])) as adapter:
    weight = merged(weights, adapter)["model.embed_tokens.weight"]
    for at in range(0, weight.shape[0], 4096):
        weight.read(at, min(weight.shape[0], at + 4096))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_a_slice_not_of_a_tensor(tmp_path: Path) -> None:
    """192 MiB in bfloat16, in slices of 8 MiB: at most 150 MiB more than torch alone; 114 MiB measured."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    folder.mkdir()
    rows, columns, rank = 98_304, 1024, 16
    save_file(
        {"model.embed_tokens.weight": torch.zeros(rows, columns, dtype=torch.bfloat16)}, base / "model.safetensors"
    )
    module = "base_model.model.model.embed_tokens"
    factors = {
        f"{module}.lora_embedding_A": torch.ones(rank, rows),
        f"{module}.lora_embedding_B": torch.ones(columns, rank),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8}))
    command: list[str | Path] = [sys.executable, "-P", "-c", PEAK, base, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert int(done.stdout) < 150 << 10, done.stdout
