"""The laws of LoRA, on a layer and on a small model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import IDS, KINDS, ab, adapted, in_float64, inputs, kinds, lora_layer, model, run, shake, sizes

from minilora import LoraConfig, Tensor, get_peft_model, ledger, no_grad, quantize_model
from minilora.errors import ConfigError
from minilora.nn import Linear


@given(kinds, sizes, sizes, sizes, st.sampled_from([True, "gaussian"]), st.booleans(), st.integers(0, 9))
def test_at_first_nothing_changes_exactly(kind, d_out, d_in, r, init, dora, seed):
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, trained=False, r=r, init_lora_weights=init, use_dora=dora)
    x = inputs(kind, d_in, rng)
    np.testing.assert_array_equal(layer(x).data, layer.base_layer(x).data)
    A, B = ab(layer)
    assert A.any() != B.any()  # exactly one of them is zero
    assert A.dtype == B.dtype == np.float32 and A.shape == (r, d_in) and B.shape == (d_out, r)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_model_is_its_base_at_first(quantized):
    base = quantize_model(model()) if quantized else model()
    before = run(base)
    np.testing.assert_array_equal(run(get_peft_model(base, LoraConfig(r=4, lora_alpha=8))), before)


@given(kinds, sizes, sizes, sizes, st.floats(0.5, 64), st.booleans(), st.integers(0, 9))
def test_the_update_is_scaling_times_b_a_of_rank_r(kind, d_out, d_in, r, alpha, rslora, seed):
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, np.float64, r=r, lora_alpha=alpha, use_rslora=rslora)
    A, B = ab(layer)
    delta = layer.delta_weight()
    np.testing.assert_allclose(delta, alpha / (r**0.5 if rslora else r) * B @ A, rtol=1e-12, atol=1e-13)
    assert np.linalg.matrix_rank(delta, tol=1e-9) <= r
    x = inputs(kind, d_in, rng, np.float64)
    update = delta.T[x] if kind == "embedding" else x.data @ delta.T
    np.testing.assert_allclose(layer(x).data - layer.base_layer(x).data, update, atol=1e-10)
    before = layer.base_layer(x).data
    layer.scaling["default"] *= 3  # linear in alpha / r
    np.testing.assert_allclose(layer(x).data - before, 3 * update, atol=1e-10)


@given(st.sampled_from(KINDS[:2]), sizes, sizes, sizes, st.integers(0, 9))
def test_gauge_freedom(kind, d_out, d_in, r, seed):
    """(B M, M⁻¹ A) is the same adapter for every invertible M."""
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, np.float64, r=r)
    x = inputs(kind, d_in, rng, np.float64)
    before, (A, B) = layer(x).data, ab(layer)
    M = rng.standard_normal((r, r)) + 3 * np.eye(r)
    M = M if np.linalg.cond(M) < 1e3 else np.eye(r)
    layer.load_state("default", {"lora_A.weight": np.linalg.solve(M, A), "lora_B.weight": B @ M})
    np.testing.assert_allclose(layer(x).data, before, atol=1e-9)


@given(kinds, sizes, sizes, sizes, st.booleans(), st.integers(0, 9))
def test_merged_is_unmerged(kind, d_out, d_in, r, dora, seed):
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, np.float64, r=r, use_dora=dora)
    x = inputs(kind, d_in, rng, np.float64)
    expected, plain = layer(x).data, layer.merged()
    assert type(plain) is (type(layer.base_layer) if kind != "4-bit" else Linear)
    rounding = 1e-12 if kind != "4-bit" else 1e-6  # the 4-bit product is made of float32
    np.testing.assert_allclose(plain(x).data, expected, atol=rounding * max(1, np.abs(expected).max()))


@given(sizes, sizes, st.integers(0, 9))
def test_full_rank_reproduces_any_update(d_out, d_in, seed):
    rng = np.random.default_rng(seed)
    r = min(d_out, d_in)
    layer = lora_layer("linear", d_out, d_in, rng, np.float64, r=r, lora_alpha=3)
    wanted = rng.standard_normal((d_out, d_in))
    U, S, Vt = np.linalg.svd(wanted, full_matrices=False)
    layer.load_state("default", {"lora_A.weight": Vt, "lora_B.weight": U * S / layer.scaling["default"]})
    np.testing.assert_allclose(layer.delta_weight(), wanted, atol=1e-12)


@given(kinds, sizes, sizes, st.integers(0, 9))
def test_adapters_add(kind, d_out, d_in, seed):
    rng = np.random.default_rng(seed)
    layer = lora_layer(kind, d_out, d_in, rng, np.float64, r=2)
    layer.add_adapter("other", LoraConfig(r=3, lora_alpha=5), rng)
    shake(layer.adapter_parameters("other"), rng)
    x, out = inputs(kind, d_in, rng, np.float64), {}
    for names in ([], ["default"], ["other"], ["default", "other"], ["other", "default"]):
        layer.active_adapters = names
        out[tuple(names)] = layer(x).data
    both = out["default",] + out["other",] - out[()]
    np.testing.assert_allclose(out["default", "other"], both, atol=1e-12 * max(1, np.abs(both).max()))
    np.testing.assert_allclose(out["other", "default"], both, atol=1e-12 * max(1, np.abs(both).max()))
    np.testing.assert_array_equal(out[()], layer.base_layer(x).data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True])
def test_the_gradients_of_a_and_b(kind, dora, rng):
    """Against finite differences of the output in a random direction."""
    layer = lora_layer(kind, 5, 7, rng, np.float64, r=2, lora_alpha=3)
    if dora:  # the norm is a constant in backward, so only the magnitude's gradient is that of the function
        layer = lora_layer(kind, 5, 7, rng, np.float64, r=2, lora_alpha=3, use_dora=True)
    x, g = inputs(kind, 7, rng, np.float64), rng.standard_normal((3, 4, 5))
    layer(x).backward(g)
    for p in layer.adapter_parameters("default")[2 * dora :]:
        v, before = rng.standard_normal(p.shape), p.data
        ends = []
        for step in (1e-6, -1e-6):
            p.data = before + step * v
            ends.append((layer(x).data * g).sum())
        p.data = before
        assert (p.grad * v).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def descend(layer, wanted, steps=800):
    """Gradient descent on ‖(W₀ + ΔW) - (W₀ + wanted)‖² / 2: the inputs are the unit vectors."""
    x = Tensor(np.eye(wanted.shape[1]))
    goal = layer.base_layer(x).data + wanted.T
    A, B = layer.A("default"), layer.B("default")
    for _ in range(steps):
        error = layer(x) - goal
        (error * error).sum().backward()
        for p in (A, B):
            p.data, p.grad = p.data - 0.1 * p.grad, None
    return ((layer(x).data - goal) ** 2).sum()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_trained_adapter_reaches_what_its_rank_allows(k):
    """A planted update of rank k is found at r = k; below, what is left is what Eckart and Young say."""
    rng = np.random.default_rng(k)
    U, V = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in (6, 5))
    S = np.array([1.5, 1.0, 0.5])[:k]
    wanted = (U * S) @ V.T
    for r in range(1, k + 1):
        layer = lora_layer("linear", 6, 5, rng, np.float64, trained=False, r=r, lora_alpha=r)
        left = descend(layer, wanted)
        assert left == pytest.approx((S[r:] ** 2).sum(), abs=1e-10)


def test_only_adapters_get_gradients():
    peft = adapted(r=2)
    peft.loss(IDS, IDS).backward()
    for name, p in peft.named_parameters():
        assert (p.grad is not None) == ("lora_" in name)
        if "lora_A" in name:
            assert not p.grad.any()  # B = 0, so A gets none at the first step
        if "lora_B" in name:
            assert p.grad.any()


def test_no_activation_is_held_for_a_frozen_weight(rng):
    """Beside a frozen W₀ the tape holds A x, for B, and x, for A: W₀'s own product adds nothing to it."""
    layer = lora_layer("linear", 512, 256, rng, r=4)
    layer.base_layer.requires_grad_(False)
    x = Tensor(rng.standard_normal((32, 256), np.float32), requires_grad=True) * 1.0

    def held(run):
        y, tape = run(), ledger()
        del y
        return tape.total + tape.parameters

    whole, alone = held(lambda: layer(x)), held(lambda: layer.down(layer.A("default"), x))
    frozen, low = held(lambda: layer.base_layer(x)), 32 * 4 * 4
    assert frozen == layer.base_layer.weight.data.nbytes  # to send the gradient on; the input is not kept
    assert whole - frozen - alone == low + layer.B("default").data.nbytes
    layer.base_layer.requires_grad_(True)
    assert held(lambda: layer.base_layer(x)) == frozen + x.data.nbytes


