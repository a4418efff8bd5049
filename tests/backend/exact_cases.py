"""Data on which a last bit decides, for kernels that give NumPy's results bit for bit: quantize, dequantize, int8.

    quantize_4bit(device, version=1, n=1003, blocksize=33)     # raises AssertionError where NumPy has other bits

A random entry does not tell `>` from `>=`, nor rounding from cutting off. These lie on the borders between two codes,
or a unit in the last place beside them; are subnormal; or make a product that lies between two float16, so that its own
rounding decides. The largest of a block is anywhere in it.
"""

from functools import cache

import numpy as np
from backend import kernel_checks as checks

from minilora.backend import numpy as reference
from minilora.backend.cuda import quantize
from minilora.quant import CODES, DYNAMIC_MAP, double

f32 = np.float32
LEVELS = CODES | {
    "subnormal": np.append(np.arange(-7, 8) * 3e-40, 1).astype(f32),  # and so are 14 of its borders
    "negative": np.linspace(-1, 0, 16, dtype=f32),  # zero lies above all borders; linear16 has a border of zero
}
LEVELS |= {f"zero {k}": f32(np.arange(-k, 16 - k) / 15) for k in range(16)}  # zero is the k-th level
TABLES = {"dynamic": DYNAMIC_MAP, "subnormal": np.append(np.arange(-127, 128) * 3e-42, 1).astype(f32)}
SCALES = f32([1, 0.7, 0.3, 1e5, 3e38, 1e-38, 4e-39, 1e-42, 2e-37, 0, np.inf, np.nan])
THIRD = f32(1 / 127)  # factor of an int8 entry


# Quantize


def near(borders, n: int, blocksize: int, seed: int) -> np.ndarray:
    """Entries that, divided by their block's absmax, are a border or a few units in the last place from one."""
    rng = np.random.default_rng(seed)
    largest = rng.choice(f32([1, 1, -1, 0.77, 1.9, 3e-30, 2e-37, 1e-39]), -(-n // blocksize))
    x, step = f32(rng.choice(borders, n) * largest.repeat(blocksize)[:n]), rng.integers(-2, 3, n)
    for _ in range(2):
        x = np.where(step == 0, x, np.nextafter(x, f32(9e9) * np.sign(step))).astype(f32)
        step -= np.sign(step)
    start = np.arange(largest.size) * blocksize
    x[rng.integers(start, np.minimum(start + blocksize, n))] = largest
    return x


def _last_is_largest(n: int, blocksize: int, entry, largest) -> np.ndarray:
    x = np.full(n, entry, f32)
    x[blocksize - 1 :: blocksize] = x[-1] = largest
    return x


def _same(got, expected):
    checks.same(got[1], expected[1])
    checks.same(got[0], expected[0])


def quantize_4bit(device, version, n, blocksize, code="nf4", seed=0):
    levels = LEVELS[code]
    x = near(reference.midpoints(np.sort(levels)), n, blocksize, seed)
    _same(quantize.quantize_4bit(device, x, levels, blocksize, version), reference.quantize_4bit(x, levels, blocksize))


def alike_4bit(device, version, n, blocksize, border, code):
    """Entries all alike: just above a subnormal border, or above one by the rounding of a quotient."""
    levels = LEVELS[code]
    b = reference.midpoints(np.sort(levels))[border]
    entry, largest = np.nextafter(b, f32(1)), f32(1)
    if code != "subnormal":
        candidates = f32(np.random.default_rng(0).uniform(0.5, 1, 1 << 12))
        for entries in (f32(b * candidates), np.nextafter(f32(b * candidates), f32(np.sign(b)))):
            quotient = entries.astype(float) / candidates
            good = np.flatnonzero((f32(quotient) > b) != (cut_off(quotient) > b))
            if len(good):
                entry, largest = entries[good[0]], candidates[good[0]]
    x = _last_is_largest(n, blocksize, entry, largest)
    _same(quantize.quantize_4bit(device, x, levels, blocksize, version), reference.quantize_4bit(x, levels, blocksize))


def quantize_int8(device, version, n, blocksize, seed=0):
    x = near((np.arange(-127, 127) + 0.5) / 127, n, blocksize, seed)
    _same(quantize.quantize_int8(device, x, blocksize, version), reference.quantize_int8(x, blocksize))


def alike_int8(device, version, n, blocksize):
    """Subnormal entries of code 1."""
    x = _last_is_largest(n, blocksize, 1.1e-38, 9e-37)
    _same(quantize.quantize_int8(device, x, blocksize, version), reference.quantize_int8(x, blocksize))


def quantize_8bit(device, version, n, blocksize, table="dynamic", seed=0):
    levels = TABLES[table]
    x = near(reference.midpoints(levels), n, blocksize, seed)
    _same(quantize.quantize_8bit(device, x, levels, blocksize, version), reference.quantize_8bit(x, levels, blocksize))


# Dequantize


def cut_off(exact: np.ndarray) -> np.ndarray:
    """To float32, towards zero."""
    nearest = f32(exact)
    return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, f32(0)), nearest)


