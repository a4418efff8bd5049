"""The error to expect of a block quantizer on normal weights, in closed form up to one integral.

    expected_error("nf4", 64).mae      # 0.0728: the mean of |x - dequantized x| for x ~ N(0, 1)

A block of B normal numbers is divided by its absmax M, whose density is f(m) = B (2Φ(m) - 1)^(B-1) 2φ(m). The entry
that is the maximum comes back as m Q(±1), which is exact for a code with both -1 and 1; the other B - 1 are, given
M = m, independent normals cut off at ±m. So

    E|e| = 1/B ∫ f(m) m (|1 - Q(1)| + |1 + Q(-1)|)/2 dm + (B-1)/B ∫ f(m) E[|x - m Q(x/m)| : |x| < m] dm,

and the inner mean is a sum over the code's levels of partial moments of the normal: ∫φ = Φ, ∫xφ = -φ, ∫x²φ = Φ - xφ.
"""

import math
from dataclasses import dataclass

import numpy as np

from minilora.backend.numpy import midpoints
from minilora.errors import QuantizationError, unknown_name
from minilora.quant.codebooks import CODES

_INT8 = np.arange(-127, 128) / 127
_erf = np.vectorize(math.erf, otypes=[float])


@dataclass(frozen=True)
class ExpectedError:
    """mae: E|e|, mse: E e², for weights of standard deviation 1 (they scale with σ and σ²)."""

    mae: float
    mse: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB: 10 log10(1 / mse)."""
        return -10 * math.log10(self.mse)


def expected_error(code: str, blocksize: int = 64) -> ExpectedError:
    """Mean absolute and squared error of `code` ("int8" or a name in CODES) on N(0, 1) in blocks of `blocksize`.

    Of nearest rounding with an exact absmax: no double quantization, no float32 rounding. Raises UnknownNameError;
    QuantizationError for a blocksize that is not an integer of at least 2.
    """
    if code != "int8" and code not in CODES:
        raise unknown_name("code", code, [*CODES, "int8"])
    if not isinstance(blocksize, (int, np.integer)) or isinstance(blocksize, bool) or blocksize < 2:
        raise QuantizationError(f"expected_error takes a blocksize of at least 2 entries, not {blocksize!r}")
    levels = _INT8 if code == "int8" else np.sort(CODES[code]).astype(float)
    # The integrand vanishes smoothly at both ends, so that equal steps converge faster than any power of the step.
    m = np.linspace(0.02, 9, 1500)
    density = (2 * _cdf(m) - 1) ** (blocksize - 1) * _pdf(m)
    density /= density.sum()
    ends = np.abs([1 - levels[-1], 1 + levels[0]])  # what the code lacks to reach the maximum, on either side
    largest = m * ends.mean(), m**2 * (ends**2).mean()
    others = _truncated_errors(levels, m[:, None])
    mae, mse = (density @ (a + (blocksize - 1) * b) / blocksize for a, b in zip(largest, others, strict=True))
    return ExpectedError(float(mae), float(mse))


def _truncated_errors(levels: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E|e| and E e² of x ~ N(0, 1) cut off at ±m, quantized to m times the nearest of sorted levels; (len(m),) each."""
    borders = np.concatenate([[-1.0], midpoints(levels), [1.0]])
    edge, level = borders * m, levels * m
    cdf, pdf = _cdf(edge), _pdf(edge)
    a, b = np.s_[:, :-1], np.s_[:, 1:]  # each cell's lower and upper edge
    mass = cdf[b] - cdf[a]
    first = pdf[a] - pdf[b]
    second = mass + edge[a] * pdf[a] - edge[b] * pdf[b]
    squared = second - 2 * level * first + level**2 * mass
    below = level * (_cdf(level) - cdf[a]) - (pdf[a] - _pdf(level))  # ∫ (level - x) φ from the lower edge to the level
    above = (_pdf(level) - pdf[b]) - level * (cdf[b] - _cdf(level))
    inside = 2 * _cdf(m[:, 0]) - 1
    return (below + above).sum(1) / inside, squared.sum(1) / inside


def _cdf(x: np.ndarray) -> np.ndarray:
    return (1 + _erf(x / math.sqrt(2))) / 2


def _pdf(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
