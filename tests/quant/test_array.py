import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora import dequantize, quantize
from minilora.errors import MiniloraError, QuantizationError
from minilora.quant import CODES

EDGES = ["edge_3x33", "edge_denormal256", "edge_huge256", "edge_len1", "edge_len2", "edge_len63", "edge_len127",
         "edge_outlier256", "edge_ties_nf4", "edge_zeros128", "edge_zeros70_partial"]  # fmt: skip
FULL = ["nf4_s0_64x64_b64", "nf4_s1_128x192_b128", "nf4_s1_128x192_b32", "nf4_s1_128x192_b4096"]
floats = st.floats(-(2.0**60), 2.0**60, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=floats)


@pytest.mark.parametrize("name", EDGES + FULL)
def test_nf4_is_bitsandbytes_bit_for_bit(golden, name):
    g = golden(name)
    q = quantize(g["x"], "nf4", int(g["blocksize"]))
    np.testing.assert_array_equal(q.packed, g["packed"])
    np.testing.assert_array_equal(q.absmax, g["absmax"])
    if name != "nf4_s1_128x192_b128":  # there bitsandbytes' CPU dequantization indexes absmax wrongly
        np.testing.assert_array_equal(q.dequantize(), g["dequantized"])


@pytest.mark.parametrize("name", ["fp4_s0_64x64_b64", "fp4_s1_128x192_b64", "edge_ties_fp4"])
def test_fp4_is_bitsandbytes_bit_for_bit(golden, name):
    g = golden(name)
    q = quantize(g["x"], "fp4", int(g["blocksize"]))
    np.testing.assert_array_equal(q.packed, g["packed"])
    np.testing.assert_array_equal(q.absmax, g["absmax"])
    np.testing.assert_array_equal(q.dequantize(), g["dequantized"])


def test_the_two_zeros_of_fp4():
    """Zero, and what rounds up to it, is code 0; what rounds down to it is code 8, up to the tie at 1/384."""
    x = np.array([1, 0, -1e-3, 1e-3, 1 / 384, 0.003, -0.003, -1 / 384], np.float32)
    q = quantize(x, "fp4", 16)
    np.testing.assert_array_equal(np.stack([q.packed >> 4, q.packed & 15], 1).ravel(), [3, 0, 0, 8, 8, 1, 9, 9])


@pytest.mark.parametrize("name", ["nf4_dq_s0_64x64_b64", "nf4_dq_s1_128x192_b64", "edge_outlier256_dq"])
def test_double_quantization_agrees_with_bitsandbytes(golden, name):
    g = golden(name)
    q = quantize(g["x"], "nf4", 64, double_quant=True)
    np.testing.assert_array_equal(q.packed, g["packed"])
    np.testing.assert_allclose(q.offset, g["offset"], rtol=1.2e-7)  # 1 ulp: the order of summation differs
    np.testing.assert_allclose(q.absmax2, g["nested_absmax"], rtol=1e-6)
    # bitsandbytes' CPU quantizer is a table, not exactly nearest: a few codes differ by one step
    different = np.abs(q.absmax_codes.astype(int) - g["absmax_codes"].astype(int))
    assert different.max() <= 1 and different.mean() < 0.02


def test_int8_by_row_is_bitsandbytes_bit_for_bit(golden):
    g = golden("int8_rowwise_s0_64x64")
    q = quantize(g["x"], "int8", "row")
    np.testing.assert_array_equal(q.packed.reshape(64, 64), g["q"])
    np.testing.assert_array_equal(q.dequantize(), g["dequantized"])


@given(arrays, st.sampled_from([16, 64, 256]), st.sampled_from(sorted(CODES)))
def test_each_code_is_the_nearest_level(x, blocksize, code):
    """The definition: argmin over the levels of |x / absmax - level|, up to float32 rounding of the quotient."""
    q, levels = quantize(x, code, blocksize), CODES[code].astype(np.float64)
    flat = x.ravel().astype(np.float64)
    absmax = q.absmax.astype(np.float64).repeat(blocksize)[: flat.size]
    codes = np.stack([q.packed >> 4, q.packed & 15], 1).ravel()[: flat.size]
    scaled = np.divide(flat, absmax, out=np.zeros_like(flat), where=absmax > 1e-30)
    codes[absmax <= 1e-30] = np.abs(levels).argmin()  # below that the format itself gives up
    distance = np.abs(scaled[:, None] - levels)
    assert (distance[np.arange(flat.size), codes] <= distance.min(1) + 1e-6).all()


