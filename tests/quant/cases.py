"""Hypothesis strategies of arrays to quantize: where codes are decided (levels, borders and their neighbours), blocks
of their own magnitude each, zero blocks, outliers, odd lengths and partial last blocks."""

import numpy as np
from hypothesis import strategies as st
from quant.laws import levels_of

f32 = np.float32


def numbers(code: str):
    """float32 in [-1, 1], 0 or at least 2^-20, often a level or a border of the code or one ulp beside it."""
    levels = levels_of(code).astype(f32)
    borders = (levels[1:] + levels[:-1]) / f32(2)
    ulp_beside = [np.nextafter(borders, f32(to)) for to in (-2, 2)]
    special = [v for v in np.concatenate([levels, borders, *ulp_beside]) if v == 0 or abs(v) > 2.0**-20]
    some = st.floats(-1, 1, width=32).filter(lambda v: v == 0 or abs(v) >= 2.0**-20)
    return st.sampled_from(sorted({float(v) for v in special})) | some


@st.composite
def blocks(draw, code: str, blocksizes=(16, 32, 64), most: int = 5, odd: bool = True):
    """(x, blocksize): flat float32 of up to `most` blocks, the last partial where odd. Every block is zero or has its
    absmax between 2^-100 and 2^100."""
    blocksize = draw(st.sampled_from(blocksizes))
    n = draw(st.integers(1, most * blocksize) if odd else st.integers(1, most).map(lambda k: k * blocksize))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    if draw(st.booleans()):
        x = rng.choice(np.array(draw(st.lists(numbers(code), min_size=1, max_size=20)), f32), n)
    else:
        x = rng.standard_normal(n, f32)
        x[np.abs(x) < 2.0**-20] = 0
    if draw(st.booleans()):  # absmax 1, so that borders are met exactly
        x = np.clip(x, -1, 1)
        x[::blocksize] = draw(st.sampled_from([-1, 1]))
    if draw(st.booleans()):
        x[rng.integers(n)] *= f32(draw(st.sampled_from([10, 1000, -100])))
    exponents = rng.integers(-60, 61, -(-n // blocksize)) if draw(st.booleans()) else draw(st.integers(-60, 60))
    x = np.ldexp(x, np.broadcast_to(exponents, (-(-n // blocksize),)).repeat(blocksize)[:n]).astype(f32)
    if draw(st.booleans()):
        start = rng.integers(-(-n // blocksize)) * blocksize
        x[start : start + blocksize] = draw(st.sampled_from([0.0, -0.0]))
    return x, blocksize


@st.composite
def absmaxes(draw):
    """float32 (n,) of non-negative block maxima: normal blocks' ones, equal ones, zeros, outliers; n around 256."""
    n = draw(st.sampled_from([1, 2, 255, 256, 257, 600]) | st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    absmax = np.abs(rng.standard_normal((n, draw(st.sampled_from([1, 4, 64]))))).max(1).astype(f32)
    if draw(st.booleans()):
        absmax[rng.integers(n)] *= f32(1000)
    if draw(st.booleans()):
        absmax[rng.random(n) < draw(st.sampled_from([0.1, 1.0]))] = draw(st.sampled_from([0.0, 0.5]))
    return np.ldexp(absmax, draw(st.integers(-40, 40))).astype(f32)
