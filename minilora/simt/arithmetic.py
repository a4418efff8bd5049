"""Arithmetic of floats: the instructions, each beside the function that it computes.

add, sub, mul, fma, div, rcp, sqrt are rounded correctly, to nearest even or as .rz .rm .rp say. .ftz makes zeros of
subnormal operands, and of results that are subnormal after rounding. .sat clamps to [0, 1], NaN to 0; .relu to 0 and
up, NaN staying. f16x2 and bf16x2 are two numbers in a register. (PTX ISA, sections 9.7.3 and 9.7.4.)

What is approximate there (.approx, .full) is computed in float64 and rounded once, so it is within every bound that
the ISA gives; APPROXIMATE has them. A GPU is within them too, but elsewhere: its last bits differ from these.
"""

from collections.abc import Callable
from functools import reduce

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.floats import (
    ROUNDINGS,
    bfloat16_bits,
    bfloat16_values,
    canonical,
    flush,
    fma,
    fma64,
    narrow,
    sum_to_odd,
)
from minilora.simt.signature import TYPES, Operation


def _least(a, b):
    """The smaller, -0 being smaller than +0; of a number and a NaN the number."""
    return _settled(np.fmin(a, b), a, b, lambda x, y: -((-x) + (-y)))


def _greatest(a, b):
    return _settled(np.fmax(a, b), a, b, np.add)


def _settled(result, a, b, of_zeros):
    """What C leaves open in fmin and fmax: two zeros, and a signalling NaN."""
    if (zero := result == 0).any():
        result = np.where(zero & (a == b), of_zeros(a, b), result)
    if np.isnan(result).any():
        result = np.where(np.isnan(a), b, np.where(np.isnan(b), a, result))
    return result


def _with_nan(function):
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a + b, function(a, b))


def _of_magnitudes(function):
    """Of |a| and |b|, with the product's sign."""

    def compute(a, b):
        x = function(np.abs(a), np.abs(b))
        return np.where(np.signbit(a) ^ np.signbit(b), -x, x)

    return compute


# To nearest, in the type itself. f16 and bf16 are computed in float32: it has twice their digits and two more, with
# which a sum, product, quotient or root rounded twice is right (Figueroa, "When is double rounding innocuous?", 1995).
NEAREST = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rcp": lambda a: a.dtype.type(1) / a,
    "sqrt": np.sqrt,
    "neg": np.negative,
    "abs": np.abs,
    "copysign": lambda a, b: np.copysign(b, a),
    "min": lambda *x: reduce(_least, x),
    "max": lambda *x: reduce(_greatest, x),
    "min.NaN": lambda *x: reduce(_with_nan(_least), x),
    "max.NaN": lambda *x: reduce(_with_nan(_greatest), x),
    "min.xorsign.abs": _of_magnitudes(_least),
    "max.xorsign.abs": _of_magnitudes(_greatest),
    "min.NaN.xorsign.abs": _of_magnitudes(_with_nan(_least)),
    "max.NaN.xorsign.abs": _of_magnitudes(_with_nan(_greatest)),
    "min.abs": lambda *x: reduce(_least, map(np.abs, x)),
    "max.abs": lambda *x: reduce(_greatest, map(np.abs, x)),
}


def _sum(a, b, rounding):
    total = sum_to_odd(a, b)
    if rounding != "rm":
        return total
    return np.where((total == 0) & (np.signbit(a) | np.signbit(b)), -0.0, total)  # x - x is -0 where one rounds down


# In float64, exactly or rounded to odd, to be rounded as asked. A quotient or root of float32 numbers that is not a
# float32 is never so near to one that float64 cannot tell.
DIRECTED = {
    "add": lambda a, b, rounding: _sum(a, b, rounding),
    "sub": lambda a, b, rounding: _sum(a, -b, rounding),
    "mul": lambda a, b, rounding: a * b,
    "fma": lambda a, b, c, rounding: _sum(a * b, c, rounding),
    "div": lambda a, b, rounding: a / b,
    "rcp": lambda a, rounding: 1 / a,
    "sqrt": lambda a, rounding: np.sqrt(a),
}


def _divide(a, b):
    """a times the reciprocal of b, which is taken for zero where b is above 2^126: so the ISA."""
    above = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(above, a * np.copysign(0, b), a / b)


