"""Every step of rows.cu, on the simulated GPU, against float64 and against the ops of minilora.ops.nn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minilora import ops, simt
from minilora.backend.cuda import rows
from minilora.backend.cuda.launch import source
from minilora.backend.simt import SimulatedDevice
from minilora.errors import LaunchError, ShapeError

pytestmark = pytest.mark.skipif(not simt.available(), reason="needs NVRTC: pip install 'minilora[simt]'")

f32 = np.float32
u = 2.0**-24  # float32 rounds by a factor of at most 1 ± u
TINY = 2.0**-125  # what is lost where subnormal numbers are taken as zero
device = SimulatedDevice()
versions = st.sampled_from([0, 1, 2])


def arrays(elements):
    shapes = st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 70), st.sampled_from([256, 257])))
    return hnp.arrays(f32, shapes, elements=elements)


def define_softmax(x):
    x = x.astype(float)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@given(versions, arrays(st.floats(-60, 60, width=32)))
def test_softmax(version, x):
    """x - m is rounded, which exp makes a factor of 1 ± |x - m| u; exp itself is right to 2 units in the last place
    (CUDA C++ Programming Guide, "Mathematical Functions": 1 for expf), 4 u; then come at most n sums. Where v2 meets a
    larger maximum it rounds three times more and exp once; the differences of its maxima add up to at most 120."""
    y = rows.softmax(device, x, version)
    exact, n = define_softmax(x), x.shape[-1]
    bound = (240 + 8 * n + 10) * u
    assert y.dtype == f32 and (np.abs(y - exact) <= bound * exact + TINY).all()
    np.testing.assert_allclose(y, ops.softmax(x).data, rtol=2 * bound, atol=1e-37)


@given(versions, arrays(st.sampled_from([-np.inf, -np.inf, 0.0, 3.0, -3e38, 3e38, np.inf, np.nan])))
def test_softmax_of_infinities_and_nan(version, x):
    with np.errstate(all="ignore"):
        expected = ops.softmax(x).data
    np.testing.assert_allclose(rows.softmax(device, x, version), expected, rtol=1e-4)


@given(versions, arrays(st.floats(-1e4, 1e4, width=32)), st.sampled_from([1e-8, 1e-5, 1.0]), st.integers(0, 9))
def test_rms_norm(version, x, eps, seed):
    """The sum of n squares is right to n + 1 roundings, of which the root halves the effect; then come the mean, eps,
    the root, the reciprocal and two products. Squares below 2^-126 are lost beside eps."""
    weight = np.random.default_rng(seed).standard_normal(x.shape[-1]).astype(f32)
    y = rows.rms_norm(device, x, weight, eps, version)
    wide, n = x.astype(float), x.shape[-1]
    exact = weight * wide / np.sqrt((wide**2).mean(-1, keepdims=True) + float(f32(eps)))
    assert y.dtype == f32 and (np.abs(y - exact) <= (n / 2 + 8) * u * np.abs(exact) + TINY * (1 + abs(weight))).all()
    np.testing.assert_allclose(y, ops.rms_norm(x, weight, eps).data, rtol=2 * (n + 8) * u, atol=1e-36)


@given(versions, st.integers(0, 3), st.integers(1, 5), st.integers(1, 40))
def test_any_leading_axes_and_the_same_bits_again(version, a, b, n):
    x = np.random.default_rng(n).standard_normal((a, b, n)).astype(f32)
    weight = np.ones(n, f32)
    for run in (lambda x: rows.softmax(device, x, version), lambda x: rows.rms_norm(device, x, weight, 1e-5, version)):
        y = run(x)
        assert y.shape == x.shape and y.tobytes() == run(x).tobytes()
        if a:
            assert y[-1].tobytes() == run(x[-1].copy()).tobytes()


def test_what_cannot_be_done_is_said():
    x = np.ones((2, 3), f32)
    with pytest.raises(LaunchError, match="versions 0, 1 and 2, not 3"):
        rows.softmax(device, x, version=3)
    with pytest.raises(ShapeError, match=r"not \(2,\)"):
        rows.rms_norm(device, x, np.ones(2, f32))


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
def test_it_compiles_for(arch):
    ptx = simt.compile_cuda(source("rows.cu"), arch)
    assert all(f".entry {name}_v{v}" in ptx for name in ("softmax", "rms_norm") for v in range(3))
