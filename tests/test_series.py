"""The patch series on real trees: the pinned llama.cpp and the two releases before it. git is the oracle.

A tree here is a copy of the files that the patches change, from the sdists, with what tells that it is one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_gguf.errors import InputError, ResourceError
from yarn_gguf.llamacpp import series
from yarn_gguf.llamacpp.sources import upstreams
from yarn_gguf.llamacpp.unified_diff import parsed, patched

from .command import run
from .upstream import llama_cpp_source, sdist

PATCHES = series.patches_folder()
RELEASES = tuple(upstreams())
SIGNS = ("CMakeLists.txt", "src/llama-context.cpp", "ggml/src/ggml.c")
Trees = Callable[[str], Path]


def touched(release: str) -> set[str]:
    """Every file that a patch for a release changes."""
    return {change.path for patch in series_for(release).patches for change in patch.files}


def series_for(release: str) -> series.Series:
    return next(one for one in series.all_series() if one.variant == ("" if release == RELEASES[0] else release))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """release → the files of its llama.cpp that the patches change. Not to be written to."""
    made: dict[str, Path] = {}

    def tree(release: str) -> Path:
        if release not in made:
            made[release] = tmp_path_factory.mktemp(release)
            for path in {*touched(release), *SIGNS}:
                target = made[release] / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(llama_cpp_source(release) / path, target)
        return made[release]

    return tree


@pytest.fixture
def tree(pristine: Trees, tmp_path: Path) -> Trees:
    """release → a copy that may be changed."""
    return lambda release: shutil.copytree(pristine(release), tmp_path / release)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def with_git(folder: Path, release: str, *options: str) -> None:
    """What git makes of the same patches, in a folder of its own."""
    patches = series_for(release).patches
    for patch in reversed(patches) if options else patches:
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        subprocess.run(["git", "apply", *options, "-"], cwd=folder, input=patch.text, text=True, check=True)
    shutil.rmtree(folder / ".git")


@pytest.mark.parametrize("release", RELEASES)
def test_the_series_applies_as_git_applies_it_and_comes_out_again(release: str, tree: Trees, pristine: Trees) -> None:
    folder = tree(release)
    ours = contents(folder)
    assert run("patch", "check", folder).code == 0
    assert contents(folder) == ours
    assert run("patch", "apply", folder).code == 0
    after = contents(folder)
    shutil.rmtree(folder)
    with_git(tree(release), release)
    assert contents(folder) == after
    assert run("patch", "reverse", folder).code == 0
    assert contents(folder) == contents(pristine(release))


@pytest.mark.parametrize("release", RELEASES)
def test_applying_and_reversing_twice_changes_nothing_more(release: str, tree: Trees, pristine: Trees) -> None:
    folder = tree(release)
    for command, state in (("apply", "applied"), ("reverse", "clean")):
        assert run("patch", command, folder, "--json").json["state"] == state
        once = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        again = run("patch", command, folder, "--json").json
        assert (again["was"], again["state"]) == (state, state)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == once
    assert contents(folder) == contents(pristine(release))


@pytest.mark.parametrize("count", range(1, 7))
def test_a_tree_with_some_of_the_patches_gets_the_others(count: int, tree: Trees) -> None:
    folder = tree(RELEASES[0])
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for patch in series_for(RELEASES[0]).patches[:count]:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=patch.text, text=True, check=True)
    shutil.rmtree(folder / ".git")
    found = run("patch", "check", folder, "--json").json
    assert (found["state"], [patch["applied"] for patch in found["patches"]].count(True)) == ("partly", count)
    assert run("patch", "apply", folder, "--json").json["was"] == "partly"
    assert run("patch", "check", folder, "--json").json["state"] == "applied"


def test_an_unknown_revision_is_left_alone_and_its_hunks_are_named(tree: Trees) -> None:
    folder = tree(RELEASES[0])
    file = folder / "src/llama-kv-cache.cpp"
    file.write_text(file.read_text().replace("yarn_beta_slow   = cparams", "yarn_beta_slow = cparams"))
    before = contents(folder)
    for command, code in (("check", 1), ("apply", 3), ("reverse", 3)):
        done = run("patch", command, folder)
        assert done.code == code
        assert re.search(r"0001 src/llama-kv-cache.cpp:19\d\d does not fit", done.err)
        assert done.err.count("\n") == 1
    misfits = run("patch", "check", folder, "--json")
    assert contents(folder) == before
    assert misfits.code == 1


def test_a_missing_file_is_named_and_a_folder_that_is_no_tree_is_refused(tree: Trees, tmp_path: Path) -> None:
    folder = tree(RELEASES[0])
    (folder / "ggml/src/ggml-opencl/kernels/rope.cl").unlink()
    done = run("patch", "apply", folder)
    assert (done.code, "rope.cl:0 is missing" in done.err) == (3, True)
    done = run("patch", "apply", tmp_path)
    assert (done.code, "is no llama.cpp source tree: CMakeLists.txt is missing" in done.err) == (3, True)


def test_lines_that_moved_are_found_and_windows_line_ends_stay(tree: Trees, pristine: Trees) -> None:
    folder = tree(RELEASES[0])
    file = folder / "src/llama-kv-cache.cpp"
    file.write_bytes(b"// more\n" * 50 + file.read_bytes())
    other = folder / "ggml/src/ggml.c"
    other.write_bytes(other.read_bytes().replace(b"\n", b"\r\n"))
    before = contents(folder)
    assert run("patch", "apply", folder).code == 0
    assert b"1.0f / (1.0f + 0.1f*logf(1.0f / freq_scale))" in file.read_bytes()
    assert b"\n" not in other.read_bytes().replace(b"\r\n", b"")
    assert run("patch", "reverse", folder).code == 0
    assert contents(folder) == before


def test_a_folder_that_cannot_be_written_to_is_left_as_it_was(tree: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree(RELEASES[0])
    before = contents(folder)
    replace, calls = series._replace, iter(range(1000))

    def failing(path: Path, data: bytes) -> None:
        if next(calls) == 7:
            raise OSError(28, "No space left on device", str(path))
        replace(path, data)

    monkeypatch.setattr(series, "_replace", failing)
    with pytest.raises(ResourceError, match="No space left on device; the tree is as it was"):
        series.apply(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["apply", "reverse"])
@pytest.mark.parametrize("count", [1, 5, 9])
def test_what_a_killed_run_has_left_is_finished_or_undone(
    command: str, count: int, tree: Trees, pristine: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is whole, old or new, whenever a run ends without a chance to tidy up."""
    folder = tree(RELEASES[0])
    replace, calls = series._replace_all, iter(range(1))

    def torn(at: Path, texts: dict[str, str]) -> None:
        replace(at, dict(list(texts.items())[:count]) if next(calls, 1) == 0 else texts)

    monkeypatch.setattr(series, "_replace_all", torn)
    series.apply(folder)
    assert run("patch", "check", folder, "--json").json["state"] == "partly"
    assert run("patch", command, folder).code == 0
    assert series.standing(folder).state == {"apply": "applied", "reverse": "clean"}[command]
    if command == "reverse":
        assert contents(folder) == contents(pristine(RELEASES[0]))


