"""Merging and unmerging, what survives of an update in 4 bits, and one adapter from several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora.cases import adapted, in_float64, model, run, shake

from minilora import LoraConfig, Tensor, get_peft_model, quantize_model
from minilora.errors import ConfigError, UnknownNameError
from minilora.lora import LoraLinear
from minilora.lora.combine import best_of_rank, combine, ties
from minilora.lora.merge import merge, overall, survival
from minilora.nn import Linear, QuantizedLinear


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["norm"]}])
def test_merge_then_unmerge_restores_the_base_bit_for_bit(quantized, fields, rng):
    base = model(bias="bias" in fields)
    base = quantize_model(base) if quantized else base
    before, codes, plain = {n: p.data.copy() for n, p in base.named_parameters()}, base.quantized(), run(base)
    peft = adapted(rng, base, **fields)
    logits = run(peft)
    peft.merge_adapter()
    np.testing.assert_allclose(run(peft), logits, atol=1e-5)
    assert all(layer.merged_adapters == ["default"] for layer in peft.adapters().values())
    with peft.disable_adapter():
        np.testing.assert_array_equal(run(peft), plain)
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        peft.merge_adapter()
    for forbidden in (lambda: peft.set_adapter("default"), lambda: peft.add_adapter("other", LoraConfig())):
        with pytest.raises(ConfigError, match="unmerge_adapter"):
            forbidden()
    peft.unmerge_adapter()
    np.testing.assert_array_equal(run(peft), logits)
    base = peft.unload()
    assert base.quantized() == codes
    for name, p in base.named_parameters():
        np.testing.assert_array_equal(p.data, before[name])


@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_unmerged_in_float64(dora, rng):
    peft = adapted(rng, in_float64(model()), use_dora=dora, target_modules="all-linear")
    logits = run(peft)
    np.testing.assert_allclose(run(peft.merge_and_unload()), logits, atol=1e-12)


@pytest.mark.parametrize("quantized", [False, True])
def test_merge_and_unload_gives_a_plain_float_model(quantized, rng):
    base = quantize_model(model()) if quantized else model()
    peft = adapted(rng, base, target_modules=["q_proj"])
    logits = run(peft)
    peft.merge_adapter()  # twice makes no difference
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(run(merged), logits, atol=1e-5)
    kinds = {type(m) for path, m in merged.named_modules() if path.endswith("q_proj")}
    assert kinds == {Linear} and merged.merge_survival == {}
    assert len(merged.quantized()) == (12 if quantized else 0)  # layers without an adapter stay as they are


def test_several_are_merged_at_once_or_one_of_them(rng):
    peft = adapted(rng, in_float64(model()))
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj", "o_proj"]))
    shake(peft.adapter_parameters("other"), rng)
    out = {}
    for names in (["default"], ["other"], ["default", "other"]):
        peft.set_adapter(names)
        out[tuple(names)] = run(peft)
    for names, logits in out.items():
        peft.merge_adapter(list(names))
        np.testing.assert_allclose(run(peft), logits, atol=1e-12)
        peft.unmerge_adapter()
    with pytest.raises(UnknownNameError):
        peft.merge_and_unload(["third"])
    np.testing.assert_allclose(run(peft.merge_and_unload(["other"])), out["other",], atol=1e-12)


def test_a_broken_adapter_is_not_merged(rng):
    peft = adapted(rng)
    next(iter(peft.adapters().values())).lora_A.weight.data[0, 0] = np.nan
    with pytest.raises(ConfigError, match=r"q_proj: W \+ ΔW is not finite"):
        peft.merge_adapter()


@pytest.mark.parametrize(
    ("size", "gain", "error", "changed"),
    [(2e-4, (0.01, 0.035), (0.95, 1.15), (0, 0.001)), (5e-4, (0.01, 0.035), (0.95, 1.15), (0, 0.01)),
     (2e-3, (0.75, 0.95), (0.77, 0.81), (0.19, 0.21)), (5e-3, (0.95, 1.05), (0.36, 0.39), (0.5, 0.65))],
)  # fmt: skip
def test_what_survives_in_4_bits(size, gain, error, changed):
    """Of a normal update of deviation `size` in a normal weight of deviation .02, NF4 in blocks of 64."""
    rng = np.random.default_rng(0)
    base = Linear(512, 512)
    base.weight.data = rng.standard_normal((512, 512), np.float32) * np.float32(0.02)
    layer = LoraLinear(QuantizedLinear.from_linear(base, double_quant=False), LoraConfig(r=512, lora_alpha=512), rng)
    layer.lora_A.weight.data = np.eye(512, dtype=np.float32)
    layer.lora_B.weight.data = rng.standard_normal((512, 512), np.float32) * np.float32(size)
    before = layer.base_layer.quantized_weight
    survived = merge(layer, "layer", ["default"], requantize=True)
    after = layer.base_layer.quantized_weight
    share = np.mean([(before.packed >> s) & 15 != (after.packed >> s) & 15 for s in (0, 4)])
    assert gain[0] <= survived.gain <= gain[1] and error[0] <= survived.relative_error <= error[1]
    assert changed[0] <= share <= changed[1]


def test_requantizing_is_asked_for_and_reported(rng):
    peft = adapted(rng, quantize_model(model()), lora_alpha=0.5)
    with pytest.warns(UserWarning, match=r"kept of ΔW: gain 0\.\d+, relative error"):
        total = peft.merge_adapter(requantize=True)
    assert len(peft.quantized()) == 14 and total.relative_error > 0
    peft.unmerge_adapter()
    with pytest.warns(UserWarning, match="Merge into floats"):
        merged = peft.merge_and_unload(requantize=True)
    assert len(merged.quantized()) == 14 and len(merged.merge_survival) == 6
    again = overall(list(merged.merge_survival.values()))
    assert (again.gain, again.relative_error) == (total.gain, total.relative_error)


@given(st.integers(1, 30), st.floats(-2, 2), st.integers(0, 9))
def test_gain_is_the_share_of_what_was_wanted(n, share, seed):
    wanted = np.random.default_rng(seed).standard_normal(n)
    part = survival(wanted, share * wanted)
    assert part.gain == pytest.approx(share) and part.relative_error == pytest.approx(abs(1 - share))
    assert survival(np.zeros(n), np.zeros(n)).relative_error == 0
    both = survival(np.r_[wanted, 2 * wanted], np.r_[share * wanted, 2 * wanted])
    parts = overall([part, survival(2 * wanted, 2 * wanted)])
    assert both.gain == pytest.approx(parts.gain) and both.relative_error == pytest.approx(parts.relative_error)


# One adapter from several.

factors = st.tuples(st.integers(1, 7), st.integers(1, 7), st.lists(st.integers(1, 4), min_size=1, max_size=3))


def random_parts(d_out, d_in, ranks, seed):
    rng = np.random.default_rng(seed)
    return [(float(rng.normal()), rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))) for r in ranks]


@given(factors, st.integers(1, 6), st.integers(0, 9))
def test_cat_is_exact_and_svd_is_the_best_of_its_rank(sizes, rank, seed):
    parts = random_parts(*sizes, seed)
    exact = sum(w * B @ A for w, B, A in parts)
    B, A = combine("cat", parts)
    assert len(A) == sum(sizes[2])
    np.testing.assert_allclose(B @ A, exact, atol=1e-12)
    B, A = combine("svd", parts, rank=rank)
    left = np.linalg.svd(exact, compute_uv=False)[rank:]
    assert np.linalg.norm(exact - B @ A) == pytest.approx(np.linalg.norm(left), abs=1e-9)
    np.testing.assert_allclose(best_of_rank(B, A, rank)[0] @ best_of_rank(B, A, rank)[1], B @ A, atol=1e-9)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_linear_adds_the_cross_terms(d_out, d_in, r, n, seed):
    parts = random_parts(d_out, d_in, [r] * n, seed)
    B, A = combine("linear", parts)
    cross = sum(
        abs(w) ** 0.5 * abs(v) ** 0.5 * np.sign(v) * P @ Q
        for i, (w, P, _) in enumerate(parts) for j, (v, _, Q) in enumerate(parts) if i != j
    )  # fmt: skip
    np.testing.assert_allclose(B @ A, sum(w * P @ Q for w, P, Q in parts) + cross, atol=1e-9)


def test_ties_by_hand():
    a, b, c = np.array([[4.0, -3, 0.1, 2]]), np.array([[1.0, -2, 5, -2]]), np.array([[-3.0, 0.2, 4, 1]])
    # density 1/2 keeps the two largest of each: [4 -3 0 0], [0 -2 5 0], [-3 0 4 0]; signs + - + +
    np.testing.assert_array_equal(ties([a, b, c], [1, 1, 2], 0.5), [[4, -2.5, 6.5, 0]])
    np.testing.assert_array_equal(ties([a, b, c], [1, 1, 1], 1.0), [[2.5, -2.5, 9.1 / 3, 1.5]])
    np.testing.assert_array_equal(ties([a, -a], [1, 1], 1.0, "frequency"), np.abs(a))


def test_a_weighted_adapter_in_a_model(rng):
    peft = adapted(rng, in_float64(model()), rank_pattern={"up_proj": 2})
    peft.add_adapter("other", LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True))
    shake(peft.adapter_parameters("other"), rng)
    made = peft.add_weighted_adapter(["default", "other"], [2.0, -0.5], "both", "cat")
    assert made.relative_error < 1e-12 and made.layers.keys() == {
        p.removeprefix("base_model.model.") for p in peft.adapters()
    }
    ranks = {path.rpartition(".")[2]: layer.r["both"] for path, layer in peft.adapters().items()}
    assert ranks == {"q_proj": 7, "v_proj": 4, "up_proj": 2, "down_proj": 3}
    for layer in peft.adapters().values():
        exact = sum(w * layer.delta_weight(n) for n, w in (("default", 2), ("other", -0.5)) if n in layer)
        np.testing.assert_allclose(layer.delta_weight("both"), exact, atol=1e-12)
    assert peft.active_adapters == ["default"] and not any("both" in n for n in peft.trainable())


@pytest.mark.parametrize(
    ("adapters", "weights", "kind", "options", "message"),
    [
        (["default", "nobody"], [1, 1], "cat", {}, "unknown adapter 'nobody'"),
        (["default"], [1], "mean", {}, "unknown combination_type 'mean'"),
        (["default", "other"], [1], "cat", {}, "one finite weight"),
        (["default", "other"], [1, float("nan")], "cat", {}, "one finite weight"),
        ([], [], "cat", {}, "one finite weight"),
        (["default", "other"], [1, 1], "linear", {}, "the same r"),
        (["default"], [1], "ties", {}, "density"),
        (["default"], [1], "ties", {"density": 1.5}, "density"),
        (["default"], [1], "ties", {"density": 1.0, "majority_sign_method": "mean"}, "majority_sign_method"),
        (["dora"], [1], "cat", {}, "'dora' is more than A and B"),
        (["default"], None, "cat", {}, "one finite weight"),
        (["default"], ["1"], "cat", {}, "one finite weight"),
        (["default"], [1], "svd", {"svd_rank": 0}, "svd_rank must be a positive integer, not 0"),
        (["default"], [1], "svd", {"svd_rank": -1}, "svd_rank must be a positive integer, not -1"),
        (["default"], [1], "svd", {"svd_rank": 1.5}, "svd_rank must be a positive integer, not 1.5"),
    ],
)
def test_combinations_that_cannot_be_made(adapters, weights, kind, options, message, rng):
    peft = adapted(rng)
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    peft.add_adapter("dora", LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        peft.add_weighted_adapter(adapters, weights, "new", kind, **options)
    assert "new" not in peft.peft_config and all("new" not in layer for layer in peft.adapters().values())


def test_one_name_need_not_be_in_a_list(rng, tmp_path):
    peft = adapted(rng)
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    shake(peft.adapter_parameters("other"), rng)
    peft.set_adapter("other")
    expected = run(peft)
    peft.set_adapter("default")
    peft.save_pretrained(tmp_path, "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    peft.merge_adapter("other")
    np.testing.assert_allclose(run(peft), expected, atol=1e-5)
    peft.unmerge_adapter()
    for nothing in (peft.merge_adapter, peft.merge_and_unload, lambda names: peft.save_pretrained(tmp_path, names)):
        with pytest.raises(ConfigError, match="name at least one adapter"):
            nothing([])
    np.testing.assert_allclose(run(peft.merge_and_unload("other")), expected, atol=1e-5)


def test_a_layer_alone_can_be_merged(rng):
    layer = LoraLinear(Linear(4, 3, rng=rng), LoraConfig(r=2), rng)
    shake(layer.adapter_parameters("default"), rng)
    x = Tensor(rng.standard_normal((2, 4), np.float32))
    np.testing.assert_allclose(layer.merged()(x).data, layer(x).data, atol=1e-6)
    assert isinstance(get_peft_model(model(), LoraConfig()).merge_and_unload(), type(model()))
