import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor
from minilora.nn import GPT2, CausalLM, ModelConfig, TransformerConfig
from minilora.train.muon import MOMENTUM, Muon, hidden_matrices, orthogonalize
from minilora.train.optim import AdamW

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(st.integers(0, 1000), shapes)
def test_singular_values_become_about_one_and_the_directions_stay(seed, shape):
    """The same singular vectors (the polynomial is odd), values from 0.6 to 1.25 where they were not tiny."""
    G = np.random.default_rng(seed).standard_normal(shape)
    U, s, Vt = np.linalg.svd(G, full_matrices=False)
    inner = U.T @ orthogonalize(G) @ Vt.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-6)
    large = s > 0.01 * np.linalg.norm(s)
    assert (np.diag(inner)[large] > 0.6).all() and (np.diag(inner) < 1.25).all()


@given(st.integers(0, 1000), shapes)
def test_it_commutes_with_transposition_and_scale(seed, shape):
    G = np.random.default_rng(seed).standard_normal(shape)
    np.testing.assert_allclose(orthogonalize(G.T), orthogonalize(G).T, atol=1e-5)
    np.testing.assert_allclose(orthogonalize(8 * G), orthogonalize(G), atol=1e-5)


def test_a_gradient_of_zero_gives_no_update():
    assert not orthogonalize(np.zeros((3, 5), np.float32)).any()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_a_matrix_takes_the_definition(rng, shape):
    start, grads = rng.standard_normal(shape, np.float32), rng.standard_normal((3, *shape), np.float32)
    w = Tensor(start.copy(), requires_grad=True)
    optimizer = Muon([w], [w], lr=0.01, weight_decay=0.1)
    expected, momentum = start.astype(float), 0.0
    for g in grads:
        w.grad = g.copy()
        optimizer.step()
        momentum = MOMENTUM * momentum + g
        update = orthogonalize((g + MOMENTUM * momentum).astype(float))
        expected = expected * (1 - 0.01 * 0.1) - 0.2 * 0.01 * max(shape) ** 0.5 * update
    np.testing.assert_allclose(w.data, expected, atol=1e-5)
    assert w.dtype == np.float32


@pytest.mark.parametrize("shape", [(6, 4), (4,)])
def test_others_take_adamw(rng, shape):
    start, g = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    ours, adamw = Tensor(start.copy(), requires_grad=True), Tensor(start.copy(), requires_grad=True)
    for p, optimizer in ((ours, Muon([ours], [], lr=0.01)), (adamw, AdamW([adamw], lr=0.01))):
        p.grad = g.copy()
        optimizer.step()
    np.testing.assert_array_equal(ours.data, adamw.data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [CausalLM, GPT2])
def test_hidden_matrices_are_those_that_mix_a_hidden_state(family, tied):
    kind = TransformerConfig if family is CausalLM else ModelConfig
    model = family(kind(16, 8, 12, 1, 2, max_position_embeddings=16, tie_word_embeddings=tied))
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    others = {name for name, p in model.named_parameters() if p.ndim == 2} - hidden
    assert {name.split(".")[-2] for name in others} <= {"embed_tokens", "wte", "wpe", "lm_head"}
    assert not any("embed" in name or "wte" in name or "wpe" in name or "lm_head" in name for name in hidden)
    assert len(hidden) == (7 if family is CausalLM else 4)
