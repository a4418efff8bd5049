"""Each instruction against a definition in Python's integers and fractions, written from the PTX ISA's text."""

import math
from fractions import Fraction

import numpy as np
import pytest
from exact import FORMATS, encode, flushed, number, table, wrap
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import SimulationError
from minilora.simt import Instruction
from minilora.simt.instructions import TYPES, operation

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")


def numbers(type):
    width = int(type[1:])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if type[0] == "s" else (0, (1 << width) - 1)
    special = [
        n for n in (0, 1, 2, 3, 7, 8, 31, 32, 33, -1, -2, low, low + 1, high, high - 1, high // 2) if low <= n <= high
    ]
    powers = st.builds(lambda i, d: min(max((1 << i) + d, low), high), st.integers(0, width - 1), st.integers(-1, 1))
    return st.integers(low, high) | st.sampled_from(special) | powers


def rows(*types):
    return st.lists(st.tuples(*(st.booleans() if t == "pred" else numbers(t) for t in types)), min_size=1, max_size=8)


def run(opcode, cases, *immediates, targets="%d"):
    """The instruction on columns of numbers (of floats: of bits); a list of numbers (bits)."""
    names = ("%a", "%b", "%c", "%e")[: len(cases[0])]
    what = operation(Instruction(opcode, (targets, *names, *immediates)))
    assert len(what.sources) == len(names)
    columns = []
    for column, type in zip(zip(*cases, strict=True), what.sources, strict=True):
        dtype = np.dtype(TYPES[type])
        bits = [int(n) & (1 << 8 * dtype.itemsize) - 1 for n in column]
        columns.append(np.array(bits, bool if type == "pred" else f"u{dtype.itemsize}").view(dtype))
    kept = [c.copy() for c in columns]
    for column in columns:
        column.flags.writeable = False
    with np.errstate(all="ignore"):
        results = what.compute(*columns)
    assert all(np.array_equal(c.view(np.uint8), k.view(np.uint8)) for c, k in zip(columns, kept, strict=True))
    for result in results if isinstance(results, tuple) else (results,):
        assert result.dtype == TYPES[what.result] and result.shape == (len(cases),)
    if isinstance(results, tuple):
        return [tuple(bool(x) for x in pair) for pair in zip(*results, strict=True)]
    return [int(x) for x in (results.view(f"u{results.itemsize}") if results.dtype.kind == "f" else results)]


def quotient(a, b):
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def clamp(x, type):
    width = int(type[1:])
    return min(max(x, -(1 << width - 1)), (1 << width - 1) - 1) if type[0] == "s" else min(max(x, 0), (1 << width) - 1)


ARITHMETIC = {  # name: (operands, function of unlimited integers and the width)
    "add": (2, lambda n, a, b: a + b),
    "sub": (2, lambda n, a, b: a - b),
    "mul.lo": (2, lambda n, a, b: a * b),
    "mul.hi": (2, lambda n, a, b: a * b >> n),
    "mad.lo": (3, lambda n, a, b, c: a * b + c),
    "mad.hi": (3, lambda n, a, b, c: (a * b >> n) + c),
    "div": (2, lambda n, a, b: quotient(a, b)),
    "rem": (2, lambda n, a, b: a - b * quotient(a, b) if b else a),
    "sad": (3, lambda n, a, b, c: c + abs(a - b)),
    "min": (2, lambda n, a, b: min(a, b)),
    "max": (2, lambda n, a, b: max(a, b)),
}


@pytest.mark.parametrize("type", INTEGERS)
@pytest.mark.parametrize("name", ARITHMETIC)
@given(data=st.data())
def test_integer_arithmetic(name, type, data):
    count, function = ARITHMETIC[name]
    cases = data.draw(rows(*[type] * count))
    assert run(f"{name}.{type}", cases) == [wrap(function(int(type[1:]), *row), type) for row in cases]


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32"])
@given(data=st.data())
def test_wide_products(type, data):
    wide = type[0] + str(2 * int(type[1:]))
    cases = data.draw(rows(type, type, wide))
    assert run(f"mul.wide.{type}", [row[:2] for row in cases]) == [wrap(a * b, wide) for a, b, _ in cases]
    assert run(f"mad.wide.{type}", cases) == [wrap(a * b + c, wide) for a, b, c in cases]


@pytest.mark.parametrize("type", ["s16", "s32", "s64"])
@given(data=st.data())
def test_signs(type, data):
    cases = data.draw(rows(type))
    assert run(f"neg.{type}", cases) == [wrap(-a, type) for (a,) in cases]
    assert run(f"abs.{type}", cases) == [wrap(abs(a), type) for (a,) in cases]


@given(rows("s32", "s32"), rows("u32", "u32"))
def test_saturated_and_packed(cases, packed):
    assert run("add.sat.s32", cases) == [clamp(a + b, "s32") for a, b in cases]
    assert run("sub.sat.s32", cases) == [clamp(a - b, "s32") for a, b in cases]
    assert run("max.relu.s32", cases) == [max(a, b, 0) for a, b in cases]
    assert run("min.relu.s32", cases) == [max(min(a, b), 0) for a, b in cases]
    for name, function in (("add", lambda a, b: a + b), ("min", min), ("max", max)):
        for type in ("u16x2", "s16x2"):
            of = [[wrap(function(*(wrap(x >> s, type[:3]) for x in row)), "u16") for s in (0, 16)] for row in packed]
            assert run(f"{name}.{type}", packed) == [low | high << 16 for low, high in of]


@given(rows("u32", "u32", "u32"))
def test_dot_products(cases):
    for t in ("u", "s"):
        for u in ("u", "s"):
            result = "s32" if "s" in (t, u) else "u32"
            byte = lambda x, i, kind: wrap(x >> 8 * i, f"{kind}8")  # noqa: E731
            half = lambda x, i, kind: wrap(x >> 16 * i, f"{kind}16")  # noqa: E731
            four = [c + sum(byte(a, i, t) * byte(b, i, u) for i in range(4)) for a, b, c in cases]
            assert run(f"dp4a.{t}32.{u}32", cases) == [wrap(x, result) for x in four]
            for which, first in (("lo", 0), ("hi", 2)):
                two = [c + sum(half(a, i, t) * byte(b, first + i, u) for i in range(2)) for a, b, c in cases]
                assert run(f"dp2a.{which}.{t}32.{u}32", cases) == [wrap(x, result) for x in two]


@pytest.mark.parametrize("type", ["b16", "b32", "b64"])
@given(data=st.data())
def test_logic(type, data):
    cases = data.draw(rows(type, type))
    assert run(f"and.{type}", cases) == [a & b for a, b in cases]
    assert run(f"or.{type}", cases) == [a | b for a, b in cases]
    assert run(f"xor.{type}", cases) == [a ^ b for a, b in cases]
    assert run(f"not.{type}", [row[:1] for row in cases]) == [wrap(~a, type) for a, _ in cases]
    assert run(f"cnot.{type}", [row[:1] for row in cases]) == [int(a == 0) for a, _ in cases]


@given(rows("pred", "pred"))
def test_logic_of_predicates(cases):
    assert run("and.pred", cases) == [a and b for a, b in cases]
    assert run("or.pred", cases) == [a or b for a, b in cases]
    assert run("xor.pred", cases) == [a != b for a, b in cases]
    assert run("not.pred", [row[:1] for row in cases]) == [not a for a, _ in cases]


@pytest.mark.parametrize("type", ["b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"])
@given(data=st.data())
def test_shifts_clamp(type, data):
    cases = data.draw(st.lists(st.tuples(numbers(type), numbers("u32") | st.integers(0, 70)), min_size=1))
    if type[0] == "b":
        assert run(f"shl.{type}", cases) == [wrap(a << min(n, 64), type) for a, n in cases]
    assert run(f"shr.{type}", cases) == [a >> min(n, 64) for a, n in cases]


@given(st.lists(st.tuples(numbers("u32"), numbers("u32"), numbers("u32") | st.integers(0, 70)), min_size=1))
def test_funnel_shifts(cases):
    for mode, amount in (("wrap", lambda c: c & 31), ("clamp", lambda c: min(c, 32))):
        both = [(b << 32 | a, amount(c)) for a, b, c in cases]
        assert run(f"shf.l.{mode}.b32", cases) == [(x << n) >> 32 & 0xFFFFFFFF for x, n in both]
        assert run(f"shf.r.{mode}.b32", cases) == [x >> n & 0xFFFFFFFF for x, n in both]


@pytest.mark.parametrize("width", [32, 64])
@given(data=st.data())
def test_counting(width, data):
    cases = data.draw(rows(f"u{width}"))
    assert run(f"popc.b{width}", cases) == [a.bit_count() for (a,) in cases]
    assert run(f"clz.b{width}", cases) == [width - a.bit_length() for (a,) in cases]
    assert run(f"brev.b{width}", cases) == [int(f"{a:0{width}b}"[::-1], 2) for (a,) in cases]
    for type in (f"u{width}", f"s{width}"):
        highest = []
        for (a,) in cases:
            bits = ~a & (1 << width) - 1 if type[0] == "s" and a >> width - 1 else a
            highest.append(bits.bit_length() - 1)
        of = [(wrap(a, type),) for (a,) in cases]
        assert run(f"bfind.{type}", of) == [wrap(n, "u32") for n in highest]
        assert run(f"bfind.shiftamt.{type}", of) == [wrap(-1 if n < 0 else width - 1 - n, "u32") for n in highest]


def fields(type):
    position = numbers("u32") | st.integers(0, 70)
    return st.lists(st.tuples(numbers(type), position, position), min_size=1)


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
@given(data=st.data())
def test_bit_field_extract(type, data):
    """The ISA's own loop, bit by bit."""
    cases, top = data.draw(fields(type)), int(type[1:]) - 1
    expected = []
    for a, b, c in cases:
        pos, length = b & 255, c & 255
        sign = 0 if type[0] == "u" or length == 0 else a >> min(pos + length - 1, top) & 1
        bits = [a >> pos + i & 1 if i < length and pos + i <= top else sign for i in range(top + 1)]
        expected.append(wrap(sum(bit << i for i, bit in enumerate(bits)), type))
    assert run(f"bfe.{type}", cases) == expected


@pytest.mark.parametrize("type", ["b32", "b64"])
@given(data=st.data())
def test_bit_field_insert(type, data):
    cases, top = data.draw(fields(type)), int(type[1:]) - 1
    cases = [(a, data.draw(numbers(type)), b, c) for a, b, c in cases[:20]]
    expected = []
    for a, f, c, d in cases:
        pos, length = c & 255, d & 255
        for i in range(length):
            if pos + i <= top:
                f = f & ~(1 << pos + i) | (a >> i & 1) << pos + i
        expected.append(f)
    assert run(f"bfi.{type}", cases) == expected


@given(rows("u32", "u32", "u32"), st.booleans())
def test_permute(cases, constant):
    if constant:
        cases = [(a, b, cases[0][2]) for a, b, _ in cases]
    expected = []
    for a, b, c in cases:
        source, result = b << 32 | a, 0
        for i in range(4):
            nibble = c >> 4 * i & 15
            byte = source >> 8 * (nibble & 7) & 255
            byte = 255 * (byte >> 7) if nibble & 8 else byte
            result |= byte << 8 * i
        expected.append(result)
    assert run("prmt.b32", cases) == expected
    selector = operation(Instruction("prmt.b32", ("%d", "%a", "%b", "0x3210")))
    a, b, _ = (np.array(column, np.uint32) for column in zip(*cases, strict=True))
    assert np.array_equal(selector.compute(a, b, np.broadcast_to(np.uint32(0x5410), len(a))), a & 0xFFFF | b << 16)


@given(rows("u32", "u32", "u32"))
def test_permute_modes(cases):
    """Bytes 3, 2, 1, 0 of the result, for c & 3 = 0, 1, 2, 3: the ISA's table."""
    tables = {
        "f4e": ("3210", "4321", "5432", "6543"),
        "b4e": ("5670", "6701", "7012", "0123"),
        "rc8": ("0000", "1111", "2222", "3333"),
        "ecl": ("3210", "3211", "3222", "3333"),
        "ecr": ("0000", "1110", "2210", "3210"),
        "rc16": ("1010", "3232", "1010", "3232"),
    }
    for mode, rows_ in tables.items():
        source = [(b << 32 | a, rows_[c & 3]) for a, b, c in cases]
        expected = [sum((x >> 8 * int(n) & 255) << 24 - 8 * i for i, n in enumerate(four)) for x, four in source]
        assert run(f"prmt.b32.{mode}", cases) == expected


@given(rows("u32", "u32", "u32"), st.integers(0, 255))
def test_three_input_logic(cases, lut):
    bit = lambda a, b, c, i: lut >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1  # noqa: E731
    expected = [sum(bit(*row, i) << i for i in range(32)) for row in cases]
    for text in (str(lut), hex(lut)):
        names = ("%d", "%a", "%b", "%c", text)
        what = operation(Instruction("lop3.b32", names))
        found = what.compute(*(np.array(column, np.uint32) for column in zip(*cases, strict=True)))
        assert found.dtype == np.uint32 and found.tolist() == expected


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


def test_unknown_ones_are_refused_by_name():
    refused = [
        "frobnicate.b32",
        "add.cc.s32",
        "mul.f8",
        "setp.zz.s32",
        "setp.ltu.s32",
        "cvt.rs.f16x2.f32",
        "cvt.s32.f32",
    ]
    for opcode in refused:
        with pytest.raises(SimulationError, match=r"not supported|says how to round"):
            operation(Instruction(opcode, ("%d", "%a", "%b")))
