"""The map of blocks: a cell for every number that is seen, the largest framed, and bars to scale."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minilora.errors import DataError
from minilora.viz.blocks import LEFT, MAP, block_map

shapes = st.tuples(st.integers(1, 40), st.integers(1, 30))
blocks = shapes.flatmap(lambda shape: arrays(float, shape, elements=st.floats(-1, 1) | st.just(np.nan)))
sizes = st.floats(0, 1e6)


def inside(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert 0 <= x <= width and 0 <= y <= height
        assert x + float(element.get("width", 0)) <= width and y + float(element.get("height", 0)) <= height + 0.1
    return root


def drawn(root, kind: str) -> list:
    return [box for box in root.findall("{*}rect") if box.get("class") == kind]


@given(blocks, st.data())
def test_every_number_that_is_seen_has_its_cell(values, data):
    absmax = np.array(data.draw(st.lists(sizes, min_size=len(values), max_size=len(values))))
    root = inside(block_map(values, absmax, "<title> & more", error=absmax))
    cells = drawn(root, "cell")
    seen = values[np.isfinite(values) & (np.abs(values) >= 0.005)]
    assert len(cells) == seen.size
    for cell, value in zip(cells, seen, strict=True):
        assert float(cell.get("opacity")) == pytest.approx(abs(value), abs=0.0051)
        assert ("blue" in cell.get("fill")) == (value > 0)
        assert LEFT <= float(cell.get("x")) < LEFT + MAP
    assert len(drawn(root, "largest")) == np.isfinite(values).any(1).sum()


@given(st.lists(sizes, min_size=1, max_size=20))
def test_bars_are_to_one_scale(absmax):
    root = inside(block_map(np.zeros((len(absmax), 4)), absmax, "t"))
    bars = [b for b in root.findall("{*}rect") if "absmax" in "".join(b.itertext())]
    long = np.array([float(bar.get("width")) for bar in bars])
    np.testing.assert_allclose(long, np.array(absmax) / (max(absmax) or 1) * long.max(), atol=0.11)


def test_the_codes_used_are_counted():
    values = np.array([[1, 0.5, 0.5, 0], [-1, -1, -1, np.nan]])
    words = [t.text for t in inside(block_map(values, [1, 2], "t")).findall("{*}text")]
    assert words[words.index("codes used") + 1 :][:2] == ["3", "1"]
    assert "Block 1 has the largest absmax, 2, and 1 different" in block_map(values, [1, 2], "t")


@pytest.mark.parametrize(
    ("values", "absmax", "error"),
    [(np.zeros(4), [1], None), (np.zeros((2, 2)), [1], None), (np.zeros((1, 2)), [-1], None),
     (np.zeros((1, 2)), [np.inf], None), (np.zeros((0, 2)), [], None), (np.zeros((1, 2)), [1], [1, 2])],
)  # fmt: skip
def test_what_does_not_fit(values, absmax, error):
    with pytest.raises(DataError, match="block_map takes values"):
        block_map(values, absmax, "t", error)
