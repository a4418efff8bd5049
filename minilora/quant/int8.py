"""int8 with a zero point, beside absmax int8: for the lesson, on one array with one scale.

    q = quantize_zeropoint(x)
    q.dequantize()

Absmax int8, `quantize(x, "int8", blocksize=...)`, is symmetric: code = round(127 x / absmax), half to even, -127..127;
absmax is stored, and multiplied to dequantize. A positive x (an activation after a ReLU) leaves half of its codes idle.
Here the interval from min(x, 0) to max(x, 0) is laid over all 256 codes: code = round(x / scale) + zero_point, and zero
is exact, as a code stands for it (Jacob et al., arXiv:1712.05877, equation 1).
"""

from dataclasses import dataclass

import numpy as np

from minilora.errors import QuantizationError


@dataclass(frozen=True)
class ZeroPointArray:
    """codes int8 of x's shape; scale, the step between codes (float32); zero_point, the code of zero."""

    codes: np.ndarray
    scale: np.float32
    zero_point: int

    def dequantize(self) -> np.ndarray:
        """scale · (code - zero_point), float32."""
        return (self.codes.astype(np.float32) - np.float32(self.zero_point)) * self.scale


def quantize_zeropoint(x) -> ZeroPointArray:
    """Quantize a floating-point array to int8 with one scale and one zero point; the error is at most scale / 2, up to
    float32 rounding, for x whose range float32 can hold and divide by 255 (above 3e-36, below 3e38), else it raises.
    Raises QuantizationError for an array that is empty, not of floats, or not finite."""
    x = np.asarray(x)
    if x.dtype.kind != "f" or not x.size or not np.isfinite(x).all():
        raise QuantizationError(f"zero-point int8 takes finite floats, at least one; got {x.dtype} of shape {x.shape}")
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    span = high - low
    if span and not 3e-36 < span < 3e38:
        raise QuantizationError(f"the range of x, {span:g}, is beyond what a float32 scale can cut into 255 steps")
    scale = np.float32(span / 255) or np.float32(1)  # all zero: any scale will do
    zero_point = round(-low / float(scale)) - 128
    codes = np.rint(x / scale) + zero_point
    return ZeroPointArray(np.clip(codes, -128, 127).astype(np.int8), scale, zero_point)
