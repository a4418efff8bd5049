"""Attention's map: a cell for each pair, inside the picture; what is forbidden is told from what is seen."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.viz.attention import attention_map

texts = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=14)


@st.composite
def cases(draw):
    tokens = draw(st.lists(texts, min_size=1, max_size=9))
    T, H = len(tokens), draw(st.integers(1, 6))
    segments = np.sort(draw(st.lists(st.integers(0, 3), min_size=T, max_size=T)))
    seen = np.tri(T, dtype=bool) & (segments[:, None] == segments)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weights = np.where(seen, rng.random((H, T, T)) + 0.01, 0)
    return tokens, segments, seen, weights / weights.sum(-1, keepdims=True)


def cells(svg: str) -> list:
    return ElementTree.fromstring(svg).findall("{*}rect")


@given(cases())
def test_every_pair_has_its_cell(case):
    tokens, segments, seen, weights = case
    svg = attention_map(weights, tokens, segments, [f"<{h}>" for h in range(len(weights))], "a & b")
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split()[2:])
    drawn = cells(svg)
    assert len(drawn) == weights.size and "orange" not in svg
    for cell, w, is_seen in zip(drawn, weights.ravel(), np.broadcast_to(seen, weights.shape).ravel(), strict=True):
        x, y, side = (float(cell.get(name)) for name in ("x", "y", "width"))
        assert 0 <= x <= x + side <= width and 0 <= y <= y + side <= height
        assert ("--blue" in cell.get("fill")) == is_seen
        assert not is_seen or float(cell.get("fill-opacity")) == pytest.approx(w, abs=6e-4)


@given(cases(), st.data())
def test_a_leak_is_shown(case, data):
    tokens, segments, seen, weights = case
    forbidden = np.argwhere(~seen)
    if len(forbidden):
        q, k = data.draw(st.sampled_from(forbidden.tolist()))
        weights[0, q, k] = 0.5
        drawn = cells(attention_map(weights[0], tokens, segments))
        assert [i for i, cell in enumerate(drawn) if "--orange" in cell.get("fill")] == [q * len(tokens) + k]


def test_the_mask_alone():
    svg = attention_map(None, ["a", "b", "c"], [1, 1, 2])
    assert ["--blue" in cell.get("fill") for cell in cells(svg)] == [1, 0, 0, 1, 1, 0, 0, 0, 1]
    assert "another segment" in svg and "a leak" not in svg


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((np.ones((2, 3)), ["a", "b"]), r"weights \(2, 3\)"),
        ((None, []), "0 tokens"),
        ((np.eye(2), ["a", "b"], [1]), r"segments \(1,\)"),
        ((np.eye(2), ["a", "b"], None, ["x", "y"]), "2 names"),
        ((-np.eye(2), ["a", "b"]), "softmax"),
    ],
)
def test_what_does_not_fit(arguments, said):
    with pytest.raises(DataError, match=said):
        attention_map(*arguments)
