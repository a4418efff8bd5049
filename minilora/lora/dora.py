"""DoRA: a trained magnitude for each output beside LoRA's update of the direction.

W = m (W₀ + ΔW) / ‖W₀ + ΔW‖,  ΔW = (alpha / r) B A,  m (d_out,)   (arXiv:2402.09353, equation 5)

‖·‖ is the norm of each row. It starts equal to m, so at first W = W₀; in the backward pass it is a constant, as section
4.3 of the paper proposes and PEFT does.
"""

import numpy as np

from minilora import ops
from minilora.autograd import Tensor


def norms(layer, name: str, delta: np.ndarray | None = None) -> np.ndarray:
    """‖W₀ + ΔW‖ of each row, (d_out,). A quantized W₀ is dequantized for it, each time."""
    if delta is None:
        delta = (layer.B(name).data @ layer.A(name).data) * layer.scaling[name]
    changed = layer.weight() + delta  # (d_out, d_in)
    return np.sqrt(np.einsum("oi,oi->o", changed, changed))


def _divisor(norm: np.ndarray) -> np.ndarray:
    return np.where(norm == 0, norm.dtype.type(1), norm)  # a row of zeros has no direction, and its m is zero


def add_update(layer, name: str, base: Tensor, low: Tensor, y: Tensor) -> Tensor:
    """y + (g - 1) W₀ x + g ΔW x with g = m / ‖W₀ + ΔW‖. base: W₀ x + b; low: (alpha / r) A x, (..., r)."""
    g = layer.lora_magnitude_vector[name] / _divisor(norms(layer, name))  # (d_out,)
    bias = getattr(layer.base_layer, "bias", None)
    product = base if bias is None else base - bias  # W₀ x
    return y + ((g - 1) * product + g * ops.linear(low, layer.B(name)))  # (..., d_out)


def delta_weight(layer, name: str, delta: np.ndarray) -> np.ndarray:
    """What DoRA adds to W₀ in all: g (W₀ + ΔW) - W₀."""
    weight = layer.weight()
    g = layer.lora_magnitude_vector[name].data / _divisor(norms(layer, name, delta))
    return g[:, None] * (weight + delta) - weight
