"""Quantization: codebooks, blocks, double quantization."""

from minilora.quant.array import QuantizedArray, dequantize, quantize
from minilora.quant.codebooks import CODES, DYNAMIC_MAP

__all__ = ["CODES", "DYNAMIC_MAP", "QuantizedArray", "dequantize", "quantize"]
