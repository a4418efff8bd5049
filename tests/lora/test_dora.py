import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import IDS, adapted, inputs, kinds, lora_layer, model, run, shake, sizes

from minilora import LoraConfig, Tensor, quantize_model
from minilora.lora import LoraLinear
from minilora.nn import Linear, QuantizedLinear


@given(kinds, sizes, sizes, sizes, st.integers(0, 9))
def test_every_row_has_the_length_of_its_magnitude(kind, d_out, d_in, r, seed):
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, np.float64, r=r, lora_alpha=3, use_dora=True)
    m = layer.lora_magnitude_vector["default"].data
    whole = layer.weight() + layer.delta_weight()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), np.abs(m), rtol=1e-9)
    direction = layer.weight() + layer.scaling["default"] * layer.B("default").data @ layer.A("default").data
    np.testing.assert_allclose(whole, m[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True))
    x = inputs(kind, d_in, rng, np.float64)
    bias = 0 if kind == "embedding" else layer.base_layer.bias.data
    expected = (whole.T[x] if kind == "embedding" else x.data @ whole.T) + bias
    np.testing.assert_allclose(layer(x).data, expected, atol=1e-6 if kind == "4-bit" else 1e-10)


def test_beside_4_bits_it_is_dora_of_the_dequantized_weight(rng):
    quantized = lora_layer("4-bit", 8, 64, rng, r=2, use_dora=True)
    dense = Linear(64, 8)
    dense.weight.data, dense.bias = quantized.weight(), quantized.base_layer.bias
    other = LoraLinear(dense, LoraConfig(r=2, use_dora=True), rng)
    m = other.lora_magnitude_vector["default"].data
    np.testing.assert_allclose(m, np.linalg.norm(dense.weight.data, axis=1), rtol=1e-6)
    other.load_state("default", quantized.state("default"))
    x = inputs("linear", 64, rng)
    np.testing.assert_allclose(quantized(x).data, other(x).data, atol=1e-5)
    assert isinstance(quantized.base_layer, QuantizedLinear)


def test_the_norm_is_a_constant_in_backward(rng):
    """dL/dB = s diag(g) (dL/dy)ᵀ (x Aᵀ) with g = m / ‖W + ΔW‖ held fixed (the paper's section 4.3)."""
    layer = lora_layer("linear", 5, 7, rng, np.float64, r=2, lora_alpha=6, use_dora=True)
    x, dy = Tensor(rng.standard_normal((4, 7))), rng.standard_normal((4, 5))
    layer(x).backward(dy)
    A, B, s = layer.A("default").data, layer.B("default").data, layer.scaling["default"]
    norm = np.linalg.norm(layer.weight() + s * B @ A, axis=1)
    g = layer.lora_magnitude_vector["default"].data / norm
    np.testing.assert_allclose(layer.B("default").grad, s * (dy * g).T @ (x.data @ A.T))
    np.testing.assert_allclose(layer.A("default").grad, s * ((dy * g) @ B).T @ x.data)
    whole = x.data @ (layer.weight() + s * B @ A).T
    np.testing.assert_allclose(layer.lora_magnitude_vector["default"].grad, (dy * whole).sum(0) / norm)


def test_rows_of_zeros_stay_and_give_no_nan(rng):
    layer = lora_layer("linear", 4, 6, rng, trained=False, r=2, use_dora=True)
    layer.base_layer.weight.data[1] = 0
    layer.delete_adapter("default")
    layer.add_adapter("default", LoraConfig(r=2, use_dora=True), rng)
    x = inputs("linear", 6, rng)
    np.testing.assert_array_equal(layer(x).data, layer.base_layer(x).data)
    layer(x).sum().backward()
    shake(layer.adapter_parameters("default"), rng)
    assert np.isfinite(layer(x).data).all() and np.isfinite(layer.delta_weight()).all()


def test_with_dropout_the_frozen_product_is_of_the_dropped_input_too(rng):
    """As PEFT: y = W x + (g - 1) W drop(x) + g ΔW drop(x)."""
    layer = lora_layer("linear", 5, 64, rng, np.float64, r=2, use_dora=True, lora_dropout=0.5)
    layer.base_layer.bias.data[:] = 0
    layer.training, layer.rng = True, np.random.default_rng(7)
    x = inputs("linear", 64, rng, np.float64)
    y = layer(x).data - layer.base_layer(x).data
    keep = np.random.default_rng(7).random(x.shape, np.float32) >= 0.5
    np.testing.assert_allclose(y, (2 * keep * x.data) @ layer.delta_weight().T, atol=1e-10)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_model_trains_its_magnitudes(rng, quantized):
    base = quantize_model(model(bias=True)) if quantized else model(bias=True)
    before = run(base)
    peft = adapted(base=base, use_dora=True, bias="lora_only")
    np.testing.assert_array_equal(run(peft), before)
    peft.loss(IDS, IDS).backward()
    magnitudes = [p for name, p in peft.named_parameters() if name.endswith("lora_magnitude_vector.default")]
    assert len(magnitudes) == 6 and all(p.grad.any() for p in magnitudes)
    shake(peft.trainable().values(), rng)
    trained = run(peft)
    np.testing.assert_allclose(run(peft.merge_and_unload()), trained, atol=1e-4)
