"""Matrix products: dense, and with a frozen 4-bit weight.

Linear weights are W (d_out, d_in) as in the LoRA paper and PEFT: y = x Wᵀ, dx = g W, dW = gᵀ x. Inputs of several
leading axes are flattened to two dimensions first, so that each product is one BLAS call.
"""

import math

from minilora.autograd import Tensor, primitive
from minilora.backend import array_namespace


@primitive
def _matmul(a, b):
    return a @ b, (lambda g: g @ b.mT, lambda g: a.mT @ g)


def matmul(a, b) -> Tensor:
    """a @ b as NumPy's, vectors included: they become a row (left) or a column (right), and that axis goes again."""
    a, b = (x if isinstance(x, Tensor) else Tensor(x) for x in (a, b))
    row, column = a.ndim == 1, b.ndim == 1
    a = a.reshape((1, -1)) if row else a
    b = b.reshape((-1, 1)) if column else b
    y = _matmul(a, b)
    shape = y.shape
    if row:
        y = y.reshape(shape[:-2] + shape[-1:])
    if column:
        y = y.reshape(y.shape[:-1])
    return y


def _flat(x):
    """(..., d) -> (N, d)"""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@primitive
def linear(x, weight, bias=None):
    """y = x Wᵀ + b. x (..., d_in), weight (d_out, d_in), bias (d_out,) or None; y (..., d_out)."""
    x_shape, rows = x.shape, _flat(x)
    lead = x_shape[:-1]
    y = rows @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*lead, len(weight)), (
        lambda g: (_flat(g) @ weight).reshape(x_shape),
        lambda g: _flat(g).T @ rows,
        lambda g: g,
    )


@primitive
def addmm(y, x, weight):
    """y + x Wᵀ in one new array. y (..., d_out), x (..., d_in), weight (d_out, d_in)."""
    rows = _flat(x)
    out = (rows @ weight.T).reshape(y.shape)
    out += y
    x_shape = x.shape
    return out, (
        lambda g: g,
        lambda g: (_flat(g) @ weight).reshape(x_shape),
        lambda g: _flat(g).T @ rows,
    )


@primitive
def linear_4bit(x, weight, bias=None):
    """y = x Wᵀ + b with a frozen quantized W: weight is a QuantizedArray (d_out, d_in), and gets no gradient.

    The float weight never exists whole: the kernel dequantizes a tile of rows at a time, here in the forward pass and,
    transposed, in the backward pass (QLoRA, arXiv:2305.14314, section 3: storage in NF4, computation in float).
    """
    x_shape = x.shape
    y = weight.matmul(_flat(x))
    if bias is not None:
        y += bias
    return y.reshape(*x_shape[:-1], y.shape[-1]), (
        lambda g: weight.matmul(array_namespace(g).ascontiguousarray(_flat(g)), transpose=True).reshape(x_shape),
        None,
        lambda g: g,
    )
