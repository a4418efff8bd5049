"""setp, set, selp, slct, testp: each comparison of each type, and what it is combined with."""

import math
from fractions import Fraction

import pytest
from columns import rows, run
from exact import FORMATS, encode, flushed, number, table
from hypothesis import given
from hypothesis import strategies as st

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINE = {"and": lambda t, c: t and c, "or": lambda t, c: t or c, "xor": lambda t, c: t != c}


@pytest.mark.parametrize("type", [*INTEGERS, "b16", "b32", "b64"])
@given(data=st.data())
def test_comparison_of_integers(type, data):
    cases = data.draw(rows(type, type, "pred"))
    cases += [(a, a, c) for a, _, c in cases]
    names = {n: COMPARE[n] for n in (("eq", "ne") if type[0] == "b" else COMPARE)}
    if type[0] == "u":
        names |= {n: COMPARE[m] for n, m in UNSIGNED.items()}
    for name, compare in names.items():
        true = [compare(a, b) for a, b, _ in cases]
        pairs = [row[:2] for row in cases]
        assert run(f"setp.{name}.{type}", pairs) == true
        assert run(f"setp.{name}.{type}", pairs, targets="%p|%q") == [(t, not t) for t in true]
        assert run(f"set.{name}.u32.{type}", pairs) == [0xFFFFFFFF * t for t in true]
        assert run(f"set.{name}.s32.{type}", pairs) == [-t for t in true]
        assert run(f"set.{name}.f32.{type}", pairs) == [0x3F800000 * t for t in true]
        for combine, function in COMBINE.items():
            both = [(function(t, c), function(not t, c)) for t, (_, _, c) in zip(true, cases, strict=True)]
            assert run(f"setp.{name}.{combine}.{type}", cases, targets="%p|%q") == both
            assert run(f"setp.{name}.{combine}.{type}", cases) == [p for p, _ in both]
            assert run(f"set.{name}.{combine}.u32.{type}", cases) == [0xFFFFFFFF * p for p, _ in both]


def float_comparison(name, a, b):
    if name in ("num", "nan"):
        return (math.isnan(a) or math.isnan(b)) == (name == "nan")
    if math.isnan(a) or math.isnan(b):
        return name.endswith("u")
    return COMPARE[name.removesuffix("u")](a, b)


FLOAT_COMPARE = [*COMPARE, *(f"{n}u" for n in COMPARE), "num", "nan"]


@pytest.mark.parametrize("type", ["f16", "bf16", "f32", "f64"])
@given(seed=st.integers(0, 2**32 - 1))
def test_comparison_of_floats(type, seed):
    cases = table(seed, type, 2, 30)
    cases += [(a, a) for a, _ in cases[:5]]
    for ftz in (False, True) if type in ("f32", "f16") else (False,):
        values = [tuple(number(flushed(x, type) if ftz else x, type) for x in row) for row in cases]
        for name in FLOAT_COMPARE:
            true = [float_comparison(name, a, b) for a, b in values]
            modifiers = f"{name}{'.ftz' * ftz}"
            assert run(f"setp.{modifiers}.{type}", cases) == true
            assert run(f"setp.{modifiers}.{type}", cases, targets="%p|%q") == [(t, not t) for t in true]
            if type in ("f16", "bf16"):
                one = encode(Fraction(1), type)
                assert run(f"set.{modifiers}.{type}.{type}", cases) == [one * t for t in true]
                assert run(f"set.{modifiers}.u16.{type}", cases) == [0xFFFF * t for t in true]
            else:
                assert run(f"set.{modifiers}.f32.{type}", cases) == [0x3F800000 * t for t in true]


@pytest.mark.parametrize("type", ["f16", "bf16"])
@given(seed=st.integers(0, 2**32 - 1))
def test_comparison_of_packed(type, seed):
    """A predicate, or a half of a register, for each half."""
    cases = [(a | c << 16, b | d << 16, (a ^ b) & 1) for a, b, c, d in table(seed, type, 4, 20)]
    one = encode(Fraction(1), type)
    for name in FLOAT_COMPARE:
        split = lambda s: [float_comparison(name, *(number(x >> s & 0xFFFF, type) for x in row[:2])) for row in cases]  # noqa: B023,E731
        true = list(zip(split(0), split(16), strict=True))
        for combine in ("", *COMBINE):
            of, modifiers, halves = [row[:2] for row in cases], name, true
            if combine:
                of, modifiers = cases, f"{name}.{combine}"
                pairs = zip(true, cases, strict=True)
                halves = [tuple(bool(COMBINE[combine](t, bool(c))) for t in both) for both, (_, _, c) in pairs]
            assert run(f"setp.{modifiers}.{type}x2", of, targets="%p|%q") == halves
            assert run(f"set.{modifiers}.{type}x2.{type}x2", of) == [one * p | one * q << 16 for p, q in halves]
            assert run(f"set.{modifiers}.u32.{type}x2", of) == [0xFFFF * p | 0xFFFF0000 * q for p, q in halves]


@given(rows("u32", "u32", "s32"), st.integers(0, 2**32 - 1))
def test_selection(cases, seed):
    assert run("selp.b32", [(a, b, c < 0) for a, b, c in cases]) == [a if c < 0 else b for a, b, c in cases]
    assert run("slct.b32.s32", cases) == [a if c >= 0 else b for a, b, c in cases]
    for ftz in ("", ".ftz"):
        of = [(1, 2, bits) for (bits,) in table(seed, "f32", 1)]
        values = [number(flushed(bits, "f32") if ftz else bits, "f32") for _, _, bits in of]
        assert run(f"slct{ftz}.b32.f32", of) == [1 if x >= 0 else 2 for x in values]


@pytest.mark.parametrize("type", ["f32", "f64"])
@given(seed=st.integers(0, 2**32 - 1))
def test_properties(type, seed):
    cases = table(seed, type, 1)
    x = [number(bits, type) for (bits,) in cases]
    subnormal = [0 < abs(v) < 2.0 ** FORMATS[type][1] for v in x]
    assert run(f"testp.finite.{type}", cases) == [math.isfinite(v) for v in x]
    assert run(f"testp.infinite.{type}", cases) == [math.isinf(v) for v in x]
    assert run(f"testp.number.{type}", cases) == [not math.isnan(v) for v in x]
    assert run(f"testp.notanumber.{type}", cases) == [math.isnan(v) for v in x]
    assert run(f"testp.subnormal.{type}", cases) == subnormal
    assert run(f"testp.normal.{type}", cases) == [
        math.isfinite(v) and v != 0 and not s for v, s in zip(x, subnormal, strict=True)
    ]
