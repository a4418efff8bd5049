import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, PeftModel, get_peft_model, load_model, no_grad, quantize_model
from minilora.errors import ConfigError, FileFormatError, MiniloraError
from minilora.nn import CausalLM, TransformerConfig


def model(seed=0):
    return CausalLM(TransformerConfig(20, 16, 24, 2, 4, max_position_embeddings=32), seed)


def perturb(peft, rng):
    """Adapters as after some training: B is not zero any more."""
    for layer in peft.adapters().values():
        layer.lora_B.weight.data = rng.standard_normal(layer.lora_B.weight.shape, np.float32) * np.float32(0.1)
    return peft


IDS = np.arange(10).reshape(2, 5)


@pytest.mark.parametrize("quantized", [False, True])
def test_at_first_nothing_changes_exactly(quantized):
    base = model()
    if quantized:
        quantize_model(base)
    with no_grad():
        before = base(IDS).data
        peft = get_peft_model(base, LoraConfig(r=4, lora_alpha=8))
        np.testing.assert_array_equal(peft(IDS).data, before)


@given(st.integers(1, 8), st.floats(0.5, 64))
def test_delta_weight_is_alpha_over_r_times_b_a_of_rank_r(r, alpha):
    rng = np.random.default_rng(r)
    peft = perturb(get_peft_model(model(), LoraConfig(r=r, lora_alpha=alpha)), rng)
    for layer in peft.adapters().values():
        delta = layer.delta_weight()
        assert np.linalg.matrix_rank(delta) <= r
        np.testing.assert_allclose(
            delta, alpha / r * layer.lora_B.weight.data @ layer.lora_A.weight.data, rtol=1e-5, atol=1e-7
        )


def test_merged_is_adapted_and_disabled_is_base(rng):
    base = model()
    with no_grad():
        plain = base(IDS).data
        peft = perturb(get_peft_model(base, LoraConfig(r=4, lora_alpha=8)), rng)
        adapted = peft(IDS).data
        with peft.disable_adapter():
            np.testing.assert_array_equal(peft(IDS).data, plain)
        np.testing.assert_array_equal(peft(IDS).data, adapted)
        assert np.abs(adapted - plain).max() > 1e-3
        merged = peft.merge_and_unload()
        np.testing.assert_allclose(merged(IDS).data, adapted, atol=1e-5)


def test_merging_into_a_quantized_base_gives_float_layers(rng):
    base = quantize_model(model())
    peft = perturb(get_peft_model(base, LoraConfig(r=4)), rng)
    with no_grad():
        adapted = peft(IDS).data
        np.testing.assert_allclose(peft.merge_and_unload()(IDS).data, adapted, atol=1e-5)


def test_only_adapters_get_gradients():
    peft = get_peft_model(model(), LoraConfig(r=2))
    peft.loss(IDS, IDS).backward()
    for name, p in peft.named_parameters():
        assert (p.grad is not None) == ("lora_" in name)
        if "lora_A" in name:
            assert not p.grad.any()  # B = 0, so A gets none at the first step
        if "lora_B" in name:
            assert p.grad.any()


@pytest.mark.parametrize(
    ("targets", "count"),
    [("all-linear", 14), (["q_proj"], 2), (["q_proj", "v_proj"], 4), (["mlp.up_proj"], 2), (r".*\.0\..*_proj", 7)],
)
def test_target_modules(targets, count):
    assert len(get_peft_model(model(), LoraConfig(target_modules=targets)).adapters()) == count


def test_print_trainable_parameters(capsys):
    get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"])).print_trainable_parameters()
    assert capsys.readouterr().out == "trainable params: 128 || all params: 4,880 || trainable%: 2.6230\n"


def test_bad_configurations():
    with pytest.raises(ConfigError, match=r"Did you mean 'q_proj'.*down_proj, gate_proj"):
        get_peft_model(model(), LoraConfig(target_modules=["q_prj"]))
    with pytest.raises(ConfigError, match="already has adapters"):
        get_peft_model(get_peft_model(model(), LoraConfig()), LoraConfig())
    for fields in ({"r": 0}, {"lora_alpha": 0}, {"lora_dropout": 1.0}, {"target_modules": []}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            LoraConfig(**fields)


def test_dropout_acts_on_the_adapter_only_in_training(rng):
    peft = perturb(get_peft_model(model(), LoraConfig(lora_dropout=0.5)), rng)
    with no_grad():
        assert np.array_equal(peft(IDS).data, peft(IDS).data)
        peft.train()
        assert not np.array_equal(peft(IDS).data, peft(IDS).data)


def test_files_round_trip(tmp_path, rng):
    peft = perturb(get_peft_model(model(), LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj"])), rng)
    peft.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(model(), tmp_path / "a")
    with no_grad():
        np.testing.assert_array_equal(again(IDS).data, peft(IDS).data)


def test_peft_s_own_adapter_gives_its_logits(tiny_llama):
    reference = np.load(tiny_llama / "reference_logits.npz")
    base, tokenizer = load_model(tiny_llama)
    assert tokenizer is None
    with no_grad():
        np.testing.assert_allclose(base(reference["input_ids"]).data, reference["logits_base"], atol=1e-5)
        peft = PeftModel.from_pretrained(base, tiny_llama / "adapter_default")
        np.testing.assert_allclose(peft(reference["input_ids"]).data, reference["logits_default"], atol=1e-5)
        merged = peft.merge_and_unload()
        np.testing.assert_allclose(merged(reference["input_ids"]).data, reference["logits_default_merged"], atol=1e-5)


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    get_peft_model(model(), LoraConfig(r=3)).save_pretrained(tmp_path)
    bigger = CausalLM(TransformerConfig(20, 16, 24, 3, 4, max_position_embeddings=32))
    with pytest.raises(FileFormatError, match="lacks 14 arrays"):
        PeftModel.from_pretrained(bigger, tmp_path)
    wider = CausalLM(TransformerConfig(20, 32, 24, 2, 4, max_position_embeddings=32))
    with pytest.raises(FileFormatError, match="this model needs"):
        PeftModel.from_pretrained(wider, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora=True is not implemented"):
        PeftModel.from_pretrained(model(), tmp_path)
    config.write_text("{")
    with pytest.raises(FileFormatError, match="not a readable"):
        PeftModel.from_pretrained(model(), tmp_path)


def test_an_adapter_is_not_written_where_it_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniloraError, match="cannot be made"):
        get_peft_model(model(), LoraConfig()).save_pretrained(tmp_path / "file" / "adapter")
