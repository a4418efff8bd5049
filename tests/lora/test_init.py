"""Where an adapter starts: the values that the papers define, and the function that does not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import adapted, in_float64, model, run

from minilora import LoraConfig, get_peft_model, quantize, quantize_model
from minilora.errors import ConfigError
from minilora.lora import LoraLinear
from minilora.lora.init import loftq, truncated
from minilora.nn import Linear, QuantizedLinear
from minilora.nn.layers import Conv1D

sizes = st.integers(1, 9)


def started(kind, d_out, d_in, r, seed, layer=Linear, **fields):
    rng = np.random.default_rng(seed)
    base = layer(d_in, d_out, rng=rng)
    base.weight.data = rng.standard_normal(base.weight.shape)
    weight = base.weight.data.T if layer is Conv1D else base.weight.data
    lora = LoraLinear(base, LoraConfig(r=r, init_lora_weights=kind, **fields), rng)
    return weight.copy(), lora, lora.A("default").data, lora.B("default").data


@given(sizes, sizes, st.data(), st.floats(0.5, 9), st.booleans(), st.sampled_from([Linear, Conv1D]), st.integers(0, 9))
def test_pissa_takes_the_r_largest_singular_directions(d_out, d_in, data, alpha, rslora, layer, seed):
    r = data.draw(st.integers(1, min(d_out, d_in)))
    weight, lora, A, B = started("pissa", d_out, d_in, r, seed, layer, lora_alpha=alpha, use_rslora=rslora)
    U, S, Vt = np.linalg.svd(weight, full_matrices=False)
    np.testing.assert_allclose(lora.delta_weight(), (U[:, :r] * S[:r]) @ Vt[:r], atol=1e-10)
    np.testing.assert_allclose(lora.weight() + lora.delta_weight(), weight, atol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(lora.weight(), compute_uv=False)[: len(S) - r], S[r:], atol=1e-10)
    np.testing.assert_allclose((A**2).sum(1), (B**2).sum(0))  # S is shared evenly


@given(sizes, sizes, st.data(), st.floats(0.5, 9), st.sampled_from([Linear, Conv1D]), st.integers(0, 9))
def test_olora_takes_the_first_columns_of_qr(d_out, d_in, data, alpha, layer, seed):
    r = data.draw(st.integers(1, min(d_out, d_in)))
    weight, lora, A, B = started("olora", d_out, d_in, r, seed, layer, lora_alpha=alpha)
    np.testing.assert_allclose(B.T @ B, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(A, np.triu(A))
    np.testing.assert_allclose((B @ A)[:, :r], weight[:, :r], atol=1e-12)  # Q R is exact there
    np.testing.assert_allclose(lora.weight() + lora.delta_weight(), weight, atol=1e-12)


@given(st.integers(1, 3), st.sampled_from([4, 8]), st.floats(0.5, 9), st.integers(0, 9))
def test_loftq_starts_nearer_to_the_weight_than_quantization_alone(rounds, bits, alpha, seed):
    config = {"loftq_bits": bits, "loftq_iter": rounds}
    weight, lora, _, _ = started("loftq", 24, 32, 4, seed, lora_alpha=alpha, loftq_config=config)
    alone = quantize(weight, "nf4") if bits == 4 else quantize(weight, "int8", "row")
    assert isinstance(lora.base_layer, QuantizedLinear) and lora.base_layer.quantized_weight.code == alone.code
    error = np.linalg.norm(weight - lora.weight() - lora.delta_weight())
    assert error < np.linalg.norm(weight - alone.dequantize())
    if rounds == 1:  # Q is the quantized weight itself, and BA the best of its rank for what is missing
        np.testing.assert_array_equal(lora.weight(), alone.dequantize())
        S = np.linalg.svd(weight - alone.dequantize(), compute_uv=False)
        assert error == pytest.approx(np.linalg.norm(S[4:]), rel=1e-6)


def test_loftq_alternates(rng):
    """Each round quantizes what the last round's factors leave."""
    weight = rng.standard_normal((16, 16))
    _, B1, A1 = loftq(weight, 2, rounds=1)
    q2, B2, A2 = loftq(weight, 2, rounds=2)
    assert q2 == quantize(weight - B1 @ A1, "nf4")
    for got, expected in zip((B2, A2), truncated(weight - q2.dequantize(), 2), strict=True):
        np.testing.assert_array_equal(got, expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_uniform_and_gaussian(d_out, d_in, r):
    for seed in range(3):
        _, _, A, B = started(True, d_out, d_in, r, seed)
        assert np.abs(A).max() <= d_in**-0.5 and not B.any()
        _, _, A, B = started(False, d_out, d_in, r, seed)
        assert np.abs(A).max() <= d_in**-0.5 and np.abs(B).max() <= r**-0.5 and B.any()
    _, _, A, B = started("gaussian", 4, 4000, r, 0)
    assert A.std() == pytest.approx(1 / r, rel=0.05) and not B.any()


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_model_s_function_does_not_change(kind, dora, rng):
    base = in_float64(model())
    before = run(base)
    peft = adapted(base=base, init_lora_weights=kind, use_dora=dora)
    np.testing.assert_allclose(run(peft), before, atol=1e-10)
    peft = adapted(rng, in_float64(model()), init_lora_weights=kind, use_dora=dora)
    assert np.abs(run(peft) - before).max() > 1e-3
    with peft.disable_adapter():  # what was taken out is put back
        np.testing.assert_allclose(run(peft), before, atol=1e-10)
    trained = run(peft)
    peft.merge_adapter()
    np.testing.assert_allclose(run(peft), trained, atol=1e-10)
    with peft.disable_adapter():
        np.testing.assert_allclose(run(peft), before, atol=1e-10)
    peft.unmerge_adapter()
    np.testing.assert_allclose(run(peft.unload()), before, atol=1e-10)


def test_float32_is_kept_within_rounding():
    before = run(model())
    for kind in ("pissa", "olora"):
        np.testing.assert_allclose(run(adapted(init_lora_weights=kind)), before, atol=1e-5)


def test_loftq_quantizes_the_model(rng):
    peft = adapted(init_lora_weights="loftq", target_modules="all-linear", r=8)
    assert len(peft.quantized()) == 14
    plain = np.abs(run(quantize_model(model(), double_quant=False)) - run(model())).mean()
    assert np.abs(run(peft) - run(model())).mean() < plain


@pytest.mark.parametrize("kind", ["pissa", "olora", "loftq"])
def test_what_cannot_start_so_is_refused_and_the_model_left_alone(kind):
    base = quantize_model(model())
    before = base.state_dict(), base.quantized()
    with pytest.raises(ConfigError, match="starts from float weights"):
        adapted(base=base, init_lora_weights=kind)
    assert (base.state_dict(), base.quantized()) == before and all(p.requires_grad for p in base.parameters())
    with pytest.raises(ConfigError, match="choose a smaller r"):
        adapted(init_lora_weights=kind, r=17)
    peft = adapted(init_lora_weights=kind)
    for config in (LoraConfig(r=2), LoraConfig(r=2, init_lora_weights="pissa")):
        with pytest.raises(ConfigError, match="a model of its own"):
            peft.add_adapter("other", config)
    with pytest.raises(ConfigError, match="a model of its own"):
        adapted().add_adapter("other", LoraConfig(init_lora_weights=kind))


def test_a_failure_halfway_leaves_the_model_as_it_was():
    """An adapter that starts as a file says is never half attached."""
    base = model()
    with pytest.raises(ConfigError, match="not started here"):
        get_peft_model(base, LoraConfig(init_lora_weights="eva"))
    assert all(type(m).__name__ != "LoraLinear" for _, m in base.named_modules())
    assert all(p.requires_grad for p in base.parameters())
