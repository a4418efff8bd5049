"""Layers: Linear, Conv1D, QuantizedLinear, Embedding, RMSNorm, LayerNorm, Dropout, Activation, Sequential.

Weights are W (d_out, d_in): y = x Wᵀ + b. Conv1D's alone is stored transposed, (d_in, d_out).
"""

from contextlib import contextmanager

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.nn.module import Module, Parameter
from minilora.quant import QuantizedArray, quantize

_count_only = False


@contextmanager
def count_only():
    """Within it new layers' weights are views of a single zero: any model can be made, to be counted, and not used."""
    global _count_only
    before, _count_only = _count_only, True
    try:
        yield
    finally:
        _count_only = before


def _zeros(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape) if _count_only else np.zeros(shape, np.float32)


def _sizes(layer) -> str:
    d_out, d_in = layer.shape
    return f"in_features={d_in}, out_features={d_out}, bias={layer.bias is not None}"


def _norm_size(norm) -> str:
    return f"({norm.weight.size},), eps={norm.eps:g}"


class Linear(Module):
    """y = x Wᵀ + b, W (d_out, d_in), b (d_out,) or None."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False, rng: np.random.Generator | None = None, std=None):
        """Normal initial weights of standard deviation std (1/√d_in unless given), or zeros without an rng."""
        weight = _zeros(d_out, d_in)
        if rng is not None:
            weight = rng.standard_normal((d_out, d_in), np.float32) * np.float32(std or d_in**-0.5)
        self.weight = Parameter(weight)
        self.bias = Parameter(np.zeros(d_out, np.float32)) if bias else None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.weight.shape

    def extra_repr(self) -> str:
        return _sizes(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out)."""
        return ops.linear(x, self.weight, self.bias)


class Conv1D(Module):
    """GPT-2's linear layer: y = x W + b with W (d_in, d_out), the transpose of Linear's, and always a bias.

    (A convolution of width 1 in OpenAI's code, whence the name.) shape is (d_out, d_in), as every other layer's.
    """

    def __init__(self, d_in: int, d_out: int, rng: np.random.Generator | None = None, std=None):
        """Normal initial weights of standard deviation std (1/√d_in unless given), or zeros without an rng."""
        weight = _zeros(d_in, d_out)
        if rng is not None:
            weight = rng.standard_normal((d_in, d_out), np.float32) * np.float32(std or d_in**-0.5)
        self.weight, self.bias = Parameter(weight), Parameter(np.zeros(d_out, np.float32))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), the transpose of the weight's."""
        d_in, d_out = self.weight.shape
        return d_out, d_in

    def extra_repr(self) -> str:
        return _sizes(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out)."""
        return ops.linear(x, self.weight.T, self.bias)


class QuantizedLinear(Module):
    """A frozen Linear that holds only codes and constants; no float copy of its weight is kept."""

    def __init__(self, quantized_weight: QuantizedArray, bias: Parameter | None = None):
        self.quantized_weight, self.bias = quantized_weight, bias

    @classmethod
    def from_linear(cls, layer: Linear | Conv1D, code="nf4", blocksize=64, double_quant=True) -> "QuantizedLinear":
        """Quantize a layer's weight, as (d_out, d_in); its bias is shared. Raises QuantizationError."""
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data  # (d_out, d_in)
        return cls(quantize(weight, code, blocksize, double_quant), layer.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.quantized_weight.shape

    def extra_repr(self) -> str:
        q = self.quantized_weight
        return f"{_sizes(self)}, {q.code}, blocksize={q.blocksize}, double_quant={bool(q.double_quant)}"

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out), by the dequantized weight (ops.linear_4bit)."""
        return ops.linear_4bit(x, self.quantized_weight, self.bias)


class Embedding(Module):
    """A table of rows, weight (rows, d), looked up by number."""

    def __init__(self, rows: int, d: int, rng: np.random.Generator | None = None, std: float = 0.02):
        weight = _zeros(rows, d)
        self.weight = Parameter(weight if rng is None else rng.standard_normal((rows, d), np.float32) * np.float32(std))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))

    def forward(self, ids: np.ndarray) -> Tensor:
        """Integers of any shape -> (*ids.shape, d)."""
        return ops.embedding(self.weight, ids)


class RMSNorm(Module):
    """Rows divided by their root mean square, times weight (d,) (ops.rms_norm)."""

    def __init__(self, d: int, eps: float):
        self.weight, self.eps = Parameter(np.ones(d, np.float32)), eps

    def extra_repr(self) -> str:
        return _norm_size(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        return ops.rms_norm(x, self.weight, eps=self.eps)


class LayerNorm(Module):
    """Rows of mean 0 and variance 1, times weight (d,), plus bias (d,) (ops.layer_norm)."""

    def __init__(self, d: int, eps: float):
        self.weight, self.bias = Parameter(np.ones(d, np.float32)), Parameter(np.zeros(d, np.float32))
        self.eps = eps

    def extra_repr(self) -> str:
        return _norm_size(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """In training each entry is 0 with probability p, else x / (1 - p); otherwise x as it is (arXiv:1207.0580).

    A model's dropouts draw from one Generator, so that its seed decides what they drop.
    """

    def __init__(self, p: float, rng: np.random.Generator):
        self.p, self.rng = p, rng

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def extra_repr(self) -> str:
        return f"p={self.p:g}"

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.rng) if self.active else x


class Activation(Module):
    """One of the ops "gelu", "gelu_tanh" and "relu", as a part that the printed tree shows."""

    def __init__(self, name: str):
        self.function = getattr(ops, name)
        self.shown_as = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "relu": "ReLU"}[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sequential(Module):
    """Modules one after the other, named "0", "1", ... as torch's are: a class around a head, say, that changes what
    the head gives."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __getitem__(self, i: int) -> Module:
        return vars(self)[str(i)]

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def forward(self, x: Tensor) -> Tensor:
        """Each module's result goes into the next."""
        for _, module in self.children():
            x = module(x)
        return x
