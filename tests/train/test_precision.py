"""Loss scaling: gradients that float16 cannot hold are kept by it, and an overflow costs one update, not the run."""

import numpy as np
import pytest
from train.test_snapshots import make

from minilora import Tensor, TrainingArguments, ops
from minilora.errors import ConfigError
from minilora.train.precision import Precision


def gradient(factor, scale):
    """dL/dx of L = sum(factor · factor · x), computed in float16."""
    precision = Precision("float16", scale)
    x = Tensor(np.ones(4, np.float32), requires_grad=True)
    with precision.autocast():
        loss = ops.sum((x * factor) * factor)
        (loss * precision.scale).backward()
    return precision.unscale([x]), x.grad, precision


def test_small_gradients_vanish_without_a_scale_and_not_with_it():
    fine, g, _ = gradient(1e-4, 1.0)  # 1e-8 is below float16's smallest number, 6e-8
    assert fine and not g.any()
    fine, g, _ = gradient(1e-4, 2.0**15)
    np.testing.assert_allclose(g, 1e-8, rtol=0.01)


def test_an_overflow_halves_the_scale_and_patience_doubles_it():
    fine, _, precision = gradient(100.0, 2.0**16)
    assert not fine and precision.scale == 2.0**15
    precision = Precision("float16", 8.0, patience=3)
    p = Tensor(np.ones(2, np.float32), requires_grad=True)
    for _ in range(3):
        p.grad = np.ones(2, np.float32)
        assert precision.unscale([p])
    assert precision.scale == 16 and precision.good == 0
    again = Precision("float16")
    again.restore(precision.state())
    assert again.state() == precision.state()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_other_types_are_not_scaled(kind):
    precision = Precision(kind)
    p = Tensor(np.ones(2, np.float32), requires_grad=True)
    p.grad = np.float32([1, np.inf])
    assert precision.scale == 1 and precision.unscale([p]) and p.grad[1] == np.inf


def test_a_run_skips_what_overflows_and_goes_on(tmp_path):
    trainer = make(tmp_path / "out", fp16=True, max_steps=30, save_steps=None)
    trainer.precision = Precision("float16", scale=2.0**40)
    before = {n: p.data.copy() for n, p in trainer.model.trainable().items()}
    log = trainer.train().log
    skipped = [e["step"] for e in log if e.get("skipped")]
    assert skipped[:10] == list(range(1, 11)) and len(skipped) < 30 and all(np.isfinite([e["loss"] for e in log]))
    assert trainer.precision.scale == 2.0 ** (40 - len(skipped))
    assert any(not np.array_equal(before[n], p.data) for n, p in trainer.model.trainable().items())


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_16_bits_learn_about_as_well(tmp_path, kind):
    losses = [
        make(tmp_path / str(i), max_steps=60, save_steps=None, learning_rate=2e-2, **mode).train().log[-1]["loss"]
        for i, mode in enumerate(({}, {kind: True}))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.1) and losses[0] != losses[1]


def test_both_are_refused():
    with pytest.raises(ConfigError, match="not both"):
        TrainingArguments("out", bf16=True, fp16=True)
