"""LoraLinear: a frozen linear layer with a trainable update of low rank beside it.

h = W₀ x + (alpha / r) B A x,  A (r, d_in), B (d_out, r)   (LoRA, arXiv:2106.09685, equation 3)

A starts random and B zero, so that at first nothing changes, exactly. (Were both zero, neither would ever get a
gradient: dA = Bᵀ(…) and dB = (…)Aᵀ.)
"""

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.lora.config import LoraConfig
from minilora.nn import Linear, Module, QuantizedLinear


class LoraLinear(Module):
    def __init__(self, base_layer: Linear | QuantizedLinear, config: LoraConfig, rng: np.random.Generator):
        d_out, d_in = base_layer.shape
        self.base_layer = base_layer
        self.lora_A, self.lora_B = Linear(d_in, config.r), Linear(config.r, d_out)
        bound = d_in**-0.5  # as PEFT, loralib: Kaiming uniform with a = √5
        self.lora_A.weight.data = rng.uniform(-bound, bound, (config.r, d_in)).astype(np.float32)
        self.scaling, self.dropout, self.rng = config.scaling, config.lora_dropout, rng
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)  # (..., d_out)
        if not self.enabled:
            return y
        if self.training and self.dropout:
            x = ops.dropout(x, self.dropout, self.rng)
        low = self.lora_A(x) * self.scaling  # (..., r)
        return ops.addmm(y, low, self.lora_B.weight)  # (..., d_out)

    def delta_weight(self) -> np.ndarray:
        """ΔW = (alpha / r) B A, (d_out, d_in)."""
        return (self.lora_B.weight.data @ self.lora_A.weight.data) * np.float32(self.scaling)

    def merged(self) -> Linear:
        """A plain Linear with W₀ + ΔW; a quantized W₀ is dequantized (rounding the sum again would lose most of ΔW)."""
        d_out, d_in = self.base_layer.shape
        layer = Linear(d_in, d_out)
        quantized = isinstance(self.base_layer, QuantizedLinear)
        base = self.base_layer.quantized_weight.dequantize() if quantized else self.base_layer.weight.data
        layer.weight.data, layer.bias = base + self.delta_weight(), self.base_layer.bias
        return layer
