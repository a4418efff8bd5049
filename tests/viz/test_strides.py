"""Arrays as pictures: each number at the place where it lies, copies told from what is copied."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.viz.strides import broadcasting, in_memory


def drawn(svg):
    """(rects, texts); all lies within the picture."""
    root = ElementTree.fromstring(svg)
    assert root.find("{*}title").text and root.find("{*}desc").text
    _, _, width, height = map(float, root.get("viewBox").split())
    rects = root.findall("{*}rect")
    for rect in rects:
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and w > 0 and x + w <= width and y + h <= height
    return rects, [t.text for t in root.findall("{*}text")]


def views(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    x = np.arange(rows * columns, dtype=draw(st.sampled_from([np.int64, np.float32]))).reshape(rows, columns)
    way = draw(st.integers(0, 6))
    return [x, x.T, x[::-1], x[:, ::-1], x[:, ::2], x[-1], np.broadcast_to(x[:1], (3, columns))][way]


@given(st.composite(views)())
def test_each_number_stands_with_its_place(view):
    rects, texts = drawn(in_memory(view, "<view>"))
    owner = view
    while owner.base is not None:
        owner = owner.base
    assert len(rects) == owner.size + view.size
    # the memory holds 0, 1, ...: a number is its own place, so that beneath each stands the same number
    own = texts[texts.index(next(t for t in texts if t.startswith("shape"))) + 1 :]
    assert own[0::2] == own[1::2] == [str(int(v)) for v in view.ravel()]
    assert str(view.strides) in " ".join(texts)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple)


@given(shapes, shapes)
def test_copies_are_faint(a, b):
    a, b = np.arange(np.prod(a)).reshape(a), np.ones(b, int)
    try:
        whole = a + b
    except ValueError:
        with pytest.raises(ValueError):
            broadcasting(a, b)
        return
    rects, texts = drawn(broadcasting(a, b))
    assert len(rects) == 3 * whole.size
    full = [rect for rect in rects if rect.get("fill") != "none"]
    assert len(full) == a.size + b.size + whole.size
    assert str(whole.shape) in texts[0]


def test_what_does_not_fit():
    for array in (np.ones((2, 2, 2)), np.ones((3, 30)), np.ones((9, 9))):
        with pytest.raises(DataError, match="at most"):
            in_memory(array, "t")
