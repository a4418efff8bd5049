"""One layer for q, k and v, of which some are adapted: loralib's MergedLinear, and where families put their parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import IDS, run, shake

from minilora import LoraConfig, PeftModel, Tensor, get_peft_model
from minilora.errors import ConfigError
from minilora.lora import LoraLinear, LoraMergedLinear
from minilora.lora.fused import fused_rows
from minilora.nn import Linear, Module
from minilora.nn.bloom import Bloom
from minilora.nn.gpt2 import GPT2, GPTBigCode
from minilora.nn.language_model import ModelConfig

FAMILIES = {
    "gpt2": (GPT2, {}, "c_attn"),
    "multi-query": (GPTBigCode, {"num_key_value_heads": 1}, "c_attn"),
    "bloom": (Bloom, {}, "query_key_value"),
}
enabled = st.lists(st.booleans(), min_size=1, max_size=4).filter(any)


def family(name):
    build, fields, target = FAMILIES[name]
    return build(ModelConfig(20, 16, 24, 2, 4, max_position_embeddings=32, **fields)), target


def loralib(W, A, B, scaling, enable):
    """MergedLinear's forward weight, after its source: an update of grouped B and A, zero-padded where disabled."""
    part, r = len(W) // len(enable), len(A) // sum(enable)
    delta = np.zeros_like(W)
    numbers = [i for i, on in enumerate(enable) if on]
    for group, number in enumerate(numbers):
        block = B[group * part : (group + 1) * part] @ A[group * r : (group + 1) * r]
        delta[number * part : (number + 1) * part] = block
    return W + scaling * delta


@given(enabled, st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_it_is_loralib_s_merged_linear(enable, part, d_in, r, seed):
    rng = np.random.default_rng(seed)
    base = Linear(d_in, part * len(enable), bias=True, rng=rng)
    layer = LoraMergedLinear(base, LoraConfig(r=r, lora_alpha=3, enable_lora=enable), rng)
    assert layer.lora_A.weight.shape == (r * sum(enable), d_in)
    assert layer.lora_B.weight.shape == (part * sum(enable), r)
    x = Tensor(rng.standard_normal((2, 3, d_in), np.float32))
    np.testing.assert_array_equal(layer(x).data, base(x).data)
    shake(layer.adapter_parameters("default"), rng)
    A, B = layer.lora_A.weight.data, layer.lora_B.weight.data
    whole = loralib(base.weight.data, A, B, 3 / r, enable)
    np.testing.assert_allclose(layer(x).data, x.data @ whole.T + base.bias.data, atol=1e-5)
    np.testing.assert_allclose(layer.merged().weight.data, whole, atol=1e-6)
    assert np.linalg.matrix_rank(layer.delta_weight(), tol=1e-5) <= r * sum(enable)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_part_moves_what_it_should(name, rng):
    """With only the update of k, queries and values are the base's."""
    model, target = family(name)
    attention = next(m for _, m in model.named_modules() if type(m).__name__ == "Attention")
    H, K, hd = attention.heads, getattr(attention, "kv_heads", attention.heads), 4
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=[target], enable_lora=[False, True, False]))
    shake(peft.trainable().values(), rng)
    layer = next(iter(peft.adapters().values()))
    x = Tensor(rng.standard_normal((1, 5, 16), np.float32))
    change = (layer(x).data - layer.base_layer(x).data).reshape(5, -1, hd)  # by head of the output
    moved = np.abs(change).max((0, 2)) > 0
    k = (
        np.arange(H + 2 * K) % 3 == 1
        if name == "bloom"
        else (np.arange(H + 2 * K) // H == 1) * (np.arange(H + 2 * K) < H + K)
    )
    np.testing.assert_array_equal(moved, k.astype(bool))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_small_factors_are_trained(name, rng):
    model, target = family(name)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=[target], enable_lora=[True, False, True]))
    rows = 16 + (4 if name == "multi-query" else 16)
    assert peft.trainable_parameters()[0] == 2 * (2 * 2 * 16 + rows * 2)
    shake(peft.trainable().values(), rng)
    peft.loss(IDS, IDS).backward()
    assert all(p.grad.any() for p in peft.trainable().values())
    adapted = run(peft)
    np.testing.assert_allclose(run(peft.merge_and_unload()), adapted, atol=1e-5)


