"""Our GGUF adapter in llama.cpp, beside SmolLM2: the probabilities of the next token, with it and without."""

import json
import urllib.request

import numpy as np
import pytest

from minilora import LoraConfig, get_peft_model, load_model, no_grad
from minilora.lora.exchange import save_gguf

pytestmark = pytest.mark.peers
PROMPT = "The capital of France is"


def log_probabilities(model, ids) -> np.ndarray:
    with no_grad():
        z = model(np.array([ids])).data[0, -1].astype(np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def llama_cpp(xllamacpp, model, ids, adapter=None) -> dict[int, float]:
    """token -> log probability, of the twenty likeliest."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.warmup = 64, False
    if adapter:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(adapter), 1.0
        params.lora_adapters = [info]
    server = xllamacpp.Server(params)
    question = {"prompt": ids, "n_predict": 1, "n_probs": 20, "temperature": 0.0, "cache_prompt": False}
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(question).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        first = json.load(answer)["completion_probabilities"][0]
    return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}


def test_llama_cpp_runs_our_adapter(smollm2_file, tmp_path, rng):
    """llama.cpp rounds activations to 8 bits before a product with 4-bit weights, which the tolerance is for."""
    xllamacpp = pytest.importorskip("xllamacpp")
    base, tokenizer = load_model(smollm2_file)
    ids = tokenizer.encode(PROMPT)
    plain = log_probabilities(base, ids)
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 4})
    peft = get_peft_model(base, config)
    for name, p in peft.named_parameters():
        if ".lora_B" in name:
            p.data = 0.2 * rng.standard_normal(p.shape, np.float32)
    ours = log_probabilities(peft, ids)
    save_gguf(peft, tmp_path / "adapter.gguf")
    for adapter, expected in ((None, plain), (tmp_path / "adapter.gguf", ours)):
        theirs = llama_cpp(xllamacpp, smollm2_file, ids, adapter)
        difference = [abs(expected[token] - value) for token, value in theirs.items()]
        assert len(difference) == 20 and np.mean(difference) < 0.2, (adapter, difference)
    likely = np.argsort(-ours)[:20]
    assert np.abs(ours - plain)[likely].mean() > 0.5  # the adapter does far more than the tolerance
