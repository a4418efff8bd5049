"""Gradient checkpointing: keep the input of a part of the model, and compute the part again when backward needs it.

    y = checkpoint(block, x, mask, parameters=block.parameters())       # as block(x, mask), but the tape holds only x

A tape holds what every op of every layer keeps. With the layers checkpointed it holds one input a layer, and what one
layer keeps while backward is in it, for the price of a second forward pass (Chen et al., arXiv:1604.06174). Gradients
are the same bit for bit: the same ops on the same arrays, random numbers included.
"""

from collections.abc import Callable, Iterable

import numpy as np

from minilora.autograd import tensor
from minilora.autograd.primitive import record
from minilora.autograd.tensor import Tensor, enable_grad, no_grad


def checkpoint(
    function: Callable[..., Tensor], x: Tensor, *constants, parameters: Iterable[Tensor] = (),
    generators: Iterable[np.random.Generator] = (),
) -> Tensor:  # fmt: skip
    """function(x, *constants) -> Tensor, whose ops are not recorded now but when backward gets there.

    parameters: the tensors beside x that the function's gradients go to. generators: those that it draws from, which
    draw the same numbers the second time. function must depend on nothing else that changes between the two times.
    """
    if not tensor.is_grad_enabled():
        return function(x, *constants)
    generators = list(generators)
    before = [rng.bit_generator.state for rng in generators]
    with no_grad():
        out = Tensor(function(x, *constants).data)
    if x.node is None:
        if not any(p.requires_grad for p in parameters):
            return out
        x = Tensor(x.data, requires_grad=True)  # the way by which backward comes to the parameters

    data = x.data

    def vjp(g):
        again = Tensor(data, requires_grad=True)
        after = [rng.bit_generator.state for rng in generators]
        for rng, state in zip(generators, before, strict=True):
            rng.bit_generator.state = state
        with enable_grad():
            y = function(again, *constants)
        for rng, state in zip(generators, after, strict=True):
            rng.bit_generator.state = state
        y.backward(g)
        return again.grad if again.grad is not None else np.zeros_like(data)

    out.node = record("checkpoint", (x,), out, [(0, vjp)])
    return out
