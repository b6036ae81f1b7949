"""What `inspect --plot` draws: the classes that the text counts, a line for each state of the frequencies, any name.

An SVG is read as XML, its lines as matplotlib's own text; how the picture looks is for eyes.
"""

from __future__ import annotations

import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.command import run
from tests.make_gguf import hashes, small_model
from yarn_gguf.effective import LayerClass, LayerRope
from yarn_gguf.errors import ResourceError
from yarn_gguf.plot import Picture, _lines, plot_rope, total_rope
from yarn_gguf.rope import FrequencyFactors, Linear, Llama3, PairClass, Rope, Scaling, Yarn

YARN4 = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 4096}
YARN = Yarn(4, 4096)
LLAMA3 = Llama3(8, 1, 4, 8192)


@pytest.mark.parametrize("under", [None, LLAMA3, FrequencyFactors((2.0,) * 32), Linear(2)])
@pytest.mark.parametrize("scaling", [YARN, Linear(4)])
def test_the_colours_are_the_classes_that_the_text_counts(scaling: Scaling, under: Scaling | None) -> None:
    rope = Rope(64, 500000.0, scaling, under)
    classes = total_rope(rope).pair_classes()
    counted = LayerRope(LayerClass.FULL, (0,), rope).tally
    assert {kind: classes.count(kind) for kind in PairClass if kind in classes} == counted
    np.testing.assert_allclose(total_rope(rope).inverse_frequencies(), rope.inverse_frequencies())


def test_what_the_model_had_is_a_line_of_its_own_where_it_was_not_plain() -> None:
    plain, llama3 = Rope(64, 500000.0, YARN), Rope(64, 500000.0, YARN, LLAMA3)
    assert [name for name, _, _ in _lines(plain)] == ["before", "after"]
    lines = {name: frequencies for name, frequencies, _ in _lines(llama3)}
    assert list(lines) == ["plain", "before", "after"]
    np.testing.assert_allclose(lines["before"], replace(llama3, scaling=LLAMA3, under=None).inverse_frequencies())
    np.testing.assert_allclose(lines["plain"], plain.plain_frequencies)


def test_a_llama3_model_under_yarn_is_drawn_with_all_three(toy_gguf: Callable[[str], Path], tmp_path: Path) -> None:
    plot = tmp_path / "rope.svg"
    done = run("inspect", toy_gguf("llama-llama3"), "--factor", "4", "--plot", plot)
    assert (done.code, done.err) == (0, "")
    assert {"plain", "before", "after"} <= texts(plot)


def texts(svg: Path) -> set[str]:
    """What is written in it: matplotlib draws letters as shapes, and leaves the text in a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), re.DOTALL))


@pytest.mark.parametrize(
    "name",
    [r"a$\foo$", "a$b", r"$\frac{1}{", "模型", "a\nb\x1b[31m", "%s {0} <&>", "x" * 200, "\udcff", "a--b"],
)
@pytest.mark.parametrize("suffix", [".svg", ".PNG"])
def test_a_model_of_any_name_can_be_drawn(name: str, suffix: str, tmp_path: Path) -> None:
    plot = tmp_path / f"rope{suffix}"
    model = small_model(tmp_path / "model.gguf", keys=YARN4).rename(tmp_path / f"{name}.gguf")
    done = run("inspect", model, "--plot", plot)
    assert (done.code, done.err) == (0, "")
    if suffix == ".svg":
        assert ET.parse(plot).getroot().tag.endswith("svg")


def picture() -> Picture:
    return Picture("a picture", Rope(64, 10000.0, YARN), 4096, 16384)


def test_a_picture_replaces_another_in_one_step(tmp_path: Path) -> None:
    plot = tmp_path / "rope.png"
    plot.write_bytes(b"old")
    with plot.open("rb") as reader:
        plot_rope(picture(), plot)
        assert reader.read() == b"old"  # another file has the name now
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [plot]
    assert not stat.S_IMODE(plot.stat().st_mode) & 0o111


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = tmp_path / "rope.png"
    plot.write_bytes(b"old")
    before = hashes(tmp_path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"rope\.png: cannot be written: No space left on device"):
        plot_rope(picture(), plot)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "says"), [("folder.svg", "is a folder"), ("no/rope.svg", "its folder does not exist")]
)
def test_a_place_for_no_picture_is_refused_before_anything_is_read(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    done = run("inspect", tmp_path / "not there.gguf", "--plot", tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
