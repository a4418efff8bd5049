"""The same on a real GPU: `pytest -m gpu` on a machine with one, CuPy and its driver. Elsewhere each test says what is
missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import Tensor, nn
from minilora.backend import BackendError, _cupy, array_namespace, kernels_for, to_device, to_numpy
from minilora.backend import numpy as numpy_kernels
from minilora.backend.cuda.launch import Device, In, Launch, Out
from minilora.models.generate import generate_tokens
from minilora.quant import CODES, double
from minilora.train.optim import AdamW
from minilora.train.paged import PagedAdamW

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cupy():
    try:
        return _cupy().xp
    except BackendError as error:
        pytest.skip(str(error))


def test_paged_state_is_managed_memory_and_adamws_updates(cupy):
    runs = []
    for kind in (AdamW, PagedAdamW):
        p = Tensor(cupy.arange(100_000, dtype=np.float32), requires_grad=True)
        optimizer = kind([p], 0.1)
        for seed in range(3):
            p.grad = cupy.asarray(np.random.default_rng(seed).standard_normal(100_000, np.float32))
            optimizer.step()
        runs.append(to_numpy(p.data))
    np.testing.assert_array_equal(*runs)


class HostArrays(Device):
    """The GPU, on NumPy's arrays: they are copied there for a launch, and back."""

    def __init__(self):
        from minilora.backend.cupy import CupyDevice

        self.gpu = CupyDevice()
        self.arch = self.gpu.arch

    def empty(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def array(self, host):
        return host

    def execute(self, launch: Launch):
        args = [type(a)(to_device(a.array, "cuda")) if isinstance(a, (In, Out)) else a for a in launch.args]
        self.gpu.execute(Launch(launch.source, launch.function, launch.grid, launch.block, tuple(args), launch.defines,
                                launch.shared, launch.arch))  # fmt: skip
        for host, device in zip(launch.args, args, strict=True):
            if isinstance(host, Out):
                host.array[...] = to_numpy(device.array)


CHECKS = [
    ("quantize_4bit", range(4), [{"n": n, "blocksize": b} for n, b in ((1, 64), (1000, 64), (4097, 256))]),
    ("dequantize_4bit", range(4), [{"n": 4096, "blocksize": 64, "dtype": d}
                                   for d in ("float32", "float16", "bfloat16")]),
    ("dequantize_4bit_double", range(4), [{"n": 1 << 16, "blocksize": 64, "scales": s} for s in double.KINDS]),
    ("quantize_int8", range(2), [{"n": 5000, "blocksize": b} for b in (7, 64, 5000)]),
    ("dequantize_int8", range(2), [{"n": 4096, "blocksize": 64}]),
    ("quantize_8bit", range(2), [{"n": 3000, "blocksize": 256}]),
    ("gemv_4bit", range(5), [{"M": m, "N": 97, "K": 256, "scales": s, "rank": r, "dtype": d}
                             for m, s, r, d in ((1, None, 0, "float32"), (3, "dynamic", 8, "float16"))]),
    ("gemm_4bit", range(3), [{"M": 70, "N": 96, "K": 128, "transpose": t} for t in (False, True)]),
    ("gemm_4bit", (3, 4), [{"M": 70, "N": 96, "K": 128, "transpose": t, "dtype": "bfloat16"} for t in (False, True)]),
    ("softmax", range(3), [{"R": 9, "n": 300}]),
    ("rms_norm", range(3), [{"R": 9, "n": 300}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "version", "options"),
    [(name, version, options) for name, versions, cases in CHECKS for version in versions for options in cases],
)
def test_kernels_are_numpy_s(name, version, options):
    from backend import kernel_checks

    device = HostArrays()
    if name == "gemm_4bit" and version > 2 and device.arch < 80:
        pytest.skip(f"tensor cores' bfloat16 needs compute capability 8.0, this GPU has {device.arch / 10}")
    getattr(kernel_checks, name)(device, version, **options)


@pytest.mark.parametrize("code", [*CODES, "int8"])
@pytest.mark.parametrize("kind", [False, *double.KINDS])
def test_quantize_on_the_gpu_is_numpy_s_bit_for_bit(rng, code, kind):
    x = rng.standard_normal((33, 257)).astype(np.float32)
    expected, q = ml.quantize(x, code, 64, kind), ml.quantize(to_device(x, "cuda"), code, 64, kind)
    assert kernels_for(q.packed) is not numpy_kernels and q.to("cpu") == expected
    np.testing.assert_array_equal(to_numpy(q.dequantize()), expected.dequantize())
    a = rng.standard_normal((5, 257)).astype(np.float32)
    size = np.abs(a) @ np.abs(expected.dequantize()).T
    error = np.abs(to_numpy(q.matmul(to_device(a, "cuda"))) - expected.matmul(a))
    assert (error <= 1e-5 * size).all()


def pytest_generate_tests(metafunc):
    if "primitive" in metafunc.fixturenames:
        from ops.test_primitives import CASES

        metafunc.parametrize("primitive", [name for name in CASES if name != "linear_4bit"])


@settings(max_examples=10)
@given(data=st.data())
def test_every_primitive(primitive, data, cupy):
    from ops.test_primitives import CASES, Draw

    class Shaped(Draw):
        def array(self, *shape, positive=False):  # of just this shape: ascontiguousarray makes () into (1,)
            return super().array(*shape, positive=positive).reshape(shape)

    fn, arrays = CASES[primitive](Shaped(data))
    results = []
    for place in (np.asarray, cupy.asarray):
        inputs = [Tensor(place(a), requires_grad=True) for a in arrays]
        out = fn(*inputs)
        out.backward(np.random.default_rng(0).standard_normal(out.shape))
        results.append([to_numpy(out.data), *(to_numpy(p.grad) for p in inputs if p.grad is not None)])
    for host, device in zip(*results, strict=True):
        np.testing.assert_allclose(device, host, rtol=1e-10, atol=1e-12)


def adapted(code):
    config = nn.TransformerConfig(64, 128, 256, 2, 4, num_key_value_heads=2, max_position_embeddings=64)
    model = nn.CausalLM(config, seed=1)
    if code:
        ml.quantize_model(model, code)
    return ml.get_peft_model(model, ml.LoraConfig(r=8, target_modules="all-linear"))


def losses(model, ids, count):
    optimizer, found = AdamW(model.parameters(), lr=1e-2), []
    for _ in range(count):
        optimizer.zero_grad()
        loss = model.loss(ids, ids)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("code", [None, "nf4", "int8"])
def test_a_model_trains_there_as_here_and_comes_back(code, rng, tmp_path, cupy):
    ids = rng.integers(0, 64, (4, 24))
    expected = losses(adapted(code).train(), ids, 5)
    model = adapted(code).to("cuda").train()
    assert all(array_namespace(p.data) is cupy for p in model.parameters())
    np.testing.assert_allclose(losses(model, ids, 5), expected, rtol=1e-3)
    model.eval()
    there = list(generate_tokens(model, [1, 2, 3], 8))
    model.save_pretrained(tmp_path / "adapter")
    model.to("cpu")
    assert all(isinstance(p.data, np.ndarray) for p in model.parameters())
    assert list(generate_tokens(model, [1, 2, 3], 8)) == there


def test_use_backend_puts_new_arrays_on_the_gpu(cupy):
    with ml.use_backend("cupy"):
        assert isinstance(Tensor([1.0, 2.0]).data, cupy.ndarray)
        assert isinstance(adapted("nf4").trainable().popitem()[1].data, cupy.ndarray)
        assert isinstance(Tensor(np.ones(2)).data, np.ndarray)  # an array stays where it is
    assert isinstance(Tensor([1.0, 2.0]).data, np.ndarray)
