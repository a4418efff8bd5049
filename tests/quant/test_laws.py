"""Laws of every code, under Hypothesis; laws.py says what each claims."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant import cases, laws

from minilora import quantize
from minilora.backend.numpy import midpoints
from minilora.quant import CODES

four_bits = pytest.mark.parametrize("code", list(CODES))
all_codes = pytest.mark.parametrize("code", [*CODES, "int8"])
LAWS = [
    laws.check_dequantize,
    laws.check_zero_is_exact,
    laws.check_absmax_is_exact,
    laws.check_fixed_point,
    laws.check_error_bound,
    laws.check_monotone,
    laws.check_negation,
]


@all_codes
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@given(data=st.data())
def test_law(law, code, data):
    law(*_with_code(code, data.draw(cases.blocks(code))))


def _with_code(code, case):
    x, blocksize = case
    return x, code, blocksize


@four_bits
@given(data=st.data())
def test_each_code_is_the_nearest_level_by_argmin_and_ties_go_down(code, data):
    laws.check_definition(*_with_code(code, data.draw(cases.blocks(code))))


@pytest.mark.parametrize("n", [1024 * 16, 1024 * 16 + 1, 5 * 1024 * 16 - 16, (1 << 18) + 37])
@pytest.mark.parametrize("code", ["nf4", "fp4", "linear16"])
def test_arrays_of_more_blocks_than_are_worked_on_at_a_time(code, n, rng):
    x = rng.standard_normal(n, np.float32)
    laws.check_definition(x, code, 16)
    laws.check_dequantize(x, code, 16)


@given(data=st.data(), n=st.integers(2, 16), seed=st.integers(0, 1 << 32))
def test_a_code_of_ones_own_obeys_the_same_definition(data, n, seed):
    """Any levels, in any order, with or without zero and ends."""
    rng = np.random.default_rng(seed)
    levels = rng.choice([rng.uniform(-1, 1, n), rng.choice(np.arange(-10, 11) / 10, n, replace=False)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CODES, "mine", levels.astype(np.float32))
        x, blocksize = data.draw(cases.blocks("mine"))
        laws.check_definition(x, "mine", blocksize)
        laws.check_dequantize(x, "mine", blocksize)
        laws.check_monotone(x, "mine", blocksize)


@four_bits
@pytest.mark.parametrize("width", [2, 15, 16])
@pytest.mark.parametrize("scale", [1, 2.0**-60, 2.0**60])
def test_constructed_ties(code, width, scale):
    """On a border the lower level, one ulp above it the higher, in full blocks and in partial ones. Between the two
    zeros of fp4 and e2m1, and those levels of linear16 that are nearest to zero, the border is zero."""
    order = np.argsort(CODES[code], kind="stable")
    borders = midpoints(CODES[code][order])
    above = np.where(borders == 0, np.float32(2.0**-40), np.nextafter(borders, np.float32(2)))
    for values, expected in ((borders, order[:-1]), (above, order[1:])):
        for value, lower_or_higher in zip(values, expected, strict=True):
            x = np.zeros(width, np.float32)
            x[0], x[1] = scale, value * np.float32(scale)
            assert laws.unpack(quantize(x, code, 16))[1] == lower_or_higher


@all_codes
@given(data=st.data())
def test_blocks_are_independent(code, data):
    x, blocksize = data.draw(cases.blocks(code))
    permutation = np.array(data.draw(st.permutations(range(len(x) // blocksize))), int)
    laws.check_blocks_are_independent(x, code, blocksize, permutation)


@pytest.mark.parametrize("width", [1, 7, 16, 33])
@all_codes
@given(data=st.data())
def test_a_row_is_quantized_as_if_it_were_alone(code, width, data):
    """blocksize "row", odd ones included: the codes of two rows may then share a byte."""
    x, _ = data.draw(cases.blocks(code, (width,), odd=False))
    x = x.reshape(-1, width)
    alone = np.concatenate([quantize(row, code, "row").dequantize() for row in x])
    q = quantize(x, code, "row")
    np.testing.assert_array_equal(q.dequantize().ravel(), alone)
    assert q.blocksize == width and q.absmax.shape == (len(x),)


@all_codes
@given(data=st.data(), exponent=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_result(code, data, exponent):
    laws.check_power_of_two_scale(*_with_code(code, data.draw(cases.blocks(code))), exponent)


@four_bits
def test_other_scales_move_what_lies_on_a_border(code):
    """3x rounds: an entry one ulp above a border may fall on it. Codes then differ by one level, nowhere else."""
    order = np.argsort(CODES[code], kind="stable")
    borders = midpoints(CODES[code][order])
    x = np.zeros((len(borders), 16), np.float32)
    x[:, 0], x[:, 1] = 1, np.nextafter(borders, np.float32(2))
    x[:, 2:] = np.random.default_rng(0).uniform(-1, 1, (len(borders), 14))
    rank = np.argsort(order)
    a = rank[laws.unpack(quantize(x, code, 16))].reshape(x.shape)
    moved = np.zeros(x.shape, bool)
    for factor in (3, 5, 7, 0.1):
        b = rank[laws.unpack(quantize(x * np.float32(factor), code, 16))].reshape(x.shape)
        assert (np.abs(a - b) <= 1).all()
        moved |= a != b
    assert moved[:, 1].any()
    assert (np.abs(x[moved][:, None] - borders).min(1) < 2.0**-22).all()


def test_nf4_is_not_symmetric():
    """Its sixteen levels are eight positive, seven negative and zero: Q(-x) is not -Q(x)."""
    x = np.array([1, 0.7], np.float32)
    np.testing.assert_array_equal(quantize(x).dequantize()[1:], [CODES["nf4"][14]])
    np.testing.assert_array_equal(quantize(-x).dequantize()[1:], [CODES["nf4"][1]])
    assert CODES["nf4"][14] != -CODES["nf4"][1]


@pytest.mark.parametrize("code", laws.SYMMETRIC)
def test_a_tie_is_not_symmetric_even_where_the_levels_are(code):
    levels = np.unique(CODES[code])
    x = np.array([1, (levels[-1] + levels[-2]) / np.float32(2)], np.float32)
    assert quantize(x, code).dequantize()[1] == levels[-2]
    assert quantize(-x, code).dequantize()[1] == levels[0]


@four_bits
def test_full_blocks_multiply_and_partial_ones_divide(code):
    laws.check_rounding(code)


@four_bits
def test_all_pairs_of_bytes(code):
    laws.check_bytes(code)


def test_all_pairs_of_bytes_of_a_code_in_no_order(monkeypatch):
    monkeypatch.setitem(CODES, "shuffled", np.random.default_rng(0).permutation(CODES["nf4"]))
    laws.check_bytes("shuffled")


@pytest.mark.parametrize("kind", ["dynamic", "fp8", "int8"])
@given(absmax=cases.absmaxes())
def test_double_quantization_is_bounded(kind, absmax):
    laws.check_double(absmax, kind)
