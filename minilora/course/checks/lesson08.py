"""Lesson 8's exercises."""

import numpy as np

from minilora import quant
from minilora.course.check import Problem, Wrong, equal

normal_float = Problem("normal_float", 1)
unpack = Problem("unpack", 1)


def _bits(rng, size):
    return {"bits": 2 + (size - 1) % 7}


@normal_float.law(
    "it has 2**bits levels, sorted, from -1 to 1, and zero among them", draw=_bits,
    means="2**(bits - 1) above zero, one fewer below, and zero; divided by the largest",
)  # fmt: skip
def _(answer, bits):
    levels = np.asarray(answer(bits), float)
    if levels.shape != (2**bits,):
        raise Wrong(f"expected {2**bits} levels, got shape {levels.shape}")
    equal(levels, np.sort(levels), 0)
    equal(levels[[0, 2 ** (bits - 1) - 1, -1]], [-1, 0, 1])


@normal_float.law(
    "they are the quantiles of the recipe", draw=_bits,
    means="probabilities are evenly spaced from p to 1/2; both halves leave out 1/2, zero",
)  # fmt: skip
def _(answer, bits):
    equal(answer(bits), quant.normal_float(bits), 1e-4)


def _codes(rng, size):
    n = int(rng.integers(1, 2 * size + 1))
    codes = rng.integers(0, 16, n + n % 2)
    if n % 2:
        codes[-1] = 7
    return {"packed": (codes[0::2] * 16 + codes[1::2]).astype(np.uint8), "n": n}


@unpack.law(
    "there are n of them", draw=_codes, means="with n odd the last half byte is padding, and no code of the array's"
)
def _(answer, packed, n):
    if (shape := np.shape(answer(packed, n))) != (n,):
        raise Wrong(f"expected {n} codes in one row, got shape {shape}")


@unpack.law(
    "packed again they are the same bytes", draw=_codes,
    means="the first code is in the high half, byte >> 4, the second is byte & 15",
)  # fmt: skip
def _(answer, packed, n):
    codes = np.asarray(answer(packed, n))
    if codes.shape != (n,):
        raise Wrong(f"expected {n} codes, got shape {codes.shape}")
    equal(codes, [(int(packed[i // 2]) >> 4 if i % 2 == 0 else int(packed[i // 2]) & 15) for i in range(n)], 0)
