"""Rank, speed and memory: bytes by definition, shares that add up, the quick run as a user's, the committed page."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.cli import main
from minilora.experiments import rank_speed_memory as experiment
from minilora.experiments.study import page_lacks
from minilora.nn import CausalLM, TransformerConfig

DOCS = Path(__file__).parents[2] / "docs/experiments"


@pytest.fixture(scope="module")
def found():
    base = CausalLM(TransformerConfig(64, 32, 48, 2, 2, num_key_value_heads=2), seed=0)
    return experiment.compare(base, (1, 8), 2, 8, [0, 1], lambda line: None)


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "rank-speed-memory", DOCS / "rank-speed-memory.md") == []


def test_bytes_are_those_of_the_arrays(found):
    full, lora = found["bytes"]["full"], found["bytes"]["qv-r8"]
    assert full["gradients"] == full["weights"] == 4 * found["parameters"] == full["optimizer"] // 2
    assert lora["trainable"] == 2 * 2 * 8 * (32 + 32) and lora["adapters"] == lora["gradients"] == 4 * lora["trainable"]
    assert lora["optimizer"] == 8 * lora["trainable"] and lora["weights"] == full["weights"]
    assert found["bytes"]["frozen"]["activations"] < full["activations"]
    assert found["bytes"]["qv-r1"]["trainable"] * 8 == lora["trainable"]


def test_what_is_saved_adds_up_to_the_difference(found):
    full, lora = found["bytes"]["full"], found["bytes"]["qv-r8"]
    saved = experiment.saved_bytes(found, "qv-r8")
    assert sum(saved.values()) == experiment.without_weights(full) - experiment.without_weights(lora)
    parts = np.sum(list(experiment.saved_time(found["times"], "qv-r8").values()), axis=0)
    np.testing.assert_allclose(parts, experiment.shares(found["times"], experiment.FULL, "qv-r8 step"))
    assert all(len(times) == 2 and min(times) > 0 for times in found["times"].values())


@given(st.integers(6, 30), st.integers(0, 1000))
def test_the_medians_interval_is_the_sign_tests(n, seed):
    values = np.random.default_rng(seed).standard_normal(n).tolist()
    middle, low, high = experiment.median(values)
    assert low <= middle <= high and {low, high} <= set(values)
    assert sum(v < low for v in values) == sum(v > high for v in values)


def test_the_medians_interval_holds_it_in_95_of_100_draws():
    draws = np.random.default_rng(0).standard_exponential((1000, 9)).tolist()
    held = np.mean([low <= np.log(2) <= high for _, low, high in map(experiment.median, draws)])
    assert held >= 0.95
    assert np.isnan(experiment.median([1.0] * 5)[1])


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "rank-speed-memory", "--quick"]) == 0
    assert "Time saved" in capsys.readouterr().out and (tmp_path / "rank-speed-memory/bytes-embedded.svg").exists()
