"""Dots and curves with whiskers: every figure is drawn, inside the picture, where its value says."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.viz.intervals import curves, dots

figure = st.tuples(st.floats(-1e3, 1e3), st.one_of(st.just(math.nan), st.floats(0, 1e3)))
labels = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=9)


def circles(svg: str) -> list:
    return ElementTree.fromstring(svg).findall("{*}circle")


def lines(svg: str) -> list:
    """The whiskers: what has a colour of the series."""
    found = ElementTree.fromstring(svg).findall("{*}line")
    return [l for l in found if "--faint" not in l.get("stroke") and "--ink" not in l.get("stroke")]


@given(st.dictionaries(labels, st.dictionaries(labels, figure, min_size=1, max_size=4), min_size=1, max_size=3))
def test_dots(groups):
    svg = dots(groups, "x", "<title> & more")
    figures = [f for rows in groups.values() for f in rows.values()]
    drawn = [float(c.get("cx")) for c in circles(svg)]
    assert len(drawn) == len(figures) and all(0 <= x <= 640 for x in drawn)
    assert len(lines(svg)) == sum(half == half for _, half in figures)
    order = [x for _, x in sorted(zip([m for m, _ in figures], drawn, strict=True))]
    assert all(b >= a - 0.1 for a, b in itertools.pairwise(order))
    assert all(0 <= float(l.get(end)) <= 640 for l in lines(svg) for end in ("x1", "x2"))


@given(st.dictionaries(labels, st.dictionaries(st.integers(1, 4096), figure, min_size=1, max_size=5), min_size=1,
                       max_size=3), st.booleans())  # fmt: skip
def test_curves(series, log_x):
    series = {label: [(x, *f) for x, f in sorted(curve.items())] for label, curve in series.items()}
    svg = curves(series, "x", "y", "title", log_x, {"best": 1.0})
    points = [p for curve in series.values() for p in curve]
    drawn = circles(svg)
    assert len(drawn) == len(points)
    assert all(56 <= float(c.get("cx")) <= 624 and 30 <= float(c.get("cy")) <= 256 for c in drawn)
    assert len(lines(svg)) == sum(half == half for *_, half in points)


def test_equal_factors_are_equally_far():
    x = [float(c.get("cx")) for c in circles(curves({"a": [(x, 0, 1) for x in (1, 2, 4, 64)]}, "", "", "", True))]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert x[3] - x[2] == pytest.approx(4 * (x[1] - x[0]), abs=0.3)


def test_equal_factors_are_equally_high():
    points = [(x, 10.0**-x, 0.9) for x in range(4)]
    y = [float(c.get("cy")) for c in circles(curves({"a": points}, "", "", "", log_y=True))]
    assert y[1] - y[0] == pytest.approx(y[3] - y[2], abs=0.2) and y[0] < y[1] < 256
    assert len(lines(curves({"a": points}, "", "", "", log_y=True))) == 4


def test_one_point_on_a_logarithmic_scale():
    assert len(circles(curves({"a": [(1, 0.5, math.nan)]}, "", "", "", log_x=True, log_y=True))) == 1
