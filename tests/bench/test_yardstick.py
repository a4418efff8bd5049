import numpy as np
import pytest

from minilora.bench import train


@pytest.mark.parametrize("lora", [False, True])
def test_the_yardstick_computes_what_the_model_does(monkeypatch, lora):
    """training_ratio raises where loss or gradient differ; here at a size that takes no time."""
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(train, "LENGTH", 8)
    monkeypatch.setattr(train, "VOCAB", 32)
    monkeypatch.setattr(train, "HEADS", 2)
    assert np.isfinite(train.training_ratio(16, 2, lora))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_training_step_costs_what_straight_line_numpy_costs(lora):
    """The engine, its checks and its closures add at most an eighth to the step written out by hand."""
    assert train.training_ratio(256, 6, lora) < 1.12
