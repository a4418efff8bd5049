"""cvt: from one type to another (PTX ISA, section 9.7.9.21).

integer -> integer    the lowest bits, or extended by sign or zeros; .sat clamps to the new type's range
float -> integer      rounded by .rni .rzi .rmi .rpi; clamped; NaN to 0, from or to 64 bits to the highest bit alone
integer -> float      rounded by .rn .rz .rm .rp
float -> float        so too; or to an integral number of the same type by .rni .rzi .rmi .rpi
f32, f32 -> f16x2     the first in the upper half
"""

from collections.abc import Callable

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.floats import ROUNDINGS, bfloat16_values, flush, narrow
from minilora.simt.signature import FLOATS, TYPES, Operation

INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
LARGEST = {"f16": 65504.0, "bf16": float.fromhex("0x1.fep127")}  # that .satfinite gives


def convert(modifiers: list[str]) -> Operation:
    *flags, result, source = modifiers
    flags = set(flags)
    rounding = next((m for m in flags if m in ROUNDINGS), "rn")
    integral = next((INTEGRAL[m] for m in flags if m in INTEGRAL), None)
    unknown = flags - {*ROUNDINGS, *INTEGRAL, "ftz", "sat", "relu", "satfinite"}
    if unknown or result not in TYPES or source not in TYPES:
        unknown = unknown or {result, source} - set(TYPES)
        raise SimulationError(f"conversion with .{', .'.join(sorted(unknown))} is not supported")
    if result.endswith("x2"):
        one = _to_float(result.removesuffix("x2"), source, rounding, integral, flags)
        return Operation(result, (source, source), lambda a, b: _pack(one(b), one(a)))
    if source not in FLOATS and result not in FLOATS:
        compute = _integers(result, source, "sat" in flags)
    elif result not in FLOATS:
        compute = _to_integer(result, source, integral, "ftz" in flags)
    else:
        compute = _to_float(result, source, rounding, integral, flags)
    return Operation(result, (source,), compute)


def _pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.stack([low, high], axis=-1).view(np.uint32).reshape(-1)


def _integers(result: str, source: str, saturate: bool) -> Callable:
    dtype = TYPES[result]
    if not saturate:
        return lambda a: a.astype(dtype)
    to, of = np.iinfo(dtype), np.iinfo(TYPES[source])
    low, high = max(int(to.min), int(of.min)), min(int(to.max), int(of.max))
    return lambda a: np.clip(a, a.dtype.type(low), a.dtype.type(high)).astype(dtype)


def _values(source: str, ftz: bool) -> Callable:
    """To float32 or float64: exactly, an integer of 64 bits rounded to odd."""
    if source in ("s64", "u64"):
        return _integer_to_odd
    if source not in FLOATS:
        return lambda a: a.astype(np.float64)
    if source == "f32":
        return flush if ftz else lambda a: a
    return {"bf16": bfloat16_values, "f16": lambda a: a.astype(np.float32), "f64": lambda a: a}[source]


def _integer_to_odd(a: np.ndarray) -> np.ndarray:
    """64-bit integers -> float64. The lowest bits, which do not fit, become one that says whether any was set."""
    magnitude = np.abs(a).view(np.uint64)
    low = magnitude & np.uint64(2047)
    odd = (magnitude - low | (low != 0).astype(np.uint64) << np.uint64(11)).astype(np.float64)
    value = np.where(magnitude < np.uint64(2**53), magnitude.astype(np.float64), odd)
    return np.where(a < 0, -value, value) if a.dtype.kind == "i" else value


def _to_integer(result: str, source: str, integral: Callable | None, ftz: bool) -> Callable:
    values, dtype, limits = _values(source, ftz), TYPES[result], np.iinfo(TYPES[result])
    if integral is None:
        raise SimulationError("a conversion from float to integer says how to round: .rni .rzi .rmi .rpi")
    wide = limits.bits == 64 or source == "f64"
    not_a_number = np.array(1 << limits.bits - 1, f"u{limits.bits // 8}").view(dtype) if wide else dtype(0)
    low, too_high = float(limits.min), 2.0 ** (limits.bits - (limits.min < 0))

    def compute(a):
        x = integral(values(a))
        fits = (x >= low) & (x < too_high)
        if fits.all():
            return x.astype(dtype)
        clamped = np.where(x > 0, dtype(limits.max), dtype(limits.min))
        return np.where(fits, np.where(fits, x, 0).astype(dtype), np.where(np.isnan(x), not_a_number, clamped))

    return compute


def _to_float(result: str, source: str, rounding: str, integral: Callable | None, flags: set[str]) -> Callable:
    values = _values(source, "ftz" in flags)
    if result == "f64" and source in ("s64", "u64"):
        if rounding != "rn":
            raise SimulationError(f"rounding .{rounding} to float64 is not supported")
        return lambda a: a.astype(np.float64)

    def compute(a):
        x = values(a)
        if integral is not None:
            x = integral(x)
        if "relu" in flags:
            x = np.where(x <= 0, 0, x).astype(x.dtype)
        if "sat" in flags:
            x = np.where(x > 0, np.minimum(x, 1), 0).astype(x.dtype)
        if "satfinite" in flags:
            x = np.clip(x, -LARGEST[result], LARGEST[result])
        y = narrow(x, result, rounding)
        return flush(y) if "ftz" in flags and result == "f32" else y

    return compute
