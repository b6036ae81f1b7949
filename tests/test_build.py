"""`build`, `doctor` and the scripts: real trees, real CMake; what fails leaves nothing but its log.

The libraries that other tests use are built by the same command (`built.py`); here is everything around it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from yarn_gguf import cache
from yarn_gguf.errors import ChildError, InputError
from yarn_gguf.llamacpp import libraries, recipes
from yarn_gguf.llamacpp.build import first_error
from yarn_gguf.llamacpp.recipes import Recipe
from yarn_gguf.llamacpp.series import all_series

from .built import WHOLE, builds_cache, patched, stock
from .command import COMMAND, ROOT, environment, run, run_fresh
from .upstream import llama_cpp_source, sdist

SCRIPTS = ROOT / "scripts"
BACKENDS = ("cpu", "cuda", "metal", "vulkan")


def copied_tree(target: Path) -> Path:
    """The pinned llama.cpp, less what no build of its libraries looks at."""
    top = llama_cpp_source()
    unused = {".git", ".github", "models", "docs", "media", "gguf-py", "tests", "examples"}
    return shutil.copytree(top, target, ignore=lambda at, names: unused if Path(at) == top else set())


@pytest.fixture
def broken_tree(tmp_path: Path) -> Path:
    """A llama.cpp with an error in the first file that is compiled."""
    tree = copied_tree(tmp_path / "tree")
    file = tree / "ggml/src/ggml.c"
    file.write_text(file.read_text() + "\nthis is no C;\n")
    return tree


def left(cache: Path) -> list[str]:
    """What a build has left in a cache besides logs and locks."""
    return [path.name for path in (cache / "llama.cpp").iterdir() if path.name not in ("logs", "lock")]


# ---- build


@pytest.mark.slow
def test_a_second_build_finds_the_first(tmp_path: Path) -> None:
    folder = patched()
    again = run_fresh(
        "build", "--backend", "cpu", *WHOLE, "--source", sdist(), "--json", YARN_GGUF_CACHE=str(builds_cache())
    )
    assert (again.json["new"], again.json["path"], again.json["log"]) == (False, str(folder), None)
    assert again.json["features"] == list(libraries.FEATURES)
    assert again.json["verified"] is True


@pytest.mark.slow
def test_both_libraries_say_what_they_are() -> None:
    for folder, features, backends in ((patched(), libraries.FEATURES, ("CPU", "RPC")), (stock(), (), ("CPU",))):
        found = libraries.abilities(folder)
        assert (found.features, tuple(sorted(found.backends))) == (features, backends)
        marker = "YARN : shift,betas,attn_factor,truncate,dynamic | "
        assert found.system_info.endswith(marker) == bool(features)
        assert found.devices[0]["total"] > 0


@pytest.mark.slow
def test_a_failed_compile_shows_its_first_error_and_where_the_log_is(broken_tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "llama.cpp" / ".work-killed").mkdir(parents=True)
    done = run_fresh("build", "--backend", "cpu", "--source", broken_tree, YARN_GGUF_CACHE=str(cache))
    assert (done.code, done.out) == (5, "")
    assert "ggml.c" in done.err
    assert "error: unknown type name" in done.err
    log = Path(re.search(r"the whole log is (\S+)", done.err)[1])  # type: ignore[index]  # the assert is the test
    assert "this is no C" in log.read_text()
    assert left(cache) == []
    assert "this is no C" in (broken_tree / "ggml/src/ggml.c").read_text()
    assert "yarn_truncate" not in (broken_tree / "src/llama-arch.cpp").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_half_done_and_nobody_running(number: int, tmp_path: Path) -> None:
    command = [*COMMAND, "build", "--backend", "cpu", "--source", str(llama_cpp_source()), "--jobs", "1"]
    env = environment(YARN_GGUF_CACHE=str(tmp_path))
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((tmp_path / "llama.cpp").glob(".work-*/build/CMakeCache.txt")):
            time.sleep(0.05)
        time.sleep(1)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert "stopped by" in said
    assert left(tmp_path) == []
    assert not [line for line in processes() if str(tmp_path) in line]


def processes() -> list[str]:
    """The command lines of all that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_an_sdist_with_another_checksum_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / sdist().name
    wrong.write_bytes(sdist().read_bytes()[:1000])
    done = run_fresh("build", "--source", wrong, YARN_GGUF_CACHE=str(tmp_path / "cache"))
    assert (done.code, done.out) == (3, "")
    assert "is not the sdist of llama-cpp-python 0.3.36: its sha256 is" in done.err
    assert not (tmp_path / "cache").exists()


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tar.gz").write_bytes(b"not an archive")
    cases = {
        "missing": "no such file or folder",
        ".": "holds no llama.cpp",
        "other.tar.gz": "is no archive of llama.cpp",
    }
    for name, text in cases.items():
        done = run_fresh(
            "build", "--backend", "cpu", "--source", tmp_path / name, YARN_GGUF_CACHE=str(tmp_path / "cache")
        )
        assert (done.code, text in done.err) == (3, True), done
        assert done.err.count("\n") == 1


