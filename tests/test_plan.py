"""`yarn-gguf plan`: what fits, by whose figures, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import gguf_bytes as g
from tests import real_shapes
from tests.built import tools
from tests.command import COMMAND, ROOT, environment, run, run_fresh
from tests.conversions import convert_folder
from tests.llama_memory import breakdown
from tests.make_gguf import small_model
from yarn_gguf.gguf_file.shards import read_model
from yarn_gguf.memory.needs import Room, Setting, layers_that_fit, longest_context, most_gpu_layers, needs, placed
from yarn_gguf.memory.shape import read_shape

GIB = 1 << 30
PLENTY = ("--vram", "0", "--ram", "1TiB")
Toys = Callable[[str], Path]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("shapes")
    return lambda name: real_shapes.write(real_shapes.MODELS[name], folder / f"{name}.gguf")


def reported(path: Path, context: int, kv: str = "f16") -> int:
    """Bytes that llama.cpp says that the model takes in all, on the CPU."""
    opened = {
        "n_ctx": context,
        "n_batch": 2048,
        "n_ubatch": 512,
        "flash_attn_type": 1,
        "type_k": kv,
        "type_v": kv,
        "n_outputs_max": 1,
    }
    (answer,) = breakdown([{"path": str(path), "repack": True, "context": {**opened, "swa_full": False}}])
    return sum(sum(part) for part in answer.values())


# ---- what fits


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-12b", "deepseek-v2-lite"])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_the_longest_context_is_where_llama_cpps_own_figure_reaches_the_memory(
    shapes: Callable[[str], Path], name: str, kv: str
) -> None:
    ram = 20 * GIB
    found = run("plan", shapes(name), "--vram", "0", "--ram", str(ram), "--kv", kv, "--json").json
    longest = found["longest_context"]
    assert longest > 32768
    assert longest % 256 == 0
    assert reported(shapes(name), longest, kv) <= ram * 1.01
    assert reported(shapes(name), longest * 21 // 20, kv) > ram * 0.99


def test_the_figures_are_those_of_llama_cpp(shapes: Callable[[str], Path]) -> None:
    found = run("plan", shapes("qwen3-8b"), *PLENTY, "--ctx", "40k", "--kv", "q8_0", "--json").json
    assert found["total"] == found["weights"] + found["kv"] + found["compute"]
    assert found["total"] == pytest.approx(reported(shapes("qwen3-8b"), 40960, "q8_0"), rel=0.01)
    assert sum(layer["kv"] for layer in found["layers"]) == found["kv"]
    assert found["fits"] is True


def test_as_many_layers_go_to_the_gpu_as_fit_and_no_more(shapes: Callable[[str], Path]) -> None:
    shape = read_shape(read_model(shapes("llama-3.1-8b")))
    setting = Setting(65536)
    count = layers_that_fit(shape, setting, vram=8 * GIB, ram=64 * GIB)
    assert count is not None
    assert 0 < count < most_gpu_layers(shape)
    room = Room(8 * GIB, 64 * GIB)
    assert room.holds(needs(shape, Setting(65536, gpu_layers=count)))
    assert not room.holds(needs(shape, Setting(65536, gpu_layers=count + 1)))
    assert layers_that_fit(shape, setting, vram=64 * GIB) == most_gpu_layers(shape)
    assert layers_that_fit(shape, setting, vram=0, ram=64 * GIB) == 0
    assert layers_that_fit(shape, setting, vram=8 * GIB, ram=1 * GIB) is None
    found = run(
        "plan", shapes("llama-3.1-8b"), "--vram", "8GiB", "--ram", "64GiB", "--ctx", "64k", "--kv", "f16", "--json"
    )
    assert found.json["recommendation"]["gpu_layers"] == count


def test_memory_that_is_shared_is_counted_once(shapes: Callable[[str], Path]) -> None:
    arguments = ("plan", shapes("llama-3.1-8b"), "--vram", "12GiB", "--ram", "16GiB", "--kv", "f16", "--json")
    separate, unified = run(*arguments).json, run(*arguments, "--unified").json
    assert separate["longest_context"] > unified["longest_context"]
    asked = run(*arguments, "--unified", "--ctx", str(unified["longest_context"])).json
    assert asked["fits"] is True
    assert asked["total"] <= 16 * GIB
    assert 16 * GIB - asked["total"] < GIB // 8
    assert run(*arguments, "--unified", "--ctx", str(unified["longest_context"] + 256)).json["fits"] is False


def test_sliding_layers_and_latents_keep_what_they_look_at(shapes: Callable[[str], Path]) -> None:
    """By hand: 8 of gemma's 48 layers are full, the others see 1024 tokens and a batch; DeepSeek keeps 576 numbers."""
    gemma = run("plan", shapes("gemma-3-12b"), *PLENTY, "--ctx", "128k", "--kv", "f16", "--json").json
    assert gemma["kv"] == 2 * 2 * 8 * 256 * (8 * 131072 + 40 * 1536)
    whole = run("plan", shapes("gemma-3-12b"), *PLENTY, "--ctx", "128k", "--kv", "f16", "--swa-full", "--json").json
    assert whole["kv"] == 2 * 2 * 8 * 256 * 48 * 131072
    deepseek = run("plan", shapes("deepseek-v2-lite"), *PLENTY, "--ctx", "128k", "--kv", "f16", "--json").json
    assert deepseek["kv"] == 2 * 27 * 576 * 131072


