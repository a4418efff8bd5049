"""cvt between all types, in all rounding modes, against fractions."""

import math
from fractions import Fraction

import pytest
from columns import clamp, numbers, run
from exact import FORMATS, encode, finite, flushed, number, table, value, wrap
from hypothesis import given
from hypothesis import strategies as st

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
ROUNDINGS = ("rn", "rz", "rm", "rp")
TO_INTEGRAL = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}  # of fractions: round half to even
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("source", INTEGERS)
@given(data=st.data())
def test_integer_to_integer(source, data):
    cases = data.draw(st.lists(st.tuples(numbers(source)), min_size=1))
    for result in INTEGERS:
        assert run(f"cvt.{result}.{source}", cases) == [wrap(a, result) for (a,) in cases]
        assert run(f"cvt.sat.{result}.{source}", cases) == [clamp(a, result) for (a,) in cases]


@pytest.mark.parametrize("source", INTEGERS)
@given(data=st.data())
def test_integer_to_float(source, data):
    cases = data.draw(st.lists(st.tuples(numbers(source)), min_size=1))
    for result in ("f16", "bf16", "f32", "f64"):
        for rounding in ROUNDINGS:
            if result == "f64" and source in ("u64", "s64") and rounding != "rn":
                continue  # refused
            expected = [encode(Fraction(a), result, rounding) for (a,) in cases]
            assert run(f"cvt.{rounding}.{result}.{source}", cases) == expected


def near_limits(source, result):
    """Numbers about where `result` ends, and halves between integers."""
    width, wide = int(result[1:]), FORMATS[source][0]
    ends = [0, 1 << width, 1 << width - 1] + [-(1 << width - 1)] * (result[0] == "s")
    numbers_ = [
        e + d for e in ends for d in (Fraction(-3, 2), -1, Fraction(-1, 2), 0, Fraction(1, 2), 1, Fraction(5, 2))
    ]
    numbers_ += [e * (1 + Fraction(s, 2**wide)) for e in ends for s in (-2, -1, 2)]
    return [(encode(Fraction(x), source),) for x in numbers_]


@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("result", INTEGERS)
@given(seed=seeds)
def test_float_to_integer(source, result, seed):
    cases = table(seed, source, 1, 30) + near_limits(source, result)
    width = int(result[1:])
    nan = wrap(1 << width - 1, result) if source == "f64" or width == 64 else 0
    for rounding, function in TO_INTEGRAL.items():
        for ftz in (False, True) if source == "f32" else (False,):
            expected = []
            for (bits,) in cases:
                x = value(flushed(bits, source) if ftz else bits, source)
                if finite(x):
                    expected.append(clamp(function(Fraction(x)), result))
                else:
                    expected.append(nan if math.isnan(x) else clamp(int(math.copysign(1 << 70, x)), result))
            assert run(f"cvt.{rounding}{'.ftz' * ftz}.{result}.{source}", cases) == expected, (rounding, ftz)


@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("result", ["f16", "bf16", "f32", "f64"])
@given(seed=seeds)
def test_float_to_float(source, result, seed):
    cases = table(seed, source, 1)
    for rounding in ROUNDINGS:
        for ftz in (False, True) if "f32" in (source, result) else (False,):
            expected = []
            for (bits,) in cases:
                bits = flushed(bits, source) if ftz and source == "f32" else bits
                converted = encode(value(bits, source), result, rounding)
                expected.append(flushed(converted, result) if ftz and result == "f32" else converted)
            found = run(f"cvt.{rounding}{'.ftz' * ftz}.{result}.{source}", cases)
            if result == "f64":  # whose NaN may be any
                pairs = zip(found, expected, strict=True)
                assert all(f == e or (math.isnan(number(f, "f64")) and math.isnan(number(e, "f64"))) for f, e in pairs)
            else:
                assert found == expected, (rounding, ftz)


@pytest.mark.parametrize("type", ["f16", "bf16", "f32"])
@given(seed=seeds)
def test_to_integral(type, seed):
    cases = table(seed, type, 1) + near_limits(type, "s8")
    for rounding, function in TO_INTEGRAL.items():
        expected = []
        for (bits,) in cases:
            x = value(bits, type)
            if finite(x) and x:
                negative = x < 0
                x = Fraction(function(x)) or (-0.0 if negative else Fraction(0))
            expected.append(encode(x, type))
        assert run(f"cvt.{rounding}.{type}.{type}", cases) == expected


@pytest.mark.parametrize("result", ["f16", "bf16"])
@given(seed=seeds)
def test_packed(result, seed):
    """The first operand goes to the upper half; .relu makes negative numbers zero, .satfinite infinities finite."""
    cases = table(seed, "f32", 2)
    largest = {"f16": Fraction(65504), "bf16": Fraction((2**8 - 1) * 2**120)}[result]

    def expected(x, rounding, relu, satfinite):
        if relu and x <= 0:
            x = Fraction(0)
        if satfinite and not math.isnan(x):
            x = x if finite(x) and x == 0 else max(min(x, largest), -largest)
        return encode(x, result, rounding)

    for rounding in ("rn", "rz"):
        for relu in (False, True):
            for satfinite in (False, True):
                halves = [[expected(value(b, "f32"), rounding, relu, satfinite) for b in row] for row in cases]
                modifiers = f"{rounding}{'.relu' * relu}{'.satfinite' * satfinite}"
                packed = [low | high << 16 for high, low in halves]
                assert run(f"cvt.{modifiers}.{result}x2.f32", cases) == packed
                one = [row[:1] for row in cases]
                assert run(f"cvt.{modifiers}.{result}.f32", one) == [high for high, _ in halves]


@given(seeds)
def test_saturation(seed):
    cases = table(seed, "f32", 1)
    values = [number(bits, "f32") for (bits,) in cases]
    expected = [encode(min(x, 1.0) if x > 0 else 0.0, "f32") for x in values]
    assert run("cvt.sat.f32.f32", cases) == expected
