"""16 bits, simulated: every value and gradient is one that the narrow type has."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minilora as ml
from minilora import Tensor, ops
from minilora.autograd import autocast
from minilora.autograd.rounding import ROUNDINGS
from minilora.errors import UnknownNameError
from minilora.nn import Linear, QuantizedLinear

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
floats = arrays(np.uint32, st.integers(1, 20), elements=st.integers(0, 2**32 - 1)).map(lambda a: a.view(np.float32))


@pytest.mark.parametrize("dtype", TYPES)
@given(floats)
def test_rounding_is_that_of_the_type(dtype, x):
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(TYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(ROUNDINGS[dtype](x), wanted)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_value_and_gradient_of_a_model_is_of_the_type(dtype, rng):
    model, _ = ml.load_model("embedded")
    model = ml.get_peft_model(model, ml.LoraConfig(r=4))
    for layer in model.trainable().values():
        layer.data = rng.standard_normal(layer.shape).astype(np.float32) * np.float32(0.05)
    ids = rng.integers(0, 1000, (2, 12))
    with autocast(dtype):
        model(ids)
        model.loss(ids, ids).backward()
    for p in model.trainable().values():
        assert p.grad.dtype == np.float32 and p.grad.any()
        np.testing.assert_array_equal(p.grad, p.grad.astype(TYPES[dtype]).astype(np.float32))
        assert not np.array_equal(p.data, p.data.astype(TYPES[dtype]).astype(np.float32))  # the adapters stay whole


def test_equation_5_of_qlora(rng):
    """Y = X doubleDequant(c1, c2, W) + X L1 L2, each product stored in BF16."""
    w = rng.standard_normal((48, 64)).astype(np.float32)
    layer = QuantizedLinear.from_linear(Linear(64, 48))
    layer.quantized_weight = ml.quantize(w, "nf4", 64, double_quant=True)
    adapted = ml.lora.LoraLinear(layer, ml.LoraConfig(r=4, lora_alpha=4), rng)
    L1, L2 = rng.standard_normal((64, 4)).astype(np.float32), rng.standard_normal((4, 48)).astype(np.float32)
    adapted.A("default").data, adapted.B("default").data = L1.T.copy(), L2.T.copy()
    bf16 = ROUNDINGS["bfloat16"]
    x = bf16(rng.standard_normal((5, 64)).astype(np.float32))
    with autocast("bfloat16"):
        y = adapted(Tensor(x)).data
    q = layer.quantized_weight
    c2 = ml.quant.DYNAMIC_MAP[q.absmax_codes] * np.repeat(q.absmax2, 256)[: q.absmax_codes.size] + q.offset
    codes = np.stack([q.packed >> 4, q.packed & 15], 1).ravel()
    weight = (ml.quant.CODES["nf4"][codes] * np.repeat(c2, 64)).reshape(48, 64)
    np.testing.assert_allclose(y, bf16(bf16(x @ weight.T) + bf16(x @ L1) @ L2), rtol=2**-7, atol=1e-2)
    np.testing.assert_array_equal(y, bf16(y))


def test_a_scalar_stays_float32_and_none_changes_nothing():
    x = Tensor(np.float32([1.001, 2.002]))
    with autocast("float16"):
        assert ops.sum(x).item() == np.float32(1.001) + np.float32(2.002)
    with autocast(None):
        np.testing.assert_array_equal((x * 1.0).data, x.data)
    with pytest.raises(UnknownNameError, match="bfloat16"), autocast("bf16"):
        pass
