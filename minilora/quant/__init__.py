"""Quantization: codebooks, blocks, double quantization, and the error that theory expects."""

from minilora.quant.array import QuantizedArray, dequantize, quantize
from minilora.quant.codebooks import CODES, DYNAMIC_MAP, normal_float, register_code
from minilora.quant.theory import ExpectedError, expected_error

__all__ = [
    "CODES", "DYNAMIC_MAP", "ExpectedError", "QuantizedArray", "dequantize", "expected_error", "normal_float",
    "quantize", "register_code",
]  # fmt: skip