def test_without_cmake_it_is_named_and_how_to_get_it(tmp_path: Path) -> None:
    done = run_fresh(
        "build", "--backend", "cpu", "--source", llama_cpp_source(), PATH=str(tmp_path), YARN_GGUF_CACHE=str(tmp_path)
    )
    assert done.code == 4
    assert "cmake is not on PATH" in done.err


@pytest.mark.skipif(shutil.which("glslc") is not None, reason="glslc is here")
def test_a_backend_without_its_compiler_is_refused_by_name(tmp_path: Path) -> None:
    done = run_fresh("build", "--backend", "vulkan", "--source", llama_cpp_source(), YARN_GGUF_CACHE=str(tmp_path))
    assert (done.code, "glslc is not on PATH" in done.err) == (4, True)


def test_only_one_build_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "llama.cpp").mkdir()
    with FileLock(tmp_path / "llama.cpp" / "lock"):
        done = run_fresh("build", "--backend", "cpu", "--source", llama_cpp_source(), YARN_GGUF_CACHE=str(tmp_path))
    assert (done.code, "another build is running" in done.err) == (4, True)


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    arguments = ("build", "--backend", "cpu", "--rpc", "--tools", "--source", llama_cpp_source(), "--dry-run")
    done = run_fresh(*arguments, YARN_GGUF_CACHE=str(tmp_path / "cache"))
    assert done.code == 0
    assert "cmake -S llama.cpp -B build" in done.out
    assert (
        "llama-server llama-cli llama-completion llama-quantize llama-imatrix llama-perplexity ggml-rpc-server"
        in done.out
    )
    commands = run_fresh(*arguments, "--json", YARN_GGUF_CACHE=str(tmp_path / "cache")).json["commands"]
    assert set(Recipe("cpu", rpc=True, tools=True).flags) <= set(commands[0])
    assert not (tmp_path / "cache").exists()


def test_a_build_with_other_patches_or_flags_is_not_taken_for_this_one(tmp_path: Path) -> None:
    old = tmp_path / "llama.cpp" / "0.3.36-old-cpu"
    (old / "bin").mkdir(parents=True)
    (old / "bin" / "libllama.so").touch()
    record = {"version": "0.3.36", "patches": "old", "backend": "cpu", "built": 1}
    (old / libraries.RECORD).write_text(json.dumps(record))
    done = run_fresh("doctor", "--json", YARN_GGUF_CACHE=str(tmp_path))
    findings = {finding["code"]: finding["text"] for finding in done.json["findings"]}
    assert "old_library" not in findings  # it cannot even be loaded
    assert "cannot be loaded" in findings["broken_library"]
    assert "yarn-gguf build --backend" in findings["no_patched_library"]


def test_the_first_error_is_found_in_what_compilers_say() -> None:
    log = """\
[1/9] Building C object x.o
FAILED: x.o
/usr/bin/cc -Werror=vla -o x.o -c error.c
/src/x.c:3:1: error: unknown type name 'foo'
    3 | foo;
      | ^~~
ninja: build stopped: subcommand failed.
"""
    assert first_error(log) == "/src/x.c:3:1: error: unknown type name 'foo' | 3 | foo; | | ^~~"
    assert first_error("CMake Error at CMakeLists.txt:3:\n  no\n").startswith("CMake Error at")
    assert first_error("one\ntwo\n") == "one | two"


def test_a_folder_is_known_by_all_its_files_and_by_the_release_that_it_is(tmp_path: Path) -> None:
    tree = shutil.copytree(llama_cpp_source("0.3.34"), tmp_path / "tree", symlinks=True)

    def name() -> str:
        arguments = ("build", "--backend", "cpu", "--source", tree, "--dry-run", "--json")
        return Path(run_fresh(*arguments, YARN_GGUF_CACHE=str(tmp_path)).json["path"]).parent.name

    first = name()
    assert first.startswith("0.3.34-")
    with (tree / "tools/server/CMakeLists.txt").open("a") as file:
        file.write("# changed\n")
    assert name() != first


@pytest.mark.parametrize("built", ["x", None, {}])
def test_a_record_that_makes_no_sense_is_no_build(built: object, tmp_path: Path) -> None:
    folder = tmp_path / "llama.cpp" / "odd"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "libllama.so").touch()
    (folder / libraries.RECORD).write_text(json.dumps({"version": "0.3.36", "built": built}))
    done = run_fresh("doctor", "--json", YARN_GGUF_CACHE=str(tmp_path))
    assert (done.code, len(done.json["libraries"])) == (0, 1)


