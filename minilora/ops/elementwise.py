"""Elementwise ops. Each returns its value and, beneath it, the derivative times g for each input.

Shapes broadcast as NumPy's do; the engine sums the gradients back. Python floats keep float32 arrays float32 (NEP 50).
"""

import math

import numpy as np

from minilora.autograd import primitive
from minilora.backend import array_namespace, special_functions


@primitive
def add(a, b):
    """a + b."""
    return a + b, (lambda g: g, lambda g: g)


@primitive
def subtract(a, b):
    """a - b."""
    return a - b, (lambda g: g, lambda g: -g)


@primitive
def multiply(a, b):
    """a · b, entry by entry."""
    return a * b, (lambda g: g * b, lambda g: g * a)


@primitive
def divide(a, b):
    """a / b."""
    return a / b, (lambda g: g / b, lambda g: -g * a / (b * b))


@primitive
def negative(a):
    """-a."""
    return -a, (lambda g: -g,)


@primitive
def power(a, exponent: float):
    """a ** exponent for a constant exponent (x * x is forty times faster than x ** 3 in float32; prefer it)."""
    return a**exponent, (lambda g: g * exponent * a ** (exponent - 1), None)


@primitive
def exp(a):
    """eᵃ."""
    y = np.exp(a)
    return y, (lambda g: g * y,)


@primitive
def log(a):
    """The natural logarithm; of 0 or less as NumPy has it."""
    return np.log(a), (lambda g: g / a,)


@primitive
def sqrt(a):
    """√a."""
    y = np.sqrt(a)
    return y, (lambda g: g / (2 * y),)


@primitive
def tanh(a):
    """tanh a."""
    y = np.tanh(a)
    return y, (lambda g: g * (1 - y * y),)


def _sigmoid(a):
    """1 / (1 + exp(-a)), without overflow for real a: tanh saturates where exp would not."""
    y = np.tanh(a * 0.5)
    y += 1
    y *= 0.5
    return y


@primitive
def sigmoid(a):
    """1 / (1 + e⁻ᵃ), without overflow."""
    y = _sigmoid(a)
    return y, (lambda g: g * y * (1 - y),)


@primitive(analytic=False)
def relu(a):
    """max(a, 0); the derivative at 0 is taken as 0."""
    positive = a > 0
    return a * positive, (lambda g: g * positive,)


@primitive(analytic=False)
def maximum(a, b):
    """The larger of a and b; where they are equal, a's."""
    first = a >= b
    return np.where(first, a, b), (lambda g: g * first, lambda g: g * ~first)


@primitive
def where(condition, a, b):
    """a where condition, else b. condition: a boolean array (no gradient)."""
    condition = array_namespace(a, b).asarray(condition)
    return np.where(condition, a, b), (None, lambda g: np.where(condition, g, 0), lambda g: np.where(condition, 0, g))


@primitive
def astype(a, dtype):
    """a in another dtype; the gradient comes back in a's."""
    return a.astype(dtype), (lambda g: g, None)


_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


@primitive
def gelu_tanh(x):
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): the tanh form of GELU, as in GPT-2 (arXiv:1606.08415)."""
    xp = array_namespace(x)
    t = xp.asarray(x * x)
    t *= _GELU_SCALE * _GELU_CUBIC
    t += _GELU_SCALE
    t *= x
    np.tanh(t, out=t)
    y = t + 1
    y *= x
    y *= 0.5

    def dx(g):
        d = x * x  # d = x √(2/π) (1 + 3·0.044715 x²), the derivative of the tanh's argument, times x
        d *= 3 * _GELU_SCALE * _GELU_CUBIC
        d += _GELU_SCALE
        d *= x
        slope = xp.asarray(t * t)
        np.subtract(1, slope, out=slope)
        d *= slope
        d += t
        d += 1
        d *= 0.5
        d *= g
        return d

    return y, (dx,)


_ERF_STEP, _ERF_END = 1 / 256, 4.0  # erf(4) = 1 - 1.5e-8, which is 1 in float32
_ERF_GRID = np.arange(-_ERF_END, _ERF_END + _ERF_STEP, _ERF_STEP)
_ERF = np.array([math.erf(x) for x in _ERF_GRID], np.float32)
_ERF_SLOPE = (2 / math.sqrt(math.pi) * np.exp(-_ERF_GRID * _ERF_GRID)).astype(np.float32)
_exact_erf = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x):
    """erf(x) = 2/√π ∫₀ˣ exp(-t²) dt, which NumPy lacks: math.erf entry by entry in float64, a table in float32.

    Taylor's series from the nearest x₀ of the table: erf(x₀ + d) = erf(x₀) + erf'(x₀) (d - x₀ d²) + ... . The next term
    is below 3e-9 as |d| <= 1/512; the error, below 7e-8, is the rounding of erf(x₀) and of the sum.
    """
    if (special := special_functions(x)) is not None:
        return special.erf(x)
    if x.dtype == np.float64:
        return _exact_erf(x)
    d = np.clip(x, -_ERF_END, _ERF_END, dtype=np.float32)
    x0 = np.rint(d * (1 / _ERF_STEP))
    with np.errstate(invalid="ignore"):  # NaN has no place in the table; d stays NaN
        index = (x0 + _ERF_END / _ERF_STEP).astype(np.intp)
    x0 *= _ERF_STEP
    d -= x0  # exact
    x0 *= d
    y = d - d * x0
    y *= np.take(_ERF_SLOPE, index, mode="clip")
    y += np.take(_ERF, index, mode="clip")
    return y


@primitive(analytic=False)
def gelu(x):
    """x Φ(x), Φ the normal distribution function: the exact GELU (arXiv:1606.08415)."""
    cdf = (0.5 * (1 + _erf(x * math.sqrt(0.5)))).astype(x.dtype)

    def dx(g):
        density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return g * (cdf + x * density)

    return x * cdf, (dx,)


@primitive
def swiglu(gate, up):
    """silu(gate) · up with silu(a) = a σ(a), the gated unit of LLaMA (arXiv:2002.05202); shapes are equal."""
    s = _sigmoid(gate)
    y = np.multiply(gate, s, dtype=np.result_type(gate, up))
    y *= up

    def dgate(g):  # silu' = s (1 + a (1 - s))
        d = 1 - s
        d *= gate
        d += 1
        d *= s
        d *= up
        d *= g
        return d

    def dup(g):
        d = gate * s
        d *= g
        return d

    return y, (dgate, dup)
