"""Checkpointed or not: the same values and gradients bit for bit, and a tape that holds only inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor, ledger, no_grad, ops
from minilora.autograd import checkpoint
from minilora.errors import GraphError


class Block:
    """x + tanh(x Wᵀ) with dropout, drawing from a generator that it shares with others."""

    def __init__(self, d, rng, dropout_rng, trained=True):
        self.weight = Tensor(rng.standard_normal((d, d)).astype(np.float32), requires_grad=trained)
        self.rng = dropout_rng

    def __call__(self, x, scale):
        return x + ops.dropout(ops.tanh(ops.linear(x, self.weight)) * scale, 0.3, self.rng)


def run(use, layers, seed, x_trained, frozen=()):
    rng, dropout_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    blocks = [Block(6, rng, dropout_rng, i not in frozen) for i in range(layers)]
    start = y = Tensor(rng.standard_normal((5, 6)).astype(np.float32), requires_grad=x_trained)
    for block in blocks:
        y = checkpoint(block, y, 0.5, parameters=[block.weight], generators=[dropout_rng]) if use else block(y, 0.5)
    held = ledger().by_op
    if y.requires_grad:
        (y * y).sum().backward()
    return y.data, [start.grad, *(b.weight.grad for b in blocks)], held, dropout_rng.random()


@given(st.integers(0, 50), st.integers(1, 4), st.booleans(), st.sets(st.integers(0, 3)))
def test_values_gradients_and_random_numbers_are_the_same(seed, layers, x_trained, frozen):
    y, grads, _, number = run(False, layers, seed, x_trained, frozen)
    y2, grads2, held, number2 = run(True, layers, seed, x_trained, frozen)
    np.testing.assert_array_equal(y, y2)
    assert number == number2
    for g, g2 in zip(grads, grads2, strict=True):
        assert (g is None) == (g2 is None) and (g is None or np.array_equal(g, g2))
    assert set(held) <= {"checkpoint"}


def test_the_tape_holds_one_input_a_layer():
    _, _, plain, _ = run(False, 4, 0, True)
    _, _, held, _ = run(True, 4, 0, True)
    assert held == {"checkpoint": 3 * 5 * 6 * 4}  # of the second layer and on: the first one's is a leaf
    assert sum(plain.values()) > 3 * held["checkpoint"]


def test_nothing_is_recorded_where_nothing_is_trained():
    _, _, held, _ = run(True, 2, 0, False, frozen={0, 1})
    assert held == {}
    with no_grad():
        x = Tensor(np.ones(3, np.float32), requires_grad=True)
        assert not checkpoint(lambda t: t * 2.0, x).requires_grad


def test_an_input_that_was_changed_is_noticed():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y = checkpoint(lambda t: t * t, x)
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 5
    x.mark_changed()
    with pytest.raises(GraphError, match="checkpoint"):
        y.sum().backward()


def test_checkpoints_within_checkpoints():
    x = Tensor(np.array([0.5, 2.0]), requires_grad=True)
    checkpoint(lambda t: checkpoint(lambda u: u * u, t) * t, x).sum().backward()
    np.testing.assert_array_equal(x.grad, 3 * x.data**2)