@given(arrays, st.sampled_from([*CODES, "int8"]))
def test_quantizing_twice_changes_nothing(x, code):
    x = np.where(np.abs(x) < 1e-30, np.float32(0), x)  # products with numbers near the smallest are not exact
    once = quantize(x, code, 64).dequantize()
    twice = quantize(once, code, 64).dequantize()
    np.testing.assert_allclose(twice, once, rtol=1e-6, atol=0)


@given(arrays)
def test_strides_do_not_matter(x):
    assert quantize(x[::-1]) == quantize(np.ascontiguousarray(x[::-1]))
    assert quantize(x.T) == quantize(np.ascontiguousarray(x.T))


@given(arrays)
def test_int8_error_is_at_most_half_a_step(x):
    q = quantize(x, "int8", 64)
    step = q.absmax.repeat(64)[: x.size] / 127
    assert (np.abs(q.dequantize().ravel() - x.ravel()) <= step * 0.5001 + 1e-36).all()


def test_bits_per_weight(rng):
    x = rng.standard_normal((512, 512), np.float32)
    assert quantize(x).bits_per_weight == 4.5
    assert quantize(x, double_quant=True).bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256) + 32 / x.size)


def test_the_published_mean_error_of_nf4(rng):
    x = rng.standard_normal(1 << 20, np.float32)
    assert np.abs(quantize(x).dequantize() - x).mean() == pytest.approx(0.0728, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_and_shape_return(dtype):
    x = np.linspace(-1, 1, 30).reshape(2, 3, 5).astype(dtype)
    q = quantize(x, double_quant=True)
    assert q.dequantize().dtype == dtype and q.dequantize().shape == (2, 3, 5)
    out = np.empty_like(x)
    assert dequantize(q, out) is out
    with pytest.raises(QuantizationError, match="out is"):
        dequantize(q, np.empty(3))


@pytest.mark.parametrize("shape", [(7, 33), (300, 64), (513, 24), (1, 1)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_matmul_is_dequantize_then_multiply(rng, shape, double_quant):
    w = rng.standard_normal(shape, np.float32)
    q = quantize(w, "nf4", 64, double_quant)
    dense = q.dequantize()
    for rows in (1, 5):
        x, g = rng.standard_normal((rows, shape[1]), np.float32), rng.standard_normal((rows, shape[0]), np.float32)
        np.testing.assert_allclose(q.matmul(x), x @ dense.T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(q.matmul(g, transpose=True), g @ dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(np.array([[1.0, np.nan]])), r"x\[0, 1\] is nan"),
        (lambda: quantize(np.array([np.inf])), r"x\[0\] is inf"),
        (lambda: quantize(np.array([1e300])), "float32 cannot hold"),
        (lambda: quantize(np.array([1, 2])), "int64"),
        (lambda: quantize(np.empty((0, 3))), "no entry"),
        (lambda: quantize(np.ones(4), "nf5"), "Did you mean 'nf4'"),
        (lambda: quantize(np.ones(4), "nf4", 48), "power of two"),
        (lambda: quantize(np.ones(4), "nf4", 0), "power of two"),
        (lambda: quantize(np.ones(4), "int8", -1), "positive integer"),
    ],
)
def test_bad_input(call, message):
    with np.errstate(over="ignore"), pytest.raises(MiniloraError, match=message):
        call()


def test_propagate_spoils_one_block_only():
    x = np.ones(128, np.float32)
    x[3] = np.nan
    with np.errstate(invalid="ignore"):
        y = quantize(x, nonfinite="propagate").dequantize()
    assert np.isnan(y[:64]).all() and (y[64:] == 1).all()
