"""Integer arithmetic: the instructions, each beside the function that it computes.

Arithmetic wraps at the type's width, as NumPy's does (PTX ISA, section 9.7.1 Integer Arithmetic Instructions). Division
truncates towards zero as in C; what dividing by zero gives is not defined, here the quotient has all bits set and the
remainder is the dividend. Operations on bits are in bits.py.
"""

import numpy as np

KIND = {"s": "i", "u": "u"}  # NumPy's letter for a PTX type's


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(f"{x.dtype.kind}{2 * x.itemsize}")


def multiply_wide(a, b):
    """The whole product, in twice the width."""
    return _wide(a) * _wide(b)


def multiply_high(a, b):
    """The upper half of the product."""
    if a.itemsize < 8:
        return ((_wide(a) * _wide(b)) >> 8 * a.itemsize).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    half, low = np.uint64(32), np.uint64(2**32 - 1)
    x1, x0, y1, y0 = x >> half, x & low, y >> half, y & low  # schoolbook, in digits of 32 bits
    middle = x1 * y0 + (x0 * y0 >> half)
    high = x1 * y1 + (middle >> half) + ((middle & low) + x0 * y1 >> half)
    if a.dtype.kind == "i":  # -2^63 has the weight +2^63 in the unsigned product
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def magnitude(a):
    """|a| as an unsigned number, which has room for that of the lowest."""
    return np.abs(a).view(f"u{a.itemsize}")


def divide(a, b):
    if a.dtype.kind == "u":
        zero = b == 0
        return np.where(zero, ~b, a // np.where(zero, b.dtype.type(1), b)) if zero.any() else a // b
    quotient = divide(magnitude(a), magnitude(b)).view(a.dtype)
    return np.where((b != 0) & ((a < 0) != (b < 0)), -quotient, quotient)


def remainder(a, b):
    """a - b (a / b): it has the sign of a."""
    return a - b * divide(a, b)


def distance(a, b):
    return np.where(a < b, b - a, a - b)


def _saturated(function):
    """Of two s32: the result clamped instead of wrapped."""
    limits = np.iinfo(np.int32)
    return lambda a, b: np.clip(function(a.astype(np.int64), b.astype(np.int64)), limits.min, limits.max).astype(
        np.int32
    )


def dot_product(first: slice):
    """c + sum of parts of a times bytes of b; the parts are bytes (dp4a) or halves (dp2a, with `first` two bytes)."""

    def of_signs(signs: str):
        """signs: "iu" where a is signed and b is not."""
        columns = range(*first.indices(4))
        size = 4 // len(columns)

        def compute(a, b, c):
            x = np.ascontiguousarray(a).view(f"{signs[0]}{size}").reshape(-1, len(columns))
            y = np.ascontiguousarray(b).view(f"{signs[1]}1").reshape(-1, 4)
            total = c.view(np.uint32)
            for i, column in enumerate(columns):
                product = x[:, i].astype(np.int64) * y[:, column]
                total = total + product.astype(np.uint32)  # modulo 2^32, as the sum wraps
            return total.view(c.dtype)

        return compute

    return of_signs


def on_halves(function, type: str):
    """A function of two s16 or u16 on both halves of 32-bit registers."""
    return lambda a, b: function(*(np.ascontiguousarray(x).view(f"{KIND[type[0]]}2") for x in (a, b))).view(np.uint32)


INTEGERS = {
    "add": ("T", "T T", lambda a, b: a + b),
    "add.sat": ("T", "T T", _saturated(np.add)),
    "sub": ("T", "T T", lambda a, b: a - b),
    "sub.sat": ("T", "T T", _saturated(np.subtract)),
    "mul.lo": ("T", "T T", lambda a, b: a * b),
    "mul.hi": ("T", "T T", multiply_high),
    "mul.wide": ("W", "T T", multiply_wide),
    "mad.lo": ("T", "T T T", lambda a, b, c: a * b + c),
    "mad.hi": ("T", "T T T", lambda a, b, c: multiply_high(a, b) + c),
    "mad.wide": ("W", "T T W", lambda a, b, c: multiply_wide(a, b) + c),
    "div": ("T", "T T", divide),
    "rem": ("T", "T T", remainder),
    "sad": ("T", "T T T", lambda a, b, c: distance(a, b) + c),
    "abs": ("T", "T", np.abs),
    "neg": ("T", "T", lambda a: -a),
    "min": ("T", "T T", np.minimum),
    "max": ("T", "T T", np.maximum),
    "min.relu": ("T", "T T", lambda a, b: np.maximum(np.minimum(a, b), a.dtype.type(0))),
    "max.relu": ("T", "T T", lambda a, b: np.maximum(np.maximum(a, b), a.dtype.type(0))),
}
DOT_PRODUCTS = {
    "dp4a": dot_product(slice(0, 4)),
    "dp2a.lo": dot_product(slice(0, 2)),
    "dp2a.hi": dot_product(slice(2, 4)),
}
