"""What must hold of a quantizer, as plain functions that raise AssertionError.

test_laws.py calls them with Hypothesis' arrays, test_planted_bugs.py with a quantizer that has a bug. x is flat float32
whose blocks are zero or have their absmax between 2^-100 and 2^100 (what holds outside is in test_golden.py and
test_int8.py). The bounds follow from float32's rounding: a relative 2^-24 for each operation.
"""

import numpy as np

from minilora import quantize
from minilora.backend.numpy import TINY, midpoints
from minilora.quant import CODES, double

f32 = np.float32
INT8 = np.arange(-127, 128) / 127
SYMMETRIC = ("fp4", "e2m1", "int4", "linear16")  # the levels are; a tie still goes to the lower one


def levels_of(code: str) -> np.ndarray:
    """The code's levels, sorted."""
    return INT8 if code == "int8" else np.sort(CODES[code])


def unpack(q) -> np.ndarray:
    """The stored codes, one an entry: (n,) uint8 of 4-bit codes, int8 for "int8"."""
    return q.packed if q.code == "int8" else nibbles(q.packed)[: q.size]


def nibbles(packed: np.ndarray) -> np.ndarray:
    """The high half of each byte, then its low half."""
    return np.stack([packed >> 4, packed & 15], 1).ravel()


def each(scales: np.ndarray, blocksize: int, n: int) -> np.ndarray:
    """Every entry's scale: (n,)."""
    return scales[np.arange(n) // blocksize]


def block_absmax(x: np.ndarray, blocksize: int) -> np.ndarray:
    return np.array([np.abs(x[i : i + blocksize]).max() for i in range(0, len(x), blocksize)])


def definition(x: np.ndarray, levels: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and absmax as a student would write them: argmin over the levels, in float64, block by block.

    A tie goes to the lower level; so does an entry equal to the float32 border, which may be half an ulp above the
    exact one. Of two zeros the first is for zero and below, the second for what is above.
    """
    order = np.argsort(levels, kind="stable")
    ascending = levels[order]
    borders = (ascending[1:] + ascending[:-1]) / f32(2)
    codes, scales = [], []
    for start in range(0, len(x), blocksize):
        block = x[start : start + blocksize]
        absmax = np.abs(block).max()
        if len(block) == blocksize:
            scaled = block * (f32(1) / max(absmax, TINY))
        else:
            absmax = max(absmax, TINY)
            scaled = block / absmax
        nearest = np.abs(scaled[:, None].astype(float) - ascending).argmin(1)
        nearest += (ascending[nearest] == 0) & (scaled > 0) & ((ascending == 0).sum() == 2)
        on_border = scaled[:, None] == borders
        codes.append(order[np.where(on_border.any(1), on_border.argmax(1), nearest)])
        scales.append(absmax)
    return np.concatenate(codes), np.array(scales, f32)


def check_definition(x, code, blocksize):
    """Codes and absmax are the definition's; an odd end is padded with the code of zero."""
    q, (codes, absmax) = quantize(x, code, blocksize), definition(x, CODES[code], blocksize)
    np.testing.assert_array_equal(unpack(q), codes)
    np.testing.assert_array_equal(q.absmax, absmax)
    assert len(q.packed) == -(-len(x) // 2)
    if len(x) % 2:
        zero, _ = definition(np.array([0, 1], f32), CODES[code], 2)
        assert q.packed[-1] & 15 == zero[0]


def check_dequantize(x, code, blocksize):
    """An entry is level[code] · absmax of its block, in float32, bit for bit; (code · absmax) · (1/127) in int8."""
    q = quantize(x, code, blocksize)
    codes, absmax = unpack(q), each(q.absmax, blocksize, len(x))
    expected = codes.astype(f32) * absmax * f32(1 / 127) if code == "int8" else CODES[code][codes] * absmax
    np.testing.assert_array_equal(q.dequantize(), expected)


def check_zero_is_exact(x, code, blocksize):
    if 0 in levels_of(code):
        assert not quantize(x, code, blocksize).dequantize()[x == 0].any()


def check_absmax_is_exact(x, code, blocksize):
    """What is largest in its block comes back: exactly for a 4-bit code with -1 and 1, within an ulp in int8."""
    y = quantize(x, code, blocksize).dequantize()
    largest = (np.abs(x) == each(block_absmax(x, blocksize), blocksize, len(x))) & (x != 0)
    if code == "int8":
        assert (np.abs(y[largest].astype(float) - x[largest]) <= np.spacing(np.abs(x[largest]))).all()
    elif {-1, 1} <= set(levels_of(code)):
        np.testing.assert_array_equal(y[largest], x[largest])


def check_fixed_point(x, code, blocksize):
    """Quantizing what was dequantized changes nothing (but code 8 of fp4 and e2m1, a zero, which comes back as code 0);
    in int8 it changes no code, and values by two ulps at most."""
    q = quantize(x, code, blocksize)
    y = q.dequantize()
    again = quantize(y, code, blocksize)
    if code == "int8":
        np.testing.assert_array_equal(again.packed, q.packed)
        np.testing.assert_allclose(again.dequantize(), y, rtol=2.0**-22, atol=0)
    else:
        np.testing.assert_array_equal(again.dequantize(), y)
        np.testing.assert_array_equal(again.absmax, q.absmax)
        np.testing.assert_array_equal(unpack(again)[y != 0], unpack(q)[y != 0])


def check_error_bound(x, code, blocksize):
    """An error is at most half the gap between the levels on either side, times absmax, plus what five
    roundings of numbers up to absmax add."""
    y, levels = quantize(x, code, blocksize).dequantize(), np.unique(levels_of(code)).astype(float)
    absmax = each(block_absmax(x, blocksize), blocksize, len(x)).astype(float)
    scaled = np.divide(x, absmax, out=np.zeros(len(x)), where=absmax > 0)
    above = np.clip(np.searchsorted(levels, scaled), 1, len(levels) - 1)
    half_gap = (levels[above] - levels[above - 1]) / 2
    # An all-zero partial block is stored with the absmax TINY, which linear16 turns into TINY/15.
    assert (np.abs(y.astype(float) - x) <= absmax * (half_gap + 5 * 2.0**-24) + TINY / 15).all()


def check_monotone(x, code, blocksize):
    """Within a block a larger entry does not come back smaller."""
    y = quantize(x, code, blocksize).dequantize()
    for start in range(0, len(x), blocksize):
        order = np.argsort(x[start : start + blocksize], kind="stable")
        assert (np.diff(y[start : start + blocksize][order]) >= 0).all()


def check_power_of_two_scale(x, code, blocksize, exponent):
    """Q(2^k x) = 2^k Q(x), with the same codes: scaling by a power of two is exact."""
    q, scaled = quantize(x, code, blocksize), quantize(np.ldexp(x, exponent), code, blocksize)
    np.testing.assert_array_equal(scaled.packed, q.packed)
    zero = block_absmax(x, blocksize) == 0  # there a partial block has the absmax TINY
    np.testing.assert_array_equal(scaled.absmax[~zero], np.ldexp(q.absmax, exponent)[~zero])


def check_negation(x, code, blocksize):
    """Q(-x) = -Q(x) for codes with symmetric levels, but on a border, where both go to the lower level. int8 rounds a
    tie to even, and has no exception."""
    y, minus = quantize(x, code, blocksize).dequantize(), quantize(-x, code, blocksize).dequantize()
    if code == "int8":
        np.testing.assert_array_equal(minus, -y)
    elif code in SYMMETRIC:
        levels = np.unique(levels_of(code))
        absmax = each(block_absmax(x, blocksize), blocksize, len(x)).astype(float)
        scaled = np.divide(x, absmax, out=np.zeros(len(x)), where=absmax > 0)
        inside = (np.abs(scaled[:, None] - midpoints(levels)) > 2.0**-22).all(1)
        np.testing.assert_array_equal(minus[inside], -y[inside])


def check_blocks_are_independent(x, code, blocksize, permutation):
    """Permuting whole blocks permutes the result, and cutting the array between two changes nothing.

    permutation: of the full blocks; the partial last one stays. An odd blocksize shares a byte between two blocks: it
    is codes that are compared.
    """
    q, full = quantize(x, code, blocksize), len(permutation) * blocksize
    moved = np.concatenate([x[:full].reshape(-1, blocksize)[permutation].ravel(), x[full:]])
    other = quantize(moved, code, blocksize)
    np.testing.assert_array_equal(other.absmax[: len(permutation)], q.absmax[: len(permutation)][permutation])
    codes = unpack(q)
    expected = np.concatenate([codes[:full].reshape(-1, blocksize)[permutation].ravel(), codes[full:]])
    np.testing.assert_array_equal(unpack(other), expected)
    for cut in range(blocksize, len(x), blocksize):
        head, tail = quantize(x[:cut], code, blocksize), quantize(x[cut:], code, blocksize)
        np.testing.assert_array_equal(np.concatenate([unpack(head), unpack(tail)]), codes)
        np.testing.assert_array_equal(np.concatenate([head.absmax, tail.absmax]), q.absmax)


def check_int8_error(x, blocksize):
    """|error| <= absmax/254, plus five roundings: of 127/absmax, x · that, code · absmax, 1/127, their product."""
    y = quantize(x, "int8", blocksize).dequantize()
    absmax = each(block_absmax(x, blocksize), blocksize, len(x)).astype(float)
    assert (np.abs(y.astype(float) - x) <= absmax * (1 / 254 + 5 * 2.0**-24)).all()


def check_int8_ties():
    """A tie goes to the even code, whatever the power of two and the sign."""
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, 126.5], f32)
    for power in (1, 2.0**-60, 2.0**60):
        np.testing.assert_array_equal(
            quantize(x * f32(power), "int8", None).packed, [127, 0, 2, 2, 0, -2, -2, 126, 126]
        )


def check_rounding(code):
    """A full block is multiplied by the float32 reciprocal of its absmax, a partial one divided by it. Only entries
    within an ulp of a border can tell: here are some whose code depends on it, in blocks of both kinds."""
    x = delicate(code)
    full = np.zeros((len(x), 16), f32)
    full[:, :2] = x
    check_definition(full.ravel(), code, 16)
    for pair in x:
        check_definition(pair, code, 16)


def delicate(code) -> np.ndarray:
    """(n, 2): an absmax, and an entry that multiplying and dividing by it put on different sides of a border."""
    rng = np.random.default_rng(0)
    absmax = rng.uniform(1, 2, (1000, 1)).astype(f32)
    borders = midpoints(np.sort(CODES[code]))
    entry = np.stack([absmax * np.nextafter(borders, f32(2)), absmax * borders]).reshape(2, 1000, -1)
    absmax = np.broadcast_to(absmax, entry.shape)
    differ = np.searchsorted(borders, entry / absmax) != np.searchsorted(borders, entry * (f32(1) / absmax))
    assert differ.sum() > 10
    return np.stack([absmax[differ], entry[differ]], 1)[:200]


def check_bytes(code):
    """Every pair of bytes, 65,536 of them, comes back from dequantize and quantize as it was, and no two pairs mean the
    same four numbers; except that of codes that mean the same (fp4's and e2m1's second zero) the first returns."""
    pairs = np.arange(1 << 16, dtype=np.uint16)[:, None].view(np.uint8)  # (65536, 2)
    codes = np.stack([pairs >> 4, pairs & 15], 2).reshape(-1, 4)
    levels = np.concatenate([CODES[code], np.zeros(16 - len(CODES[code]), f32)])
    block = np.ones((len(codes), 16), f32)  # with an entry of 1, a block's absmax is 1
    block[:, :4] = levels[codes]
    again = unpack(quantize(block, code, 16)).reshape(-1, 16)[:, :4]
    first = np.array([np.flatnonzero(levels == level)[0] for level in levels])
    np.testing.assert_array_equal(again, first[codes])
    packed = quantize(block, code, 16).packed.reshape(-1, 8)
    assert len(np.unique(packed[:, :2], axis=0)) == len(np.unique(levels)) ** 4
    np.testing.assert_array_equal(packed[:, 0], again[:, 0] << 4 | again[:, 1])  # the first of two in the high half
    np.testing.assert_array_equal(quantize(block, code, 16).dequantize(), block)


def check_double(absmax, kind):
    """Expanded scales differ from absmax by at most half the gap of the map around, times absmax2, plus ulps.

    With r = absmax - mean, r is off by 2^-24 |r|, r / absmax2 by as much again, the nearest level by half the gap that
    holds it (or by what it lies beyond the last level); multiplying and adding round twice more. absmax2 is the largest
    |r| of 256, and the mean is that of float32, some ulps from the exact one.
    """
    codes, absmax2, offset = double.compress(absmax, kind)
    levels = levels_of("int8") if kind == "int8" else double.LEVELS[kind]
    levels = np.unique(levels[np.isfinite(levels)]).astype(float)
    mean = absmax.astype(float).mean()
    assert abs(offset - mean) <= 2.0**-24 * mean * max(2, np.log2(len(absmax)))
    rest = absmax.astype(float) - offset
    np.testing.assert_allclose(absmax2, block_absmax(rest, 256), rtol=2.0**-23)
    scale = each(absmax2, 256, len(absmax)).astype(float)
    scaled = np.divide(rest, scale, out=np.zeros_like(rest), where=scale > 0)
    above = np.clip(np.searchsorted(levels, scaled), 1, len(levels) - 1)
    nearest = np.maximum((levels[above] - levels[above - 1]) / 2, np.abs(scaled) - np.abs(levels[above]))
    error = np.abs(double.expand(codes, absmax2, offset, kind).astype(float) - absmax)
    assert (error <= nearest * scale + 2.0**-22 * (scale + offset)).all()
