"""What instructions should give, in integers and fractions: from the PTX ISA, sharing nothing with minilora.simt."""

import math
from fractions import Fraction
from random import Random

# digits, least and greatest exponent, bits of the type
FORMATS = {
    "f64": (53, -1022, 1023, 64),
    "f32": (24, -126, 127, 32),
    "f16": (11, -14, 15, 16),
    "bf16": (8, -126, 127, 16),
}
NAN = {"f64": 0x7FF8 << 48, "f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}


def value(bits: int, type: str) -> Fraction | float:
    """The number that `bits` stand for: a Fraction, or a float for infinities, NaN and -0."""
    digits, least, greatest, width = FORMATS[type]
    sign = -1 if bits >> width - 1 else 1
    exponent = bits >> digits - 1 & (1 << width - digits) - 1
    mantissa = bits & (1 << digits - 1) - 1
    if exponent == (1 << width - digits) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0 and mantissa == 0:
        return Fraction(0) if sign > 0 else -0.0
    if exponent == 0:
        return sign * mantissa * Fraction(2) ** (least - digits + 1)
    return sign * (mantissa + (1 << digits - 1)) * Fraction(2) ** (exponent - greatest - digits + 1)


def encode(x: Fraction | float, type: str, rounding: str = "rn") -> int:
    """The bits of x, rounded once: to nearest even, towards zero, down or up."""
    digits, least, _, width = FORMATS[type]
    top = ((1 << width - digits) - 1) << digits - 1  # infinity
    if isinstance(x, float):
        if math.isnan(x):
            return NAN[type]
        if math.isinf(x):
            return top | (x < 0) << width - 1
        if x == 0:
            return (math.copysign(1, x) < 0) << width - 1
        x = Fraction(x)
    negative, x = x < 0, abs(x)
    exponent = least
    if x:  # 2^exponent <= x < 2^(exponent + 1), or the exponent of the subnormal
        exponent = x.numerator.bit_length() - x.denominator.bit_length()
        exponent -= x < Fraction(2) ** exponent
        exponent = max(exponent, least)
    units = x / Fraction(2) ** (exponent - digits + 1)
    whole, rest = units.numerator // units.denominator, units - units.numerator // units.denominator
    if rounding == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    else:
        up = rest > 0 and {"rz": False, "rm": negative, "rp": not negative}[rounding]
    whole += bool(up)
    bits = (exponent - least << digits - 1) + whole  # a carry into the exponent is what it should be
    if bits >= top:
        bits = top if rounding == "rn" or {"rz": False, "rm": negative, "rp": not negative}[rounding] else top - 1
    return bits | negative << width - 1


def flushed(bits: int, type: str) -> int:
    digits, _, _, width = FORMATS[type]
    exponent = bits >> digits - 1 & (1 << width - digits) - 1
    return bits if exponent else bits & 1 << width - 1


def number(bits: int, type: str) -> float:
    """As a Python float, exactly."""
    return float(value(bits, type))


def table(seed: int, type: str, count: int, length: int = 60) -> list[tuple[int, ...]]:
    """Rows of `count` bit patterns. A third are any, a third where things go wrong, a third have few digits."""
    random = Random(seed)
    digits, _, greatest, width = FORMATS[type]
    one, sign, infinity = greatest << digits - 1, 1 << width - 1, (2 * greatest + 1) << digits - 1
    special = [0, 1, 2, 3, (1 << digits - 1) - 1, 1 << digits - 1, (1 << digits - 1) + 1, one - 1, one, one + 1]
    special += [one + (3 << digits - 3), infinity - 1, infinity, infinity + 1, infinity | 1 << digits - 2]
    near = min(digits + 2, greatest - 1)

    def bits():
        kind = random.randrange(3)
        if kind == 0:
            return random.getrandbits(width)
        if kind == 1:
            return random.choice(special) | random.getrandbits(1) * sign
        exponent = greatest + random.randint(-near, near)
        return random.getrandbits(1) * sign | exponent << digits - 1 | random.randrange(8) << digits - 4

    return [tuple(bits() for _ in range(count)) for _ in range(length)]


def finite(x) -> bool:
    return isinstance(x, Fraction) or math.isfinite(x)


def add(a, b, rounding="rn"):
    """Of values; exact, with IEEE 754's signs of zeros and its rules for infinities."""
    if not (finite(a) and finite(b)):
        return next(x for x in (a, b) if not finite(x)) if finite(a) or finite(b) else a + b
    total = Fraction(a) + Fraction(b)
    if total:
        return total
    negative = [math.copysign(1, float(x)) < 0 for x in (a, b)]
    return -0.0 if all(negative) or (rounding == "rm" and any(negative)) else Fraction(0)


def multiply(a, b):
    if not (finite(a) and finite(b)):
        return float(a) * float(b)
    product = Fraction(a) * Fraction(b)
    negative = (math.copysign(1, float(a)) < 0) != (math.copysign(1, float(b)) < 0)
    return product if product or not negative else -0.0


def divide(a, b):
    negative = (math.copysign(1, float(a)) < 0) != (math.copysign(1, float(b)) < 0)
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or (a == 0 and b == 0):
        return math.nan
    if math.isinf(a) or b == 0:
        return -math.inf if negative else math.inf
    if math.isinf(b) or a == 0:
        return -0.0 if negative else Fraction(0)
    return Fraction(a) / Fraction(b)


def root(a):
    """A fraction on the same side as the root of every number that 60 digits can tell from it."""
    if math.isnan(a) or a < 0:
        return math.nan
    if math.isinf(a) or a == 0:
        return a
    scale = 400 + (Fraction(a).denominator.bit_length() + 1) // 2 * 2
    square = int(Fraction(a) * 2**scale)  # whole: the denominator is a power of two
    whole = math.isqrt(square)
    return (whole + Fraction(whole * whole != square, 2)) / Fraction(2) ** (scale // 2)


def least(a, b, type):
    """Of bits: -0 is less than +0, a number less than a NaN."""
    x, y = value(a, type), value(b, type)
    if math.isnan(x) and math.isnan(y):
        return NAN[type]
    if math.isnan(x) or math.isnan(y):
        return b if math.isnan(x) else a
    if x == y:
        return a | b  # only zeros differ in bits
    return a if x < y else b


def signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> width - 1 & 1 else bits


def wrap(x: int, type: str) -> int:
    """x modulo 2^width, in the range of u8, s32, b64, ..."""
    width = int(type[1:])
    bits = x & (1 << width) - 1
    return signed(bits, width) if type[0] == "s" else bits
