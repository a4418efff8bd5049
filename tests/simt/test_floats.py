"""Every sum, product, quotient and root against exact fractions rounded once; approximations against the ISA."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from exact import FORMATS, NAN, add, divide, encode, flushed, least, multiply, number, root, table, value
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import SimulationError
from minilora.simt import Instruction, floats
from minilora.simt.instructions import TYPES, operation

ROUNDINGS = ("rn", "rz", "rm", "rp")


def rows(type, count):
    """A table of bit patterns; Hypothesis draws its seed."""
    return st.integers(0, 2**32 - 1).map(lambda seed: table(seed, type, count))


def compute(opcode, cases, type):
    """The instruction on columns of bits; bits."""
    columns = [np.array(column, f"u{FORMATS[type][3] // 8}") for column in zip(*cases, strict=True)]
    names = ("%d", "%a", "%b", "%c")[: 1 + len(columns)]
    what = operation(Instruction(opcode, names))
    with np.errstate(all="ignore"):
        result = what.compute(*(c.view(TYPES[t]) for c, t in zip(columns, what.sources, strict=True)))
    assert result.dtype == TYPES[what.result] and result.shape == (len(cases),)
    return [int(b) for b in np.ascontiguousarray(result).view(f"u{result.itemsize}")]


EXACT = {
    "add": lambda rounding, a, b: add(a, b, rounding),
    "sub": lambda rounding, a, b: add(a, -float(b) if b == 0 else -b, rounding),
    "mul": lambda rounding, a, b: multiply(a, b),
    "div": lambda rounding, a, b: divide(a, b),
    "fma": lambda rounding, a, b, c: add(multiply(a, b), c, rounding),
    "rcp": lambda rounding, a: divide(Fraction(1), a),
    "sqrt": lambda rounding, a: root(a),
}
OPERANDS = {"fma": 3, "rcp": 1, "sqrt": 1}
CASES = [(name, rounding, "f32") for name in EXACT for rounding in ROUNDINGS]
CASES += [(name, "rn", "f64") for name in EXACT]
CASES += [(name, "rn", type) for name in ("add", "sub", "mul", "fma") for type in ("f16", "bf16")]


def same(found, expected, type):
    """Bits for bits; of float64, any NaN."""
    return found == expected or (type == "f64" and math.isnan(number(found, type)) and expected == NAN[type])


@pytest.mark.parametrize(("name", "rounding", "type"), CASES)
@given(data=st.data())
def test_rounded_once(name, rounding, type, data):
    cases = data.draw(rows(type, OPERANDS.get(name, 2)))
    for ftz in (False, True) if type in ("f32", "f16") else (False,):
        opcode = f"{name}.{rounding}{'.ftz' * ftz}.{type}"
        for row, found in zip(cases, compute(opcode, cases, type), strict=True):
            values = [value(flushed(bits, type) if ftz else bits, type) for bits in row]
            expected = encode(EXACT[name](rounding, *values), type, rounding)
            expected = flushed(expected, type) if ftz else expected
            assert same(found, expected, type), f"{opcode} of {[hex(b) for b in row]}: {found:#x}, not {expected:#x}"


@given(rows("f32", 2), st.integers(-2, 2), st.sampled_from([1, Fraction(1, 2**24), 2**24]))
def test_fma_where_the_sum_cancels_or_ties(pairs, step, times):
    """c is next to -(a b), or where it decides a tie: what rounding the product first, or twice, gets wrong."""
    cases = []
    for a, b in pairs:
        product = multiply(value(a, "f32"), value(b, "f32"))
        c = encode(-product * times if isinstance(product, Fraction) else -product, "f32") + step
        cases.append((a, b, c & 0xFFFFFFFF))
    for (a, b, c), found in zip(cases, compute("fma.rn.f32", cases, "f32"), strict=True):
        exact = add(multiply(value(a, "f32"), value(b, "f32")), value(c, "f32"))
        assert found == encode(exact, "f32"), (hex(a), hex(b), hex(c))


def test_fma_is_not_two_roundings(rng):
    """Midpoints of float32 that a far smaller number decides: rounding to float64 first loses it."""
    n = 20_000
    a = (1 + rng.integers(0, 2**12, n) / 2**12).astype(np.float32)
    b = (1 + rng.integers(0, 2**12, n) / 2**12).astype(np.float32)
    product = a.astype(np.float64) * b
    c = rng.choice([-1, 1], n) * 2.0 ** rng.integers(-140, -20, n)
    exact = [
        encode(Fraction(p) + Fraction(float(np.float32(q))), "f32") for p, q in zip(product.tolist(), c, strict=True)
    ]
    found = floats.fma(a, b, c.astype(np.float32))
    assert np.array_equal(found.view(np.uint32), exact)
    twice = (product + c.astype(np.float32)).astype(np.float32)
    assert (twice != found).sum() > 100


@pytest.mark.parametrize("type", ["f16", "bf16"])
@given(data=st.data())
def test_packed_is_both_halves(type, data):
    """add.f16x2 and its kin do what add.f16 does, twice."""
    for name, count in (
        ("add.rn", 2),
        ("mul.rn", 2),
        ("fma.rn", 3),
        ("min", 2),
        ("max.NaN", 2),
        ("neg", 1),
        ("abs", 1),
    ):
        low, high = (data.draw(rows(type, count)) for _ in range(2))
        n = min(len(low), len(high))
        packed = [
            tuple(x | y << 16 for x, y in zip(*pair, strict=True)) for pair in zip(low[:n], high[:n], strict=True)
        ]
        columns = [np.array(column, np.uint32) for column in zip(*packed, strict=True)]
        what = operation(Instruction(f"{name}.{type}x2", ("%d", "%a", "%b", "%c")[: count + 1]))
        with np.errstate(all="ignore"):
            found = what.compute(*columns)
        expected = [
            x | y << 16 for x, y in zip(*(compute(f"{name}.{type}", t[:n], type) for t in (low, high)), strict=True)
        ]
        assert found.dtype == np.uint32 and found.tolist() == expected


@pytest.mark.parametrize("type", ["f32", "f64", "f16", "bf16"])
@given(data=st.data())
def test_min_and_max(type, data):
    cases = data.draw(rows(type, 2))
    sign = 1 << FORMATS[type][3] - 1
    opposite = [tuple(bits ^ sign for bits in row) for row in cases]  # max(a, b) = -min(-a, -b)
    for name, of in (("min", cases), ("max", opposite)):
        for row, given_, found in zip(of, cases, compute(f"{name}.{type}", cases, type), strict=True):
            expected = least(*row, type)
            if not math.isnan(number(expected, type)) and name == "max":
                expected ^= sign
            assert same(found, expected, type), (name, [hex(b) for b in given_])
        for row, found in zip(cases, compute(f"{name}.NaN.{type}", cases, type), strict=True):
            any_nan = any(math.isnan(number(bits, type)) for bits in row)
            assert math.isnan(number(found, type)) == any_nan


@given(rows("f32", 3))
def test_min_and_max_of_three_and_of_magnitudes(cases):
    for name in ("min", "max"):
        two = compute(f"{name}.f32", [row[:2] for row in cases], "f32")
        three = compute(f"{name}.f32", [(x, row[2]) for x, row in zip(two, cases, strict=True)], "f32")
        assert compute(f"{name}.f32", cases, "f32") == three
        magnitudes = [(a & 0x7FFFFFFF, b & 0x7FFFFFFF) for a, b, _ in cases]
        plain = compute(f"{name}.f32", magnitudes, "f32")
        found = compute(f"{name}.xorsign.abs.f32", [row[:2] for row in cases], "f32")
        for (a, b, _), x, y in zip(cases, found, plain, strict=True):
            assert x == (y if math.isnan(number(y, "f32")) else y | (a ^ b) & 1 << 31)


@given(rows("f32", 2))
def test_signs(cases):
    one = [row[:1] for row in cases]

    def quiet(bits):
        return NAN["f32"] if math.isnan(number(bits, "f32")) else bits

    assert compute("neg.f32", one, "f32") == [quiet(a ^ 1 << 31) for (a,) in one]
    assert compute("abs.f32", one, "f32") == [quiet(a & 0x7FFFFFFF) for (a,) in one]
    assert compute("neg.ftz.f32", one, "f32") == [quiet(flushed(a, "f32") ^ 1 << 31) for (a,) in one]
    assert compute("abs.ftz.f32", one, "f32") == [quiet(flushed(a, "f32") & 0x7FFFFFFF) for (a,) in one]
    assert compute("copysign.f32", cases, "f32") == [quiet(a & 1 << 31 | b & 0x7FFFFFFF) for a, b in cases]


@given(rows("f32", 2))
def test_saturation_and_relu(cases):
    """.sat: to [0, 1], NaN and -0 to 0. .relu: to 0 and up, NaN staying."""
    plain = [number(b, "f32") for b in compute("mul.f32", cases, "f32")]
    assert compute("mul.sat.f32", cases, "f32") == [
        encode(min(max(x, 0.0), 1.0) if x > 0 else 0.0, "f32") for x in plain
    ]
    halves = [tuple(b >> 16 for b in row) for row in cases]
    triples = [(*row, 0) for row in halves]
    plain = [number(b, "f16") for b in compute("fma.rn.f16", triples, "f16")]
    expected = [encode(x if x > 0 or math.isnan(x) else 0.0, "f16") for x in plain]
    assert compute("fma.rn.relu.f16", triples, "f16") == expected


@pytest.mark.parametrize("type", ["f16", "bf16"])
@given(rows("f32", 1))
def test_float32_to_16_bits(type, cases):
    """Against NumPy's and ml_dtypes' own conversions, and back."""
    x = np.array(cases, np.uint32).reshape(-1).view(np.float32)
    with np.errstate(all="ignore"):
        peer = x.astype(np.float16 if type == "f16" else ml_dtypes.bfloat16)
        found = floats.narrow(x, type)
    nan = np.isnan(x)
    assert np.array_equal(found.view(np.uint16)[~nan], peer.view(np.uint16)[~nan])
    assert (found.view(np.uint16)[nan] == 0x7FFF).all()
    if type == "bf16":
        assert np.array_equal(floats.bfloat16_values(found)[~nan], peer.astype(np.float32)[~nan])


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(cases=rows("f64", 1))
def test_float64_to_fewer_digits(type, rounding, cases):
    x = np.array(cases, np.uint64).reshape(-1).view(np.float64)
    with np.errstate(all="ignore"):
        found = np.ascontiguousarray(floats.narrow(x, type, rounding)).view(f"u{FORMATS[type][3] // 8}")
    assert found.tolist() == [encode(v, type, rounding) for v in x.tolist()]


@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1))
def test_sum_to_odd(cases):
    a, b = np.array(cases).T
    with np.errstate(all="ignore"):
        found = floats.sum_to_odd(a, b).tolist()
    for x, y, z in zip(a.tolist(), b.tolist(), found, strict=True):
        if not math.isfinite(x + y):
            continue
        exact = Fraction(x) + Fraction(y)
        below, above = (encode(exact, "f64", mode) for mode in ("rm", "rp"))
        bits = encode(z, "f64")
        assert bits in (below, above)
        assert below == above or bits & 1 or z == 0


# The bounds are those of the ISA; what is given is far within them.
def ulp(x):
    return float(Fraction(2) ** (max(math.frexp(x)[1] - 1, -126) - 23)) if math.isfinite(x) else 0.0


APPROXIMATIONS = {
    "rcp.approx": (lambda x: divide(Fraction(1), x), lambda x, y: ulp(y)),
    "sqrt.approx": (root, lambda x, y: 2**-23 * abs(y)),
    "rsqrt.approx": (lambda x: divide(Fraction(1), root(x)), lambda x, y: 2**-22.9 * abs(y)),
    "ex2.approx": (lambda x: math.exp2(min(x, 1000)), lambda x, y: 2 * ulp(y)),
    "lg2.approx": (
        lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
        lambda x, y: 2**-22 * (1 if 0.5 < x < 2 else abs(y)),
    ),
    "sin.approx": (lambda x: math.sin(x) if math.isfinite(x) else math.nan, lambda x, y: 2**-20.5),
    "cos.approx": (lambda x: math.cos(x) if math.isfinite(x) else math.nan, lambda x, y: 2**-20.5),
    "tanh.approx": (math.tanh, lambda x, y: 2**-11 * abs(y)),
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
@given(data=st.data())
def test_approximations_are_within_bounds(name, data):
    cases = data.draw(rows("f32", 1))
    function, bound = APPROXIMATIONS[name]
    for ftz in (False, True):
        for (bits,), found in zip(cases, compute(f"{name}{'.ftz' * ftz}.f32", cases, "f32"), strict=True):
            x = value(flushed(bits, "f32") if ftz else bits, "f32")
            expected = function(x) if name.startswith(("rcp", "sqrt", "rsqrt")) else function(float(x))
            rounded = encode(expected, "f32")
            rounded = number(flushed(rounded, "f32") if ftz else rounded, "f32")
            y = number(found, "f32")
            if not math.isfinite(rounded) or rounded == 0:
                assert (math.isnan(y) and math.isnan(rounded)) or (y, math.copysign(1, y)) == (
                    rounded,
                    math.copysign(1, rounded),
                ), (name, x, y)
            else:
                assert abs(y - rounded) <= bound(float(x), rounded), (name, x, y)


@given(rows("f32", 2))
def test_approximate_division(cases):
    """2 ulp for a divisor within [2^-126, 2^126]; above, a zero, or NaN from an infinity. div.full: 2 ulp anywhere."""
    for opcode in ("div.approx.f32", "div.full.f32"):
        for row, found in zip(cases, compute(opcode, cases, "f32"), strict=True):
            a, b = (value(bits, "f32") for bits in row)
            expected, y = number(encode(divide(a, b), "f32"), "f32"), number(found, "f32")
            if opcode == "div.approx.f32" and 2**126 < abs(b) < math.inf:
                assert math.isnan(y) if math.isinf(a) or math.isnan(a) else y == 0
            elif math.isfinite(expected):
                assert abs(y - expected) <= 2 * ulp(expected)
            else:
                assert y == expected or (math.isnan(y) and math.isnan(expected))


@given(rows("f64", 1))
def test_reciprocals_of_the_upper_half(cases):
    """rcp.approx.ftz.f64: of the upper 32 bits, to 20 digits, the lower 32 bits zero, subnormal numbers flushed."""
    for name in ("rcp", "rsqrt"):
        for (bits,), found in zip(cases, compute(f"{name}.approx.ftz.f64", cases, "f64"), strict=True):
            x = value(flushed(bits, "f64") & ~0xFFFFFFFF, "f64")
            nan = math.isnan(number(bits, "f64"))
            expected = math.nan if nan else divide(Fraction(1), x if name == "rcp" else root(x))
            y = number(found, "f64")
            assert found & 0xFFFFFFFF == 0
            if math.isnan(expected):
                assert found == 0x7FFFFFFF << 32
            elif math.isinf(expected) or abs(expected) < 2.0**-1022:
                assert y == (0 if expected == 0 or abs(expected) < 1 else expected)
            else:
                assert abs(Fraction(y) / Fraction(expected) - 1) < Fraction(1, 2**19)


def test_unknown_ones_are_refused():
    for opcode in ("add.rz.f64", "frob.f32", "add.wrong.f32", "ex2.f32"):
        with pytest.raises(SimulationError, match=opcode.split(".")[0] if "f64" not in opcode else "float64"):
            operation(Instruction(opcode, ("%d", "%a", "%b")))
