"""Several adapters in one model: choosing, disabling, rows of a batch, modules and biases of their own."""

import numpy as np
import pytest
from lora.cases import IDS, adapted, in_float64, model, run, shake

from minilora import LoraConfig, get_peft_model, quantize_model
from minilora.errors import ConfigError, UnknownNameError
from minilora.lora.saved import ModulesToSaveWrapper


@pytest.fixture
def three(rng):
    """A model with adapters a (q, v), b (q, up; DoRA) and c (embedding, and a head of its own)."""
    peft = get_peft_model(in_float64(model()), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "a")
    peft.add_adapter("b", LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "up_proj"], use_dora=True))
    with pytest.warns(UserWarning, match="share one weight"):
        peft.add_adapter("c", LoraConfig(r=3, target_modules=["embed_tokens"], modules_to_save=["lm_head"]))
    for name in "abc":
        shake(peft.adapter_parameters(name), rng)
    return peft


def alone(peft, name):
    peft.set_adapter(name)
    return run(peft)


def test_adapters_are_separate_until_they_are_chosen(three):
    base = run(in_float64(model()))
    out = {name: alone(three, name) for name in "abc"}
    with three.disable_adapter():
        np.testing.assert_array_equal(run(three), base)
    for name, logits in out.items():
        assert np.abs(logits - base).max() > 1e-3
        np.testing.assert_array_equal(alone(three, name), logits)
    assert three.active_adapter == "c"
    three.set_adapter(["a", "b"])
    assert three.active_adapter == ["a", "b"]
    both = run(three)
    three.set_adapter(["b", "a"])
    np.testing.assert_allclose(run(three), both, atol=1e-12)
    assert not np.allclose(both, out["a"]) and not np.allclose(both, out["b"])


def test_the_active_adapters_alone_are_trained(three):
    for names in (["a"], ["b", "c"]):
        three.set_adapter(names)
        own = {id(p) for name in names for p in three.adapter_parameters(name)}
        assert {id(p) for p in three.trainable().values()} == own
        three.loss(IDS, IDS).backward()
        for p in three.parameters():
            assert (p.grad is not None) == (id(p) in own)
            p.grad = None
    three.set_adapter("a", is_trainable=False)
    assert not three.trainable()


def test_rows_of_one_batch_use_different_adapters(three):
    ids = np.arange(20).reshape(4, 5)
    names = ["b", "__base__", "c", "b"]
    three.set_adapter("a")
    mixed = run(three, ids, adapter_names=names)
    separate = {name: run(three, ids, adapter_names=[name] * 4) for name in "abc"}
    with three.disable_adapter():
        separate["__base__"] = run(three, ids)
    for row, name in enumerate(names):
        np.testing.assert_allclose(mixed[row], separate[name][row], atol=1e-12)
    for name in "abc":
        three.set_adapter(name)
        np.testing.assert_allclose(run(three, ids), separate[name], atol=1e-12)
    cache = three.new_cache(4, 5)
    run(three, ids[:, :4], adapter_names=names, cache=cache)
    last = run(three, ids[:, 4:], adapter_names=names, cache=cache, last_only=True)
    np.testing.assert_allclose(last[:, 0], mixed[:, -1], atol=1e-5)  # the cache is float32


def test_rows_have_gradients_too(three):
    three.set_adapter(["a", "c"])
    three(IDS, adapter_names=["a", "__base__"]).sum().backward()
    grads = {id(p) for p in three.parameters() if p.grad is not None and p.grad.any()}
    assert grads == {id(p) for p in three.adapter_parameters("a")}


def test_rows_that_do_not_fit_are_refused(three):
    with pytest.raises(ConfigError, match=r"3 names, but the input of a layer has shape \(2, 5"):
        run(three, adapter_names=["a", "b", "a"])
    with pytest.raises(UnknownNameError, match="unknown adapter 'd'"):
        run(three, adapter_names=["a", "d"])
    with pytest.raises(UnknownNameError, match="unknown adapter 'ab'"):
        run(three, adapter_names="ab")
    three.set_adapter("a")
    three.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        run(three, adapter_names=["a", "b"])
    biased = adapted(base=model(bias=True), bias="all")
    with pytest.raises(ConfigError, match="biases of its own"):
        run(biased, adapter_names=["default", "__base__"])


def test_delete(three):
    b = alone(three, "b")
    three.set_adapter(["a", "c"])
    three.delete_adapter("a")
    assert three.active_adapters == ["c"] and "a" not in three.peft_config
    three.delete_adapter("c")
    assert three.active_adapters == ["b"]
    np.testing.assert_array_equal(run(three), b)
    kinds = {type(m).__name__ for _, m in three.named_modules()}
    assert not {"LoraEmbedding", "ModulesToSaveWrapper"} & kinds and len(three.adapters()) == 4
    with pytest.raises(ConfigError, match="only adapter"):
        three.delete_adapter("b")
    np.testing.assert_array_equal(run(three.unload()), run(in_float64(model())))


def test_unload_gives_the_very_base(three):
    expected = in_float64(model())
    base = three.unload()
    assert [n for n, _ in base.named_modules()] == [n for n, _ in expected.named_modules()]
    for name, p in base.named_parameters():
        np.testing.assert_array_equal(p.data, expected.state_dict()[name])


