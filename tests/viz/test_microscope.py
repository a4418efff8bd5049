"""The microscope: what is in the window is drawn, cell by cell, and the shares are the true ones."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.quant import CODES
from minilora.viz.microscope import microscope

numbers = st.lists(st.floats(-1, 1), min_size=1, max_size=200)
levels = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=16)


def parsed(svg: str) -> ElementTree.Element:
    """The root, once its name and description are there and all that is drawn lies within the picture."""
    root = ElementTree.fromstring(svg)
    assert root.find("{*}title").text and root.find("{*}desc").text
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for name, limit in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            assert 0 <= float(element.get(name, 0)) <= limit, ElementTree.tostring(element)
        if element.tag.endswith("rect"):
            assert float(element.get("x")) + float(element.get("width")) <= width
            assert float(element.get("y")) + float(element.get("height")) <= height
        for x, y in (map(float, point.split(",")) for point in element.get("points", "").split()):
            assert 0 <= x <= width and 0 <= y <= height
    return root


def shares(root, of: str) -> dict[int, float]:
    """code -> its share in percent, as the bars' titles say."""
    titles = [e.text or "" for e in root.iter() if e.tag.endswith("title")]
    found = [re.match(r"code (\d+) at .*: ([\d.]+)% of the " + of, title) for title in titles]
    return {int(m[1]): float(m[2]) for m in found if m}


@given(numbers, levels, st.floats(-1, 0.5), st.floats(0.1, 2))
def test_all_lies_inside(scaled, levels, low, width):
    parsed(microscope(scaled, levels, "<title> & more", (low, low + width)))


@given(numbers, st.sampled_from(sorted(CODES)))
def test_shares_are_those_of_the_nearest_level(scaled, code):
    root, levels = parsed(microscope(scaled, CODES[code], code)), CODES[code].astype(float)
    distance = np.abs(np.array(scaled)[:, None] - levels)
    count, error = np.zeros(len(levels)), np.zeros(len(levels))
    for row in distance:
        near = np.flatnonzero(row == row.min())[0]
        count[near] += 100 / len(scaled)
        error[near] += row.min() ** 2
    for what, expected in (("numbers", count), ("squared error", error / (error.sum() or 1) * 100)):
        shown = shares(root, what)
        unclear = (np.sort(distance, 1)[:, 1] - distance.min(1) < 1e-9).any()  # a tie may go either way
        if not unclear:
            assert all(abs(share - expected[i]) < 0.051 for i, share in shown.items())
            assert sum(shown.values()) == pytest.approx(100 if expected.any() else 0, abs=2)


def test_a_window_enlarges():
    scaled, levels = np.linspace(-1, 1, 999), CODES["nf4"]
    near = parsed(microscope(scaled, levels, "t", (-0.2, 0.2)))
    assert set(shares(near, "numbers")) == set(range(5, 10)), "the cells that reach into the window"
    at = [float(line.get("x1")) for line in near.findall("{*}line")
          if "orange" in line.get("stroke") and line.get("x1") == line.get("x2")]  # fmt: skip
    small, large = at[:16], at[16:]
    assert len(large) == 5 and large[1] - large[0] == pytest.approx(5 * (small[6] - small[5]), rel=0.01)


def test_levels_between_themselves_and_their_codes_are_named():
    root = ElementTree.fromstring(microscope([0.1], [1.0, -1.0, 0.0, 0.0], "t"))
    named = [e.text for e in root.findall("{*}text") if "orange" in e.get("fill")]
    assert named == ["1", "2", "0"], "sorted by level; of two zeros the first"


@pytest.mark.parametrize(
    ("scaled", "levels", "window"),
    [([], [0], (-1, 1)), ([0.0], [], (-1, 1)), ([np.nan], [0], (-1, 1)), ([0], [0], (1, 1))],
)
def test_what_cannot_be_drawn(scaled, levels, window):
    with pytest.raises(DataError, match="at least one of each"):
        microscope(scaled, levels, "t", window)
