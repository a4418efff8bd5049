"""Live comparison with transformers, PEFT and llama.cpp: same weights, same tokens, same logits."""

import json
import urllib.request

import numpy as np
import pytest

from minilora import LoraConfig, get_peft_model, load_model, no_grad
from minilora.data.stdlib import source_files

pytestmark = pytest.mark.peers
TEXTS = ["def f(x, y=1):\n    return x + y\n", "The capital of France is Paris. 1234 é 漢字", "import os\nimport sys\n"]


@pytest.fixture
def llama(smollm2_file):
    """Our model, and transformers' LlamaForCausalLM with the very same float weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_model(smollm2_file)
    c = model.config
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            max_position_embeddings=c.max_position_embeddings,
            rms_norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            tie_word_embeddings=True,
        )
    ).eval()
    missing = reference.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    return model, tokenizer, reference, torch


def test_logits_are_transformers_logits(llama):
    model, tokenizer, reference, torch = llama
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text)])
        with no_grad(), torch.no_grad():
            np.testing.assert_allclose(model(ids).data, reference(torch.from_numpy(ids)).logits.numpy(), atol=1e-3)


def test_gradients_are_torch_s(llama):
    """One LoRA step: the gradients of the adapters through all thirty layers, against PEFT's."""
    peft = pytest.importorskip("peft")
    model, tokenizer, reference, torch = llama
    ids = np.array([tokenizer.encode(TEXTS[0])])
    ours = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    theirs = peft.get_peft_model(reference, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    rng = np.random.default_rng(0)
    named = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if ".lora_" in name:
            p.data = rng.standard_normal(p.shape, np.float32) * np.float32(0.02)
            named[name].data = torch.from_numpy(p.data.copy())
    loss = ours.loss(ids, ids)
    loss.backward()
    other = theirs(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    for name, p in ours.named_parameters():
        if ".lora_" in name:
            expected = named[name].grad.numpy()
            np.testing.assert_allclose(p.grad, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_our_adapter_loads_in_peft(llama, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer, reference, torch = llama
    ids = np.array([tokenizer.encode(TEXTS[0])])
    ours = get_peft_model(model, LoraConfig(r=4, lora_alpha=8))
    for layer in ours.adapters().values():
        layer.lora_B.weight.data = np.random.default_rng(1).standard_normal(layer.lora_B.shape, np.float32) * 0.01
        layer.lora_B.weight.data = layer.lora_B.weight.data.astype(np.float32)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path).eval()
    with no_grad(), torch.no_grad():
        np.testing.assert_allclose(ours(ids).data, theirs(torch.from_numpy(ids)).logits.numpy(), atol=1e-3)


def test_tokens_are_llama_cpp_s(smollm2_file):
    xllamacpp = pytest.importorskip("xllamacpp")
    _, tokenizer = load_model(smollm2_file)
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_file)
    params.n_ctx, params.warmup = 64, False
    server = xllamacpp.Server(params)
    for text in [*TEXTS, *(f.text for f in source_files("held-out"))]:
        question = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", question)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            assert tokenizer.encode(text) == json.load(answer)["tokens"]
