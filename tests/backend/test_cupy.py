"""What the package asks of CuPy, held to what CuPy has; nothing here needs a GPU (see backend/strict_array.py)."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import Tensor, nn, ops
from minilora.backend import array_namespace, like, to_numpy
from minilora.errors import BackendError
from minilora.models.generate import generate_tokens
from minilora.train.adamw8bit import AdamW8bit
from minilora.train.evaluate import evaluate
from minilora.train.muon import Muon, hidden_matrices
from minilora.train.optim import AdamW, clip_grad_norm

pytest.importorskip("cupy", reason="these tests ask the installed CuPy what it has: pip install 'minilora[gpu]'")

from backend.strict_array import ndarray, registered, xp  # noqa: E402
from ops.test_primitives import CASES, Draw  # noqa: E402


@pytest.fixture(autouse=True)
def strict():
    with registered():
        yield


def moved(module: nn.Module) -> nn.Module:
    """The module with its arrays on the stand-in's side, as model.to("cuda") does it."""
    for p in module.parameters():
        p.data = xp.asarray(p.data)
        p.mark_changed()
    for _, part in module.named_modules():
        if hasattr(part, "quantized_weight"):
            q = part.quantized_weight
            arrays = {name: xp.asarray(a) for name, a in q.arrays.items() if name != "offset"}
            part.quantized_weight = type(q)(**{**vars(q), **arrays})
    return module


def both(name: str, draw: Draw):
    """Value and gradients of a case by NumPy, and by the stand-in."""
    fn, arrays = CASES[name](draw)
    results = []
    for module in (np, xp):
        inputs = [Tensor(module.asarray(a), requires_grad=True) for a in arrays]
        out = fn(*inputs)
        u = np.random.default_rng(0).standard_normal(out.shape)
        out.backward(u)
        assert all(isinstance(t.data, ndarray) for t in (out, *inputs)) or module is np
        assert all(p.grad is None or isinstance(p.grad, ndarray) for p in inputs) or module is np
        zero = [np.zeros(a.shape) for a in arrays]
        results.append([out.data, *(z if p.grad is None else p.grad for p, z in zip(inputs, zero, strict=True))])
    return results