def test_a_context_that_fits_no_way_is_said_and_exits_with_1(shapes: Callable[[str], Path]) -> None:
    arguments = ("plan", shapes("llama-3.1-8b"), "--vram", "6GiB", "--ram", "2GiB", "--ctx", "1M")
    done = run(*arguments)
    assert done.code == 1
    assert "1048576 tokens do not fit; the longest that fits is" in done.words
    found = run(*arguments, "--json")
    assert found.code == 1
    assert found.json["fits"] is False
    assert found.json["recommendation"] is None
    assert 0 < found.json["longest_context"] < 1 << 20


def test_what_is_recommended_follows_from_memory_and_price(shapes: Callable[[str], Path], tmp_path: Path) -> None:
    """By what is published for types: Q8_0 costs 0.002, Q4_K_M 0.04, a cache of q4_0 0.04 more."""
    model = real_shapes.write(replace(real_shapes.MODELS["llama-3.1-8b"], type="f16"), tmp_path / "model.gguf")

    def recommended(vram: str, ram: str) -> tuple[str, str, bool] | None:
        types = ("--type", "Q8_0,Q4_K_M,Q2_K", "--kv", "f16,q8_0,q4_0")
        found = run("plan", model, "--vram", vram, "--ram", ram, "--ctx", "64k", *types, "--json").json
        best = found["recommendation"]
        return None if best is None else (best["type"], best["kv_k"], best["gpu_layers"] == len(found["layers"]) + 1)

    assert recommended("24GiB", "64GiB") == ("Q8_0", "f16", True)
    assert recommended("12GiB", "64GiB") == ("Q4_K_M", "q8_0", True)
    assert recommended("8GiB", "64GiB") == ("Q4_K_M", "q4_0", True)
    assert recommended("6GiB", "64GiB") == ("Q4_K_M", "q8_0", False)
    assert recommended("4GiB", "3GiB") == ("Q2_K", "q4_0", False)
    assert recommended("2GiB", "2GiB") is None


