"""Quantization: codebooks, blocks, double quantization, files, and the error that theory expects."""

from minilora.quant.array import QuantizedArray, dequantize, quantize
from minilora.quant.codebooks import CODES, DYNAMIC_MAP, E4M3, normal_float, register_code
from minilora.quant.files import load, save
from minilora.quant.int8 import ZeroPointArray, quantize_zeropoint
from minilora.quant.lloyd import lloyd_max, scaled_normal
from minilora.quant.theory import ExpectedError, expected_error

__all__ = [
    "CODES", "DYNAMIC_MAP", "E4M3", "ExpectedError", "QuantizedArray", "ZeroPointArray", "dequantize",
    "expected_error", "lloyd_max", "load", "normal_float", "quantize", "quantize_zeropoint", "register_code", "save",
    "scaled_normal",
]  # fmt: skip
