"""A matrix's picture has a pixel for each entry, of the grey that its value says, and lies inside."""

import base64
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minilora.errors import DataError
from minilora.viz.pixels import pixels

matrix = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e6, 1e6))


def decoded(svg: str) -> list[np.ndarray]:
    """The greys of each PNG, read by another way than they were written."""
    found = []
    for text in re.findall(r"base64,([^\"]+)", svg):
        data = base64.b64decode(text)
        width, height = struct.unpack(">II", data[16:24])
        at = data.index(b"IDAT")
        (length,) = struct.unpack(">I", data[at - 4 : at])
        lines = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + length]), np.uint8).reshape(height, width + 1)
        assert not lines[:, 0].any()
        found.append(lines[:, 1:])
    return found


@given(st.lists(matrix, min_size=1, max_size=7))
def test_each_entry_has_its_grey(matrices):
    svg = pixels({f"<{i}>": m for i, m in enumerate(matrices)}, "a & b")
    low, high = min(m.min() for m in matrices), max(m.max() for m in matrices)
    for m, greys in zip(matrices, decoded(svg), strict=True):
        assert greys.shape == m.shape
        assert np.abs(greys - (m - low) / ((high - low) or 1) * 255).max() <= 0.51
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    for box in root.findall("{*}image"):
        x, y, w, h = (float(box.get(n)) for n in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width + 0.1 and 0 <= y <= y + h <= height + 0.1


def test_what_is_beyond_the_span_is_cut_off():
    (greys,) = decoded(pixels({"": np.array([[-5.0, 0, 0.5, 1, 9]])}, "", span=(0, 1)))
    assert greys.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("matrices", [{}, {"a": np.zeros(3)}, {"a": np.zeros((0, 2))}, {"a": np.array([[np.nan]])}])
def test_what_is_no_matrix(matrices):
    with pytest.raises(DataError):
        pixels(matrices, "")