def test_the_table_fits_80_columns(shapes: Callable[[str], Path]) -> None:
    done = run_fresh(
        "plan", shapes("llama-3.1-70b"), "--vram", "24GiB", "--ram", "64GiB", "--ctx", "256k", COLUMNS="80"
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    commands = [line for line in lines if line.strip().startswith("yarn-gguf ")]  # whole, to be copied
    assert len(commands) == 2
    assert max(len(line) for line in lines if line not in commands) <= 80


# ---- what is planned


def test_a_checkpoint_is_planned_as_convert_writes_it(toy_folder: Toys, tmp_path: Path) -> None:
    types = ("q8_0", "Q4_K_M")
    folder = toy_folder("llama")
    found = run("plan", folder, *PLENTY, "--type", ",".join(types), "--kv", "f16", "--ctx", "1024", "--json").json
    for choice in found["choices"]:
        made = convert_folder(
            folder, tmp_path / f"{choice['type']}.gguf", choice["type"] if choice["type"] != "Q8_0" else "q8_0"
        )
        path = made.outputs[0].path
        alone = run("plan", path, *PLENTY, "--kv", "f16", "--ctx", "1024", "--json").json
        assert choice["cpu"] == alone["cpu"]
        total = choice["cpu"]["total"]
        assert total == pytest.approx(reported(path, 1024), rel=0.05)


def test_nothing_of_a_checkpoint_is_read_but_its_headers(tmp_path: Path) -> None:
    """A checkpoint of 15 GiB, all hole: with seconds of the processor and 4 GiB of addresses."""
    shape = real_shapes.MODELS["qwen3-8b"]
    gguf = real_shapes.write(replace(shape, type="f16"), tmp_path / "model.gguf")
    folder = sparse_qwen3(tmp_path / "checkpoint", shape.layers, shape.width, shape.words, shape["feed_forward_length"])
    assert (folder / "model.safetensors").stat().st_size > 15 * GIB
    memory = ("--vram", "12GiB", "--ram", "32GiB", "--ctx", "128k", "--json", "--type")
    whole = run("plan", folder, *memory, "auto,q8_0", seconds=30, mebibytes=4096)
    assert [choice["type"] for choice in whole.json["choices"][::3]] == ["F16", "Q8_0"]
    found = run("plan", folder, *memory, "Q4_K_M").json["choices"]  # llama.cpp's quantizer maps a file, all hole too
    assert found == run("plan", gguf, *memory, "Q4_K_M").json["choices"]


def sparse_qwen3(folder: Path, layers: int, width: int, words: int, inner: int) -> Path:
    """A Qwen3 checkpoint without weights, in a file of its full size."""
    tensors = {"model.embed_tokens": (words, width), "lm_head": (words, width), "model.norm": (width,)}
    heads, kv = 32 * 128, 8 * 128
    for number in range(layers):
        at = f"model.layers.{number}"
        tensors |= {f"{at}.input_layernorm": (width,), f"{at}.post_attention_layernorm": (width,)}
        tensors |= {f"{at}.self_attn.{name}_norm": (128,) for name in "qk"}
        rows = {"q": (heads, width), "k": (kv, width), "v": (kv, width), "o": (width, heads)}
        tensors |= {f"{at}.self_attn.{name}_proj": shape for name, shape in rows.items()}
        tensors |= {f"{at}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        tensors[f"{at}.mlp.down_proj"] = (width, inner)
    header, end = {}, 0
    for name, extents in tensors.items():
        start, end = end, end + 2 * math.prod(extents)
        header[f"{name}.weight"] = {"dtype": "F16", "shape": extents, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "vocab_size": words}
    config |= {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 128}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 40960}
    config |= {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "torch_dtype": "float16"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_a_float_gguf_is_planned_in_the_types_that_it_could_have(toy_folder: Toys, tmp_path: Path) -> None:
    source, made = toy_folder("qwen2") / "f32.gguf", tmp_path / "made.gguf"
    found = run("plan", source, *PLENTY, "--type", "Q5_K_M", "--kv", "f16", "--ctx", "512", "--json").json
    assert run("quantize", source, "Q5_K_M", "-o", made).code == 0
    alone = run("plan", made, *PLENTY, "--kv", "f16", "--ctx", "512", "--json").json
    assert found["choices"][0]["type"] == alone["choices"][0]["type"] == "Q5_K_M"
    assert found["weights"] == alone["weights"]


def test_a_split_set_is_one_model(toy_folder: Toys, tmp_path: Path) -> None:
    arguments = ("--no-vocab", "--outtype", "f16")
    assert run("convert", toy_folder("llama"), *arguments, "-o", tmp_path / "one.gguf").code == 0
    assert (
        run("convert", toy_folder("llama"), *arguments, "--split-max-size", "200K", "-o", tmp_path / "set.gguf").code
        == 0
    )
    parts = sorted(tmp_path.glob("set-*.gguf"))
    assert len(parts) > 1
    one = run("plan", tmp_path / "one.gguf", *PLENTY, "--type", "auto", "--json").json
    whole = run("plan", parts[1], *PLENTY, "--type", "auto", "--json").json
    assert {**whole["recommendation"], "command": 0} == {**one["recommendation"], "command": 0}
    assert {**whole, "path": 0, "recommendation": 0} == {**one, "path": 0, "recommendation": 0}


def test_the_smallest_factor_that_covers_the_context_is_named(toy_folder: Toys, tmp_path: Path) -> None:
    model, long = toy_folder("llama") / "f32.gguf", tmp_path / "long.gguf"
    found = run("plan", model, *PLENTY, "--type", "auto", "--ctx", "384", "--json").json
    assert found["recommendation"]["factor"] == 3.0
    assert [finding["code"] for finding in found["findings"]] == ["needs_factor"]
    assert [cost["factor"] for cost in found["factors"]] == [1.0, 2.0, 3.0]
    inside = run("plan", model, *PLENTY, "--type", "auto", "--ctx", "100", "--json").json
    assert inside["recommendation"]["factor"] == 1.0
    assert inside["findings"] == []
    assert run("extend", model, "--factor", "8", "-o", long).code == 0
    assert run("plan", long, *PLENTY, "--type", "auto", "--ctx", "1024", "--json").json["findings"] == []
    larger = run("plan", long, *PLENTY, "--type", "auto", "--ctx", "256", "--json").json
    assert [finding["code"] for finding in larger["findings"]] == ["factor_too_large"]
    assert "--ctx 256" in larger["findings"][0]["text"]


def test_what_a_report_measured_is_the_price(toy_folder: Toys, tmp_path: Path) -> None:
    source, made, ids = toy_folder("llama") / "f32.gguf", tmp_path / "q4.gguf", tmp_path / "ids.txt"
    ids.write_text(" ".join(str(3 + n % 300) for n in range(128)))
    assert run("quantize", source, "Q4_0", "-o", made).code == 0
    report, record = tmp_path / "report.json", tmp_path / "source.yref"
    done = run("verify", source, made, "--tokens", ids, "--ctx", "128", "--json")
    report.write_text(done.out)
    measured = done.json["candidates"][0]["kld"]["mean"]
    priced = run("plan", made, *PLENTY, "--kv", "f16,q8_0", "--quality", report, "--json").json["choices"]
    assert (priced[0]["kld"], priced[0]["measured"]) == (measured, True)
    assert priced[1]["measured"] is False
    assert priced[1]["kld"] > measured
    assert run("record", source, "-o", record, "--tokens", ids, "--ctx", "128").code == 0
    against = run("plan", made, *PLENTY, "--kv", "f16,q8_0", "--quality", record, "--json").json["choices"]
    assert [choice["measured"] for choice in against] == [True, True]
    assert against[0]["kld"] == pytest.approx(measured, rel=0.05)  # a record is a lower bound


def test_what_a_factor_costs_at_short_context_is_what_a_report_measured_there(toy_folder: Toys, tmp_path: Path) -> None:
    model, long, ids = toy_folder("llama") / "f32.gguf", tmp_path / "long.gguf", tmp_path / "ids.txt"
    ids.write_text(" ".join(str(3 + n % 300) for n in range(256)))
    assert run("extend", model, "--factor", "2", "-o", long).code == 0
    report = tmp_path / "report.json"
    done = run("verify", model, long, "--tokens", ids, "--ctx", "256", "--max-kld", "100", "--min-top1", "0", "--json")
    report.write_text(done.out)
    inside = done.json["candidates"][0]["inside"]["kld"]["mean"]
    assert inside > 1e-3  # YaRN is on at every length
    factors = run("plan", long, *PLENTY, "--type", "auto", "--quality", report, "--json").json["factors"]
    assert [(cost["factor"], cost["kld_inside"]) for cost in factors] == [(1.0, None), (2.0, inside)]
    assert factors[0]["kept"] == factors[0]["pairs"] > factors[1]["kept"]
    assert factors[1]["magnitude"] == pytest.approx(0.1 * math.log(2) + 1)


# ---- the devices that are here


def test_what_is_not_said_is_what_the_devices_have_free(tmp_path: Path, toy_folder: Toys) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'A GPU, with a comma, 1000, 2000'\necho 'Another, 24, 48'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    model = toy_folder("llama") / "f32.gguf"
    found = run_fresh("plan", model, "--json", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found.json["vram"] == 1024 << 20
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < found.json["ram"] <= total
    assert [each["code"] for each in found.json["findings"]] == ["gpu_unused"]


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vram", "lots"), "is not a size"),
        (("--ram", "-1"), "no size above 0"),
        (("--ctx", "0"), "whole number of tokens"),
        (("--ctx", "128q"), "not a number of tokens"),
        (("--kv", "q8_0/q4_0/f16"), "is no list of types"),
        (("--kv", "q9_0"), "is no type of a KV cache"),
        (("--type", "Q9_K"), "is none of"),
        (("--kv", "q8_0", "--no-flash-attention"), "need flash attention"),
        (("--factor", "2", "--ctx", "512"), "is beyond what --factor 2 reaches"),
        (("--vram", "8"), "is a unit missing?"),
        (("--reserve", "512"), "is a unit missing?"),
        (("--outputs", "some"), "neither a number of tokens nor all"),
        (("-ngl", "-1"), "not in the range"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(toy_folder: Toys, arguments: tuple[str, ...], words: str) -> None:
    done = run("plan", toy_folder("llama") / "f32.gguf", *PLENTY[:2], *arguments)
    assert done.code == 2, done.err
    assert words in " ".join(done.err.split())
    assert done.err.count("error:") == 1


def test_a_quantized_file_has_no_other_types(shapes: Callable[[str], Path]) -> None:
    done = run("plan", shapes("llama-3.1-8b"), *PLENTY, "--type", "Q8_0")
    assert done.code == 2
    assert "quantized already" in done.err


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, toy_folder: Toys) -> None:
    text, empty, other = tmp_path / "text.gguf", tmp_path / "folder", tmp_path / "other.gguf"
    text.write_text("not a model at all")
    empty.mkdir()
    other.write_bytes(
        g.gguf([g.text(b"general.architecture", b"nonesuch")], [g.tensor(b"t", (8,), g.F32, 0)], bytes(32))
    )
    for path in (text, empty, other, tmp_path / "nowhere.gguf", tmp_path / "nowhere"):
        done = run("plan", path, *PLENTY)
        assert done.code in (3, 4), (path, done.err)
        assert str(path) in done.err
        assert "Traceback" not in done.err
    report = tmp_path / "report.json"
    for content in ("[]", "{}", '{"candidates": [{}], "reference": {}}', "nonsense"):
        report.write_text(content)
        done = run("plan", toy_folder("llama") / "f32.gguf", *PLENTY, "--quality", report)
        assert done.code == 3, (content, done.err)
        assert str(report) in done.err


def test_a_cache_of_another_kind_is_not_guessed(tmp_path: Path) -> None:
    """deepseek32 keeps an indexer's keys as well; a figure without them would be wrong."""
    model = small_model(tmp_path / "model.gguf", "deepseek32")
    done = run("plan", model, *PLENTY, "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == "unknown_cache"


def test_layers_that_are_not_known_are_refused(tmp_path: Path) -> None:
    """Each of the tensors taken away in turn: a plan or a refusal, never a traceback; and numbers that no model has."""
    model = replace(real_shapes.MODELS["deepseek-v2-lite"], layers=2)
    plain = list(model.layer(model, 1))
    keys = ("expert_used_count", "attention.key_length_mla", "attention.value_length", "embedding_length")
    variants = [replace(model, layer=partial(_without, model, name)) for name, _, _ in plain]
    variants += [
        replace(model, layer=partial(_without, model, ""), keys={**model.keys, key: number})
        for key in keys
        for number in (0, 3, (1 << 32) - 1)
    ]
    for variant in variants:
        path = real_shapes.write(variant, tmp_path / "variant.gguf")
        done = run("plan", path, *PLENTY, "--ctx", "4k", "--json", seconds=30, mebibytes=4096)
        assert done.code in (0, 3), (variant, done.err)
        assert "Traceback" not in done.err


def _without(model: real_shapes.Model, left_out: str, _: real_shapes.Model, number: int) -> list[real_shapes.Tensor]:
    return [tensor for tensor in model.layer(model, number) if tensor[0] != left_out]


def test_types_of_cache_that_llama_cpp_does_not_take_are_left_out(shapes: Callable[[str], Path]) -> None:
    arguments = ("plan", shapes("deepseek-v2-lite"), *PLENTY, "--kv")
    found = run(*arguments, "q8_0,q8_0/q4_0", "--json").json
    assert [(choice["kv_k"], choice["kv_v"]) for choice in found["choices"]] == [("q8_0", "q8_0")]
    assert [finding["code"] for finding in found["findings"]] == ["cache_misfit"]
    assert run(*arguments, "q8_0/q4_0").code == 2


def test_without_flash_attention_values_stay_as_they_are(toy_folder: Toys) -> None:
    found = run("plan", toy_folder("llama") / "f32.gguf", *PLENTY, "--no-flash-attention", "--json").json
    assert {choice["kv_v"] for choice in found["choices"]} == {"f16"}
    assert found["recommendation"]["flags"][4:6] == ["-fa", "off"]


# ---- the page


def test_the_page_shows_what_the_command_prints(tmp_path: Path) -> None:
    """Its example, on a header of that model's shape."""
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    block = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    line = block.splitlines()[0]
    model = replace(real_shapes.MODELS["qwen3-8b"], type="f16")
    real_shapes.write(model, tmp_path / shlex.split(line)[3])
    arguments = [*COMMAND, *shlex.split(line)[2:]]
    environ = environment(COLUMNS="100")
    done = subprocess.run(arguments, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert block == f"{line}\n{done.stdout}", f"docs/plan.md is stale; the block should be\n\n{line}\n{done.stdout}"


# ---- what a small GPU does


@pytest.mark.parametrize("vram", ["400MiB", "512MiB", "600MiB", "1GiB", "1500MiB"])
@pytest.mark.parametrize(("name", "ram", "context"), [("llama-3.1-70b", "64GiB", "128k"), ("qwen3-8b", "16GiB", "32k")])
def test_a_gpu_too_small_to_help_takes_nothing_away(
    shapes: Callable[[str], Path], name: str, ram: str, context: str, vram: str
) -> None:
    """With no layer on it, it still wants room for the head; so the last choice is to leave it alone."""
    arguments = ("plan", shapes(name), "--ram", ram, "--ctx", context, "--json")
    none, small = run(*arguments, "--vram", "0"), run(*arguments, "--vram", vram)
    assert none.json["fits"] is small.json["fits"] is True
    for without, beside in zip(none.json["choices"], small.json["choices"], strict=True):
        assert beside["longest_context"] >= without["longest_context"], beside
    longest = [choice["longest_context"] for choice in small.json["choices"]]
    assert longest == sorted(longest)  # f16, q8_0, q4_0


def test_that_the_gpu_is_not_used_is_said(shapes: Callable[[str], Path]) -> None:
    arguments = ("plan", shapes("llama-3.1-70b"), "--vram", "1GiB", "--ram", "64GiB", "--ctx", "128k", "--kv", "q8_0")
    found, done = run(*arguments, "--json").json, run(*arguments)
    best = found["recommendation"]
    assert (best["gpu_used"], best["gpu_layers"], best["gpu"]["total"]) == (False, 0, 0)
    assert best["flags"][-2:] == ["--device", "none"]
    assert "GPU not used" in done.out.splitlines()[-1]
    alone = run(*arguments, "--vram", "0", "--json").json
    assert best["cpu"] == alone["recommendation"]["cpu"]
    assert run(*arguments, "-ngl", "0", "--json").json["recommendation"]["gpu_used"] is False
    assert run(*arguments, "-ngl", "1").code == 1


def test_what_is_found_is_what_trying_everything_finds(shapes: Callable[[str], Path]) -> None:
    """Buffers follow no order, neither of contexts nor of layers."""
    shape, room = read_shape(read_model(shapes("llama-3.1-70b"))), Room(1500 << 20, 45 * GIB)
    setting = Setting(256, ("q8_0", "q8_0"))

    def counts(context: int) -> list[int]:
        at = replace(setting, context=context, gpu=True)
        tried = (replace(at, gpu_layers=count) for count in range(4))  # the weights of four are more than the room
        return [each.gpu_layers for each in tried if room.holds(needs(shape, each))]

    def alone(context: int) -> bool:
        return room.holds(needs(shape, replace(setting, context=context)))

    longest = longest_context(shape, setting, room)
    fitting = [context for context in range(256, 2 * longest, 256) if counts(context) or alone(context)]
    assert longest == fitting[-1]
    for context in range(256, longest, 2048):
        found = placed(shape, replace(setting, context=context), room)
        expected = max(counts(context), default=0 if alone(context) else None)
        assert (found and found.gpu_layers) == expected, context


# ---- as llama-server takes it


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_the_buffers_are_those_of_llama_server_by_default(shapes: Callable[[str], Path], kv: str) -> None:
    model = shapes("qwen3-0.6b")
    arguments = ("plan", model, *PLENTY, "--ctx", "16k", "--kv", kv, "--json")
    found = run(*arguments).json
    assert found["cpu"]["compute"] == pytest.approx(server_buffers(model, found), rel=0.1)
    bare = run(*arguments, "--outputs", "all").json
    assert bare["cpu"]["compute"] > 2 * found["cpu"]["compute"]


def server_buffers(path: Path, found: dict[str, Any]) -> int:
    """Bytes of compute buffers, as llama-server logs them, started with the words that plan gives."""
    words = [str(tools() / "llama-server"), "-m", str(path), *found["recommendation"]["flags"]]
    words += ["--no-warmup", "--fit", "off", "--no-webui", "--port", str(free_port()), "--log-verbosity", "5"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as server:
        assert server.stdout is not None
        total = 0.0
        try:
            for line in server.stdout:
                if match := re.search(r"compute buffer size = +([\d.]+) MiB", line):
                    total += float(match[1])
                if "listening on" in line:
                    break
        finally:
            server.kill()
    return round(total * (1 << 20))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        assert isinstance(port, int)
        return port


# ---- what the notes say


def notes(done: dict[str, Any]) -> dict[str, str]:
    return {finding["code"]: finding["text"] for finding in done["findings"]}


def test_quality_is_not_given_away_where_nothing_is_gained(shapes: Callable[[str], Path], tmp_path: Path) -> None:
    """By hand: with as many bytes per token, or nearly, the better cache and type are taken."""
    model = real_shapes.write(replace(real_shapes.MODELS["llama-3.1-8b"], type="f16"), tmp_path / "model.gguf")
    done = run("plan", model, "--vram", "0", "--ram", "128GiB", "--ctx", "32k", "--json").json
    best = done["recommendation"]
    assert (best["type"], best["kv_k"]) == ("Q8_0", "q8_0")  # 9.5 GiB per token; Q4_K_M 6.4, F16 16.1
    small = tmp_path / "small.gguf"
    base = ROOT / "yarn_gguf" / "demo_models" / "base"
    assert run("convert", base, "--factor", "4", "--outtype", "f16", "-o", small).code == 0
    best = run("plan", small, "--vram", "0", "--ram", "2GiB", "--json").json["recommendation"]
    assert (best["type"], best["kv_k"]) == ("F16", "f16")
    experts = ("plan", shapes("deepseek-v2-lite"), "--vram", "8GiB", "--ram", "16GiB", "--ctx", "64k", "--json")
    assert run(*experts).json["recommendation"]["kv_k"] == "q8_0"
    own = run("plan", model, "--vram", "0", "--ram", "128GiB", "--ctx", "32k")
    assert "15.0 GiB of weights (F16)" in own.out.splitlines()[0]


def test_dynamic_and_folded_files_are_known_for_what_they_are(tmp_path: Path) -> None:
    base, dynamic, folded = ROOT / "yarn_gguf" / "demo_models" / "base", tmp_path / "dyn.gguf", tmp_path / "fold.gguf"
    assert run("convert", base, "--factor", "4", "--dynamic", "-o", dynamic).code == 0
    found = notes(run("plan", dynamic, *PLENTY, "--type", "auto", "--ctx", "256", "--json").json)
    assert found == {"dynamic": found["dynamic"]}
    assert "patched llama.cpp scales it by 1 at 256 tokens, stock llama.cpp by 4" in found["dynamic"]
    assert run("convert", base, "--factor", "8", "--fold-magnitude", "-o", folded).code == 0
    done = run("plan", folded, *PLENTY, "--type", "auto", "--ctx", "200", "--json").json
    assert "--method none" not in notes(done)["factor_too_large"]
    assert run("extend", folded, "--ctx", "200", "--method", "none", "--dry-run").code != 0
    for cost in done["factors"]:
        asked = run("extend", folded, "--factor", str(cost["factor"]), "--dry-run", "--json").json
        assert cost["magnitude"] == pytest.approx(asked["rope"]["attention_factor"], rel=1e-4)


def test_commands_are_pasted_as_they_stand(toy_folder: Toys, tmp_path: Path) -> None:
    model = tmp_path / "a model\nwith 'names'.gguf"
    model.write_bytes((toy_folder("llama") / "f32.gguf").read_bytes())
    done = run_fresh("plan", model, *PLENTY, "--ctx", "384", "--kv", "f16", COLUMNS="60")
    lines = [line.strip() for line in done.out.splitlines() if line.strip().startswith("yarn-gguf ")]
    commands = []
    for line in lines:
        shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
        commands.append(shown.stdout.split("\0")[1:-1])
        assert commands[-1][1].startswith(str(tmp_path / "a model\nwith 'names'"))
    assert [command[0] for command in commands][-1] == "extend"
    assert run("extend", model, *commands[-1][2:], "--dry-run").code == 0


def test_the_command_starts_it_as_planned(toy_folder: Toys) -> None:
    model = toy_folder("llama") / "f32.gguf"
    arguments = ("--type", "auto", "--kv", "q8_0", "--ctx", "384", "--ubatch", "256", "--json")
    best = run("plan", model, *PLENTY, *arguments).json["recommendation"]
    words = shlex.split(run(*shlex.split(best["command"])[1:]).out)
    for word in best["flags"]:
        assert word in words
    assert words[words.index("--rope-scale") + 1] == "3"


def test_a_report_about_another_model_is_left_out(toy_folder: Toys, tmp_path: Path) -> None:
    rope = {"factor": 1.0}
    made = {"type": "F32", "kld": {"mean": 0.1}, "inside": None, "rope": rope, "arch": "llama", "bytes": 5 << 30}
    report, model = tmp_path / "report.json", toy_folder("llama") / "f32.gguf"
    arguments = ("plan", model, *PLENTY, "--type", "auto", "--kv", "f16", "--json", "--quality", report)
    for change, code in (
        ({}, "other_model"),
        ({"bytes": model.stat().st_size, "arch": "gemma3"}, "other_model"),
        ({"bytes": model.stat().st_size, "rope": {"factor": 8.0}}, "other_factor"),
    ):
        report.write_text(json.dumps({"candidates": [{**made, **change}], "reference": {}}))
        found = run(*arguments).json
        assert (list(notes(found)), found["choices"][0]["measured"]) == ([code], False)
    done = run("plan", model, *PLENTY, "--quality", model)
    assert (done.code, "codec" in done.err, "is a GGUF" in done.err) == (3, False, True)


def test_will_it_fit_if_it_is_extended_by_so_much(toy_folder: Toys) -> None:
    model = toy_folder("llama") / "f32.gguf"
    done = run("plan", model, *PLENTY, "--type", "auto", "--factor", "4", "--ctx", "384", "--json").json
    assert (done["context"], done["recommendation"]["factor"]) == (384, 4.0)
    assert "--factor 4" in done["recommendation"]["command"]
    assert "--factor 4" in notes(done)["needs_factor"]
    far = run("plan", model, *PLENTY, "--type", "auto", "--factor", "64", "--json").json
    assert "beyond 32" in notes(far)["factor_unheard_of"]
    assert run("plan", model, "--vram", "0", "--ram", "1MiB", "--ctx", "64k").code == 1
    assert run("plan", model, "--vram", "0", "--ram", "1MiB").code == 1
