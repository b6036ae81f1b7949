"""What `flags` says, nothing run: words, quoting, verdicts, remarks. test_flags_run.py runs what it prints."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yarn_gguf.flags.llama_words import FLAGS
from yarn_gguf.flags.programs import PROGRAMS
from yarn_gguf.flags.remarks import VARIABLES
from yarn_gguf.flags.shells import SHELLS

from .command import Done, extended, run, run_fresh
from .make_gguf import Raw, small_model
from .upstream import llama_cpp_source

LLAMA = ("llama-server", "llama-cli")
OTHERS = ("ollama", "lm-studio", "koboldcpp", "vllm")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama without scaling, of context 4096."""
    return small_model(tmp_path / "it's a model.gguf", keys={"context_length": 4096})


def words(done: Done) -> list[str]:
    """The one command on stdout, as a shell takes it apart."""
    assert done.out.count("\n") == 1, done
    return shlex.split(done.out)


def call(done: Done) -> dict[str, Any]:
    """The arguments of the printed Llama(...)."""
    tree = ast.parse(done.out)
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.keywords)
    return {each.arg or "": ast.unparse(each.value) for each in found.keywords}


def codes(done: Done) -> dict[str, str]:
    return {found["code"]: found["level"] for found in done.json["findings"]}


@pytest.mark.parametrize("name", LLAMA)
def test_a_file_without_yarn_is_started_with_yarns_flags(model: Path, name: str) -> None:
    done = run("flags", model, "--for", name, "--ctx", "16k")
    assert done.code == 0
    assert words(done) == [
        *(name, "-m", str(model), "-c", "16384"),
        *("--rope-scaling", "yarn", "--rope-scale", "4", "--yarn-orig-ctx", "4096"),
    ]
    assert "every start needs" in " ".join(done.err.split())


@pytest.mark.parametrize("name", LLAMA)
def test_a_file_with_yarn_inside_needs_its_context_alone(model: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "-o", out)
    assert words(run("flags", out, "--for", name)) == [name, "-m", str(out), "-c", "16384"]
    assert words(run("flags", out, "--for", name, "--ctx", "8k"))[-1] == "8192"


def test_a_context_beyond_the_files_asks_for_a_larger_factor(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "--beta-fast", "16", "--encoding", "keys", "-o", out)
    done = run("flags", out, "--for", "llama-server", "--ctx", "32k", "--json")
    assert (done.json["rope"]["factor"], done.json["rope"]["beta_fast"]) == (8, 16)
    assert "--rope-scale 8" in done.json["text"]


def test_settings_that_stock_does_not_read_become_flags_and_none_where_it_is_patched(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "--beta-fast", "16", "--beta-slow", "2", "--encoding", "keys", "-o", out)
    found = run("flags", out, "--for", "llama-server", "--json").json
    assert found["commands"][0][5:] == ["--yarn-beta-fast", "16", "--yarn-beta-slow", "2"]
    assert found["exact"] is True


def test_the_attention_factor_goes_through_the_one_key_that_stock_reads(model: Path) -> None:
    done = run("flags", model, "--for", "llama-server", "--factor", "4", "--attention-factor", "1")
    key = next(word for word in words(done) if "attn_factor" in word)
    assert "llama.rope.scaling.attn_factor=float:0.878" in key
    assert "--yarn-attn-factor" not in done.out


def test_numbers_are_printed_in_full(model: Path) -> None:
    done = run("flags", model, "--for", "llama-cli", "--factor", "2.5", "--beta-fast", "20.100000381469727")
    found = words(done)
    assert found[found.index("--rope-scale") + 1] == "2.5"
    assert found[found.index("--yarn-beta-fast") + 1] == "20.100000381469727"


def test_a_factor_whose_inverse_rounds_down_would_cost_a_token_and_goes_through_keys(model: Path) -> None:
    """llama.cpp takes 4096 / (1 / 3.3) in float32 for the most that a server may have: 13516, not 13517."""
    found = words(run("flags", model, "--for", "llama-server", "--factor", "3.3"))
    assert "--rope-scale" not in found
    assert (
        "llama.context_length=int:13517,llama.rope.scaling.type=str:yarn,llama.rope.scaling.factor=float:3.3"
        in found[-1]
    )


