"""Live comparison with transformers: tiny models of random weights, saved there and loaded here, and the way back."""

import numpy as np
import pytest

from minilora import LoraConfig, get_peft_model, load_model, no_grad
from minilora.models.checkpoint import save_folder
from minilora.nn.positions import RopeScaling, rotary_table

pytestmark = pytest.mark.peers

LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BLOOM = {"vocab_size": 64, "hidden_size": 24, "n_layer": 2}
MARIAN = {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 64, "activation_function": "relu",
          "scale_embedding": True, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
          "forced_eos_token_id": None} | {
    f"{half}_{name}": n for half in ("encoder", "decoder")
    for name, n in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
}  # fmt: skip
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama, head_dim, tied": ("LlamaForCausalLM", LLAMA | {"head_dim": 12, "tie_word_embeddings": True}),
    "llama, attention_bias": ("LlamaForCausalLM", LLAMA | {"attention_bias": True}),
    "llama, every bias": ("LlamaForCausalLM", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("LlamaForCausalLM", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama, llama3": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": None, "head_dim": 16}),
    "mistral, short": ("MistralForCausalLM", LLAMA | {"sliding_window": 64}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | {"rope_parameters": {"rope_theta": 1e6}}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2, n_inner, gelu": ("GPT2LMHeadModel", GPT2 | {"n_inner": 40, "activation_function": "gelu"}),
    "gpt2, untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "bloom": ("BloomForCausalLM", BLOOM | {"n_head": 4}),
    "bloom, 6 heads": ("BloomForCausalLM", BLOOM | {"n_head": 6, "layer_norm_epsilon": 1e-3}),
    "bert": ("BertModel", {key: n for key, n in LLAMA.items() if key != "num_key_value_heads"}),
    "marian": ("MarianMTModel", MARIAN),
}


def reference(torch, transformers, name: str):
    """A model of random weights, none of which keeps the value (0 or 1) that it starts from."""
    kind, fields = MODELS[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "embed_positions" not in key:
                p.add_(0.2 * torch.randn(p.shape))
    return model


def logits(torch, model, ids) -> np.ndarray:
    """Ours or theirs; of BERT, which has none, the hidden states."""
    with torch.no_grad(), no_grad():
        if not isinstance(model, torch.nn.Module):
            return model(*ids).data
        source, *target = (torch.from_numpy(i) for i in ids)
        inputs = {"attention_mask": source != 0, "decoder_input_ids": target[0]} if target else {}
        output = model(input_ids=source, **inputs)
        return (output.logits if "logits" in output else output.last_hidden_state).numpy()


def batch(name: str, rng) -> list[np.ndarray]:
    ids = rng.integers(1, 64, (2, 50))
    if name != "marian":
        return [ids]
    ids[0, 40:] = 0  # padding
    return [ids, rng.integers(0, 64, (2, 30))]


@pytest.mark.parametrize("name", MODELS)
def test_logits_there_and_back(tmp_path, rng, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, ids = reference(torch, transformers, name), batch(name, rng)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")
    expected = logits(torch, theirs, ids)
    np.testing.assert_allclose(logits(torch, ours, ids), expected, atol=1e-4)
    (tmp_path / "ours").mkdir()
    save_folder(ours, None, tmp_path / "ours")
    auto = {"marian": "AutoModelForSeq2SeqLM", "bert": "AutoModel"}.get(name, "AutoModelForCausalLM")
    again, report = getattr(transformers, auto).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(logits(torch, again.eval(), ids), expected, atol=1e-4)
    ours, _ = load_model(tmp_path / "ours")
    np.testing.assert_allclose(logits(torch, ours, ids), expected, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert"])
def test_gradients_are_torch_s(tmp_path, rng, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, ids = reference(torch, transformers, name), batch(name, rng)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    loss = ours.loss(ids[0], ids[-1])
    loss.backward()
    tensors = [torch.from_numpy(i) for i in ids]
    mask = {"attention_mask": tensors[0] != 0} if name == "marian" else {}
    other = theirs(tensors[0], labels=tensors[-1], **mask).loss
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    named = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        expected = named[key].grad.numpy()
        if key == "model.shared.weight":  # torch gives padding, which the decoder starts from, no gradient as input
            expected[0] = p.grad[0]
        np.testing.assert_allclose(p.grad, expected, atol=1e-4 * max(1.0, np.abs(expected).max()), err_msg=key)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt2", ["c_attn", "c_proj"]),
        ("gpt_bigcode", ["c_attn", "c_proj", "c_fc"]),
        ("bloom", ["query_key_value"]),
        ("marian", ["q_proj", "v_proj"]),
    ],
)
def test_our_adapter_loads_in_peft(tmp_path, rng, name, targets):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    theirs, ids = reference(torch, transformers, name), batch(name, rng)
    theirs.save_pretrained(tmp_path / "base")
    ours = get_peft_model(load_model(tmp_path / "base")[0], LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for key, p in ours.named_parameters():
        if ".lora_B" in key:
            p.data = 0.3 * rng.standard_normal(p.shape, np.float32)
    ours.save_pretrained(tmp_path / "adapter")
    before = logits(torch, theirs, ids)
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    expected = logits(torch, wrapped, ids)
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(logits(torch, ours, ids), expected, atol=1e-4)


def test_rotary_scaling_is_transformers_s():
    """Every frequency of a long model, of which the tiny ones have few."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = LLAMA3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    for scaling in (rope, {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0}):
        config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=1, rope_parameters=dict(scaling))
        expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
        ours = RopeScaling(**{key: value for key, value in scaling.items() if key != "rope_theta"})
        cos, sin = rotary_table(2, 128, 500000.0, ours)
        np.testing.assert_allclose(np.arctan2(sin[1], cos[1]), expected.numpy(), rtol=1e-5)