def test_bad_names(three):
    for name in ("", "a.b", "../up", "a/b", "training", "__base__", 3, "a b", "a\n"):
        with pytest.raises(ConfigError, match="adapter's name"):
            three.add_adapter(name, LoraConfig())
    with pytest.raises(ConfigError, match="there is an adapter 'a'"):
        three.add_adapter("a", LoraConfig())
    with pytest.raises(UnknownNameError, match="There are: a, b, c"):
        three.set_adapter("d")
    with pytest.raises(ConfigError, match="disable_adapter"):
        three.set_adapter([])
    for odd in ("2", "forward", "v-1", "größe"):
        three.add_adapter(odd, LoraConfig(r=1, target_modules=["q_proj"]))
        three.train()
        three.set_adapter(odd)
        run(three)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("quantized", [False, True])
def test_biases(bias, quantized, rng):
    base = model(bias=True)
    for name, p in base.named_parameters():
        if name.endswith("bias"):
            p.data = rng.standard_normal(p.shape, np.float32)
    base = quantize_model(base) if quantized else base
    before, plain = {n: p.data.copy() for n, p in base.named_parameters()}, run(base)
    peft = adapted(base=base, bias=bias, target_modules=["q_proj", "up_proj"])
    np.testing.assert_array_equal(run(peft), plain)
    trained = {
        n.replace(".base_layer", "").removeprefix("base_model.model.") for n in peft.trainable() if n.endswith("bias")
    }
    own = [n for n in before if n.endswith("bias")]
    assert trained == {n for n in own if bias == "all" or "q_proj" in n or "up_proj" in n}
    shake(peft.trainable().values(), rng)
    adapted_logits = run(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(run(peft), plain)  # the base's own biases
    np.testing.assert_array_equal(run(peft), adapted_logits)
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    peft.set_adapter("other")
    np.testing.assert_array_equal(run(peft), plain)  # the other adapter has none, and its B is zero
    with pytest.raises(ConfigError, match="only one adapter"):
        peft.add_adapter("third", LoraConfig(bias="all"))
    peft.set_adapter("default")
    np.testing.assert_array_equal(run(peft), adapted_logits)
    np.testing.assert_allclose(run(peft.merge_and_unload()), adapted_logits, atol=1e-5)


def test_modules_to_save_are_copies(rng):
    base = model()
    before, model_parameters = {n: p.data.copy() for n, p in base.named_parameters()}, base.parameters()
    plain = run(base)
    with pytest.warns(UserWarning, match="share one weight"):
        peft = adapted(base=base, modules_to_save=["mlp", "lm_head"], target_modules=["q_proj"])
    np.testing.assert_array_equal(run(peft), plain)
    assert "base_model.model.model.layers.1.mlp.modules_to_save.default.up_proj.weight" in peft.trainable()
    assert not any(np.shares_memory(p.data, q.data) for p in peft.trainable().values() for q in model_parameters)
    shake(peft.trainable().values(), rng)
    logits = run(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(run(peft), plain)
    peft.add_adapter("other", LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["norm"]))
    peft.set_adapter(["default", "other"])
    peft.add_adapter("third", LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["norm"]))
    with pytest.raises(ConfigError, match="other and third each have their own"):
        peft.set_adapter(["other", "third"])
    peft.set_adapter("other")
    np.testing.assert_array_equal(run(peft), plain)
    peft.set_adapter("default")
    merged = peft.merge_and_unload()
    np.testing.assert_allclose(run(merged), logits, atol=1e-5)
    assert not any(isinstance(m, ModulesToSaveWrapper) for _, m in merged.named_modules())
    tied = model()
    np.testing.assert_array_equal(tied.state_dict()["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not merged.config.tie_word_embeddings and tied.config.tie_word_embeddings


def test_a_module_is_trained_whole_or_adapted_not_both():
    peft = adapted(modules_to_save=["mlp"], target_modules=["q_proj"])
    for config in (
        LoraConfig(target_modules=["q_proj", "up_proj"]),
        LoraConfig(target_modules=["k_proj"], modules_to_save=["q_proj"]),
    ):
        with pytest.raises(ConfigError, match=r"while another one trains .* whole"):
            peft.add_adapter("other", config)
    assert list(peft.peft_config) == ["default"] and len(peft.adapters()) == 2


@pytest.mark.filterwarnings("ignore:the embedding and the head")
def test_a_tied_table_is_changed_in_one_place_only(rng):
    """LoRA on the embedding leaves the head, which shares its weight, alone; merged too."""
    for targets in (["embed_tokens"], ["lm_head"]):
        peft = adapted(rng, target_modules=targets)
        expected = run(peft)
        merged = peft.merge_and_unload()
        np.testing.assert_allclose(run(merged), expected, atol=1e-5)
        own, other = merged.model.embed_tokens.weight.data, merged.lm_head.weight.data
        assert not np.array_equal(own, other) and not merged.config.tie_word_embeddings
        untouched = other if targets == ["embed_tokens"] else own
        np.testing.assert_array_equal(untouched, model().lm_head.weight.data)
    assert adapted(rng, target_modules=["q_proj"]).merge_and_unload().config.tie_word_embeddings
