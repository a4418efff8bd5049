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


@given(st.sampled_from(["C", "F", "strided"]), st.sampled_from([(), (1,), (0,), (3, 4), (2, 3, 4)]))
def test_every_layout_is_updated(layout, shape):
    """A Fortran-ordered or strided weight (a transposed matrix from a file) was once updated in a copy: not at all."""
    rng = np.random.default_rng(0)
    value = rng.standard_normal(shape).astype(np.float32)
    if layout == "strided" and shape:
        data = np.zeros((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2]
        data[...] = value
    else:
        data = np.array(value, order="F" if layout == "F" else "C")
    p, g = Tensor(data, requires_grad=True), rng.standard_normal(shape).astype(np.float32)
    optimizer = AdamW([p], 0.1)
    p.grad = np.asfortranarray(g).reshape(shape, order="A")
    optimizer.step()
    assert p.data.shape == shape
    np.testing.assert_allclose(p.data, adamw_by_definition(value, [p.grad], 0.1, 0.9, 0.999, 1e-8, 0), atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-14), (np.float32, 2e-6), (np.float16, 2e-3)])
def test_state_is_precise_enough_for_the_dtype(dtype, atol):
    """The square of a float16 gradient of 1e-4 is zero in float16: v is 0, the update 1,000 instead of 0.1."""
    p = Tensor(np.ones((3, 4), dtype), requires_grad=True)
    grads = np.full((3, 3, 4), 1e-4, dtype)
    optimizer = AdamW([p], 0.1)
    for g in grads:
        p.grad = g.copy()
        optimizer.step()
    wanted = adamw_by_definition(np.ones((3, 4)), grads, 0.1, 0.9, 0.999, 1e-8, 0)
    np.testing.assert_allclose(p.data, wanted, atol=atol)


def test_a_refused_update_changes_nothing():
    a, b = (Tensor(np.ones((2, 2), np.float32), requires_grad=True) for _ in "ab")
    optimizer = AdamW([a, b], 0.1)
    waiting = (b * b).sum()
    a.grad = b.grad = np.ones((2, 2), np.float32)
    with pytest.raises(GraphError):
        optimizer.step()
    assert (a.data == 1).all() and (b.data == 1).all() and optimizer.steps == 0
    del waiting


def test_snapshots_restore_the_values_even_under_a_waiting_graph():
    p = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    optimizer = AdamW([p], 0.1)
    before = optimizer.snapshot()
    p.grad = np.ones((2, 2), np.float32)
    optimizer.step()
    waiting = (p * p).sum()
    optimizer.restore(before)
    assert (p.data == 1).all()
    with pytest.raises(GraphError, match="changed in place"):
        waiting.backward()


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
