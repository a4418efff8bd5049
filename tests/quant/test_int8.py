"""int8: absmax by tensor, row and block; and with a zero point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quant import cases, laws

from minilora import quantize
from minilora.errors import QuantizationError
from minilora.quant import quantize_zeropoint

normal = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-60)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=12), elements=normal)


@given(case=cases.blocks("int8", (1, 3, 16, 64, 1000)))
def test_the_error_is_at_most_absmax_over_254(case):
    laws.check_int8_error(*case)


@given(case=cases.blocks("int8", (1, 5, 64)))
def test_a_code_is_127_x_over_absmax_rounded(case):
    """Half to even, as np.rint; -128 is never used."""
    x, blocksize = case
    q = quantize(x, "int8", blocksize)
    assert q.packed.dtype == np.int8 and q.packed.min() >= -127
    absmax = laws.each(laws.block_absmax(x, blocksize), blocksize, len(x))
    scale = np.float32(127) / np.where(absmax > 0, absmax, np.float32(1))
    np.testing.assert_array_equal(q.packed, np.rint(x * scale))


def test_a_tie_goes_to_the_even_code():
    laws.check_int8_ties()


def test_absmax_returns_within_an_ulp_whatever_it_is():
    """All 2^23 float32 of one binade: (127 · absmax) · (1/127) is absmax, or, in 5 % of them, an ulp beside it."""
    absmax = np.arange(127 << 23, 128 << 23, dtype=np.uint32).view(np.float32)
    assert (absmax[0], absmax[-1]) == (1, np.float32(2) - np.float32(2.0**-23))
    back = quantize(absmax, "int8", 1).dequantize()
    assert np.abs(back - absmax).max() == 2.0**-23 and 0.04 < (back != absmax).mean() < 0.06


def test_the_scale_convention_decides_the_last_bit(rng):
    """absmax is stored; (code · absmax) · (1/127) is what dequantize computes, and code · (absmax/127) is not that."""
    q = quantize(rng.standard_normal((64, 64), np.float32), "int8", "row")
    codes, absmax = q.packed.reshape(64, 64).astype(np.float32), q.absmax[:, None]
    np.testing.assert_array_equal(q.dequantize(), codes * absmax * np.float32(1 / 127))
    other = codes * (absmax / np.float32(127))
    assert (other != q.dequantize()).any()
    np.testing.assert_allclose(other, q.dequantize(), rtol=2.0**-22)


@given(arrays)
def test_blocksize_none_is_one_block_and_row_is_the_last_axis(x):
    assert quantize(x, "int8", None) == quantize(x, "int8", x.size)
    assert quantize(x, "int8", "row") == quantize(x, "int8", x.shape[-1])
    assert quantize(x, "int8", None).absmax == np.abs(x).max()


def test_an_outlier_costs_its_block_only(rng):
    x = rng.standard_normal(4096, np.float32)
    x[0] = 1000
    tensor, block = (np.abs(quantize(x, "int8", size).dequantize() - x)[64:].mean() for size in (None, 64))
    assert tensor > 100 * block


@pytest.mark.parametrize("absmax", [1e-36, 1e36, 2.6e36])
def test_the_range_in_which_the_bound_holds(absmax):
    laws.check_int8_error(np.linspace(-absmax, absmax, 50).astype(np.float32), 50)


def test_below_1e_36_the_scale_stops_growing():
    """127/absmax would overflow soon after: such blocks lose precision, and one of 1e-39 comes back as zeros."""
    q = quantize(np.array([1e-37, -1e-39], np.float32), "int8", 1)
    np.testing.assert_array_equal(q.packed, [13, 0])


def test_numbers_whose_products_with_codes_overflow_are_refused():
    with pytest.raises(QuantizationError, match="scale x down"):
        quantize(np.array([3e38, 3e37], np.float32), "int8", 1)
    x = np.array([2.6e36, -1e36], np.float32)
    np.testing.assert_allclose(quantize(x, "int8", 1).dequantize(), x, rtol=1e-6)


def test_a_blocksize_beyond_the_array_is_one_block():
    x = np.arange(4, dtype=np.float32)
    assert quantize(x, "int8", 10**15) == quantize(x, "int8", None)


# the zero point


@given(arrays)
def test_zero_point_error_is_at_most_half_a_step(x):
    q = quantize_zeropoint(x)
    y = q.dequantize()
    assert (y.dtype, y.shape, q.codes.dtype) == (np.float32, x.shape, np.int8)
    largest = np.abs(x).max().astype(float)
    assert (np.abs(y.astype(float) - x) <= float(q.scale) * (0.5 + 2.0**-14) + largest * 2.0**-22).all()


@given(arrays)
def test_zero_point_keeps_zero_exactly(x):
    x = np.append(x, np.float32(0))
    q = quantize_zeropoint(x)
    assert -128 <= q.zero_point <= 127 and not q.dequantize()[x == 0].any()


@given(arrays.map(np.abs))
def test_zero_point_uses_all_codes_of_positive_numbers(x):
    """From -128 for zero to 127 for the largest; absmax int8 has half as many for them, and twice the step."""
    q = quantize_zeropoint(x)
    assert q.zero_point == -128
    if x.any():
        assert q.codes.max() == 127
        assert q.scale == pytest.approx(quantize(x, "int8", None).absmax[0] / 255, rel=1e-6)


@given(arrays)
def test_zero_point_of_negated_numbers_mirrors_the_codes(x):
    """up to a code, as half a step is rounded the other way."""
    a, b = quantize_zeropoint(x), quantize_zeropoint(-x)
    assert a.scale == b.scale
    np.testing.assert_allclose(-b.dequantize(), a.dequantize(), atol=float(a.scale) * 1.001)


def test_zero_point_takes_every_dtype_and_shape():
    for dtype in ("float16", "float32", "float64"):
        q = quantize_zeropoint(np.array([[0.5, 2.0]], dtype))
        np.testing.assert_allclose(q.dequantize(), [[0.5, 2]], atol=0.004)
    assert quantize_zeropoint(np.float32(3)).dequantize() == pytest.approx(3, rel=1e-6)
    np.testing.assert_array_equal(quantize_zeropoint(np.zeros(3)).dequantize(), 0)


@pytest.mark.parametrize(
    "x", [np.array([]), np.array([1]), np.array([True]), np.array([1, np.nan]), np.array([-np.inf])]
)
def test_zero_point_refuses(x):
    with pytest.raises(QuantizationError, match="takes finite floats, at least one; got") as error:
        quantize_zeropoint(x)
    assert str(x.dtype) in str(error.value) and str(x.shape) in str(error.value)


def test_zero_point_refuses_what_float32_cannot_hold():
    with np.errstate(all="ignore"), pytest.raises(QuantizationError):
        quantize_zeropoint(np.array([1e300, 1.0]))
