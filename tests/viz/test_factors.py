"""Factors are drawn to scale, and their numbers are counted."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.viz.factors import low_rank

side = st.integers(1, 20_000)


@given(side, side, side)
def test_sizes_and_counts(d_out, d_in, r):
    picture = low_rank(d_out, d_in, r)
    W, B, A = (tuple(float(box.get(n)) for n in ("height", "width"))
               for box in ElementTree.fromstring(picture).findall("{*}rect"))  # fmt: skip
    assert W[0] == B[0] and W[1] == A[1] and B[1] == A[0]
    if min(W) > 2:
        assert W[0] / W[1] == pytest.approx(d_out / d_in, rel=0.05)
    assert f"{r * (d_out + d_in):,}" in picture and f"{d_out * d_in:,}" in picture
    assert ("no saving" in picture) == (r * (d_out + d_in) >= d_out * d_in)


def test_it_shows_itself_in_a_notebook():
    picture = low_rank(8, 8, 1)
    assert picture in picture._repr_html_() and repr(picture) == "Picture(W and its update B A of rank 1)"
    with pytest.raises(DataError, match="r=0"):
        low_rank(8, 8, 0)