def test_what_no_file_can_say_on_stock_is_an_error_with_the_ways_out(model: Path) -> None:
    done = run("flags", model, "--for", "llama-server", "--factor", "4", "--no-truncate")
    assert done.code == 1
    assert words(done)[0] == "llama-server"  # printed all the same
    said = " ".join(done.err.split())
    assert "rad at the full context" in said
    assert "--runtime patched is exact" in said
    assert f"yarn-gguf extend {shlex.quote(str(model))}" in said


def test_the_context_length_is_overridden_where_a_file_of_upstreams_would_be_capped(
    model: Path, tmp_path: Path
) -> None:
    from .upstream import write_with_keys

    keys: dict[str, str | int | float | bool] = {"type": "yarn", "factor": 4.0, "original_context_length": 4096}
    file = write_with_keys(model, tmp_path / "theirs.gguf", {f"rope.scaling.{k}": v for k, v in keys.items()})
    for name in LLAMA:
        assert "llama.context_length=int:16384" in words(run("flags", file, "--for", name))
    assert "kv_overrides" not in run("flags", file, "--for", "llama-cpp-python").out  # it caps nothing
    done = run("flags", file, "--for", "ollama", "--json")
    assert (done.code, codes(done)["context_capped"], done.json["trained_context"]) == (1, "error", 4096)