def test_dropout_acts_on_the_adapter_only_in_training(rng):
    peft = adapted(rng, lora_dropout=0.5)
    assert np.array_equal(run(peft), run(peft))
    peft.train()
    assert not np.array_equal(run(peft), run(peft))
    with peft.disable_adapter():
        np.testing.assert_array_equal(run(peft), run(peft))


def test_print_trainable_parameters(capsys):
    get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"])).print_trainable_parameters()
    assert capsys.readouterr().out == "trainable params: 128 || all params: 4,880 || trainable%: 2.6230\n"


def test_names_are_peft_s(rng):
    peft = adapted()
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    names = dict(peft.named_parameters())
    assert {
        f"{path}.lora_A.default.weight",
        f"{path}.lora_B.default.weight",
        f"{path}.base_layer.weight",
    } <= names.keys()
    layer = peft.adapters()[path]
    assert layer.lora_A.weight is layer.lora_A["default"].weight  # with one adapter, for short
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AttributeError, match="2 adapters"):
        _ = layer.lora_A.weight
    with pytest.raises(KeyError):
        layer.lora_A["third"]
    assert list(layer.lora_A) == ["default", "other"] and f"{path}.lora_B.other.weight" in peft.state_dict()


def test_a_model_in_float64_keeps_it(rng):
    peft = adapted(rng, in_float64(model()), r=3)
    assert {p.dtype for p in peft.parameters()} == {np.dtype(np.float64)}
    expected = run(peft)
    np.testing.assert_allclose(run(peft.merge_and_unload()), expected, atol=1e-12)


def test_seeds_decide(rng):
    states = [adapted(seed=seed).adapter_state_dict() for seed in (1, 1, 2)]
    name = next(n for n in states[0] if "lora_A" in n)
    np.testing.assert_array_equal(states[0][name], states[1][name])
    assert not np.array_equal(states[0][name], states[2][name])


def test_a_model_with_adapters_is_not_adapted_again():
    peft = adapted()
    for again in (peft, peft.get_base_model()):
        with pytest.raises(ConfigError, match="already has adapters"):
            get_peft_model(again, LoraConfig())


def test_what_it_lacks_is_the_base_model_s():
    peft = adapted()
    assert peft.config is peft.get_base_model().config
    with no_grad():
        assert peft.loss(IDS, IDS).item() == peft.get_base_model().loss(IDS, IDS).item()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = peft.nonsense
