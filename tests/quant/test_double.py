"""Double quantization of the blocks' scales; its bound under Hypothesis is in test_laws.py."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant import cases, laws

from minilora import quantize
from minilora.backend import numpy as kernels
from minilora.quant import CODES, DYNAMIC_MAP, E4M3, double

kinds = pytest.mark.parametrize("kind", double.KINDS)
# Half the largest gap of each map, which bounds the error of any scale, in units of absmax2.
LARGEST = {"dynamic": 0.00703125, "fp8": 16 / 448, "int8": 1 / 254}


@kinds
@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000])
def test_what_is_stored(kind, n, rng):
    absmax = rng.uniform(1, 3, n).astype(np.float32)
    codes, absmax2, offset = double.compress(absmax, kind)
    assert codes.shape == (n,) and codes.dtype == (np.int8 if kind == "int8" else np.uint8)
    assert absmax2.shape == (-(-n // 256),) and absmax2.dtype == np.float32 and type(offset) is np.float32
    expanded = double.expand(codes, absmax2, offset, kind)
    assert expanded.dtype == np.float32 and expanded.shape == (n,)


@kinds
@given(absmax=cases.absmaxes())
def test_half_the_largest_gap_bounds_every_scale(kind, absmax):
    codes, absmax2, offset = double.compress(absmax, kind)
    scale = laws.each(absmax2, 256, len(absmax)).astype(float)
    error = np.abs(double.expand(codes, absmax2, offset, kind).astype(float) - absmax)
    assert (error <= LARGEST[kind] * scale + 2.0**-22 * (scale + offset)).all()


@pytest.mark.parametrize("kind", double.LEVELS)
def test_the_largest_gaps(kind):
    levels = np.unique(double.LEVELS[kind][np.isfinite(double.LEVELS[kind])]).astype(float)
    beyond = max(1 - levels[-1], 1 + levels[0])  # the dynamic map has no -1
    assert max(np.diff(levels).max() / 2, beyond) == pytest.approx(LARGEST[kind], rel=1e-5)


@kinds
@given(data=st.data(), code=st.sampled_from(["nf4", "fp4", "linear16", "int8"]))
def test_extra_error_of_a_weight(kind, data, code):
    """Codes stay those of single quantization; a weight moves by |level| times its scale's error, and rounding."""
    x, blocksize = data.draw(cases.blocks(code))
    once, twice = quantize(x, code, blocksize), quantize(x, code, blocksize, kind)
    np.testing.assert_array_equal(twice.packed, once.packed)
    y, z = once.dequantize().astype(float), twice.dequantize().astype(float)
    scale, moved = once.scales().astype(float), twice.scales().astype(float)
    levels = once.packed / 127 if code == "int8" else CODES[code][laws.unpack(once)].astype(float)
    bound = np.abs(levels) * laws.each(np.abs(moved - scale), blocksize, len(x))
    rounding = 2.0**-22 * laws.each(np.maximum(scale, np.abs(moved)), blocksize, len(x)) + 2.0**-148  # subnormal
    assert (np.abs(z - y) <= bound + rounding).all()


@pytest.mark.parametrize("kind", double.LEVELS)
@given(data=st.data())
def test_8_bit_codes_are_the_nearest_levels(kind, data):
    """argmin in float64, up to twice what rounding moves a border; E4M3's NaN is never taken."""
    levels = double.LEVELS[kind]
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    known = levels[np.isfinite(levels)]
    borders = kernels.midpoints(np.sort(known))
    x = np.concatenate([rng.choice(known, 200), rng.choice(borders, 100), rng.uniform(-1, 1, 211), [1]]).astype(
        np.float32
    )
    codes, absmax = kernels.quantize_8bit(x, levels, 512)
    assert absmax == 1 and np.isfinite(levels[codes]).all()
    distance = np.abs(x[:, None].astype(float) - known)
    assert (np.abs(x.astype(float) - levels[codes]) <= distance.min(1) + 2.0**-24).all()
    on_border = np.isin(x, borders)
    lower = np.sort(known)[np.searchsorted(borders, x[on_border])]
    np.testing.assert_array_equal(levels[codes[on_border]], lower)


@kinds
@pytest.mark.parametrize("value", [0.0, 0.5, 3.0])
def test_equal_scales_are_exact(kind, value):
    """The mean is all there is; the rest is zero."""
    absmax = np.full(300, value, np.float32)
    codes, absmax2, offset = double.compress(absmax, kind)
    np.testing.assert_array_equal(double.expand(codes, absmax2, offset, kind), absmax)
    assert offset == value and not absmax2.any()


@pytest.mark.parametrize(
    ("kind", "with_mean", "without"), [("dynamic", 0.10, 0.47), ("fp8", 0.22, 3.8), ("int8", 0.07, 0.22)]
)
def test_what_subtracting_the_mean_is_worth(kind, with_mean, without, rng):
    """Added mean error of NF4, in percent, on normal numbers in blocks of 64: most for FP8, whose levels are sparse
    where the scales would lie."""
    x = rng.standard_normal(1 << 20, np.float32)
    q = quantize(x)
    error = np.abs(q.dequantize() - x).mean()
    if kind == "int8":
        plain = kernels.dequantize_int8(*kernels.quantize_int8(q.absmax, 256), 256)
    else:
        plain = kernels.dequantize_8bit(
            *kernels.quantize_8bit(q.absmax, double.LEVELS[kind], 256), double.LEVELS[kind], 256
        )
    for scales, expected in ((quantize(x, double_quant=kind).scales(), with_mean), (plain, without)):
        added = np.abs(dataclasses.replace(q, absmax=scales).dequantize() - x).mean() / error - 1
        assert 100 * added == pytest.approx(expected, rel=0.1)


def test_e4m3_is_its_bit_patterns():
    """448 is the largest number, 2^-9 the smallest; bit patterns 127 and 255 are NaN (OCP OFP8)."""
    values = E4M3.astype(float) * 448
    np.testing.assert_allclose(values[[0, 1, 8, 56, 126, 129]], [0, 2.0**-9, 2.0**-6, 1, 448, -(2.0**-9)])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), [127, 255])
    np.testing.assert_array_equal(E4M3[128:255], -E4M3[:127])
    assert (np.diff(E4M3[:127]) > 0).all()


def test_e4m3_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(values / np.float32(448), E4M3)


def test_the_dynamic_map_has_no_minus_one():
    assert DYNAMIC_MAP[-1] == 1 and DYNAMIC_MAP[0] == np.float32(-0.99296874) and DYNAMIC_MAP[127] == 0


def test_the_mean_of_huge_scales():
    x = np.full(256, 3e38, np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(quantize(x, double_quant=True).dequantize(), x, rtol=1e-6)


def test_float16_stays_finite():
    x = np.array([65504, 60000, 30000], np.float16).repeat(64)
    with np.errstate(over="ignore"):
        assert np.isfinite(quantize(x, double_quant=True).dequantize()).all()
