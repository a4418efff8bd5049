"""NaN and infinity: refused with their index, or, where asked for, kept within their block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quant.laws import unpack

from minilora import quantize
from minilora.errors import QuantizationError
from minilora.quant import CODES
from minilora.quant.double import KINDS

ALL = [*CODES, "int8"]
floats = st.floats(-(2.0**60), 2.0**60, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=floats)


@given(data=st.data())
def test_nonfinite_entries_are_named(data):
    """The first in the order of the flattened array, with its index and value."""
    x = data.draw(arrays)
    bad = data.draw(st.sets(st.integers(0, x.size - 1), min_size=1, max_size=3))
    for i in bad:
        x.flat[i] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    index = [int(i) for i in np.unravel_index(min(bad), x.shape)]
    for code in ("nf4", "int8"):
        with pytest.raises(QuantizationError) as error:
            quantize(x, code, 16)
        assert f"x{index} is {x.flat[min(bad)]}, " in str(error.value) and "'propagate'" in str(error.value)


def test_nonfinite_messages():
    with pytest.raises(QuantizationError, match=r"x\[\] is nan"):
        quantize(np.float32(np.nan))
    with pytest.raises(QuantizationError, match=r"x\[1\] is 1e\+300, which float32 cannot hold"):
        quantize(np.array([1, 1e300]))
    with pytest.raises(QuantizationError, match=r"x\[1\] is nan.*whole block; repair it$"):
        quantize(np.array([1, np.nan]), double_quant=True, nonfinite="propagate")


@pytest.mark.parametrize("code", ALL)
@given(data=st.data())
def test_propagate_spoils_whole_blocks_and_nothing_else(code, data):
    """Other blocks are those of the array in which the spoilt ones hold zeros."""
    n, blocksize = data.draw(st.integers(1, 100)), data.draw(st.sampled_from([16, 32]))
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    bad = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=4))))
    x[bad] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    spoilt = np.isin(np.arange(n) // blocksize, bad // blocksize)
    q, clean = (
        quantize(x, code, blocksize, nonfinite="propagate"),
        quantize(np.where(spoilt, np.float32(0), x), code, blocksize),
    )
    y = q.dequantize()
    assert np.isnan(y[spoilt]).all()
    np.testing.assert_array_equal(y[~spoilt], clean.dequantize()[~spoilt])
    np.testing.assert_array_equal(unpack(q)[~spoilt], unpack(clean)[~spoilt])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(q.absmax)), np.unique(bad // blocksize))


@given(arrays, st.sampled_from(ALL), st.sampled_from([False, *KINDS]))
def test_propagate_changes_nothing_where_all_is_finite(x, code, double_quant):
    assert quantize(x, code, 16, double_quant) == quantize(x, code, 16, double_quant, nonfinite="propagate")
