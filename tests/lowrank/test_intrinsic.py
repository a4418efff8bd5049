"""Training in a subspace: nothing changes at first, gradients are the chain rule's, and d counts what is trained."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.errors import ConfigError, DataError
from minilora.lowrank.fastfood import DenseProjection, Fastfood, SparseProjection
from minilora.lowrank.intrinsic import GroupSums, Subspace, displaced, smallest_d
from minilora.nn import CausalLM, TransformerConfig

PROJECTIONS = pytest.mark.parametrize("projection", [Fastfood, DenseProjection, SparseProjection])
WAYS = pytest.mark.parametrize("structure_aware", [False, True], ids=["DID", "SAID"])
SHAPE = TransformerConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                          num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
IDS = np.arange(12).reshape(2, 6)


def tiny():
    return CausalLM(SHAPE, seed=0)


@PROJECTIONS
@WAYS
def test_nothing_changes_at_first_bit_for_bit(projection, structure_aware):
    before = tiny()(IDS).data
    model = Subspace(tiny(), 40, projection, structure_aware)
    assert np.array_equal(model(IDS).data, before)
    assert sum(p.size for p in model.parameters() if p.requires_grad) == 40


@PROJECTIONS
@given(st.integers(1, 12), st.floats(-2, 2), st.integers(0, 5))
def test_gradients_in_a_subspace(projection, d, scale, seed):
    P = projection(15, d, seed)
    rng = np.random.default_rng(seed)
    theta_0, theta_d = rng.standard_normal((3, 5)), rng.standard_normal(d)
    ml.gradcheck(lambda a, b, c: displaced(a, b, c, P, gain=0.5), theta_0, theta_d, np.float64(scale))


@WAYS
def test_the_gradient_is_the_projected_one(structure_aware):
    full, model = tiny(), Subspace(tiny(), 40, DenseProjection, structure_aware)
    full.loss(IDS, IDS).backward()
    model.loss(IDS, IDS).backward()
    grads = [p.grad.reshape(-1) for p in full.parameters() if p.requires_grad]
    expected = sum(gain * (P.T @ g) for g, (*_, P, gain) in zip(grads, model._parts, strict=True))
    np.testing.assert_allclose(model.theta_d.grad, expected, rtol=1e-4, atol=1e-6)


@WAYS
def test_merging_gives_the_model_that_was_trained(structure_aware):
    model = Subspace(tiny(), 40, structure_aware=structure_aware)
    model.theta_d.data = np.random.default_rng(0).standard_normal(model.theta_d.shape).astype(np.float32) / 50
    if structure_aware:
        model.scale.data = model.scale.data * np.float32(1.5)
    moved = model(IDS).data
    base = model.merge_and_unload()
    np.testing.assert_array_equal(base(IDS).data, moved)
    assert not np.array_equal(moved, tiny()(IDS).data) and all(p.requires_grad for p in base.parameters())


@PROJECTIONS
@given(st.integers(0, 20))
def test_the_toy_has_ten_dimensions(projection, seed):
    assert GroupSums().least_squares(projection(1000, 9, seed)) > 1e-3
    assert GroupSums().least_squares(projection(1000, 10, seed)) < 1e-8


@pytest.mark.slow
def test_the_toy_by_gradient_descent():
    for seed in range(2):
        best = GroupSums().least_squares(DenseProjection(1000, 9, seed))
        assert GroupSums().descend(9, DenseProjection, seed) == pytest.approx(best, rel=1e-3) and best > 0.02
        assert GroupSums().descend(10, DenseProjection, seed) < 1e-4


def test_smallest_d():
    assert smallest_d({10: 0.5, 100: 0.89, 1000: 0.91}, 1.0) == 1000
    assert smallest_d({10: 0.5}, 1.0) is None and smallest_d({10: 0.5}, 1.0, share=0.5) == 10
    for reached, full in (({}, 1.0), ({10: 1.0}, 0.0)):
        with pytest.raises(DataError, match="d90"):
            smallest_d(reached, full)


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match="positive"):
        Subspace(tiny(), 0)
    with pytest.raises(ConfigError, match="one for each of"):
        Subspace(tiny(), 3, structure_aware=True)
    frozen = tiny()
    frozen.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        Subspace(frozen, 10)
    checkpointed = tiny()
    checkpointed.gradient_checkpointing_enable()
    with pytest.raises(ConfigError, match="checkpointing"):
        Subspace(checkpointed, 10)(IDS)
    with pytest.raises(ConfigError, match="equal size"):
        GroupSums(1001, 10)
