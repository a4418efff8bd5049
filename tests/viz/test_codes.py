"""Pictures of codes: to scale, within the frame, and readable without seeing them or their colours."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.quant import CODES
from minilora.viz.charts import _log_ticks, loss_curve, standalone, ticks
from minilora.viz.codes import bits_against, error_by_level, levels_under_histogram

SORTED = {name: np.sort(levels).tolist() for name, levels in CODES.items()}


def parsed(svg: str) -> ElementTree.Element:
    """The root, once its name and description are there and all that is drawn lies within the picture."""
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.find("{*}title").text and root.find("{*}desc").text
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("y1", height),
                            ("y2", height), ("cy", height)):  # fmt: skip
            assert 0 <= float(element.get(name, 0)) <= limit, ElementTree.tostring(element)
        if element.tag.endswith("rect"):
            assert float(element.get("x")) + float(element.get("width")) <= width
            assert float(element.get("height")) >= 0
    return root


@given(st.lists(st.floats(0, 5), min_size=4, max_size=120).filter(any))
def test_histogram_bars_are_to_scale_above_each_codes_levels(density):
    root = parsed(levels_under_histogram(density, SORTED, "these & those"))
    heights = [float(bar.get("height")) for bar in root.findall("{*}rect")]
    np.testing.assert_allclose(heights, np.array(density) / max(density) * max(heights), atol=0.101)
    assert len(root.findall("{*}line")) == sum(map(len, SORTED.values()))


shares = st.lists(st.floats(0, 1), min_size=16, max_size=16).filter(lambda x: sum(x) > 0.01)


@given(shares, shares, st.floats(1e-4, 1))
def test_areas_are_parts_of_the_squared_error_to_one_scale(a, b, mse):
    codes = {name: {"levels": SORTED["nf4"], "error": (np.array(x) / sum(x)).tolist(), "mse": mse * k}
             for name, x, k in (("a", a, 1), ("b", b, 2))}  # fmt: skip
    boxes = parsed(error_by_level(codes, "both")).findall("{*}rect")
    area = np.array([(float(box.get("width")) + 0.5) * float(box.get("height")) for box in boxes])
    part = np.concatenate([np.array(code["error"]) * code["mse"] for code in codes.values()])
    widest = max(float(box.get("width")) for box in boxes) + 0.5  # coordinates are rounded to a tenth
    np.testing.assert_allclose(area, part / part.sum() * area.sum(), atol=widest * 0.25 + 0.01 * area.max())


def test_the_description_says_where_most_of_the_error_is():
    code = {"levels": [-1.0, 0.0, 1.0], "error": [0.1, 0.7, 0.2], "mse": 0.1}
    assert "most (70%) from -0.50 to 0.50" in parsed(error_by_level({"mine": code}, "t")).find("{*}desc").text


values = st.floats(1e-6, 1e6)


@given(st.lists(values, min_size=1, max_size=9), st.lists(values, min_size=1, max_size=9), values)
def test_every_point_of_a_line_is_marked_and_named(low, high, alone):
    sizes = [16 << i for i in range(9)]
    series = {"<four>": [(4 + 32 / b, y, str(b)) for b, y in zip(sizes, low, strict=False)],
              "int8": [(8 + 32 / b, y, str(b)) for b, y in zip(sizes, high, strict=False)],
              "function": [(None, alone, "own")]}  # fmt: skip
    root = parsed(bits_against(series, "error", "t"))
    titles = [t.text for t in root.iter() if t.tag.endswith("title")]
    for name, line in series.items():
        if name != "function":
            assert all(any(t.startswith(f"{name}, blocks {b}:") for t in titles) for _, _, b in line)
    assert sum("2 3" in line.get("stroke-dasharray", "") for line in root.findall("{*}line")) == 1


def test_what_a_logarithm_cannot_show_is_left_out():
    nothing = {"exact": [(4.5, 0.0, "64")], "broken": [(4.5, math.inf, "64"), (4.25, math.nan, "128")]}
    assert parsed(bits_against(nothing, "error", "t")).findall("{*}polyline") == []
    some = parsed(bits_against(nothing | {"nf4": [(4.5, 0.09, "64")]}, "error", "t"))
    assert len(some.findall("{*}polyline")) == 1


def test_series_are_told_apart_without_colour():
    series = {str(i): [(4.5, 0.1 + i, "64"), (4.25, 0.2 + i, "128")] for i in range(9)}
    root = parsed(bits_against(series, "error", "t"))
    drawn = set()
    for i in range(9):
        marker = next(e for e in root.iter() if any((t.text or "").startswith(f"{i}, blocks") for t in e))
        line = root.findall("{*}polyline")[i]
        drawn.add((marker.tag, marker.get("d", "")[-12:], marker.get("fill"), line.get("stroke-dasharray")))
    assert len(drawn) == 9


@given(st.floats(1e-9, 1e6), st.floats(1.05, 1e40))
def test_logarithmic_ticks_lie_within_and_are_few(low, factor):
    ticks = _log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks)) and all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) <= 9
    assert ticks or factor < 1.4


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(2, 8))
def test_ticks_are_about_as_many_as_asked(low, width, about):
    assert max(1, about / 2 - 1) <= len(ticks(low, low + width, about)) <= 1.25 * about + 1.01


def test_a_file_of_its_own_has_its_own_colours():
    svg = standalone(loss_curve([{"step": 1, "loss": 1.0}]))
    assert "prefers-color-scheme:dark" in ElementTree.fromstring(svg).find("{*}style").text


TWO = {"levels": [-1.0, 1.0], "error": [0.5, 0.5], "mse": 1.0}


@pytest.mark.parametrize(
    "picture",
    [
        lambda t: levels_under_histogram([1.0, 2.0], {t: [-1.0, 1.0]}, t),
        lambda t: bits_against({t: [(4.5, 1.0, t)]}, t, t),
        lambda t: error_by_level({t: TWO}, t),
    ],
)
def test_names_are_escaped(picture):
    assert "<script" not in picture("<script>&")
    ElementTree.fromstring(picture("<script>&"))