# In float64, and beside each the error that the ISA allows for float32.
APPROXIMATE = {
    "rcp.approx": lambda a: 1 / a,  # 1 ulp
    "sqrt.approx": np.sqrt,  # 2^-23 relative
    "rsqrt.approx": lambda a: 1 / np.sqrt(a),  # 2^-22.9 relative
    "ex2.approx": np.exp2,  # 2 ulp
    "lg2.approx": np.log2,  # 2^-22, absolute for a in (0.5, 2), else relative
    "sin.approx": np.sin,  # 2^-20.5 absolute for a in [-2 pi, 2 pi]
    "cos.approx": np.cos,  # the same
    "tanh.approx": np.tanh,  # 2^-11 relative
    "div.approx": _divide,  # 2 ulp for |b| in [2^-126, 2^126]
    "div.full": np.divide,  # 2 ulp
}


def operation(name: str, modifiers: list[str], type: str, count: int) -> Operation | None:
    """name: "add". modifiers: without the type. count: of operands. None where there is no such instruction."""
    rounding = next((m for m in modifiers if m in ROUNDINGS), "rn")
    base = ".".join(["fma" if name == "mad" else name, *(m for m in modifiers if m not in (*ROUNDINGS, *AFTER))])
    each = type.removesuffix("x2")
    compute = _function(base, each, rounding)
    if compute is None:
        return None
    for modifier in modifiers:
        if modifier in AFTER:
            compute = _then(compute, AFTER[modifier], each)
    if "ftz" in modifiers:
        compute = _of_flushed(compute, each)
    if type.endswith("x2"):
        compute = _on_halves(compute, np.dtype(TYPES[each]))
    return Operation(type, (type,) * count, compute)


AFTER = {
    "sat": lambda x: np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0)),
    "relu": lambda x: np.where(x <= 0, x.dtype.type(0), x),
    "ftz": flush,
}


def _function(base: str, type: str, rounding: str) -> Callable | None:
    """On arrays of `type`, of bf16 its bits. None where there is none."""
    if base in APPROXIMATE:
        return _upper_half(APPROXIMATE[base]) if (base, type) in UPPER_HALF else _in_float64(APPROXIMATE[base], type)
    if base == "fma" and rounding == "rn" and type in ("f32", "f64"):
        return fma64 if type == "f64" else lambda a, b, c: canonical(fma(a, b, c))
    if base == "fma" or (rounding != "rn" and base in DIRECTED):
        if type == "f64":
            raise SimulationError(f"rounding .{rounding} of float64 is not supported")
        function = DIRECTED[base]
        return _in_float64(lambda *x: function(*x, rounding), type, rounding)
    if base not in NEAREST:
        return None
    function = NEAREST[base]
    if type == "bf16":
        return lambda *x: bfloat16_bits(function(*map(bfloat16_values, x)))
    if type == "f16":
        return lambda *x: canonical(function(*(v.astype(np.float32) for v in x)).astype(np.float16))
    return lambda *x: canonical(function(*x))


def _in_float64(function: Callable, type: str, rounding: str = "rn") -> Callable:
    """Computed in float64, rounded once."""
    widen = bfloat16_values if type == "bf16" else np.asarray
    return lambda *x: narrow(function(*(widen(v).astype(np.float64) for v in x)), type, rounding)


UPPER_HALF = {("rcp.approx", "f64"), ("rsqrt.approx", "f64")}


def _upper_half(function: Callable) -> Callable:
    """rcp.approx.ftz.f64 and its kin see only the upper 32 bits, and give only those."""
    upper = np.uint64(0xFFFFFFFF << 32)

    def cut(x):
        bits = x.view(np.uint64) & upper
        bits = np.where(np.abs(x) < 2.0**-1022, bits & np.uint64(1 << 63), bits)
        return np.where(np.isnan(x), np.uint64(0x7FFFFFFF << 32), bits).view(np.float64)

    return lambda a: cut(function(cut(a)))


def _then(compute: Callable, after: Callable, type: str) -> Callable:
    if type == "bf16":
        return lambda *x: bfloat16_bits(after(bfloat16_values(compute(*x))))
    return lambda *x: after(compute(*x))


def _of_flushed(compute: Callable, type: str) -> Callable:
    if type == "bf16":
        return lambda *x: compute(*(bfloat16_bits(flush(bfloat16_values(v))) for v in x))
    return lambda *x: compute(*map(flush, x))


def _on_halves(compute: Callable, dtype: np.dtype) -> Callable:
    """The first number is in the register's lower half."""
    return lambda *x: compute(*(np.ascontiguousarray(v).view(dtype) for v in x)).view(np.uint32)
