import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor
from minilora.errors import GraphError, TrainingError, UnknownNameError
from minilora.train.optim import AdamW, clip_grad_norm
from minilora.train.schedule import SCHEDULES, learning_rate_factor


def adamw_by_definition(theta, grads, lr, b1, b2, eps, decay):
    """The paper's Algorithm 2, in float64, as a student would write it."""
    theta, m, v = theta.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(np.asarray(grads, np.float64), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        theta = theta - lr * decay * theta
        theta = theta - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return theta


@given(st.integers(0, 1000), st.sampled_from([(3, 5), (1, 1), (200, 333)]), st.floats(0, 0.2))
def test_adamw_is_its_definition(seed, shape, decay):
    rng = np.random.default_rng(seed)
    p = Tensor(rng.standard_normal(shape, np.float32), requires_grad=True)
    start, grads = p.data.copy(), rng.standard_normal((4, *shape), np.float32)
    optimizer = AdamW([p], 0.01, (0.9, 0.99), 1e-8, decay)
    for g in grads:
        p.grad = g.copy()
        optimizer.step()
    np.testing.assert_allclose(p.data, adamw_by_definition(start, grads, 0.01, 0.9, 0.99, 1e-8, decay), atol=2e-6)


def test_vectors_are_not_decayed():
    p = Tensor(np.ones(4, np.float32), requires_grad=True)
    p.grad = np.zeros(4, np.float32)
    AdamW([p], 0.1, weight_decay=0.5).step()
    np.testing.assert_array_equal(p.data, 1)


@given(st.floats(0.1, 10))
def test_clipping_by_the_joint_norm(limit):
    rng = np.random.default_rng(0)
    params = [Tensor(np.zeros(s, np.float32), requires_grad=True) for s in ((3, 4), (5,))]
    for p in params:
        p.grad = rng.standard_normal(p.shape, np.float32)
    flat = np.concatenate([p.grad.ravel() for p in params])
    norm = clip_grad_norm(params, limit)
    assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    after = np.concatenate([p.grad.ravel() for p in params])
    np.testing.assert_allclose(after, flat * min(1, limit / norm), rtol=1e-5)


def test_updates_are_legal_after_backward_and_refused_before():
    p = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    optimizer = AdamW([p], 0.1)
    (p * p).sum().backward()
    optimizer.step()
    waiting = (p * p).sum()
    p.grad = np.ones((2, 2), np.float32)
    with pytest.raises(GraphError, match="still waiting for backward"):
        optimizer.step()
    del waiting
    held = (p + 1.0).sum()  # holds no array, so an update does not spoil it
    optimizer.step()
    held.backward()


def test_nothing_to_train():
    with pytest.raises(TrainingError, match="no trainable parameter: attach an adapter"):
        AdamW([Tensor([1.0])])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules(kind):
    factors = [learning_rate_factor(kind, s, 100, 10) for s in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10] == 1 and all(0 <= f <= 1 for f in factors)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] == 1 if "constant" in kind else factors[-1] < 0.03
    with pytest.raises(UnknownNameError, match="linear"):
        learning_rate_factor("linar", 0, 1)
