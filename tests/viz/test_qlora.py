"""The layer's picture: what is stored in true bytes, and no arrow of the backward pass to what is frozen."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.quant import quantize
from minilora.viz.qlora import _BOXES, qlora_layer

side = st.integers(1, 30_000)


@given(side, side, st.integers(1, 512), st.booleans())
def test_it_is_drawn_inside(d_in, d_out, r, backward):
    root = ElementTree.fromstring(qlora_layer(d_in, d_out, r, backward))
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter():
        for name, limit in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            assert 0 <= float(element.get(name, 0)) <= limit
    assert root.find("{*}title").text and root.find("{*}desc").text


@pytest.mark.parametrize("shape", [(7, 9), (128, 352)])
def test_the_bytes_are_those_of_the_arrays(shape):
    q = quantize(np.ones(shape, np.float32), "nf4", 64, double_quant=True)
    picture = qlora_layer(*shape, 4)
    for array in (q.packed, q.absmax_codes, q.absmax2):
        assert f"{array.nbytes:,} B" in picture


@pytest.mark.parametrize("backward", [False, True])
def test_arrows_end_at_what_is_trained_and_not_at_what_is_stored(backward):
    root = ElementTree.fromstring(qlora_layer(8, 8, 2, backward))
    arrows = [line for line in root.findall("{*}line") if line.get("marker-end")]

    def reached(name):
        x, y, wide, high = _BOXES[name]
        return any(x - 3 <= float(a.get("x2")) <= x + wide + 3 and y <= float(a.get("y2")) <= y + high for a in arrows)

    assert not any(map(reached, ("c1", "c2", "codes")))
    assert all(map(reached, ("W", "L1", "L2", "X" if backward else "Y")))


def test_no_layer():
    with pytest.raises(DataError, match="r=0"):
        qlora_layer(8, 8, 0)
