"""Quantization: codebooks, blocks, double quantization."""

from minilora.quant.codebooks import CODES

__all__ = ["CODES"]
