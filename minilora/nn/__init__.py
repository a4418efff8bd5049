"""Modules: layers, attention, a transformer, and its quantization."""

from minilora.nn.layers import Embedding, LayerNorm, Linear, QuantizedLinear, RMSNorm
from minilora.nn.module import Module, Parameter
from minilora.nn.quantize import quantize_model
from minilora.nn.transformer import CausalLM, TransformerConfig

__all__ = [
    "CausalLM", "Embedding", "LayerNorm", "Linear", "Module", "Parameter", "QuantizedLinear", "RMSNorm",
    "TransformerConfig", "quantize_model",
]  # fmt: skip