@pytest.mark.parametrize("name", [name for name in CASES if name != "linear_4bit"])
@given(data=st.data())
def test_every_primitive_forward_and_backward(name, data):
    for host, device in zip(*both(name, Draw(data)), strict=True):
        np.testing.assert_allclose(to_numpy(device), host, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("code", ["nf4", "int8"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_linear_4bit(rng, code, double_quant):
    w, b = rng.standard_normal((12, 32)).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    x, g = rng.standard_normal((3, 5, 32)).astype(np.float32), rng.standard_normal((3, 5, 12)).astype(np.float32)
    results = []
    for module in (np, xp):
        q = ml.quantize(module.asarray(w), code, double_quant=double_quant)
        assert to_numpy(q.dequantize()).shape == w.shape and isinstance(q.packed, ndarray) == (module is xp)
        inputs = [Tensor(module.asarray(a), requires_grad=True) for a in (x, b)]
        y = ops.linear_4bit(inputs[0], q, inputs[1])
        y.backward(module.asarray(g))
        results.append([q.dequantize(), y.data, *(t.grad for t in inputs)])
    for host, device in zip(*results, strict=True):
        np.testing.assert_array_equal(to_numpy(device), host)


def decoder(kind, **changes):
    sizes = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    config = nn.TransformerConfig if kind is nn.CausalLM else nn.ModelConfig
    return kind(config(**sizes | {"max_position_embeddings": 32} | changes), seed=1)


MODELS = {
    "llama": lambda: decoder(nn.CausalLM, num_key_value_heads=2),
    "learned positions": lambda: decoder(nn.CausalLM, positions="learned", norm="layernorm", bias=True),
    "gpt2": lambda: decoder(nn.GPT2, dropout=0.1, attention_dropout=0.1, embedding_dropout=0.1),
    "gpt_bigcode": lambda: decoder(nn.GPTBigCode, num_key_value_heads=1),
    "bloom": lambda: decoder(nn.Bloom, attention_dropout=0.1),
}
LORA = {
    "plain": {},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.2},
    "embedding": {"target_modules": ["embed_tokens", "wte", "word_embeddings", "q_proj", "c_attn", "query_key_value"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "biases": {"bias": "all"},
}


def steps(model, optimizer, ids, count=2):
    """Losses, and the parameters at the end, of some updates."""
    losses = []
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        loss = model.loss(ids, ids)
        loss.backward()
        clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses, [to_numpy(p.data) for p in optimizer.params]


def alike(build, optimizer=AdamW, rtol=1e-4):
    """Training steps of build() by NumPy and by the stand-in; the latter's model."""
    ids = np.random.default_rng(0).integers(0, 24, (3, 7))
    host = build()
    expected = steps(host, optimizer(host.parameters()), ids)
    device = moved(build())
    got = steps(device, optimizer(device.parameters()), ids)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    for a, b in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)
    assert all(isinstance(p.data, ndarray) for p in device.parameters())
    return device


@pytest.mark.filterwarnings("ignore:the embedding and the head share")
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("code", [None, "nf4"])
def test_models_train_with_lora(family, code):
    def build():
        model = MODELS[family]()
        if code:
            ml.quantize_model(model, code)
        return ml.get_peft_model(model, ml.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))

    device = alike(build)
    logits = device(np.arange(5)[None])
    assert isinstance(logits.data, ndarray)
    ids = list(generate_tokens(device, [1, 2, 3], 4, temperature=1.0, top_k=3, seed=0))
    assert ids == list(generate_tokens(device, [1, 2, 3], 4, temperature=1.0, top_k=3, seed=0)) and len(ids) == 4


@pytest.mark.filterwarnings("ignore:the embedding and the head share", "ignore:target_modules")
@pytest.mark.parametrize("kind", LORA)
def test_adapters_of_every_kind_begin_beside_a_model_on_the_gpu(kind, tmp_path):
    """get_peft_model after model.to("cuda"): A and B are drawn by NumPy and put beside the weights."""
    ids = np.arange(6)[None]
    config = ml.LoraConfig(r=2, lora_alpha=4, **{"target_modules": ["q_proj", "up_proj"]} | LORA[kind])
    host = ml.get_peft_model(MODELS["llama"](), config, seed=3)
    device = ml.get_peft_model(moved(MODELS["llama"]()), config, seed=3)
    assert all(isinstance(p.data, ndarray) for p in device.parameters())
    np.testing.assert_allclose(to_numpy(device(ids).data), host(ids).data, atol=1e-5)
    device.loss(ids, ids).backward()
    with device.disable_adapter():
        device(ids)
    device.save_pretrained(tmp_path / "adapter")
    again = ml.PeftModel.from_pretrained(moved(MODELS["llama"]()), tmp_path / "adapter")
    np.testing.assert_allclose(to_numpy(again(ids).data), to_numpy(device(ids).data), atol=1e-5)
    device.merge_adapter()
    device.unmerge_adapter()
    merged = device.merge_and_unload()
    np.testing.assert_allclose(to_numpy(merged(ids).data), host(ids).data, atol=1e-5)


def test_one_projection_for_q_k_and_v_and_several_adapters_in_a_batch():
    def build():
        return ml.get_peft_model(
            MODELS["gpt2"](), ml.LoraConfig(r=2, target_modules=["c_attn"], enable_lora=[True, False, True])
        )

    device = alike(build)
    device.add_adapter("other", ml.LoraConfig(r=2, target_modules=["c_attn"]), seed=4)
    rows = device(np.arange(10).reshape(2, 5), adapter_names=["default", "other"])
    assert isinstance(rows.data, ndarray)
    device.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both")
    device.set_adapter("both")
    assert isinstance(device(np.arange(5)[None]).data, ndarray)


@pytest.mark.parametrize("optimizer", [AdamW, AdamW8bit, "muon"])
def test_optimizers_and_full_training(optimizer):
    def build():
        return decoder(nn.CausalLM, hidden_size=64, num_key_value_heads=2)

    if optimizer == "muon":
        # Newton-Schulz steps amplify rounding where singular values are small.
        made = []

        def make():
            made.append(build())
            return made[-1]

        alike(make, lambda params: Muon(params, hidden_matrices(made[-1])), rtol=0.02)
    else:
        alike(build, optimizer)


def test_an_encoder_and_an_encoder_decoder(rng):
    ids, mask = rng.integers(0, 24, (2, 6)), np.array([[True] * 6, [True] * 4 + [False] * 2])
    for make in (
        lambda: nn.BertModel(nn.EncoderConfig(24, 16, 24, 2, 4), seed=0),
        lambda: nn.Seq2Seq(nn.Seq2SeqConfig(24, 16, 24, 2, 4), seed=0),
    ):
        host, device = make(), moved(make())
        if isinstance(host, nn.BertModel):
            y, z = host(ids, mask), device(ids, mask)
        else:
            y, z = host.loss(ids, ids), device.loss(ids, ids)
            np.testing.assert_array_equal(device.generate(ids, 3), host.generate(ids, 3))
        np.testing.assert_allclose(to_numpy(z.data), y.data, atol=1e-5)
        z.sum().backward()
        grads = [p.grad for p in device.parameters() if p.grad is not None]
        assert grads and all(isinstance(g, ndarray) for g in grads)


def test_a_trainer_s_run_is_the_host_s(tmp_path):
    data = [{"input_ids": list(range(n, n + 6)), "labels": [-100, -100, *range(n + 2, n + 6)]} for n in range(12)]
    logs = []
    for place in (lambda m: m, moved):
        model = place(ml.quantize_model(MODELS["llama"]()))
        model = ml.get_peft_model(model, ml.LoraConfig(r=2, target_modules="all-linear"))
        folder = tmp_path / str(len(logs))
        args = ml.TrainingArguments(str(folder), max_steps=4, per_device_train_batch_size=4, save_steps=2)
        trainer = ml.Trainer(model, args, data, data[:4])
        trainer.train()
        logs.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
        assert evaluate(model, data)["tokens"] == 48
    again = ml.Trainer(model, args, data, data[:4])
    again.train(resume_from_checkpoint=True)
    for host, device in zip(*logs, strict=True):
        for key in host:
            np.testing.assert_allclose(device[key], host[key], rtol=1e-4, err_msg=key)


def test_two_places_are_an_error_that_says_so():
    with pytest.raises(
        BackendError, match=r"add\(float32\[2\], float32\[2\]\): the arrays are numpy and strict_array's"
    ):
        Tensor(np.ones(2, np.float32)) + Tensor(xp.ones(2, np.float32))


def test_a_changed_parameter_is_noticed_without_a_writeable_flag():
    w = Tensor(xp.ones((2, 2), np.float32), requires_grad=True)
    y = (w * w).sum()
    w.data += 1
    w.mark_changed()
    with pytest.raises(ml.autograd.GraphError if hasattr(ml.autograd, "GraphError") else ValueError, match="changed"):
        y.backward()


def test_the_ledger_counts_these_arrays_once():
    w = Tensor(xp.ones((4, 4), np.float32), requires_grad=True)
    x = Tensor(xp.ones((2, 4), np.float32), requires_grad=True)
    y = (x @ w) * (x @ w)
    held = ml.ledger()
    assert held.parameters == 16 * 4 + 8 * 4 and held.by_op == {"multiply": 2 * 8 * 4}
    del y


def test_like_and_array_namespace():
    host, device = np.ones(3), xp.ones(3)
    assert array_namespace(host) is np and array_namespace(host, device) is xp and array_namespace(1.0) is np
    assert like(host, host) is host and isinstance(like(host, device), ndarray)
    assert isinstance(like(device, host), np.ndarray) and like(device, device) is device
