"""Logic, shifts and bit fields: the instructions, each beside the function that it computes.

PTX ISA, sections 9.7.1 (bit fields, counting), 9.7.8 Logic and Shift Instructions, 9.7.9.7 prmt. A shift by the width
or more gives zero, or copies of the sign, where C leaves it undefined; shf.wrap takes the amount modulo 32.
"""

import numpy as np


def _width(x: np.ndarray) -> int:
    return 8 * x.itemsize


def _shift(x: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """The amount as NumPy's shifts take it: of x's type, at most its width. They then clamp as PTX does."""
    return np.minimum(amount, amount.dtype.type(_width(x))).astype(x.dtype)


def shift_left(a, amount):
    return a << _shift(a, amount)


def shift_right(a, amount):
    return a >> _shift(a, amount)


def ones(count: np.ndarray, dtype) -> np.ndarray:
    """The lowest `count` bits set, all of them where count is the width or more."""
    return ~shift_left(np.full(np.shape(count), ~np.zeros((), dtype)), count)


def bit_length(a: np.ndarray) -> np.ndarray:
    """Of unsigned numbers: one more than the position of the highest bit set; 0 for 0."""
    if a.itemsize == 8:
        high, low = bit_length((a >> np.uint64(32)).astype(np.uint32)), bit_length(a.astype(np.uint32))
        return np.where(high > 0, high + np.uint32(32), low)
    return np.frexp(a.astype(np.float64))[1].astype(np.uint32)


def count_leading_zeros(a):
    return np.uint32(_width(a)) - bit_length(a)


def find_highest(a):
    """Position of the highest bit set, of a negative number the highest clear; 2^32 - 1 where there is none."""
    bits = np.where(a < 0, ~a, a) if a.dtype.kind == "i" else a
    return bit_length(bits.view(f"u{a.itemsize}")) - np.uint32(1)


def find_shift(a):
    """By how much to shift left to bring that bit to the top."""
    position = find_highest(a)
    return np.where(position == np.uint32(2**32 - 1), position, np.uint32(_width(a) - 1) - position)


def reverse(a):
    bits = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.itemsize), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(a.dtype).reshape(-1)


def extract(a, position, length):
    """The field of `length` bits at `position`; if signed, extended by its highest bit that exists."""
    width = np.uint32(_width(a))
    position, length = np.minimum(position & np.uint32(255), width), length & np.uint32(255)
    unsigned = a.view(f"u{a.itemsize}")
    kept = np.minimum(length, width - position)
    field = shift_right(unsigned, position) & ones(kept, unsigned.dtype)
    if a.dtype.kind == "i":
        top = np.minimum(position + length - np.uint32(1), width - np.uint32(1))
        sign = (shift_right(unsigned, top) & unsigned.dtype.type(1)) != 0
        field = np.where(sign & (length > 0), field | ~ones(kept, unsigned.dtype), field)
    return field.view(a.dtype)


def insert(a, b, position, length):
    """b with its field replaced by the lowest bits of a."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = shift_left(ones(length, b.dtype), position)
    return b & ~mask | shift_left(a, position) & mask


def permute(mode: str = ""):
    """prmt: four bytes chosen among the eight of b:a. Without a mode each nibble of c chooses one, or its sign."""
    modes = {  # which bytes, for c & 3 = 0, 1, 2, 3; the lowest first
        "f4e": ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)),
        "b4e": ((0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)),
        "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
        "ecl": ((0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)),
        "ecr": ((0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)),
        "rc16": ((0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)),
    }
    by_mode = [sum(byte << 4 * i for i, byte in enumerate(four)) for four in modes[mode]] if mode else []

    def compute(a, b, c):
        if c.strides == (0,):  # one constant for all
            c = c[:1]
        if mode:
            c = np.array(by_mode, np.uint32)[c & np.uint32(3)]
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.uint32(0)
        for i in range(4):
            nibble = c >> np.uint32(4 * i) & np.uint32(15)
            position = (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = (both >> position).astype(np.uint32) & np.uint32(255)
            if (signs := nibble >= 8).any():
                byte = np.where(signs, (byte >> np.uint32(7)) * np.uint32(255), byte)
            result = result | byte << np.uint32(8 * i)
        return result

    return compute


def look_up(table: int):
    """lop3: any function of three bits, given by its values. Bit 4 x + 2 y + z of the table is f(x, y, z)."""

    def compute(a, b, c):
        result = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    return compute


def _funnel(left: bool, wrap: bool):
    """shf: shift the 64 bits b:a, and keep the upper half after a left shift, the lower after a right one."""

    def compute(a, b, c):
        amount = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a
        return ((both << amount) >> np.uint64(32) if left else both >> amount).astype(np.uint32)

    return compute


BITS = {
    "and": ("T", "T T", lambda a, b: a & b),
    "or": ("T", "T T", lambda a, b: a | b),
    "xor": ("T", "T T", lambda a, b: a ^ b),
    "not": ("T", "T", lambda a: ~a),
    "cnot": ("T", "T", lambda a: (a == 0).astype(a.dtype)),
    "shl": ("T", "T u32", shift_left),
    "shr": ("T", "T u32", shift_right),
    "shf.l.wrap": ("T", "T T u32", _funnel(left=True, wrap=True)),
    "shf.l.clamp": ("T", "T T u32", _funnel(left=True, wrap=False)),
    "shf.r.wrap": ("T", "T T u32", _funnel(left=False, wrap=True)),
    "shf.r.clamp": ("T", "T T u32", _funnel(left=False, wrap=False)),
    "popc": ("u32", "T", lambda a: np.bitwise_count(a).astype(np.uint32)),
    "clz": ("u32", "T", count_leading_zeros),
    "bfind": ("u32", "T", find_highest),
    "bfind.shiftamt": ("u32", "T", find_shift),
    "brev": ("T", "T", reverse),
    "bfe": ("T", "T u32 u32", extract),
    "bfi": ("T", "T T u32 u32", insert),
}
PERMUTE_MODES = ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