def test_a_library_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "hang.c"
    source.write_text('__attribute__((constructor)) static void hang(void) { for (;;) { __asm__(""); } }')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libllama.so"), str(source)], check=True)
    monkeypatch.setattr(libraries, "_SECONDS", 1.0)
    with pytest.raises(ChildError, match="gave no answer within 1 s"):
        libraries.abilities(tmp_path)


def test_an_archive_with_a_dot_in_front_is_read_and_an_empty_one_refused(tmp_path: Path) -> None:
    tree = tmp_path / "llama.cpp"
    for path in ("CMakeLists.txt", "ggml/CMakeLists.txt"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("")
    subprocess.run(["tar", "czf", "dotted.tar.gz", "./llama.cpp"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "czf", "empty.tar.gz", "-T", "/dev/null"], cwd=tmp_path, check=True)
    for name, text in (("dotted.tar.gz", "is no llama.cpp source tree"), ("empty.tar.gz", "holds nothing")):
        done = run_fresh("build", "--backend", "cpu", "--source", tmp_path / name, YARN_GGUF_CACHE=str(tmp_path))
        assert (done.code, text in done.err) == (3, True), done


# ---- which library


@pytest.mark.slow
def test_a_runtime_is_stock_patched_or_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = patched()
    monkeypatch.setenv(cache.VARIABLE, str(builds_cache()))
    assert libraries.library_folder("stock") is None
    assert libraries.library_folder("patched") == folder
    assert libraries.library_folder(str(stock())) == stock().resolve()
    assert libraries.library_folder(str(stock().parent)) == stock().resolve()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    for wrong, text in (("patched", "there is no patched llama.cpp"), (str(tmp_path), "holds no libllama.so")):
        with pytest.raises(InputError, match=text):
            libraries.library_folder(wrong)


# ---- doctor


@pytest.mark.slow
def test_the_doctor_shows_both_libraries_and_what_they_can_do() -> None:
    patched()
    found = run_fresh("doctor", "--json", YARN_GGUF_CACHE=str(builds_cache())).json
    by_kind = {library["kind"]: library for library in found["libraries"]}
    assert by_kind["patched"]["features"] == list(libraries.FEATURES)
    assert by_kind["stock"]["backends"] == ["CPU"]
    assert found["versions"]["llama-cpp-python"] == "0.3.36"
    assert not [finding for finding in found["findings"] if finding["code"] == "no_patched_library"]
    text = run_fresh("doctor", YARN_GGUF_CACHE=str(builds_cache())).words
    assert "kind patched: shift, betas, attn_factor, truncate, dynamic" in text
    assert text.endswith("✓ all that is needed is here")


def test_the_doctor_names_a_chosen_folder_that_holds_no_library(tmp_path: Path) -> None:
    done = run_fresh("doctor", LLAMA_CPP_LIB_PATH=str(tmp_path), YARN_GGUF_CACHE=str(tmp_path))
    assert done.code == 0
    assert "holds no libllama.so" in done.words
    assert "✗ something is broken" in done.words


# ---- scripts


def dry(backend: str, *options: str, path: str | None = None) -> list[list[str]]:
    """The CMake commands that a script prints, as words."""
    env = {**os.environ, **({} if path is None else {"PATH": path})}
    command = ["sh", str(SCRIPTS / f"build-{backend}.sh"), "--dry-run", *options, str(llama_cpp_source())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("cmake ")]
    return [[word.strip("'") for word in line.split()] for line in lines]


def on_platform(name: str, folder: Path) -> str:
    """A PATH on which `uname` gives another name."""
    folder.mkdir(exist_ok=True)
    (folder / "uname").write_text(f"#!/bin/sh\necho {name}\n")
    (folder / "uname").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(("uname", "platform"), [("Linux", "linux"), ("Darwin", "darwin")])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [(), ("--tools",), ("--rpc", "--tools")])
def test_the_scripts_say_what_the_recipes_say(
    backend: str, options: tuple[str, ...], uname: str, platform: str, tmp_path: Path
) -> None:
    configured, compiled = dry(backend, *options, path=on_platform(uname, tmp_path / "bin"))
    recipe = Recipe(backend, "--rpc" in options, "--tools" in options, platform)
    flags = [word for word in configured if word.startswith("-D") and "CUDA_ARCHITECTURES" not in word]
    assert sorted(flags) == sorted(flag for flag in recipe.flags if "CUDA_ARCHITECTURES" not in flag)
    assert compiled[compiled.index("--target") + 1 :] == list(recipe.targets)


