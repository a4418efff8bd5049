import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import ops
from minilora.ops.elementwise import _erf

EDGES = [0.0, 1 / 512, -1 / 512, 3.998046875, 4.0, -4.0, 4.001, 1e-30, -1e-45, 1e38, np.inf, -np.inf]


def exact(x):
    return np.array([math.erf(v) for v in x.ravel().tolist()]).reshape(x.shape)


@given(st.lists(st.floats(width=32, allow_nan=False) | st.floats(-5, 5, width=32), max_size=40))
def test_erf_in_float32(values):
    x = np.array(values, np.float32)
    y = _erf(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact(x), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(_erf(-x), -y)


def test_erf_everywhere_in_its_table():
    """Cell by cell: the middle and the ends of each, where Taylor's series is at its best and worst."""
    x = np.concatenate([np.arange(-4.5, 4.5, 1 / 8192), EDGES]).astype(np.float32)
    near = np.concatenate([x, np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(-9))])
    error = np.abs(_erf(near) - exact(near))
    assert error.max() < 7e-8  # as its docstring says
    assert np.isnan(_erf(np.array([np.nan, 1], np.float32)))[0]


def test_erf_in_float64_is_math_s(rng):
    x = np.concatenate([rng.standard_normal(200), EDGES])
    np.testing.assert_array_equal(_erf(x), exact(x))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_gelu_keeps_shape_and_dtype(rng, shape):
    x = np.asarray(rng.standard_normal(shape), np.float32)
    y = ops.gelu(x).data
    assert y.shape == shape and y.dtype == np.float32
    np.testing.assert_allclose(y, ops.gelu(x.astype(np.float64)).data, rtol=0, atol=2e-7)
