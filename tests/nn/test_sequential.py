"""Modules one after the other, and how they are found and exchanged by path."""

import numpy as np

from minilora import Tensor, nn
from minilora.nn.layers import Activation


def test_sequential(rng):
    first, last = nn.Linear(3, 5, rng=rng), nn.Linear(5, 2, True, rng)
    model, x = nn.Sequential(first, Activation("relu"), last), rng.standard_normal((4, 3), np.float32)
    np.testing.assert_array_equal(model(Tensor(x)).data, last(first(Tensor(x)).relu()).data)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.weight", "2.bias"]
    assert len(model) == 3 and model[0] is first and model.get_submodule("2") is last
    assert repr(model).startswith(
        "Sequential(\n  (0): Linear(in_features=3, out_features=5, bias=False)\n  (1): ReLU()"
    )
    model(Tensor(x)).sum().backward()
    assert first.weight.grad.shape == (5, 3)


def test_its_modules_are_exchanged_by_path(rng):
    outer = nn.Sequential(nn.Sequential(nn.Linear(3, 5, rng=rng), nn.Linear(5, 2, rng=rng)))
    nn.quantize_model(outer)
    assert list(outer.quantized()) == ["0.0", "0.1"]
    outer.set_submodule("0", nn.Linear(3, 1))
    assert outer[0].shape == (1, 3) and not outer.quantized()