def test_llama_cpp_pythons_own_betas_are_kept_from_overriding_the_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "-o", out)
    found = call(run("flags", out, "--for", "llama-cpp-python"))
    assert {found[name] for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")} == {"-1.0"}
    assert (found["n_ctx"], found["n_gpu_layers"]) == ("16384", "-1")


def test_every_setting_that_a_program_has_is_passed_on(model: Path) -> None:
    given = ("-ctk", "q8_0", "-ctv", "q4_0", "-fa", "on", "-ngl", "all", "-t", "3")
    found = words(run("flags", model, "--for", "llama-cli", *given, "-p", "it's", "--", "-n", "5", "--temp", "0"))
    assert found[5:] == [*given[:6], "-ngl", "all", "-t", "3", "-p", "it's", "-n", "5", "--temp", "0"]
    python = call(run("flags", model, "--for", "llama-cpp-python", *given))
    wanted = {"type_k": "llama_cpp.GGML_TYPE_Q8_0", "type_v": "llama_cpp.GGML_TYPE_Q4_0", "flash_attn": "True"}
    assert wanted.items() <= python.items()
    assert (python["n_gpu_layers"], python["n_threads"]) == ("-1", "3")


def test_a_quantized_v_cache_without_flash_attention_is_an_error(model: Path) -> None:
    done = run("flags", model, "--for", "llama-server", "-ctv", "q8_0", "-fa", "off", "--json")
    assert (done.code, codes(done)["kv_type"]) == (1, "error")
    said = run("flags", model, "--for", "llama-server", "-ctv", "q8_0", "-fa", "off").err
    assert "values in q8_0 need flash attention" in said and "✗" in said and "✓" not in said


@pytest.mark.parametrize(
    ("name", "words", "way"),
    [
        ("llama-server", ("--rope-scale", "7"), "--factor"),
        ("llama-cli", ("-n", "5", "--yarn-ext-factor", "0"), "overrule"),
        ("llama-server", ("-c", "8192"), "--ctx"),
        ("llama-server", ("--override-kv", "a.b=int:1,llama.rope.scaling.factor=float:2"), "overrule"),
        ("koboldcpp", ("--ropeconfig", "1.0", "10000"), "overrule"),
        ("vllm", ("--max-model-len=99",), "--ctx"),
        ("ollama", ("--verbose",), "is not started with words of its own"),
        ("llama-cpp-python", ("seed=1",), "is not started with words of its own"),
    ],
)
def test_what_is_passed_on_cannot_overrule_what_was_asked_for(
    model: Path, name: str, words: tuple[str, ...], way: str
) -> None:
    done = run("flags", model, "--for", name, "--", *words)
    assert (done.code, done.out) == (2, "")
    assert way in done.err and done.err.count("\n") == 1
    other = ("--override-kv", "tokenizer.ggml.add_bos_token=bool:false")
    if name == "llama-server":
        assert run("flags", model, "--for", name, "--", *other).code == 0


def test_a_shift_that_is_passed_on_is_an_error_where_it_spoils_the_cache(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "-o", out)
    done = run("flags", out, "--for", "llama-server", "--", "--context-shift")
    assert done.code == 1 and "--context-shift multiplies cached keys by 1.139" in done.err and "✗" in done.err
    assert run("flags", model, "--for", "llama-server", "--", "--context-shift").code == 0


# what each program makes of these, and what it says that it leaves out; nothing is dropped in silence
GIVEN = ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on", "-ngl", "1", "-t", "3")


@pytest.mark.parametrize(
    ("name", "shown", "said"),
    [
        ("ollama", ("PARAMETER num_gpu 1", "PARAMETER num_thread 3"), "OLLAMA_KV_CACHE_TYPE=q8_0"),
        ("lm-studio", ("--gpu max",), "lms load has no word for -t: left out"),
        ("koboldcpp", ("--quantkv 1 --flashattention --gpulayers 1 --threads 3",), "not run"),
        ("vllm", (), "vLLM has no word for -ctk, -ctv, -fa, -ngl, -t: left out"),
    ],
)
def test_every_setting_that_is_given_is_passed_on_or_said_to_be_left_out(
    model: Path, name: str, shown: tuple[str, ...], said: str
) -> None:
    done = run("flags", model, "--for", name, *GIVEN)
    assert done.code == 0
    assert all(each in done.out for each in shown), done.out
    assert said in " ".join(done.err.split())


def test_every_program_ends_with_a_verdict(model: Path, toy_folder: Callable[[str], Path]) -> None:
    for name in PROGRAMS:
        assert "✓" in run("flags", model, "--for", name).err, name
    assert "it was not run" in run("flags", toy_folder("phi"), "--for", "vllm").err


def test_vllm_is_told_nothing_of_the_factors_in_a_gguf(tmp_path: Path) -> None:
    """Such as Llama 3.1's, which llama.cpp reads from a tensor."""
    done = run("flags", Raw(rope_freqs="last").write(tmp_path / "factors.gguf"), "--for", "vllm")
    assert (done.code, "✗" in done.err) == (1, True)
    assert "vLLM has no words for factors" in done.err


@pytest.mark.parametrize("name", OTHERS)
def test_programs_that_we_do_not_run_say_so(model: Path, name: str) -> None:
    done = run("flags", model, "--for", name, "--json")
    assert codes(done)["not_run"] == "note"
    assert done.json["run_by_tests"] is False
    assert PROGRAMS[name].run is False


@pytest.mark.parametrize("name", ["ollama", "lm-studio", "koboldcpp"])
def test_programs_without_flags_for_yarn_want_it_in_the_file(model: Path, name: str, tmp_path: Path) -> None:
    done = run("flags", model, "--for", name, "--ctx", "16k", "--json")
    assert (done.code, codes(done)["not_exact"]) == (1, "error")
    out = tmp_path / "long.gguf"
    extended(model, "--ctx", "16k", "-o", out)
    done = run("flags", out, "--for", name, "--json")
    assert (done.code, done.json["exact"]) == (0, True)
    assert "16384" in done.json["text"]


def test_ollama_gets_a_modelfile(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--ctx", "16k", "-o", out)
    assert run("flags", out, "--for", "ollama").out == f"FROM {out}\nPARAMETER num_ctx 16384\n"


@pytest.mark.parametrize("name", ["a\nb.gguf", "a\rb.gguf", "a.gguf "])
def test_a_modelfile_is_refused_for_a_path_that_it_cannot_say(model: Path, tmp_path: Path, name: str) -> None:
    named = tmp_path / name
    named.write_bytes(model.read_bytes())
    done = run("flags", named, "--for", "ollama")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1 and "a Modelfile has no words for a path" in done.err
    assert run("flags", named, "--for", "llama-server").code == 0


def test_koboldcpp_is_kept_from_shifting(model: Path) -> None:
    assert "--noshift" in words(run("flags", model, "--for", "koboldcpp"))


def test_vllm_gets_the_settings_in_transformers_words(model: Path) -> None:
    done = run("flags", model, "--for", "vllm", "--factor", "4", "--beta-fast", "16", "--attention-factor", "1.5")
    found = words(done)
    overrides = json.loads(found[found.index("--hf-overrides") + 1])
    assert overrides["max_position_embeddings"] == 16384
    assert overrides["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "attention_factor": 1.5,
    }
    assert "only the newest vLLM honours attention_factor" in " ".join(done.err.split())


def test_vllm_serves_a_checkpoint_and_others_do_not(toy_folder: Callable[[str], Path]) -> None:
    from .toys import CONTEXT, ROPE

    folder = toy_folder("phi")  # half of each head turns
    found = words(run("flags", folder, "--for", "vllm", "--ctx", "1024"))
    rope = json.loads(found[-1])["rope_parameters"]
    assert (rope["factor"], rope["original_max_position_embeddings"]) == (1024 / CONTEXT, CONTEXT)
    assert (rope["partial_rotary_factor"], rope["rope_theta"]) == (0.5, ROPE["rope_theta"])
    done = run("flags", folder, "--for", "llama-server")
    assert done.code == 2
    assert "yarn-gguf convert makes one" in done.err


def test_transformers_takes_the_words_for_what_is_meant(toy_folder: Callable[[str], Path]) -> None:
    """vLLM reads them as transformers does; vLLM itself is not run."""
    from transformers import AutoConfig

    folder = toy_folder("qwen3")
    given = ("--factor", "8", "--beta-fast", "6", "--beta-slow", "2", "--no-truncate", "--attention-factor", "1.25")
    overrides = json.loads(words(run("flags", folder, "--for", "vllm", *given))[-1])
    config = AutoConfig.from_pretrained(folder, **overrides)
    meant = run("inspect", folder, *given, "--json").json["effective"]["transformers"][0]
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inverse, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert inverse.numpy() == pytest.approx(meant["inverse_frequencies"], rel=1e-6)
    assert magnitude == pytest.approx(meant["magnitude"])


@pytest.mark.parametrize("name", OTHERS)
def test_a_library_is_chosen_only_for_programs_that_take_one(model: Path, name: str) -> None:
    done = run("flags", model, "--for", name, "--runtime", "patched")
    assert done.code == 2
    assert "has a library of its own" in done.err


def test_a_prompt_is_refused_where_a_program_takes_none(model: Path) -> None:
    assert run("flags", model, "--for", "llama-server", "-p", "Hello").code == 2


def test_the_environment_of_llama_cpps_programs_is_watched(model: Path) -> None:
    done = run_fresh(
        "flags", str(model), "--for", "llama-server", LLAMA_ARG_ROPE_SCALE="2", LLAMA_ARG_CACHE_REUSE="256"
    )
    said = " ".join(done.err.split())
    assert "LLAMA_ARG_ROPE_SCALE=2 in the environment counts as --rope-scale" in said
    assert (done.code, "✗" in said, "✓" in said) == (1, True, False)
    assert "LLAMA_ARG_CACHE_REUSE=256 in the environment counts as --cache-reuse" in said
    given = run_fresh("flags", str(model), "--for", "llama-server", "--ctx", "16k", LLAMA_ARG_ROPE_SCALE="2")
    assert "LLAMA_ARG_ROPE_SCALE" not in given.err  # a flag on the command line wins


def test_every_flag_and_variable_is_llama_cpps() -> None:
    source = (llama_cpp_source() / "common" / "arg.cpp").read_text()
    for word in (*FLAGS.values(), *VARIABLES.values(), "--override-kv", "-ctk", "-ctv", "-fa", "-ngl", "-t", "-c"):
        assert f'"{word}"' in source, word
    for variable in VARIABLES:
        assert f'"{variable}"' in source, variable


def test_what_is_said_of_servers_holds_in_the_source() -> None:
    """n_ctx_train caps a slot; shifts and reuse are off unless asked for."""
    source = llama_cpp_source()
    assert (
        "return std::min(res, llama_model_n_ctx_train(model_tgt));"
        in (source / "tools" / "server" / "server-context.cpp").read_text()
    )
    common = " ".join((source / "common" / "common.h").read_text().split())
    assert "bool ctx_shift = false;" in common
    assert "int32_t n_cache_reuse = 0;" in common


def test_transformers_reads_no_scaling_key_of_a_gguf() -> None:
    """What `flags --for vllm` says of GGUFs; the day that it changes, the remark must."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    for arch, names in GGUF_CONFIG_MAPPING.items():
        assert not [name for name in names if name.startswith("rope.scaling")], arch


TRICKY = ("plain", "it's", 'say "x"', "a b", "$HOME", "back`tick", "tab\t", "über", "semi;colon", "*", "")


def test_posix_words_come_back_from_a_shell() -> None:
    import subprocess

    line = SHELLS["posix"](["printf", "%s\\0", *TRICKY])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == list(TRICKY)


def test_powershell_and_cmd_quote_what_they_must() -> None:
    assert SHELLS["powershell"](["a.exe", "C:\\x\\y", "it's $1"]) == "a.exe C:\\x\\y 'it''s $1'"
    assert SHELLS["powershell"](["C:\\my programs\\a.exe", "x"]) == "& 'C:\\my programs\\a.exe' x"
    assert SHELLS["cmd"](["a.exe", "C:\\my models\\m.gguf"]) == 'a.exe "C:\\my models\\m.gguf"'


def test_linear_and_ntk_have_flags_too(model: Path) -> None:
    linear = words(run("flags", model, "--for", "llama-cli", "--method", "linear", "--factor", "4"))
    assert linear[5:9] == ["--rope-scaling", "linear", "--rope-scale", "4"]
    assert "llama.context_length=int:16384" in linear[-1]  # llama.cpp lifts its cap for YaRN alone
    ntk = words(run("flags", model, "--for", "llama-cli", "--method", "ntk", "--factor", "4"))
    assert ntk[5:8] == ["--rope-scaling", "none", "--rope-freq-base"]


def test_scaling_can_be_taken_away(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gguf"
    extended(model, "--factor", "4", "-o", out)
    found = words(run("flags", out, "--for", "llama-cli", "--method", "none"))
    assert found[3:] == ["-c", "4096", "--rope-scaling", "none"]


def test_a_baked_file_cannot_be_scaled_further_by_flags(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "baked.gguf"
    extended(model, "--factor", "4", "--encoding", "baked", "-o", out)
    assert words(run("flags", out, "--for", "llama-cli"))[3:] == ["-c", "16384"]
    done = run("flags", out, "--for", "llama-cli", "--ctx", "32k")
    assert done.code == 1
    assert "yarn-gguf extend" in done.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--for", "llama-server", "--factor", "0.5"), 2),
        (("--for", "llama-server", "--factor", "4", "--method", "none"), 2),
        (("--for", "nothing"), 2),
        ((), 2),
        (("--for", "llama-server", "--runtime", "nowhere"), 3),
        (("--for", "llama-server", "-ctk", "q9"), 2),
        (("--for", "llama-server", "-t", "513"), 2),
        (("--for", "llama-server", "-ngl", "some"), 2),
    ],
)
def test_bad_input_is_one_line_and_a_code(model: Path, arguments: tuple[str, ...], code: int) -> None:
    done = run("flags", model, *arguments)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert run("flags", tmp_path / "x.gguf", "--for", "ollama").code == 3
