"""use_backend: what each backend is, what is missing where, and the library through the simulated GPU's kernels."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import backend, nn, simt
from minilora.backend import DeviceKernels, kernels_for
from minilora.backend import numpy as numpy_kernels
from minilora.errors import BackendError, UnknownNameError
from minilora.quant import double
from minilora.train.optim import AdamW

needs_nvrtc = pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")


def test_numpy_is_the_default_and_importing_it_loads_nothing_else():
    code = (
        "import sys, time; start = time.perf_counter(); import minilora; spent = time.perf_counter() - start; "
        "import minilora.backend as b, numpy as np; assert b.current_backend() == 'numpy'; "
        "assert b.kernels_for(np.ones(2)).__name__ == 'minilora.backend.numpy'; "
        "wanted = ('cupy', 'cupyx', 'scipy'); "
        "print([m for m in sys.modules if m.split('.')[0] in wanted or 'simt' in m or '.cuda' in m])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@needs_nvrtc
def test_a_setter_and_a_context_manager():
    x = np.ones(3, np.float32)
    assert kernels_for(x) is numpy_kernels
    with ml.use_backend("simt"):
        assert isinstance(kernels_for(x), DeviceKernels) and backend.current_backend() == "simt"
        with ml.use_backend("numpy"):
            assert kernels_for(x) is numpy_kernels
        assert isinstance(kernels_for(x), DeviceKernels)
        with pytest.raises(ZeroDivisionError), ml.use_backend("numpy"):
            1 / 0  # noqa: B018
        assert backend.current_backend() == "simt"
    assert kernels_for(x) is numpy_kernels
    ml.use_backend("simt")
    try:
        assert backend.current_backend() == "simt"
    finally:
        ml.use_backend("numpy")
    assert kernels_for(x) is numpy_kernels
    with ml.use_backend("simt"), pytest.raises(AttributeError, match="no function 'quantise'"):
        kernels_for(x).quantise  # noqa: B018


def test_names_that_there_are_not():
    with pytest.raises(UnknownNameError, match=r"unknown backend 'cuppy'. Did you mean 'cupy'"):
        ml.use_backend("cuppy")
    with pytest.raises(UnknownNameError, match=r"unknown device 'gpu'.*cpu, cuda"):
        backend.to_device(np.ones(2), "gpu")
    assert backend.current_backend() == "numpy"


def has_gpu() -> bool:
    try:
        backend._cupy()
    except BackendError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, so nothing is missing")
def test_without_a_gpu_the_error_says_what_is_missing():
    what = (
        "reaches no GPU|shows no NVIDIA GPU" if importlib.util.find_spec("cupy") else r"pip install 'minilora\[gpu\]'"
    )
    model = nn.CausalLM(nn.TransformerConfig(8, 8, 8, 1, 1))
    for ask in (
        lambda: ml.use_backend("cupy"),
        lambda: model.to("cuda"),
        lambda: backend.to_device(np.ones(2), "cuda"),
    ):
        with pytest.raises(BackendError, match=what):
            ask()
    assert backend.current_backend() == "numpy"
    assert model.to("cpu") is model and isinstance(model.lm_head.weight.data, np.ndarray)


# The simulated GPU.

CODES = ["nf4", "fp4", "e2m1", "int4", "linear16"]


@needs_nvrtc
@pytest.mark.parametrize("code", [*CODES, "int8"])
@settings(max_examples=4)
@given(seed=st.integers(0, 99), shape=st.sampled_from([(1,), (5, 13), (3, 64), (130,)]), kind=st.sampled_from(
    [False, *double.KINDS]))  # fmt: skip
def test_quantize_is_numpy_s_bit_for_bit(code, seed, shape, kind):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    expected = ml.quantize(x, code, 64, kind)
    with ml.use_backend("simt"):
        q = ml.quantize(x, code, 64, kind)
        assert q == expected
        np.testing.assert_array_equal(q.dequantize(), expected_values(expected), strict=True)
        out = np.full(shape, np.nan, np.float32)
        assert ml.dequantize(q, out) is out
    np.testing.assert_array_equal(out, expected_values(expected))


def expected_values(q):
    with ml.use_backend("numpy"):
        return q.dequantize()


def adapted():
    sizes = dict(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = nn.CausalLM(nn.TransformerConfig(**sizes), seed=1)
    model.model.embed_tokens.weight.data *= 10
    ml.quantize_model(model, "nf4", double_quant=True)
    return ml.get_peft_model(model, ml.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")).train()


@pytest.mark.slow
@needs_nvrtc
def test_qlora_trains_through_the_simulated_kernels():
    """A few steps of a tiny model: every product with a 4-bit weight, forward and backward, is a CUDA kernel's."""
    ids = np.random.default_rng(0).integers(0, 16, (2, 5))
    curves = {}
    for name in ("numpy", "simt"):
        with ml.use_backend(name):
            model, losses = adapted(), []
            optimizer = AdamW(model.parameters(), lr=2e-2)
            for _ in range(3):
                optimizer.zero_grad()
                loss = model.loss(ids, ids)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        curves[name] = losses
    np.testing.assert_allclose(curves["simt"], curves["numpy"], rtol=1e-5)
    assert curves["simt"][-1] < curves["simt"][0] - 0.1
