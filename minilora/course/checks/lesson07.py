"""Lesson 7's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal

to_bfloat16 = Problem("to_bfloat16", 1)
absmax_int8 = Problem("absmax_int8", 1)


def _bits(rng, size):
    """Numbers of all sizes below the largest, a third of them ties: halfway between two of bfloat16's."""
    x = rng.standard_normal(size) * 10.0 ** rng.integers(-30, 30, size)
    bits = x.astype(np.float32).view(np.uint32)
    tie = rng.random(size) < 1 / 3
    return {"bits": np.where(tie, bits & np.uint32(0xFFFF0000) | np.uint32(0x8000), bits)}


def _rounded(answer, bits):
    got = np.asarray(answer(bits))
    if got.shape != bits.shape or got.dtype != np.uint32:
        raise Wrong(f"expected uint32 of shape {bits.shape}, got {got.dtype} of shape {got.shape}")
    return got


@to_bfloat16.law("the last 16 bits are zero", draw=_bits, means="bits & 0xFFFF0000, after the addition")
def _(answer, bits):
    equal(_rounded(answer, bits) & np.uint32(0xFFFF), np.zeros(bits.shape, np.uint32), 0)


@to_bfloat16.law(
    "no number of bfloat16 is closer", draw=_bits,
    means="cutting rounds toward zero: first add 0x7FFF and the last bit that stays",
)  # fmt: skip
def _(answer, bits):
    got = _rounded(answer, bits)
    x, y = bits.view(np.float32).astype(float), got.view(np.float32).astype(float)
    below = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(float)
    above = ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32).astype(float)
    best = np.minimum(abs(below - x), abs(above - x))
    if not (abs(y - x) <= best).all():
        i = int((abs(y - x) > best).argmax())
        raise Wrong(f"{x[i]:.7g} became {y[i]:.7g}; {below[i]:.7g} and {above[i]:.7g} are its neighbours in bfloat16")


@to_bfloat16.law(
    "a tie goes to the even one", draw=_bits, means="the 1 more is the lowest bit that stays: (bits >> 16) & 1"
)
def _(answer, bits):
    got = _rounded(answer, bits)
    for before, after in zip(bits.tolist(), got.tolist(), strict=True):
        if before & 0xFFFF == 0x8000 and after >> 16 & 1:
            raise Wrong(f"{before:#034b} is halfway between two, and became\n{after:#034b}, whose bit 16 is 1")


def _array(rng, size):
    """Some zeros, and the largest as often negative as positive."""
    return {"x": rng.integers(-20, 21, size).astype(float) * (rng.random(size) < 0.8) / 4}


def _pair(answer, x):
    got = answer(x)
    if not (isinstance(got, tuple) and len(got) == 2):
        raise Wrong(f"expected a pair (codes, absmax), got {type(got).__name__}")
    return np.asarray(got[0]), got[1]


@absmax_int8.law("absmax is the largest absolute value", draw=_array, means="max |x|, not max x")
def _(answer, x):
    equal(_pair(answer, x)[1], np.abs(x).max())


@absmax_int8.law(
    "codes are whole numbers from -127 to 127", draw=_array,
    means="127 / absmax multiplies, then round; zeros have codes 0 (do not divide by 0)",
)  # fmt: skip
def _(answer, x):
    codes, _ = _pair(answer, x)
    if codes.shape != x.shape:
        raise Wrong(f"expected codes of shape {x.shape}, got {codes.shape}")
    if not (np.isfinite(codes) & (abs(codes.astype(float)) <= 127) & (codes == np.round(codes))).all():
        raise Wrong(f"codes: {codes[:12]}")


@absmax_int8.law(
    "multiplied by absmax / 127 they are x again, to half a step", draw=_array,
    means="round to the nearest, np.rint; a cast to int8 alone cuts off",
)  # fmt: skip
def _(answer, x):
    codes, absmax = _pair(answer, x)
    back, half = codes * (float(absmax) / 127), np.abs(x).max() / 254
    if back.shape != x.shape or not (abs(back - x) <= half * (1 + 1e-4)).all():
        raise Wrong(f"they are {back[:12].round(3)}; half a step is {half:.3f}")