@cache
def ties(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) of which the product lies so near to the middle between two float16 that its rounding to float32
    decides. kind: "4bit"; "int8", where the product with 1/127 decides; "int8 first", where the one before it does."""
    scales = f32(np.random.default_rng(0).uniform(0.5, 2, 1 << 15))
    levels = CODES["nf4"] if kind == "4bit" else f32(np.arange(-127, 128, 2))
    exact = levels[:, None].astype(float) * scales
    nearest, cut = f32(exact), cut_off(exact)
    if kind == "int8":
        exact = nearest.astype(float) * THIRD
        nearest, cut = f32(exact), cut_off(exact)
    elif kind == "int8 first":
        nearest, cut = nearest * THIRD, cut * THIRD
    level, scale = np.nonzero(nearest.astype(np.float16) != cut.astype(np.float16))
    return (level if kind == "4bit" else levels[level].astype(np.int8)), scales[scale]


def _scales(rng, blocks: int, kind: str) -> np.ndarray:
    return np.where(rng.random(blocks) < 0.5, rng.choice(SCALES, blocks), rng.choice(ties(kind)[1], blocks)).astype(f32)


# last: None, the scale of the last block, or a word for its last entries: "tie", "low" and "high" (beyond float16).


def dequantize_4bit(device, version, n, blocksize, start=0, dtype="float32", last=None, code="nf4", seed=0):
    rng = np.random.default_rng(seed)
    packed, absmax = rng.integers(0, 256, -(-n // 2)).astype(np.uint8), _scales(rng, -(-n // blocksize), "4bit")
    if last in ("tie", "low", "high"):
        packed[-8:] = {"tie": 17 * ties("4bit")[0][seed], "low": 0, "high": 255}[last]
        last = ties("4bit")[1][seed] if last == "tie" else 3e38
    absmax[-1] = absmax[-1] if last is None else last
    args = (packed, absmax, LEVELS[code], blocksize, start, n)
    got = quantize.dequantize_4bit(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_4bit(*args), dtype))


def dequantize_4bit_double(
    device, version, n, blocksize, start=0, dtype="float32", last=None, code="nf4", kind="dynamic", seed=0
):
    """Here all scales are about `last`, but for a tie, where they are all that one."""
    rng = np.random.default_rng(seed)
    packed, size = rng.integers(0, 256, -(-n // 2)).astype(np.uint8), last
    if last in ("tie", "low", "high"):
        packed[-8:] = {"tie": 17 * ties("4bit")[0][seed], "low": 0, "high": 255}[last]
        size = 0.7 if last == "tie" else 1e37
    absmax = f32(rng.exponential(size=-(-n // blocksize)) * (0.7 if size is None else min(size, 1e37)))
    if last == "tie":
        absmax[:] = ties("4bit")[1][seed]
    codes, absmax2, offset = double.compress(absmax, kind)
    args = (packed, codes, double.LEVELS.get(kind), absmax2, offset, LEVELS[code], blocksize, start, n)
    got = quantize.dequantize_4bit_double(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        absmax = double.expand(codes, absmax2, offset, kind)
        expected = reference.dequantize_4bit(packed, absmax, LEVELS[code], blocksize, start, n)
        checks.same(got, checks.rounded(expected, dtype))


def dequantize_int8(device, version, n, blocksize, start=0, dtype="float32", last=None, seed=0):
    rng, kind = np.random.default_rng(seed), ("int8", "int8 first")[seed % 2]
    codes, absmax = rng.integers(-128, 128, n).astype(np.int8), _scales(rng, -(-n // blocksize), kind)
    if last in ("tie", "low", "high"):
        codes[-8:] = {"tie": ties(kind)[0][seed], "low": -127, "high": 127}[last]
        last = ties(kind)[1][seed] if last == "tie" else 3e38
    absmax[-1] = absmax[-1] if last is None else last
    args = (codes, absmax, blocksize, start, n)
    got = quantize.dequantize_int8(device, *args, dtype=checks.DTYPES[dtype], version=version)
    with np.errstate(all="ignore"):
        checks.same(got, checks.rounded(reference.dequantize_int8(*args), dtype))


def dequantize_8bit(device, version, n, blocksize):
    rng = np.random.default_rng(0)
    codes, absmax = rng.integers(0, 256, n).astype(np.uint8), _scales(rng, -(-n // blocksize), "4bit")
    got = quantize.dequantize_8bit(device, codes, absmax, DYNAMIC_MAP, blocksize, version)
    with np.errstate(all="ignore"):
        checks.same(got, reference.dequantize_8bit(codes, absmax, DYNAMIC_MAP, blocksize))
