"""Differentiable functions on Tensors. Tensor's operators and methods are these functions, attached here."""

from minilora.autograd import Tensor
from minilora.ops.elementwise import (
    add,
    astype,
    divide,
    exp,
    gelu,
    gelu_tanh,
    log,
    maximum,
    multiply,
    negative,
    power,
    relu,
    sigmoid,
    sqrt,
    subtract,
    swiglu,
    tanh,
    where,
)
from minilora.ops.linalg import addmm, linear, linear_4bit, matmul
from minilora.ops.nn import (
    attention,
    cross_entropy,
    dropout,
    embedding,
    layer_norm,
    log_softmax,
    rms_norm,
    rope,
    softmax,
)
from minilora.ops.reduce import max, mean, sum
from minilora.ops.shape import broadcast_to, concatenate, getitem, merge_heads, reshape, split_heads, transpose

__all__ = [
    "add", "addmm", "astype", "attention", "broadcast_to", "concatenate", "cross_entropy", "divide", "dropout",
    "embedding", "exp", "gelu", "gelu_tanh", "getitem", "layer_norm", "linear", "linear_4bit", "log", "log_softmax",
    "matmul", "max", "maximum", "mean", "merge_heads", "multiply", "negative", "power", "relu", "reshape", "rms_norm",
    "rope", "sigmoid", "softmax", "split_heads", "sqrt", "subtract", "sum", "swiglu", "tanh", "transpose", "where",
]  # fmt: skip


def _reshape(x, *shape):
    """The same entries in another shape: x.reshape(2, 3) as well as x.reshape((2, 3))."""
    return reshape(x, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def _transpose(x, *axes):
    """Axes reordered, as NumPy's transpose takes them; reversed without."""
    return transpose(x, axes or None)


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = subtract, lambda a, b: subtract(b, a)
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__truediv__, Tensor.__rtruediv__ = divide, lambda a, b: divide(b, a)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda a, b: matmul(b, a)
Tensor.__neg__, Tensor.__pow__, Tensor.__getitem__ = negative, power, getitem
Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.tanh, Tensor.relu = exp, log, sqrt, tanh, relu
Tensor.sum, Tensor.mean, Tensor.max = sum, mean, max
Tensor.reshape, Tensor.transpose = _reshape, _transpose
Tensor.T = property(transpose)
Tensor.astype = astype