def test_a_missing_file_blames_no_other_patch(tree: Trees) -> None:
    folder = tree(RELEASES[0])
    shutil.rmtree(folder / "ggml/src/ggml-et")
    found = series.standing(folder)
    assert [(name[:4], misfit.path.split("/")[2]) for name, misfit in found.misfits] == [("0004", "ggml-et")]


def test_a_linked_file_stays_a_link(tree: Trees) -> None:
    folder = tree(RELEASES[0])
    file = folder / "src/llama.cpp"
    file.rename(folder / "elsewhere.cpp")
    file.symlink_to("../elsewhere.cpp")
    before = contents(folder)
    for command in ("apply", "reverse"):
        assert run("patch", command, folder).code == 0
        assert file.is_symlink()
    assert contents(folder) == before


def test_upstream_names_the_pinned_revision_first_and_every_variant_is_one_of_them() -> None:
    pinned = upstreams()[RELEASES[0]]
    assert (pinned.version, pinned.revision[:9]) == ("0.3.36", "0c1e57098")
    assert {one.variant for one in series.all_series()} == {"", *RELEASES[1:]}
    for release, row in upstreams().items():
        assert hashlib.sha256(sdist(release).read_bytes()).hexdigest() == row.sha256


@pytest.mark.parametrize("patch", [p for one in series.all_series() for p in one.patches], ids=lambda patch: patch.name)
def test_every_message_says_problem_cause_change_and_how_to_test(patch: series.Patch) -> None:
    head, _, body = patch.text.partition("\n\n")
    message = body.partition("\n---\n")[0]
    for word in ("Problem: ", "Change: ", "Test: "):
        assert f"\n{word}" in f"\n{message}"
    assert max(map(len, message.splitlines())) <= 80
    assert f"[PATCH {int(patch.name[:4])}/7] " in head


@given(st.data())
def test_a_hunk_goes_in_and_comes_out_anywhere_in_a_text(data: st.DataObject) -> None:
    old = data.draw(st.lists(st.text("abc", max_size=3), min_size=1, max_size=5))
    new = data.draw(st.lists(st.text("xyz", max_size=3), min_size=1, max_size=5))
    above = data.draw(st.lists(st.sampled_from(["-", "="]), max_size=9))
    below = data.draw(st.lists(st.sampled_from(["-", "="]), max_size=9))
    shift = data.draw(st.integers(-3, 3))
    text = "\n".join([*above, "<", *old, ">", *below])
    lines = [" <", *(f"-{line}" for line in old), *(f"+{line}" for line in new), " >"]
    head = f"@@ -{max(len(above) + 1 + shift, 1)},{len(old) + 2} +1,{len(new) + 2} @@"
    (change,) = parsed("\n".join(["--- a/f", "+++ b/f", head, *lines]) + "\n")
    after, misfits = patched(text, change)
    assert not misfits
    assert after == "\n".join([*above, "<", *new, ">", *below])
    assert patched(after, change, reverse=True) == (text, ())


def test_what_is_no_patch_is_refused() -> None:
    for text in ("", "words", "--- a/f\n+++ b/f\n", "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n"):
        with pytest.raises(InputError) as refused:
            parsed(text)
        assert refused.value.code == "bad_patch"


def test_a_hunk_that_fits_in_two_places_is_no_guess() -> None:
    (change,) = parsed("--- a/f\n+++ b/f\n@@ -9,1 +9,1 @@\n-a\n+b\n")
    text, misfits = patched("a\nc\na\n", change)
    assert (text, str(misfits[0])) == ("a\nc\na\n", "f:9 fits in 2 places")
