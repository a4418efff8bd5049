"""Comparing and choosing: setp, set, selp, slct, testp.

    setp.lt.and.f32 %p1|%p2, %f1, %f2, %p3      %p1 = (f1 < f2) & p3, %p2 = !(f1 < f2) & p3

PTX ISA, sections 9.7.6 and 9.7.7 Comparison and Selection Instructions. A comparison with NaN is false, also "ne"; with
u at its end (ltu, equ, ...) it is true. lo, ls, hi, hs are lt, le, gt, ge of unsigned numbers.
"""

from collections.abc import Callable

import numpy as np

from minilora.errors import SimulationError
from minilora.simt.floats import bfloat16_values, flush
from minilora.simt.signature import FLOATS, TYPES, Operation

COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
UNORDERED = {  # of floats: true where one is NaN
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(how: str, type: str, ftz: bool) -> Callable:
    """On arrays of `type`; bool, (n, 2) for two numbers in a register."""
    if type not in FLOATS:
        if how not in COMPARE:
            raise SimulationError(f"comparison .{how} of .{type} is not supported")
        return COMPARE[how]
    ordered_ne = lambda a, b: (a < b) | (a > b)  # noqa: E731
    functions = COMPARE | UNORDERED | {"ne": ordered_ne}
    if how not in functions:
        raise SimulationError(f"comparison .{how} is not supported; there are: {', '.join(functions)}")
    compare = functions[how]
    values = NUMBERS.get(type)
    if values is None:
        return compare if not ftz else lambda a, b: compare(flush(a), flush(b))
    return lambda a, b: compare(*(flush(values(x)) if ftz else values(x) for x in (a, b)))


NUMBERS = {  # from how a type is held to the numbers themselves
    "bf16": bfloat16_values,
    "f16x2": lambda x: np.ascontiguousarray(x).view(np.float16).reshape(-1, 2),
    "bf16x2": lambda x: bfloat16_values(np.ascontiguousarray(x).view(np.uint16)).reshape(-1, 2),
}


def set_predicate(modifiers: list[str], operands: tuple[str, ...]) -> Operation:
    how, *rest, type = modifiers
    compare = _comparison(how, type, "ftz" in rest)
    combine = next((COMBINE[m] for m in rest if m in COMBINE), None)
    two, packed = "|" in operands[0], type.endswith("x2")

    def compute(a, b, *c):
        true = compare(a, b)
        parts = (true, ~true) if two else (true,)
        if packed:  # one predicate for each half
            parts = (true[:, 0], true[:, 1])
        if combine is not None:
            parts = tuple(combine(part, c[0]) for part in parts)
        return parts if two else parts[0]

    return Operation("pred", (type, type) + ("pred",) * (combine is not None), compute)


def set_value(modifiers: list[str]) -> Operation:
    """A number instead of a predicate: 1.0, or all bits set in an integer."""
    how, *rest, result, type = modifiers
    compare = _comparison(how, type, "ftz" in rest)
    combine = next((COMBINE[m] for m in rest if m in COMBINE), None)
    packed = type.endswith("x2")
    ones = {"f32": np.float32(1), "f16": np.float16(1), "bf16": np.uint16(0x3F80)}
    ones |= {"f16x2": np.uint16(0x3C00), "bf16x2": np.uint16(0x3F80)}
    one = ones.get(result, np.uint16(0xFFFF) if packed else np.array(-1).astype(TYPES[result])[()])

    def compute(a, b, *c):
        true = compare(a, b)
        if combine is not None:
            true = combine(true, c[0][:, None] if packed else c[0])
        values = np.where(true, one, one.dtype.type(0))
        return values.view(TYPES[result]).reshape(-1) if packed else values

    return Operation(result, (type, type) + ("pred",) * (combine is not None), compute)


def select_by_sign(modifiers: list[str]) -> Operation:
    """slct: a where c is not negative. -0 is not; a NaN selects b."""
    *rest, type, by = modifiers
    ftz = "ftz" in rest
    return Operation(type, (type, type, by), lambda a, b, c: np.where((flush(c) if ftz else c) >= 0, a, b))


def float_property(modifiers: list[str]) -> Operation:
    """testp, of f32 and f64."""
    what, type = modifiers
    tiny = np.finfo(TYPES[type]).tiny
    functions = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return Operation("pred", (type,), functions[what])
