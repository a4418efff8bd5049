"""QuantizedArray: shapes, dtypes, strides, slices, equality, size, and what quantize refuses."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora import dequantize, quantize
from minilora.errors import QuantizationError, UnknownNameError
from minilora.quant import CODES
from minilora.quant.double import KINDS

ALL = [*CODES, "int8"]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
NESTED = [False, *KINDS]
floats = st.floats(-(2.0**60), 2.0**60, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=floats)


def as_dtype(name: str) -> np.dtype:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


# shapes, dtypes, strides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("code", ALL)
def test_shape_and_dtype_return(code, dtype):
    """Computed in float32: the codes are those of the array in float32, the values its values rounded to the dtype."""
    for double_quant, shape in itertools.product(NESTED, [(), (1,), (33,), (2, 3, 5), (4, 64), (1, 1, 1, 1)]):
        x = np.random.default_rng(0).standard_normal(shape).astype(as_dtype(dtype))
        q = quantize(x, code, 64, double_quant)
        assert (q.shape, q.dtype, q.size) == (shape, x.dtype, x.size)
        y = q.dequantize()
        assert (y.shape, y.dtype) == (shape, x.dtype)
        single = quantize(x.astype(np.float32), code, 64, double_quant)
        np.testing.assert_array_equal(q.packed, single.packed)
        np.testing.assert_array_equal(y, single.dequantize().astype(x.dtype))


def test_float64_is_rounded_to_float32_first():
    x = np.array([1, 1 / 3, -0.1])
    assert (quantize(x).packed == quantize(x.astype(np.float32)).packed).all()
    assert quantize(np.array([1 + 1e-12])).dequantize() == 1


def test_a_list_of_floats_is_an_array():
    np.testing.assert_array_equal(quantize([1.0, 0.0, -1.0]).dequantize(), [1, 0, -1])


@given(arrays, st.sampled_from(ALL))
def test_strides_do_not_matter(x, code):
    """Reversed, transposed, broadcast, every other: the array counts, not where its entries lie."""
    for view in (x[::-1], x.T, x[..., ::2], np.broadcast_to(x, (3, *x.shape)), np.asfortranarray(x)):
        assert quantize(view, code) == quantize(np.array(view, order="C"), code)


@given(arrays, st.sampled_from(ALL), st.sampled_from(NESTED))
def test_the_input_is_not_changed_and_not_shared(x, code, double_quant):
    before = x.copy()
    q = quantize(x, code, 16, double_quant)
    np.testing.assert_array_equal(x, before)
    assert not any(np.shares_memory(a, x) for a in q.arrays.values())
    y, packed = q.dequantize(), q.packed.copy()
    y[...] = 7
    np.testing.assert_array_equal(q.packed, packed)


@pytest.mark.parametrize("code", ALL)
def test_0_d_is_one_block_of_one_entry(code):
    for blocksize in (16, "row"):
        q = quantize(np.float32(-2.5), code, blocksize)
        assert q.shape == () and q.dequantize().shape == () and q.dequantize() == pytest.approx(-2.5, rel=2e-7)


@pytest.mark.parametrize("n", range(1, 36))
def test_odd_lengths(n):
    """Half a byte is left over, and holds the code of zero: 7 for nf4."""
    q = quantize(np.arange(n, dtype=np.float32), "nf4", 16)
    assert q.packed.shape == (-(-n // 2),) and q.absmax.shape == (-(-n // 16),)
    assert n % 2 == 0 or q.packed[-1] & 15 == 7


@pytest.mark.parametrize("code", ALL)
def test_row_is_the_length_of_the_last_axis(code, rng):
    x = rng.standard_normal((2, 3, 16), np.float32)
    assert quantize(x, code, "row") == quantize(x, code, 16)
    assert quantize(x, code, "row").absmax.shape == (6,)


@pytest.mark.parametrize("blocksize", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("code", list(CODES))
def test_every_blocksize(code, blocksize, rng):
    x = rng.standard_normal(4096 + 1000, np.float32)
    q = quantize(x, code, np.int64(blocksize))
    assert type(q.blocksize) is int and len(q.absmax) == -(-x.size // blocksize)
    np.testing.assert_array_equal(q.absmax[0], np.abs(x[:blocksize]).max())


def test_dequantize_into_an_array_of_ones_own(rng):
    q = quantize(rng.standard_normal((3, 5), np.float32))
    for out in (np.empty((3, 5), np.float32), np.empty((5, 3), np.float32).T, np.empty((6, 5), np.float32)[::2]):
        assert dequantize(q, out) is out
        np.testing.assert_array_equal(out, dequantize(q))
    for out in (np.empty((5, 3), np.float32), np.empty((3, 5))):
        with pytest.raises(QuantizationError, match=r"out is float.*but the array is float32\(3, 5\)"):
            dequantize(q, out)


# size


def test_bits_per_weight_of_the_stored_arrays(rng):
    """4 + 32/64; double quantized 4 + 8/64 + 32/(64 · 256) + 32/n."""
    x = rng.standard_normal((512, 512), np.float32)
    assert quantize(x).bits_per_weight == 4.5
    for kind in KINDS:
        q = quantize(x, double_quant=kind)
        assert q.bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256) + 32 / x.size
        assert round(q.bits_per_weight - 32 / x.size, 6) == 4.126953
    assert quantize(x, "int8", None).bits_per_weight == 8 + 32 / x.size
    assert quantize(x, "int8", "row").bits_per_weight == 8 + 32 / 512
    assert quantize(x, "nf4", 16).bits_per_weight == 6


@given(st.integers(1, 40_000), st.sampled_from([16, 64, 4096]), st.sampled_from(NESTED), st.sampled_from(ALL))
def test_nbytes_is_the_sum_of_what_is_stored(n, blocksize, double_quant, code):
    q = quantize(np.ones(n, np.float32), code, blocksize, double_quant)
    blocks = -(-n // blocksize)
    codes = n if code == "int8" else -(-n // 2)
    scales = blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks
    assert q.nbytes == codes + scales and q.bits_per_weight == 8 * q.nbytes / n
    assert sum(a.nbytes for a in q.arrays.values()) == q.nbytes


# slices, equality, repr


@given(data=st.data())
def test_a_slice_dequantizes_to_the_slice(data):
    """Bit for bit where blocks (and bytes) are whole, and refused exactly where they are not."""
    rows, width = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 3, 7, 8, 16, 24, 33, 64]))
    code, double_quant = data.draw(st.sampled_from(ALL)), data.draw(st.sampled_from(NESTED))
    blocksize = data.draw(st.sampled_from([16, 64, "row"]))
    x = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    q = quantize(x, code, blocksize, double_quant)
    a, b = data.draw(st.integers(-rows, rows)), data.draw(st.none() | st.integers(-rows, rows + 3))
    start, stop, _ = slice(a, b).indices(rows)
    start, stop = start * width, stop * width
    whole = start % q.blocksize == 0 and (stop % q.blocksize == 0 or stop == x.size)
    whole_bytes = code == "int8" or (start % 2 == 0 and (stop % 2 == 0 or stop == x.size))
    if start < stop and whole and whole_bytes:
        part = q[a:b]
        np.testing.assert_array_equal(part.dequantize(), q.dequantize()[a:b])
        assert part.shape == x[a:b].shape and np.shares_memory(part.packed, q.packed)
    else:
        with pytest.raises(QuantizationError, match=r"whole blocks|within a byte"):
            q[a:b]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_a_double_quantized_array(kind, rng):
    """From a group of 256 blocks on it stays double quantized; from within one, its absmax are kept as float32."""
    q = quantize(rng.standard_normal((600, 16), np.float32), "nf4", 16, kind)
    for a, b, nested in ((0, 600, kind), (0, 300, kind), (256, 600, kind), (512, 513, kind), (100, 300, None)):
        part = q[a:b]
        assert part.double_quant == nested
        np.testing.assert_array_equal(part.scales(), q.scales()[a:b])
        np.testing.assert_array_equal(part.dequantize(), q.dequantize()[a:b])


def test_slices_of_slices_and_of_three_axes(rng):
    q = quantize(rng.standard_normal((8, 4, 16), np.float32))
    np.testing.assert_array_equal(q[2:7][1:3].dequantize(), q.dequantize()[3:5])
    assert q[2:7][1:3] == q[3:5]


@pytest.mark.parametrize("index", [0, (0, 1), slice(0, 4, 2), slice(4, 0, -1), "0", None, [0]])
def test_only_slices_of_rows(index):
    with pytest.raises(QuantizationError, match=r"slices of its rows, q\[a:b\]"):
        quantize(np.ones((4, 64), np.float32))[index]


def test_0_d_has_no_rows():
    with pytest.raises(QuantizationError, match="slices of its rows"):
        quantize(np.float32(1))[0:1]


def test_a_slice_says_how_many_rows_would_do():
    with pytest.raises(QuantizationError, match=r"rows 1 to 2 of 24 entries are not whole blocks of 64.*multiple of 8"):
        quantize(np.ones((16, 24), np.float32))[1:2]


@pytest.mark.parametrize("double_quant", NESTED)
@pytest.mark.parametrize("code", ALL)
def test_equal_means_every_field_and_every_array(code, double_quant, rng):
    x = rng.standard_normal((4, 64), np.float32)
    q = quantize(x, code, 64, double_quant)
    assert q == quantize(x.copy(), code, 64, double_quant)
    others = {"code": "e2m1" if code == "nf4" else "nf4", "shape": (64, 4), "dtype": np.dtype("float16"),
              "blocksize": 128, "double_quant": "other"}  # fmt: skip
    for name, value in others.items():
        assert q != dataclasses.replace(q, **{name: value}), name
    for name, array in q.arrays.items():
        changed = array.copy()
        changed.flat[-1] += 1
        assert q != dataclasses.replace(q, **{name: changed[()]}), name
    assert q != "q" and q.__eq__(None) is NotImplemented
    with pytest.raises(TypeError, match="unhashable"):
        hash(q)


def test_repr():
    x = np.ones((4, 64), np.float32)
    assert repr(quantize(x)) == "QuantizedArray(nf4, shape=(4, 64), blocksize=64, 4.5 bits per weight)"
    assert repr(quantize(x, "int8", None, True)) == (
        "QuantizedArray(int8, shape=(4, 64), blocksize=256, double_quant='dynamic', 8.281 bits per weight)"
    )


# the product


@pytest.mark.parametrize("code", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("shape", [(7, 33), (300, 64), (513, 24), (1, 1)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_matmul_is_dequantize_then_multiply(rng, shape, double_quant, code):
    q = quantize(rng.standard_normal(shape, np.float32), code, 64, double_quant)
    dense = q.dequantize()
    for rows in (1, 5):
        x, g = rng.standard_normal((rows, shape[1]), np.float32), rng.standard_normal((rows, shape[0]), np.float32)
        np.testing.assert_allclose(q.matmul(x), x @ dense.T, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(q.matmul(g, transpose=True), g @ dense, rtol=1e-4, atol=1e-4)


# errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize(np.array([1, 2])), QuantizationError, "only floating-point.*int64.*astype"),
        (lambda: quantize(np.array([True])), QuantizationError, "only floating-point.*bool"),
        (lambda: quantize(np.array([1j])), QuantizationError, "only floating-point.*complex128"),
        (lambda: quantize(np.array([None])), QuantizationError, "only floating-point.*object"),
        (lambda: quantize(["a"]), QuantizationError, "only floating-point.*U1"),
        (lambda: quantize(np.empty((0, 3))), QuantizationError, r"shape \(0, 3\) has no entry"),
        (lambda: quantize(np.empty((0, 3)), "int8", "row"), QuantizationError, "no entry"),
        (lambda: quantize(np.ones(4), "nf5"), UnknownNameError, "'nf5'.*Did you mean 'nf4'.*There are: .*int8.*nf4"),
        (lambda: quantize(np.ones(4), nonfinite="ignore"), QuantizationError, "'raise' or 'propagate', not 'ignore'"),
        (lambda: quantize(np.ones(4), double_quant="fp9"), UnknownNameError, "'fp9'.*Did you mean 'fp8'.*dynamic"),
        (lambda: quantize(np.ones(4), double_quant=1), UnknownNameError, "double_quant 1"),
        (lambda: quantize(np.ones(4), double_quant=None), UnknownNameError, "double_quant None"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("blocksize", [0, -64, 1, 8, 48, 65, 8192, 64.0, True, None, "rows", "64", [64]])
def test_blocksizes_of_a_4_bit_code(blocksize):
    with pytest.raises(QuantizationError, match="nf4's blocksize is a power of two from 16 to 4096 or 'row'") as error:
        quantize(np.ones(4), "nf4", blocksize)
    assert repr(blocksize) in str(error.value)


@pytest.mark.parametrize("blocksize", [0, -1, 2.0, True, "rows", [64]])
def test_blocksizes_of_int8(blocksize):
    with pytest.raises(QuantizationError, match="int8's blocksize is a positive integer, 'row' or None") as error:
        quantize(np.ones(4), "int8", blocksize)
    assert repr(blocksize) in str(error.value)
