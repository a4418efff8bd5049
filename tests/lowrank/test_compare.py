"""Extraction: exact where the difference has rank r at most, best otherwise; the subspace measure's laws."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import model, run

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, quantize_model
from minilora.errors import ConfigError, ShapeError
from minilora.lora.attach import lora_layers
from minilora.lowrank import (
    amplification,
    eckart_young,
    extract_lora,
    singular_values,
    subspace_similarities,
    subspace_similarity,
)

GOLDEN = Path(__file__).parents[1] / "golden"
ATTENTION = ["q_proj", "v_proj"]


def tuned(rng, r=None, names=ATTENTION, size=0.05, **fields):
    """The small model after a change of the named weights, of rank r (None: any)."""
    m = model(**fields)
    for name, p in m.named_parameters():
        if any(part in name for part in names):
            change = rng.standard_normal(p.shape)
            if r is not None and p.ndim == 2:
                change = rng.standard_normal((p.shape[0], r)) @ rng.standard_normal((r, p.shape[1]))
            p.data = p.data + (size * change).astype(p.dtype)
    return m


def test_a_difference_of_low_rank_is_extracted_exactly(rng, tmp_path):
    m = tuned(rng, 3)
    peft = extract_lora(m, model(), 3, ATTENTION)
    assert np.abs(run(m) - run(model())).max() > 0.1
    np.testing.assert_allclose(run(peft), run(m), atol=2e-5)
    assert peft.peft_config["default"].scaling == 1 and max(peft.extraction_error.values()) < 1e-6
    with peft.disable_adapter():
        np.testing.assert_array_equal(run(peft), run(model()))
    peft.save_pretrained(tmp_path)
    np.testing.assert_array_equal(run(PeftModel.from_pretrained(model(), tmp_path)), run(peft))
    np.testing.assert_allclose(run(peft.merge_and_unload()), run(m), atol=2e-5)


@pytest.mark.filterwarnings("ignore:r=20")
@pytest.mark.parametrize("r", [1, 4, 15, 16, 20])
def test_otherwise_the_error_is_the_least(rng, r):
    m, base = tuned(rng), model()
    before = {name: p.data.copy() for name, p in base.named_parameters()}
    peft = extract_lora(m, base, r, ATTENTION)
    after = dict(m.named_parameters())
    for path, layer in lora_layers(base).items():
        delta = after[f"{path}.weight"].data - before[f"{path}.weight"]
        least = eckart_young(delta, min(r, *delta.shape)).frobenius
        assert np.linalg.norm(layer.delta_weight() - delta) == pytest.approx(least, abs=1e-5)
        assert peft.extraction_error[path] == pytest.approx(least / np.linalg.norm(delta), abs=1e-5)
        assert layer.A("default").shape == (r, delta.shape[1]) and layer.B("default").shape == (delta.shape[0], r)
    assert len(peft.extraction_error) == 4


def test_an_adapter_s_own_update_is_found_again(rng):
    """From base and merged model, LoRA's ΔW."""
    peft = get_peft_model(model(), LoraConfig(r=4, lora_alpha=8))
    for p in peft.trainable().values():
        p.data = p.data + (rng.standard_normal(p.shape) * 0.1).astype(p.dtype)
    deltas = {path: layer.delta_weight() for path, layer in peft.adapters().items()}
    found = extract_lora(peft.merge_and_unload(), model(), 4)
    for path, layer in found.adapters().items():
        np.testing.assert_allclose(layer.delta_weight(), deltas[path], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*share one weight")
def test_golden_models_with_other_layers(rng):
    """Conv1D weights are transposed, embeddings are tables; a quantized base is dequantized."""
    for name, targets in (("tiny_gpt2", ["c_attn", "c_proj", "wte"]), ("tiny_llama", ["down_proj", "embed_tokens"])):
        folder = GOLDEN / name
        m, _ = load_model(folder)
        for name, p in m.named_parameters():
            if any(f"{target}.weight" in name for target in targets):
                u, v = rng.standard_normal((p.shape[0], 1)), rng.standard_normal((1, p.shape[1]))
                p.data = p.data + (0.02 * u @ v).astype(p.dtype)
        peft = extract_lora(m, load_model(folder)[0], 1, targets)
        assert max(peft.extraction_error.values()) < 1e-5
    m, base = tuned(rng, 2), quantize_model(model(), "nf4", double_quant=False)
    peft = extract_lora(m, base, 16, "all-linear")
    np.testing.assert_allclose(run(peft), run(m), atol=1e-4)  # the adapter holds what quantization took, too


def test_weights_without_a_place_are_named_and_modules_to_save_taken_over(rng):
    m = tuned(rng, 2, [*ATTENTION, "embed_tokens", "norm.weight"])
    with pytest.warns(UserWarning, match=r"\d weights differ and are not in the adapter: lm_head|embed_tokens"):
        extract_lora(m, model(), 2)
    m = tuned(rng, 2, ATTENTION)
    for name, p in m.named_parameters():
        if "layernorm" in name:
            p.data = p.data * np.float32(1.5)
    peft = extract_lora(m, model(), 2, modules_to_save=["input_layernorm", "post_attention_layernorm"])
    np.testing.assert_allclose(run(peft), run(m), atol=2e-5)


def test_models_that_do_not_fit_are_refused(rng):
    other = load_model("embedded")[0]
    with pytest.raises(ConfigError, match="no counterpart"):
        extract_lora(other, model(), 2)
    peft = get_peft_model(model(), LoraConfig(r=2))
    for pair in ((peft, model()), (model(), peft), (model(), peft.get_base_model())):
        with pytest.raises(ConfigError, match="merge_and_unload"):
            extract_lora(*pair, 2)
    with pytest.raises(ConfigError, match="positive integer"):
        extract_lora(model(), model(), 0)


# Subspaces.

sizes = st.integers(1, 8)


def orthogonal(n, rng):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


@given(sizes, sizes, sizes, st.integers(0, 999))
def test_phi(a, b, d, seed):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((a, d)), rng.standard_normal((b, d))
    phi = subspace_similarities(A, B)
    assert phi.shape == (min(a, d), min(b, d)) and (phi >= 0).all() and (phi <= 1).all()
    np.testing.assert_allclose(phi, subspace_similarities(B, A).T, atol=1e-10)
    np.testing.assert_allclose(np.diag(subspace_similarities(A, A)), 1, atol=1e-10)
    i, j = rng.integers(1, phi.shape[0] + 1), rng.integers(1, phi.shape[1] + 1)
    V, W = np.linalg.svd(A)[2][:i].T, np.linalg.svd(B)[2][:j].T  # the definition
    definition = np.linalg.norm(V.T @ W) ** 2 / min(i, j)
    assert subspace_similarity(A, B, i, j) == pytest.approx(definition, abs=1e-10)
    P, Q, R = orthogonal(a, rng), orthogonal(b, rng), orthogonal(d, rng)
    turned = subspace_similarities(P @ A @ R * 3, Q @ B @ R * -2)  # output turned, input turned for both, scaled
    np.testing.assert_allclose(turned, phi, atol=1e-7)


def test_contained_and_orthogonal_subspaces():
    A, B = np.eye(6)[:2] * [[2.0], [1.0]], np.diag([5.0, 4, 3, 2, 1, 0.5])
    assert subspace_similarity(A, B, 2, 6) == 1 == subspace_similarity(A, B, 1, 1)
    assert subspace_similarity(A, B[::-1].copy(), 2, 2) == 1  # rows exchanged: the same input directions
    assert subspace_similarity(A, np.eye(6)[4:], 2, 2) == 0


def test_random_subspaces_have_max_over_d_on_average():
    rng, d = np.random.default_rng(0), 40
    draws = [(rng.standard_normal((8, d)), rng.standard_normal((20, d))) for _ in range(60)]
    mean = np.mean([subspace_similarities(A, B) for A, B in draws], axis=0)
    i, j = np.ogrid[1:9, 1:21]
    np.testing.assert_allclose(mean, np.maximum(i, j) / d, atol=0.03)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 999))
def test_amplification(m, n, seed):
    rng = np.random.default_rng(seed)
    W, r = rng.standard_normal((m, n)), 2
    U, S, Vt = np.linalg.svd(rng.standard_normal((m, n)), full_matrices=False)
    dW = (U[:, :r] * S[:r]) @ Vt[:r]
    factor = amplification(W, dW, r)
    assert factor == pytest.approx(np.linalg.norm(S[:r]) / np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T))
    assert amplification(W, 7 * dW, r) == pytest.approx(7 * factor)
    assert amplification(dW, dW, r) == pytest.approx(1)
    top = singular_values(W)[:r]
    assert factor >= np.linalg.norm(S[:r]) / np.linalg.norm(top) * (1 - 1e-12)


def test_what_is_refused():
    assert amplification(np.zeros((2, 2)), np.eye(2), 1) == np.inf
    with pytest.raises(ShapeError, match="one length"):
        subspace_similarities(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ShapeError, match="one shape"):
        amplification(np.ones((2, 3)), np.ones((3, 2)), 1)
    for i, j in ((0, 1), (3, 1), (1, 3)):
        with pytest.raises(ConfigError, match="from 1 to 2"):
            subspace_similarity(np.eye(2), np.eye(2), i, j)