def test_b_s_gradient_is_that_of_its_rows(rng):
    base = Linear(5, 6, rng=rng)
    base.weight.data = base.weight.data.astype(np.float64)
    layer = LoraMergedLinear(base, LoraConfig(r=2, enable_lora=[True, False, True]), rng)
    shake(layer.adapter_parameters("default"), rng)
    x, dy = Tensor(rng.standard_normal((4, 5))), rng.standard_normal((4, 6))
    layer(x).backward(dy)
    A, s = layer.lora_A.weight.data, layer.scaling["default"]
    low = x.data @ A.T * s
    expected = np.concatenate([dy[:, :2].T @ low[:, :2], dy[:, 4:].T @ low[:, 2:]])
    np.testing.assert_allclose(layer.lora_B.weight.grad, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_saved_as_the_plain_adapter_that_it_equals(name, tmp_path, rng):
    model, target = family(name)
    other = target.replace("c_attn", "c_proj").replace("query_key_value", "dense")
    fields = {"r": 2, "lora_alpha": 6, "target_modules": [target, other], "enable_lora": [True, False, True]}
    peft = get_peft_model(model, LoraConfig(**fields))
    shake(peft.trainable().values(), rng)
    peft.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(family(name)[0], tmp_path)
    np.testing.assert_allclose(run(again), run(peft), atol=1e-6)
    for path, layer in again.adapters().items():
        assert type(layer) is LoraLinear
        assert layer.r["default"] == (4 if path.endswith(target) else 2) and layer.scaling["default"] == 3


def test_beside_a_plain_adapter(rng):
    model, target = family("gpt2")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=[target], enable_lora=[True, False, True]))
    peft.add_adapter("plain", LoraConfig(r=2, target_modules=[target]))
    for name in ("default", "plain"):
        shake(peft.adapter_parameters(name), rng)
    alone = {}
    for name in ("default", "plain"):
        peft.set_adapter(name)
        alone[name] = run(peft)
    made = peft.add_weighted_adapter(["default", "plain"], [1, 1], "both", "cat")
    peft.set_adapter(["default", "plain"])
    together = run(peft)
    peft.set_adapter("both")
    np.testing.assert_allclose(run(peft), together, atol=1e-5)
    assert made.relative_error < 1e-6
    with pytest.raises(ConfigError, match="attach the one with it first"):
        other, _ = family("gpt2")
        peft = get_peft_model(other, LoraConfig(r=2, target_modules=[target]))
        peft.add_adapter("fused", LoraConfig(r=2, target_modules=[target], enable_lora=[True, False, True]))
    assert list(peft.peft_config) == ["default"] and all("fused" not in m for m in peft.adapters().values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="none is targeted"):
        model, _ = family("gpt2")
        get_peft_model(model, LoraConfig(target_modules=["c_proj"], enable_lora=[True, False, True]))
    with pytest.raises(ConfigError, match="not a multiple"):
        fused_rows("qkv", None, 10, 3)

    class Uneven(Module):
        def __init__(self):
            self.first, self.second = Module(), Module()
            self.first.qkv, self.second.qkv = Linear(4, 9), Linear(4, 10)

    model = Uneven()
    with pytest.raises(ConfigError, match="not a multiple"):
        get_peft_model(model, LoraConfig(r=2, target_modules=["qkv"], enable_lora=[True, False, True]))
    assert type(model.first.qkv) is Linear  # which had its adapter already

    class Holder(Module):
        def __init__(self):
            self.qkv = Linear(4, 8)

    peft = get_peft_model(Holder(), LoraConfig(r=2, target_modules=["qkv"], enable_lora=[True, False]))
    with pytest.raises(ConfigError, match="this layer has 2 parts"):
        peft.add_adapter("other", LoraConfig(r=2, target_modules=["qkv"], enable_lora=[True, False, True, True]))
