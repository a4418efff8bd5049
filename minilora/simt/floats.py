"""Floating-point numbers: rounding once, flushing subnormals, and the 16-bit formats.

    fma(a, b, c)                    a b + c, rounded once
    narrow(x, "bf16", "rz")         to a shorter type, in any rounding mode
    flush(x)                        .ftz: a subnormal number becomes a zero of its sign

A sum rounded to float64 and then again to float32 may differ from the sum rounded once: where the first rounding hits a
midpoint of the second. Rounding the first time "to odd" (if it is inexact, to that neighbour whose last bit is one)
never does, given two digits more than the result's: S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57 (2008). bfloat16 is held as its bits, uint16.
"""

from fractions import Fraction

import numpy as np

TINY, TINY16 = np.float32(2.0**-126), np.float16(2.0**-14)  # the least normal numbers
ROUNDINGS = ("rn", "rz", "rm", "rp")  # to nearest even, towards zero, down, up
NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)  # what a GPU gives for every NaN: all ones but the sign
NAN16, NAN16_BITS = np.uint16(0x7FFF).view(np.float16), np.uint16(0x7FFF)


def flush(x: np.ndarray) -> np.ndarray:
    """float32 or float16: subnormal numbers become zeros of the same sign. Others are as they were."""
    if x.dtype == np.float64:
        return x
    small = np.abs(x) < (TINY if x.dtype == np.float32 else TINY16)
    return x * ~small if small.any() else x  # times zero keeps the sign


def canonical(x: np.ndarray) -> np.ndarray:
    """float32 or float16: NaNs with the bits that a GPU gives."""
    if x.dtype == np.float64 or not (nan := np.isnan(x)).any():
        return x
    return np.where(nan, NAN32 if x.dtype == np.float32 else NAN16, x)


# Sums and products


def sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 a + b, rounded to odd."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact: Knuth, TAOCP volume 2, section 4.2.2, theorem B
    inexact = np.isfinite(total) & (error != 0)
    if not inexact.any():
        return total
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)  # the bits count up away from zero
    return np.where(inexact & (bits & 1 == 0), bits + step, bits).view(np.float64)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a b + c, rounded once to nearest even."""
    product = a.astype(np.float64) * b  # exact: 24 + 24 digits fit in 53
    total = product + c
    bits = total.view(np.int64)
    risk = (bits & 0x1FFFFFFF) == 0x10000000  # midpoints of two float32: only there may rounding twice go wrong,
    risk |= np.abs(total) < TINY  # and among the subnormal, whose midpoints lie elsewhere
    result = total.astype(np.float32)
    if risk.any():
        result[risk] = sum_to_odd(product[risk], c[risk].astype(np.float64)).astype(np.float32)
    return result


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float64 a b + c, rounded once to nearest even, by exact fractions: slow, but doubles are rare in kernels."""
    factors = np.isfinite(a) & np.isfinite(b)
    result = np.where(factors & np.isinf(c), c, a * b + c)  # even where a b alone is too large
    for i in np.flatnonzero(factors & np.isfinite(c)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        if exact:
            result[i] = _to_double(exact)
        elif c[i] != 0:
            result[i] = 0.0  # a sum that cancels is +0, also where a b alone was rounded
    return result


def _to_double(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return np.inf if exact > 0 else -np.inf


# To shorter types


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16, ties to even; uint16."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), NAN16_BITS, rounded.astype(np.uint16))


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 -> float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x: np.ndarray, type: str, rounding: str = "rn") -> np.ndarray:
    """float32 or float64, exact or rounded to odd -> "f64", "f32", "f16", or "bf16" (uint16)."""
    if type == "bf16":
        short = bfloat16_bits(x if x.dtype == np.float32 else _to_odd32(x))
    else:
        short = x.astype({"f64": np.float64, "f32": np.float32, "f16": np.float16}[type], copy=False)
    if rounding != "rn":
        value = bfloat16_values(short) if type == "bf16" else short
        away = {"rz": np.abs(value) > np.abs(x), "rm": value > x, "rp": value < x}[rounding]
        short = _step(short, away, rounding)
    return short if type == "bf16" else canonical(short)


def _to_odd32(x: np.ndarray) -> np.ndarray:
    """float64 -> float32, rounded to odd."""
    y = x.astype(np.float32)
    bits = y.view(np.uint32)
    even = (y != x) & np.isfinite(x) & (bits & np.uint32(1) == 0)
    step = np.where(np.abs(y) < np.abs(x), np.uint32(1), np.uint32(2**32 - 1))
    return np.where(even, bits + step, bits).view(np.float32)


def _step(short: np.ndarray, away: np.ndarray, rounding: str) -> np.ndarray:
    """Where to-nearest went the wrong way, the neighbour on the other side; the bits count up away from zero."""
    bits = short.view(f"u{short.itemsize}")
    one, sign = bits.dtype.type(1), bits.dtype.type(1 << 8 * bits.itemsize - 1)
    if rounding == "rz":
        moved = bits - one
    else:
        grows = ((bits & sign) != 0) == (rounding == "rm")
        from_zero = sign | one if rounding == "rm" else one
        moved = np.where(bits & ~sign == 0, from_zero, np.where(grows, bits + one, bits - one))
    return np.where(away, moved, bits).view(short.dtype)
