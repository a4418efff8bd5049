"""What the package asks of CuPy, held to what CuPy has; nothing here needs a GPU (see backend/strict_array.py)."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import Tensor, nn, ops, simt
from minilora.backend import array_namespace, like, to_numpy
from minilora.backend.simt import SimulatedDevice
from minilora.errors import BackendError, GraphError
from minilora.models.generate import generate_tokens
from minilora.train.adamw8bit import AdamW8bit
from minilora.train.evaluate import evaluate
from minilora.train.muon import Muon, hidden_matrices
from minilora.train.optim import AdamW, clip_grad_norm
from minilora.train.paged import PagedAdamW

pytest.importorskip("cupy", reason="these tests ask the installed CuPy what it has: pip install 'minilora[gpu]'")

from backend.strict_array import ndarray, registered, xp
from ops.test_primitives import CASES, Draw


@pytest.fixture(autouse=True)
def strict():
    with registered():
        yield


def moved(module: nn.Module) -> nn.Module:
    return module.to("cuda")


class Shaped(Draw):
    def array(self, *shape, positive=False):
        """Of just this shape: ascontiguousarray, which Draw calls, makes () into (1,)."""
        return super().array(*shape, positive=positive).reshape(shape)


def both(name: str, data):
    """Value and gradients of a case by NumPy, and by the stand-in."""
    fn, arrays = CASES[name](Shaped(data))
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


ELSEWHERE = {
    "linear_4bit",  # test_quantized_arrays_and_their_products
    "displaced",  # of lowrank/intrinsic.py, which says that it takes NumPy arrays only: its projections are SciPy's
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
@given(data=st.data())
def test_every_primitive_forward_and_backward(name, data):
    for host, device in zip(*both(name, data), strict=True):
        np.testing.assert_allclose(to_numpy(device), host, rtol=1e-12, atol=1e-12)


def quantized_layer(module, code, double_quant):
    """An array, and what ops.linear_4bit and its gradients make of it."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((12, 32)).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    x, g = rng.standard_normal((3, 5, 32)).astype(np.float32), rng.standard_normal((3, 5, 12)).astype(np.float32)
    q = ml.quantize(module.asarray(w), code, double_quant=double_quant)
    inputs = [Tensor(module.asarray(a), requires_grad=True) for a in (x, b)]
    y = ops.linear_4bit(inputs[0], q, inputs[1])
    y.backward(module.asarray(g))
    arrays = [*q.arrays.values(), q.dequantize()], [y.data, *(t.grad for t in inputs)]
    assert all(isinstance(a, ndarray) for part in arrays for a in part if a.ndim) or module is np
    return [[to_numpy(a) for a in part] for part in arrays]


@pytest.mark.parametrize("code", ["nf4", "int8"])
@pytest.mark.parametrize("double_quant", [False, True, "int8"])
def test_quantized_arrays_and_their_products(code, double_quant):
    for host, device in zip(*(quantized_layer(m, code, double_quant) for m in (np, xp)), strict=True):
        for a, b in zip(host, device, strict=True):
            np.testing.assert_array_equal(b, a, strict=True)


@pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")
@pytest.mark.parametrize("code", ["nf4", "int8"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_the_same_through_the_cuda_kernels(code, double_quant):
    """The launchers on such arrays, with the simulated GPU behind them: the way of a GPU but for the GPU."""
    stored, products = quantized_layer(np, code, double_quant)
    with registered(SimulatedDevice()):
        found = quantized_layer(xp, code, double_quant)
    for a, b in zip(stored, found[0], strict=True):
        np.testing.assert_array_equal(b, a, strict=True)
    for a, b in zip(products, found[1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


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
    "biases": {"bias": "all", "target_modules": ["q_proj"]},
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
    family = MODELS["learned positions" if kind == "biases" else "llama"]
    host, device = (ml.get_peft_model(model, config, seed=3) for model in (family(), moved(family())))
    assert all(isinstance(p.data, ndarray) for p in device.parameters())
    np.testing.assert_allclose(to_numpy(device(ids).data), host(ids).data, atol=1e-5)
    device.loss(ids, ids).backward()
    with device.disable_adapter():
        device(ids)
    device.save_pretrained(tmp_path / "adapter")
    again = ml.PeftModel.from_pretrained(moved(family()), tmp_path / "adapter")
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


def test_packed_and_padded_rows_and_checkpointed_layers():
    ids, segments = np.arange(12).reshape(2, 6), np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]])
    mask = np.array([[False, False, True, True, True, True], [True] * 6])
    for family in MODELS.values():
        host, device = family(), moved(family())
        device.gradient_checkpointing_enable()
        loss = device.loss(ids, xp.asarray(ids), segment_ids=segments)
        np.testing.assert_allclose(loss.item(), host.loss(ids, ids, segment_ids=segments).item(), rtol=1e-5)
        loss.backward()
        logits = device(xp.asarray(ids), attention_mask=xp.asarray(mask))
        np.testing.assert_allclose(to_numpy(logits.data), host(ids, attention_mask=mask).data, atol=1e-5)


def test_there_and_back_again():
    """model.to moves every weight, what adapters keep aside too; an old graph is not walked."""
    ids = np.arange(6)[None]
    config = ml.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", bias="lora_only")
    model = ml.get_peft_model(MODELS["learned positions"](), config)
    expected = model(ids).data
    with model.disable_adapter():
        plain = model(ids).data
    loss = model.loss(ids, ids)
    assert model.to("cuda") is model
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()
    for _ in range(2):
        np.testing.assert_allclose(to_numpy(model(ids).data), expected, atol=1e-6)
        with model.disable_adapter():
            np.testing.assert_allclose(to_numpy(model(ids).data), plain, atol=1e-6)
        model.merge_adapter()
        model.to("cpu")
        assert all(isinstance(p.data, np.ndarray) for p in model.parameters())
        np.testing.assert_allclose(model(ids).data, expected, atol=1e-5)
        model.unmerge_adapter()
    q = ml.quantize(np.arange(640, dtype=np.float32).reshape(10, 64), double_quant=True)
    assert isinstance(q.to("cuda").packed, ndarray) and q.to("cuda").to("cpu") == q and q.to("cuda").nbytes == q.nbytes


def test_new_arrays_go_where_use_backend_says():
    host = Tensor(np.ones(2))
    with ml.use_backend("cupy"):
        assert isinstance(Tensor([1.0, 2.0]).data, ndarray) and Tensor(2).dtype == np.int64
        assert all(isinstance(p.data, ndarray) for p in MODELS["gpt2"]().parameters())
        assert isinstance(Tensor(host.data).data, np.ndarray) and isinstance((host + host).data, np.ndarray)
        assert isinstance((host.sum() * 2.0).data, np.ndarray)  # an array stays where it is, one number too
    assert isinstance(Tensor([1.0, 2.0]).data, np.ndarray)


def test_on_a_gpu_the_driver_pages_and_the_updates_are_adamws(rng, tmp_path):
    runs = []
    for kind in (AdamW, PagedAdamW):
        p = Tensor(xp.asarray(np.arange(5, dtype=np.float32)), requires_grad=True)
        optimizer = kind([p], 0.1)
        for seed in range(3):
            p.grad = xp.asarray(np.random.default_rng(seed).standard_normal(5).astype(np.float32))
            optimizer.step()
        optimizer.save(tmp_path)
        optimizer.reset()
        optimizer.load(tmp_path)
        runs.append((to_numpy(p.data), optimizer.steps, *map(to_numpy, optimizer.state_arrays().values())))
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
    with pytest.raises(GraphError, match="changed in place"):
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


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: np.asarray(x),
        lambda x: np.array([x, x]),
        lambda x: float(x),
        lambda x: x + np.ones(3),
        lambda x: np.ones(3) * x,
        lambda x: x.__setitem__(slice(0, 2), np.ones(2)),
        lambda x: np.exp(x, out=np.ones(3)),
        lambda x: np.take(x, xp.asarray([0]), mode="clip"),
        lambda x: np.add.at(x, xp.asarray([0]), 1),
        lambda x: np.add.reduceat(x, [0, 1]),
        lambda x: np.maximum.reduce(x),
        lambda x: x.sum(where=x > 0),
        lambda x: x.max(initial=0),
        lambda x: xp.ascontiguousarray(np.ones(3)),
        lambda x: xp.concatenate([x, np.ones(3)]),
        lambda x: xp.zeros(3, like=x),
        lambda x: x.partition2(1),
        lambda x: xp.nanargpartition(x),
        lambda x: x.flags.writeable,
        lambda x: range(x[0]),
    ],
)
def test_the_stand_in_refuses_what_cupy_does(refused):
    with pytest.raises((TypeError, AttributeError, NotImplementedError)):
        refused(xp.asarray(np.arange(3.0)))


def test_the_stand_in_keeps_apart_what_a_gpu_does():
    host = np.ones(3)
    x = xp.asarray(host)
    host[0] = 5
    assert x.get().tolist() == [1, 1, 1] and x[1].shape == () and x.sum().ndim == 0
    y = x.reshape(3, 1)
    y += 1
    assert y.base is x and x.get().tolist() == [2, 2, 2] and (x + 1).base is None and x.copy().base is None


def test_cupy_takes_the_kernels_as_the_device_gives_them():
    """As far as it goes without a driver: CuPy compiles when a function is first called for."""
    from minilora.backend import cupy as joint
    from minilora.backend.cuda.launch import FOLDER

    for path in FOLDER.glob("*.cu"):
        module = joint._module(path.name, ("-DX=float", "-DY=float"))
        assert isinstance(module, joint.xp.RawModule) and module.code == path.read_text()
        assert module.options == ("-DX=float", "-DY=float") and module.backend == "nvrtc"
    assert isinstance(joint.xp.RawKernel.max_dynamic_shared_size_bytes, type(joint.xp.RawKernel.binary_version))
