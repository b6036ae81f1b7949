"""The docs say what the code does: pages made from it are fresh, examples and fields real, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from yarn_gguf.cli import cli
from yarn_gguf.demo import demo_model
from yarn_gguf.llamacpp.series import all_series

from .command import COMMAND, environment
from .make_gguf import small_model
from .upstream import llama_cpp_source

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 100  # of the terminal in the examples
HEAVY = ("torch", "transformers", "llama_cpp", "matplotlib", "gguf")


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "exactness.md"])
def test_a_page_made_from_the_code_is_fresh(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == script("make_docs").PAGES[page](), "run `make docs`"


def examples(page: Path) -> list[str]:
    """The ```console blocks on the sample: a command, and below it what it prints."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.match(r"\$ yarn-gguf .*\bdemo-out/", block)]


def shown(command: str, folder: Path) -> str:
    """The block that a reader should see: the command, run in `folder`, and its output."""
    done = subprocess.run(
        [*COMMAND, *shlex.split(command.removeprefix("$ yarn-gguf "))],
        cwd=folder,
        env=environment(COLUMNS=str(WIDTH)),
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{command}\n{done.stdout}{done.stderr}"


def without_chance(block: str) -> str:
    """Seconds, and how the bytes got there, are the machine's."""
    return re.sub(r", \d+\.\d s(, data shared with the input on disk)?$", ", 0.0 s", block, flags=re.MULTILINE)


def test_the_readme_shows_what_the_commands_print_on_the_sample(tmp_path: Path) -> None:
    (tmp_path / "demo-out").mkdir()
    script("make_sample").make_model(tmp_path / "demo-out" / "model.gguf")
    found = examples(ROOT / "README.md")
    assert {block.split()[2] for block in found} == {"inspect", "extend"}
    for block in found:
        wanted = without_chance(shown(block.splitlines()[0], tmp_path))
        assert without_chance(block) == wanted, f"README.md is stale; the block should be\n\n```console\n{wanted}```\n"


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child)


def test_every_command_and_every_option_has_help() -> None:
    for command in commands(cli):
        assert command.help, command.name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (command.name, parameter.name)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom yarn_gguf.cli import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_docs_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def documented(section: str) -> set[str]:
    """The field names in the first column of a section's table."""
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    part = text.split(section, 1)[1].split("\n## ", 1)[0]
    table = part.split("\n| --- |", 1)[1].split("\n\n", 1)[0]
    return {re.sub(r"\[\]", "", name) for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)}


def field_names(value: object, below: tuple[str, ...] = ()) -> set[str]:
    """Every path of names in a document, but not below those that are documented by themselves."""
    if isinstance(value, list):
        return set().union(*(field_names(item, below) for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    found = set()
    for name, item in value.items():
        path = (*below, name)
        inner = set() if name in ("rope", "findings", "stock", "patched", "transformers") else field_names(item, path)
        found |= inner or {".".join(path)}
    return found


def run_json(*arguments: str | Path) -> Any:
    command = [sys.executable, "-m", "yarn_gguf", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def test_documented_json_fields_are_the_real_ones(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model.gguf")
    extended = run_json("extend", model, "--factor", "4", "--beta-fast", "16", "-o", tmp_path / "long.gguf")
    inspected = run_json("inspect", tmp_path / "long.gguf")
    assert field_names(extended) == documented("## `extend --json`") | {"schema"}
    assert field_names(inspected) == documented("## `inspect --json`") - {"effective.transformers"} | {"schema"}
    assert set(inspected["rope"]) == set(extended["rope"]) == documented("`rope`:")
    assert set(inspected["effective"]["stock"][0]) == documented("An item of `effective`:")
    assert set(inspected["findings"][0]) == documented("A finding:")
    failed = run_json("inspect", tmp_path / "nowhere.gguf")
    assert field_names(failed) == documented("On failure") | {"schema"}


def test_documented_json_fields_of_convert_are_the_real_ones(toy_folder: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ("convert", toy_folder("llama"), "--no-vocab", "--factor", "8", "-o", tmp_path / "out.gguf")
    planned, converted = run_json(*arguments, "--dry-run"), run_json(*arguments)
    fields = documented("## `convert --json`")
    assert field_names(planned) == fields | {"schema"}
    assert field_names(converted) == {name for name in fields if not name.startswith("plan.")} | {"schema"}
    assert set(planned["rope"]) == documented("`rope`:")


def test_documented_json_fields_of_plan_are_the_real_ones(toy_folder: Callable[[str], Path]) -> None:
    planned = run_json("plan", toy_folder("llama") / "f32.gguf", "--vram", "1GiB", "--ram", "1GiB", "--ctx", "256")
    fields = documented("## `plan --json`")
    choice = {name.removeprefix("choices.") for name in fields if name.startswith("choices.")}
    fields |= {f"recommendation.{name}" for name in choice}
    assert field_names(planned) == fields - {"recommendation.…"} | {"schema"}
    assert set(planned["rope"]) == documented("`rope`:")


def test_documented_json_fields_of_the_llama_cpp_side_are_the_real_ones(tmp_path: Path) -> None:
    """(Of `build`, test_build.py has the document.)"""
    tree = tmp_path / "tree"
    for file in {change.path for patch in all_series()[0].patches for change in patch.files} | {"CMakeLists.txt"}:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(llama_cpp_source() / file, tree / file)
    checked = run_json("patch", "check", tree)
    fields = documented("## `patch --json`")
    assert field_names(checked) - {"misfits"} == {name for name in fields if "misfits" not in name} | {"schema"}
    examined = run_json("doctor")
    examined["versions"], examined["programs"] = 0, 0
    assert field_names(examined) == documented("## `doctor --json`") | {"schema"}


def test_documented_json_fields_of_run_are_the_real_ones(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    run_json("convert", demo_model("base"), "-o", file, "--outtype", "f16")
    found = run_json("run", file, "-p", "The old man", "-n", "2", "--ctx", "512")
    assert found["findings"]
    assert field_names({**found, "scaling": 0}) == documented("## `run --json`") | {"schema"}
    assert set(found["scaling"]) == documented("`scaling`:") | documented("`rope`:") - {"schema"}


def with_figures(section: str) -> set[str]:
    """A section's fields, with the figures and the facts of a model written out where it points to them."""
    fields = documented(section)
    figures = documented("Figures:")
    model = {name.removeprefix("reference.") for name in fields if name.startswith("reference.")}
    for name in [each for each in fields if each.endswith(".…")]:
        below = figures | (model if name == "candidates.…" else set())
        fields = fields - {name} | {name.replace("…", each) for each in below}
    return fields | {"schema"}


def test_documented_json_fields_of_verify_and_its_kin_are_the_real_ones(
    toy_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file, record = tmp_path / "model.gguf", tmp_path / "model.yref"
    assert "error" not in run_json("extend", toy_folder("llama") / "f32.gguf", "--factor", "2", "-o", file)
    (tmp_path / "ids.txt").write_text(" ".join(str(3 + n % 300) for n in range(256)))
    ids = ("--tokens", tmp_path / "ids.txt", "--ctx", "256")
    verified = run_json("verify", file, file, *ids)
    assert field_names(_open(verified)) == with_figures("## `verify --json`")
    assert set(verified["candidates"][0]["rope"]) == documented("`rope`:")
    recorded = run_json("record", file, "-o", record, *ids)
    assert field_names({**recorded, "provenance": 0}) == documented("## `record --json`") | {"schema"}
    quantized = run_json("quantize", file, "q8_0", "-o", tmp_path / "q8_0.gguf")
    assert field_names(quantized) == documented("## `quantize --json`") | {"schema"}


def test_documented_json_fields_of_flags_are_the_real_ones(tmp_path: Path) -> None:
    found = run_json("flags", small_model(tmp_path / "model.gguf"), "--for", "llama-server", "--factor", "4")
    assert field_names(found) == documented("## `flags --json`") | {"schema"}
    assert set(found["rope"]) == documented("`rope`:")


def _open(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is documented as a whole: how models were opened, what computed."""
    return {**document, "settings": 0, "versions": 0}


def test_every_finding_is_explained() -> None:
    """Each code that stands in the source, in a call that makes a finding, stands in the docs."""
    call = re.compile(r"\b(?:warning|note|error|level)\(\s*\"([a-z_0-9]+)\"")
    codes = {code for path in (ROOT / "yarn_gguf").rglob("*.py") for code in call.findall(path.read_text("utf-8"))}
    names = ("inspect.md", "convert.md", "llama-cpp.md", "plan.md", "run.md", "verify.md", "flags.md")
    texts = [(ROOT / "docs" / name).read_text("utf-8") for name in names]
    explained = {code for text in texts for code in re.findall(r"`([a-z_0-9]+)`", text)}
    # `Fields.note` takes a field of config.json instead
    assert codes - {"layer_types", "rope_theta", "type"} <= explained
    assert len(codes) > 20
