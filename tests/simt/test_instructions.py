"""Integer arithmetic, logic and bit fields against definitions in Python's integers, made from the PTX ISA's text."""

import numpy as np
import pytest
from columns import clamp, numbers, rows, run
from exact import wrap
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import SimulationError
from minilora.simt import Instruction
from minilora.simt.instructions import operation

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")


def quotient(a, b):
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1


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
