"""gradcheck: are the gradients of a function right?

    gradcheck(lambda x, w: softmax(x @ w), x, w)      # None, or GradcheckError naming the worst index

The check is one number: for random v and u, <v, Jᵀu> = <Jv, u>. The left side comes from `backward` with the random
covector u (a plain .sum() would hide errors, as a softmax's rows sum to one whatever its rule says), the right side
from the function alone: by a complex step, Jv = Im f(x + ihv)/h, exact to rounding as h may be 1e-30 (Squire and Trapp,
1998), where every op on the tape is analytic; else by central differences. Only when the numbers differ is each entry
of the Jacobian product compared, to say where.
"""

from collections.abc import Callable

import numpy as np

from minilora.autograd.primitive import PRIMITIVES
from minilora.autograd.tensor import Tensor, no_grad
from minilora.errors import GradcheckError

COMPLEX_STEP, DIFFERENCE_STEP = 1e-30, 1e-6


def gradcheck(fn: Callable, *arrays, seed: int = 0, rtol: float | None = None) -> None:
    """Compare backward's gradients of `fn(*tensors) -> Tensor` with numerical ones, in float64.

    arrays: the points at which to check; each is cast to float64 and given to fn as a Tensor. rtol: allowed error
    relative to the size of the product; 1e-9 for a complex step and 1e-5 for differences unless given.
    Raises GradcheckError naming the input, the worst index, and the two values there.
    """
    rng = np.random.default_rng([seed, 0xC0])  # not the stream of a caller who drew the arrays from default_rng(0)
    arrays = [np.array(a, np.float64) for a in arrays]
    inputs = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    out = fn(*inputs)
    if not isinstance(out, Tensor) or out.node is None:
        raise GradcheckError("the function's result does not depend on its inputs through Tensor operations")
    analytic = all(PRIMITIVES[op].analytic for op in _ops(out.node))
    rtol = rtol or (1e-9 if analytic else 1e-5)
    u = rng.standard_normal(out.shape)
    out.backward(u)
    grads = [np.zeros_like(a) if x.grad is None else x.grad for a, x in zip(arrays, inputs, strict=True)]

    jvp = _complex_step if analytic else _central_difference
    for i, (a, grad) in enumerate(zip(arrays, grads, strict=True)):
        v = rng.standard_normal(a.shape)
        products = grad * v
        got, expected = products.sum(), (jvp(fn, arrays, i, v) * u).sum()
        scale = np.abs(products).sum() + abs(expected) + 1e-3
        if not abs(got - expected) <= rtol * scale:
            raise GradcheckError(_report(fn, arrays, i, grad, u, jvp))


def _ops(root) -> set[str]:
    ops, seen, stack = set(), {root}, [root]
    while stack:
        node = stack.pop()
        if node.leaf is None:
            ops.add(node.op)
        for parent, _ in node.parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return ops


def _evaluate(fn, arrays, i, moved) -> np.ndarray:
    with no_grad():
        return fn(*(Tensor(moved if j == i else a) for j, a in enumerate(arrays))).data


def _complex_step(fn, arrays, i, v) -> np.ndarray:
    arrays = [a.astype(np.complex128) for a in arrays]  # all of them, as ops add in place
    return _evaluate(fn, arrays, i, arrays[i] + 1j * COMPLEX_STEP * v).imag / COMPLEX_STEP


def _central_difference(fn, arrays, i, v) -> np.ndarray:
    h = DIFFERENCE_STEP
    return (_evaluate(fn, arrays, i, arrays[i] + h * v) - _evaluate(fn, arrays, i, arrays[i] - h * v)) / (2 * h)


def _report(fn, arrays, i, grad, u, jvp) -> str:
    expected = np.empty_like(grad)
    for index in np.ndindex(grad.shape):
        direction = np.zeros_like(grad)
        direction[index] = 1
        expected[index] = (jvp(fn, arrays, i, direction) * u).sum()
    error = np.abs(grad - expected)
    error[np.isnan(error)] = np.inf
    worst = tuple(int(k) for k in np.unravel_index(error.argmax(), error.shape))
    return (
        f"gradient of input {i} (shape {grad.shape}) is wrong, worst at index {worst}: "
        f"backward gives {grad[worst]:.10g}, {jvp.__name__.strip('_').replace('_', ' ')} gives {expected[worst]:.10g}; "
        f"{int((error > 1e-6 * (1 + np.abs(expected))).sum())} of {grad.size} entries differ"
    )