def test_cuda_takes_the_cards_that_are_there_else_all_that_the_compiler_knows(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvcc").write_text("#!/bin/sh\nprintf 'compute_%s\\n' 75 80 86 89 90 100\n")
    (folder / "nvidia-smi").write_text("#!/bin/sh\nprintf '8.9\\n9.0\\n8.9\\n'\n")
    for name in ("nvcc", "nvidia-smi"):
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    assert "-DCMAKE_CUDA_ARCHITECTURES=89-real;90" in dry("cuda", path=path)[0]
    (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    wanted = "-DCMAKE_CUDA_ARCHITECTURES=75-real;80-real;86-real;89-real;90-real;100"
    assert wanted in dry("cuda", path=path)[0]
    ours = run_fresh(
        "build", "--backend", "cuda", "--source", llama_cpp_source(), "--dry-run", "--json", PATH=path
    ).json["commands"]
    assert wanted in ours[0]


def test_the_windows_script_has_the_same_flags_and_targets() -> None:
    """Read, not run: there is no PowerShell here."""
    text = (SCRIPTS / "build-windows.ps1").read_text()
    flags = set(re.findall(r'"(-D[^"$]+?)"', text))
    wanted = {
        flag
        for backend in ("cpu", "cuda")
        for tools in (True, False)
        for flag in Recipe(backend, True, tools, "win32").flags
        if "CUDA_ARCHITECTURES" not in flag
    }
    assert flags == wanted
    for target in (*recipes.TARGETS, *recipes.TOOLS, recipes.RPC_SERVER):
        assert f'"{target}"' in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean() -> None:
    scripts = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_script_puts_the_patches_in_as_the_command_does(tmp_path: Path) -> None:
    by_script = copied_tree(tmp_path / "script")
    by_command = shutil.copytree(by_script, tmp_path / "command")
    (tmp_path / "cmake").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "cmake").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["sh", str(SCRIPTS / "build-cpu.sh"), str(by_script)]
    for said in ("the patches were put in", "the patches are in already"):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        assert said in done.stderr
    assert run("patch", "apply", by_command).code == 0
    assert subprocess.run(["diff", "-r", str(by_script), str(by_command)], check=False).returncode == 0


def test_a_script_works_from_a_folder_with_a_space_and_prints_what_can_be_pasted(tmp_path: Path) -> None:
    top = tmp_path / "a checkout"
    shutil.copytree(SCRIPTS, top / "scripts")
    shutil.copytree(ROOT / "patches", top / "patches")
    outer = tmp_path / "it's a repository"
    tree = copied_tree(outer / "vendor" / "llama.cpp")
    subprocess.run(["git", "init", "-q", str(outer)], check=True)
    command = ["sh", str(top / "scripts" / "build-cpu.sh"), "--dry-run", str(tree)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if " apply " in line]
    assert len(lines) == len(all_series()[0].patches)
    for line in lines:
        subprocess.run(["sh", "-c", line], check=True)
    assert run("patch", "check", tree, "--json").json["state"] == "applied"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "which tree?"),
        (("--wrong", "x"), 2, "--wrong is no option"),
        (("--jobs",), 2, "--jobs needs a value"),
        (("--jobs", "many", "/"), 2, "--jobs many: a number is needed"),
        (("/", "/"), 2, "one tree at a time"),
        (("/",), 3, "is no llama.cpp tree: CMakeLists.txt is missing"),
    ],
)
def test_a_script_says_what_is_wrong(arguments: tuple[str, ...], code: int, text: str) -> None:
    command = ["sh", str(SCRIPTS / "build-cpu.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, text in done.stderr) == (code, True)


# ---- the wheel


@pytest.mark.slow
def test_an_installed_wheel_carries_patches_and_scripts_and_builds(tmp_path: Path) -> None:
    """Into an environment of its own, with nothing but what `patch`, `build` and `doctor` import."""
    patched()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    (wheel,) = tmp_path.glob("*.whl")
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    subprocess.run([*install, "click", "filelock", "numpy", "rich"], check=True)
    tree = tmp_path / "tree"
    for path in {change.path for patch in all_series()[0].patches for change in patch.files} | {"CMakeLists.txt"}:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(llama_cpp_source() / path, tree / path)
    command = [str(tmp_path / "env" / "bin" / "yarn-gguf")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"YARN_GGUF_CACHE": str(builds_cache())}

    def answer(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [*command, *arguments, "--json"], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    assert answer("patch", "apply", str(tree))["state"] == "applied"
    found = answer("build", "--backend", "cpu", *WHOLE, "--source", str(sdist()))
    assert (found["new"], found["path"]) == (False, str(patched()))
    installed = Path(str(answer("doctor")["patches"]))
    assert installed.is_relative_to(tmp_path)
    assert (installed.parent / "scripts" / "build-cpu.sh").is_file()
    script = ["sh", str(installed.parent / "scripts" / "build-cpu.sh"), "--dry-run", str(llama_cpp_source())]
    assert str(installed) in subprocess.run(script, capture_output=True, text=True, check=True).stdout
