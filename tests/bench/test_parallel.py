import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import memory
from minilora.bench.parallel import MODELS, SIZES, fit, ring
from minilora.memory import BUILT_IN, estimate, shape_of


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-6))
def test_the_fit_finds_what_made_the_times(alpha, beta):
    found = fit(SIZES, [alpha + beta * size for size in SIZES])
    assert found == pytest.approx((alpha, beta), rel=1e-3)


@given(st.integers(2, 50), st.integers(1, 10**6), st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-6))
def test_the_ring_step_by_step(nodes, size, alpha, beta):
    """Reduce-scatter and all-gather: n - 1 rounds each, in which every node passes one n-th on."""
    assert ring(nodes, size, alpha, beta) == pytest.approx(
        sum(alpha + beta * size / nodes for _ in range(2 * nodes - 2))
    )
    assert np.isclose(ring(10**9, size, 0, beta), 2 * beta * size)


def test_the_models_sizes():
    for name, key, way in (("SmolLM2-135M", "smollm2-135m", "lora"), ("LLaMA 7B", "llama-7b", "lora")):
        assert MODELS[f"{name}, every weight"] == shape_of(*BUILT_IN[key]).parameters
        assert MODELS[f"{name}, LoRA r=8 all-linear"] * 4 == estimate(BUILT_IN[key], way).adapters
    embedded = memory.named("embedded")
    assert MODELS["embedded, every weight"] == shape_of(*embedded).parameters
    assert MODELS["embedded, LoRA r=8 all-linear"] * 4 == estimate(embedded, "lora").adapters
