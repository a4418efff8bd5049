"""AdamW in 8 bits: the same first step, then as near as the codes allow, in a quarter of the memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor
from minilora.train.adamw8bit import BLOCKSIZE, SMALLEST, AdamW8bit
from minilora.train.optim import CHUNK, AdamW


def pair(shape, seed=0, **options):
    start = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    a, b = (Tensor(start.copy(), requires_grad=True) for _ in range(2))
    return a, AdamW8bit([a], 0.01, **options), b, AdamW([b], 0.01, **options)


@given(st.integers(0, 99), st.sampled_from([SMALLEST, SMALLEST + 5, CHUNK - 1, CHUNK + 300]))
def test_the_first_step_is_adamws_bit_for_bit(seed, size):
    a, ours, b, theirs = pair(size, seed)
    a.grad = b.grad = np.random.default_rng(seed + 1).standard_normal(size, np.float32)
    ours.step()
    theirs.step()
    np.testing.assert_array_equal(a.data, b.data)


@given(st.integers(0, 99), st.sampled_from([SMALLEST, CHUNK + 300]))
def test_what_is_stored_is_near_the_moments(seed, size):
    """After one step m = 0.1 g and v = 0.001 g², each within half the widest gap between levels, times its absmax."""
    a, ours, _, _ = pair(size, seed)
    g = a.grad = np.random.default_rng(seed).standard_normal(size, np.float32)
    ours.step()
    for moment, wanted in zip(ours.state[0], (0.1 * g, 0.001 * g * g), strict=True):
        scale = np.repeat(moment.absmax, BLOCKSIZE)[:size]
        gap = np.diff(moment.levels).max() / 2
        assert (np.abs(moment.read(slice(0, size)) - wanted) <= (gap + 1e-6) * scale).all()
        assert moment.codes.nbytes + moment.absmax.nbytes <= size * (1 + 4 / BLOCKSIZE) + 4


def test_small_parameters_are_not_quantized():
    a, ours, b, theirs = pair(SMALLEST - 1)
    for step in range(3):
        a.grad = b.grad = np.random.default_rng(step).standard_normal(a.shape, np.float32)
        ours.step()
        theirs.step()
        np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_what_adamw_learns(seed):
    """Least squares in 8,192 unknowns with noisy gradients of very different sizes within a block: the loss after 200
    steps is within 5 % of AdamW's fall. (Where small second moments become zero, it grows a thousandfold.)"""
    rng = np.random.default_rng(seed)
    target, scale = rng.standard_normal(8192).astype(np.float32), rng.lognormal(0, 2, 8192).astype(np.float32)
    a, ours, b, theirs = pair(8192, seed + 10)

    def loss(x):
        return float((scale * (x - target) ** 2).mean())

    start = loss(a.data)
    for _ in range(200):
        noise = rng.standard_normal(8192).astype(np.float32)
        for p, optimizer in ((a, ours), (b, theirs)):
            p.grad = scale * (p.data - target + 0.1 * noise)
            optimizer.step()
    assert abs(loss(a.data) - loss(b.data)) < 0.05 * (start - loss(b.data))
    assert not np.array_equal(a.data, b.data)
