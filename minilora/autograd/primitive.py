"""Primitive: a function on arrays that returns its value and one vjp closure per input.

    @primitive
    def mul(a, b):
        return a * b, (lambda g: g * b,     # dL/da: keeps b
                       lambda g: g * a)     # dL/db: keeps a

The rules see plain arrays and no broadcasting: the engine sums a gradient back to its input's shape. Only the closures
of inputs that need a gradient are kept, so what the others had captured is freed at once. With a frozen weight neither
its gradient nor the activation that it would need is stored: LoRA's saving of memory is this line, not a special case.
"""

import functools
from collections.abc import Callable

import numpy as np

from minilora.autograd import tensor
from minilora.autograd.tensor import Node, Tensor, owner
from minilora.backend import array_namespace, is_array
from minilora.errors import BackendError, MiniloraError, ShapeError

PRIMITIVES: dict[str, Callable] = {}


def primitive(function: Callable | None = None, *, analytic: bool = True):
    """Turn `f(*arrays, **options) -> (value, (vjp or None, ...))` into a function on Tensors, and register it.

    analytic: whether f, given complex arrays, computes the analytic continuation, so that gradcheck may take a complex
    step (no abs, no comparison of values other than a shift that cancels).
    """
    if function is None:
        return functools.partial(primitive, analytic=analytic)
    name = function.__name__.lstrip("_")

    @functools.wraps(function)
    def apply(*inputs, **options) -> Tensor:
        arrays = [_array(x) for x in inputs]
        try:
            value, vjps = function(*arrays, **options)
        except MiniloraError:
            raise
        except (ValueError, IndexError, TypeError) as error:
            shapes = ", ".join(f"{a.dtype}{list(a.shape)}" if is_array(a) else repr(a) for a in arrays)
            libraries = dict.fromkeys(array_namespace(a).__name__ for a in arrays if is_array(a))
            if len(libraries) > 1:
                raise BackendError(
                    f"{name}({shapes}): the arrays are {' and '.join(libraries)}'s; move them to one place, a model "
                    'with model.to("cuda") or model.to("cpu")'
                ) from error
            raise ShapeError(f"{name}({shapes}): {error}") from error
        out = Tensor(tensor.rounded(value))
        if tensor.is_grad_enabled():
            needed = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.node is not None]
            if needed:
                out.node = record(name, inputs, out, [(i, vjps[i]) for i in needed])
        return out

    apply.analytic = analytic
    PRIMITIVES[name] = apply
    return apply


def _array(x):
    if isinstance(x, Tensor):
        return x.data
    return x.item() if isinstance(x, np.generic) else x  # NEP 50: a NumPy float64 scalar would widen float32 arrays


def record(name: str, inputs, out: Tensor, kept: list[tuple[int, Callable]]) -> Node:
    """The node of `out`, computed from `inputs`; kept: (which input, its vjp) of those that need a gradient."""
    node = Node(name, out.data, tuple((inputs[i].node, vjp) for i, vjp in kept))
    # Only what a caller can reach needs protection: inputs and output whose memory a closure has kept.
    captured = {id(owner(a)) for a in node.captured()}
    named = [(x, f"input {i}") for i, x in enumerate(inputs) if isinstance(x, Tensor)] + [(out, "the result")]
    kept_tensors = [(t, what) for t, what in named if id(owner(t.data)) in captured]
    node.lock([t.data for t, _ in kept_tensors])
    node.guards = tuple((t._version, t._version[0], what) for t, what in kept_tensors)
    tensor._live_nodes.add(node)
    return node
