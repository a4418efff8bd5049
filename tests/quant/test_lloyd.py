"""Lloyd-Max codes: they are where nothing can be moved with profit, and the textbook's where there is one."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora.errors import QuantizationError
from minilora.quant import CODES, expected_error, lloyd_max, scaled_normal

samples = hnp.arrays(float, st.integers(1, 60), elements=st.floats(-1, 1).map(lambda v: round(v, 3)))


class Normal:
    ppf = staticmethod(np.vectorize(NormalDist().inv_cdf))


class Uniform:
    ppf = staticmethod(lambda p: p)


def cost(x, levels, power, weights=1):
    return (weights * np.abs(x[:, None] - levels).min(1) ** power).sum()


@pytest.mark.parametrize(
    ("levels", "expected"), [(2, [0.7979]), (4, [0.4528, 1.5104]), (8, [0.2451, 0.7560, 1.3439, 2.1520])]
)
def test_normal_levels_are_max_s(levels, expected):
    """J. Max, "Quantizing for minimum distortion" (1960), table I; read at 2^16 quantiles, which cuts the tails."""
    code = lloyd_max(Normal, fixed=(), levels=levels, power=2)
    np.testing.assert_allclose(code[levels // 2 :], expected, atol=1e-3)
    np.testing.assert_allclose(code, -code[::-1], atol=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_uniform_levels_are_even(power):
    np.testing.assert_allclose(lloyd_max(Uniform, (), 8, power), (np.arange(8) + 0.5) / 8, atol=1e-4)


def test_one_level_is_the_median_or_the_mean():
    x = np.array([0, 0, 1, 2, 100.0])
    assert lloyd_max(x, (), 1, power=1) == [1] and lloyd_max(x, (), 1, power=2) == [x.mean()]
    assert lloyd_max(x, (), 1, power=1, weights=[1, 1, 1, 1, 9]) == [100]
    assert lloyd_max(x, (), 1, power=2, weights=[1, 1, 1, 1, 4]) == [pytest.approx(403 / 8)]


@given(x=samples, power=st.sampled_from([1, 2]), fixed=st.sampled_from([(), (0,), (-1, 0, 1)]), data=st.data())
def test_levels_are_sorted_keep_the_fixed_ones_and_cannot_be_moved(x, power, fixed, data):
    """No free level can be replaced by its cell's mean or median with profit: the iteration has ended.

    A number halfway between two levels belongs to the upper one, as in the iteration; given to the lower one, it could
    move a median that has as much on either side.
    """
    weights = data.draw(st.none() | hnp.arrays(float, x.size, elements=st.floats(0.1, 10)))
    code = lloyd_max(x, fixed, 6, power, weights)
    assert code.shape == (6,) and code.dtype == float and (np.diff(code) >= 0).all() and set(fixed) <= set(code)
    weights = np.ones(x.size) if weights is None else weights
    least = cost(x, code, power, weights)
    nearest = np.searchsorted((code[1:] + code[:-1]) / 2, x, side="right")
    for i in sorted(set(nearest) - {int(np.flatnonzero(code == f)[0]) for f in fixed}):
        cell, w = x[nearest == i], weights[nearest == i]
        moved = code.copy()
        for moved[i] in [*cell, (w * cell).sum() / w.sum()]:
            assert cost(cell, moved[i : i + 1], power, w) >= cost(cell, code[i : i + 1], power, w) - 1e-9
    assert least <= cost(x, np.array([*fixed, *[0] * (6 - len(fixed))], float), power, weights) + 1e-9 or fixed


def test_as_many_levels_as_numbers_cost_nothing():
    x = np.array([-0.5, -0.1, 0.3, 0.9])
    np.testing.assert_array_equal(lloyd_max(x, (), 4), x)
    np.testing.assert_array_equal(lloyd_max(x, x, 4), x)


def test_nf4_is_within_two_hundredths_of_a_percent_of_the_best(monkeypatch):
    """Of sixteen levels with -1, 0 and 1 among them, in blocks of 64, by mean absolute error; with the closed form as
    judge, which knows nothing of the sample that the levels were fitted to."""
    x, absmax = scaled_normal(64)
    monkeypatch.setitem(CODES, "best", lloyd_max(x, weights=absmax).astype(np.float32))
    gain = 1 - expected_error("best", 64).mae / expected_error("nf4", 64).mae
    assert 0.0001 < gain < 0.0003


def test_scaled_normal():
    x, absmax = scaled_normal(64, 1 << 12, seed=3)
    assert x.shape == absmax.shape == (1 << 12,) and x.dtype == absmax.dtype == float
    assert (np.abs(x).reshape(-1, 64).max(1) == 1).all() and (np.diff(absmax.reshape(-1, 64)) == 0).all()
    np.testing.assert_allclose((x * absmax).std(), 1, atol=0.05)
    np.testing.assert_array_equal(scaled_normal(64, 1 << 12, seed=3)[0], x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 3}, "power is 1 .*or 2 .*not 3"),
        ({"distribution": []}, "at least one.*got 0 numbers"),
        ({"distribution": [1.0, np.nan]}, "finite numbers"),
        ({"distribution": [np.inf]}, "finite numbers"),
        ({"levels": 2}, "3 fixed of 2 levels"),
        ({"weights": [1.0]}, r"weights are positive, one for each of 3 numbers; got \(1,\)"),
        ({"weights": [1.0, 0, 1]}, "weights are positive"),
        ({"weights": [1.0, -1, 1]}, "weights are positive"),
        ({"weights": [1.0, np.nan, 1]}, "weights are positive"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(QuantizationError, match=message):
        lloyd_max(**{"distribution": [0.0, 0.5, 1.0], **arguments})
