"""The reference kernels, vectorised NumPy: 4-bit and 8-bit quantize and dequantize, products with a quantized matrix.

    packed, absmax = quantize_4bit(x, levels, 64)
    dequantize_4bit(packed, absmax, levels, 64, 0, x.size)       # level[code] · absmax of the block
    matmul_4bit(a, packed, absmax, levels, 64, (d_out, d_in))    # a @ W.T, a tile of W's rows at a time

The format is bitsandbytes' (Linear4bit, CPU): the array is flattened row by row, cut into blocks, and each block
divided by its largest absolute value; two codes share a byte, the first in the high half.

Every kernel works on a piece at a time, which stays in the processor's cache from its first pass to its last, and which
is all the memory that it needs beside its input and output.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

TINY = np.float32(1e-38)  # stands in for the absmax of an all-zero block, so that 0 / absmax is 0
PIECE = 1 << 19  # entries worked on at a time: 2 MiB of float32
COMPARISONS = 1 << 20  # of entries with borders, made at a time: 1 MiB of bool
TILE = 1 << 20  # entries of a weight that exist as floats in a product: 4 MiB of float32
FEW = 64  # rows of x up to which BLAS is quicker at W xᵀ than at x Wᵀ


def _pieces(start: int, stop: int, blocksize: int) -> Iterator[tuple[int, int, slice, int]]:
    """Cut start to stop into pieces of at most PIECE entries, each of whole blocks or within one block.

    Yields a, b, the slice of the blocks that a to b lies in, and how many entries of each are in the piece. Pieces of
    whole blocks have an even number of them (if two fit), so that they begin and end with a byte of two codes.
    """
    most = max(1, PIECE // blocksize // 2 * 2) * blocksize
    a = start
    while a < stop:
        whole = min(most, (stop - a) // blocksize * blocksize)
        if a % blocksize == 0 and 0 < whole <= PIECE:
            b, width = a + whole, blocksize
        else:
            b = min(a + PIECE, (a // blocksize + 1) * blocksize, stop)
            width = b - a
        yield a, b, slice(a // blocksize, -(-b // blocksize)), width
        a = b


def block_absmax(x: np.ndarray, blocksize: int) -> np.ndarray:
    """The largest absolute value of each block of a flat float32 array, the last one possibly partial."""
    absmax = np.zeros(-(-x.size // blocksize), np.float32)
    for a, b, blocks, width in _pieces(0, x.size, blocksize):
        # Floats from 0 up, and NaN above them, are in the order of their bits as integers, whose maximum takes half
        # the time: it need not look out for NaN.
        bits = np.abs(x[a:b]).view(np.int32)
        largest = np.maximum.reduceat(bits, np.arange(0, b - a, width)).view(np.float32)
        absmax[blocks] = np.maximum(absmax[blocks], largest)
    return absmax


def _pieces_with_absmax(x: np.ndarray, blocksize: int, absmax: np.ndarray) -> Iterator[tuple[int, int, slice, int]]:
    """The pieces of x, each with absmax filled in for its blocks just before, while it comes into the cache anyway."""
    for a, b, blocks, width in _pieces(0, x.size, blocksize):
        if a % blocksize == 0:  # of a block longer than a piece, all of it
            absmax[blocks] = block_absmax(x[a : max(b, a + blocksize)], blocksize)
        yield a, b, blocks, width


def midpoints(levels: np.ndarray) -> np.ndarray:
    """The float32 borders between sorted levels."""
    return (levels[1:] + levels[:-1]) / np.float32(2)


def quantize_4bit(x: np.ndarray, levels: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the nearest levels (float32, at most 16; a tie goes to the lower level) of a flat float32 x, two a byte.

    Of a code's two zeros (fp4, e2m1) the first is for zero and what rounds up to it, the second for what rounds down.
    Returns packed (ceil(n/2),) uint8 and absmax (ceil(n/blocksize),) float32. Full blocks are multiplied by the rounded
    reciprocal of absmax and a partial last block is divided, as bitsandbytes does: the last bit depends on it.
    """
    order = np.argsort(levels, kind="stable").astype(np.uint8)  # the stored code of each level, from the lowest up
    borders, full = midpoints(levels[order]), x.size // blocksize * blocksize
    zero = np.searchsorted(borders, np.float32(0))
    packed, absmax = np.empty(-(-x.size // 2), np.uint8), np.empty(-(-x.size // blocksize), np.float32)
    codes = np.empty(min(x.size, PIECE) + 2, np.uint8)
    for a, b, blocks, width in _pieces_with_absmax(x, blocksize, absmax):
        if a < full:
            scaled = np.repeat(np.float32(1) / np.maximum(absmax[blocks], TINY), width)
            scaled *= x[a:b]
        else:
            absmax[-1] = np.maximum(absmax[-1], TINY)
            scaled = x[a:b] / absmax[-1]
        begin = a % 2  # a piece that begins within a byte finds the byte's first code in codes[0]
        end = begin + b - a
        _count_below(scaled, borders, codes[begin:end])
        codes[end] = zero  # pads an odd end
        last = b // 2 if b < x.size else packed.size
        packed[a // 2 : last] = _pack(codes[: 2 * (last - a // 2)], order)
        codes[0] = codes[end - 1]
    return packed, absmax


def _count_below(x: np.ndarray, borders: np.ndarray, count: np.ndarray) -> None:
    """Into count (uint8) how many borders lie below each x: np.searchsorted's answer, ten times sooner for 15 borders.

    No branch to predict, and all entries of a vector register at once.
    """
    strip = COMPARISONS // borders.size
    below = np.empty((borders.size, min(strip, x.size)), bool)
    for a in range(0, x.size, strip):
        part = x[a : a + strip]
        rows = np.less(borders[:, None], part, out=below[:, : part.size])
        np.add.reduce(rows.view(np.uint8), axis=0, out=count[a : a + strip])


def _pack(ranks: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the high half. ranks: an even number of indices into the sorted levels."""
    two = ranks.view("<u2")  # first + 256 · second; times 4097 its high byte is 16 · first + second
    packed = ((two * np.uint16(4097)) >> 8).astype(np.uint8)
    if (order[1:] > order[:-1]).all():
        return packed
    stored = np.zeros(16, np.uint8)
    stored[: order.size] = order
    return np.take((stored[:, None] << 4 | stored).ravel(), packed, mode="wrap")


@lru_cache(maxsize=32)
def _pairs(levels: bytes) -> np.ndarray:
    """For each byte its two float32 levels, as one 8-byte item: (256,) uint64. Unused codes are 0."""
    padded = np.zeros(16, np.float32)
    padded[: len(levels) // 4] = np.frombuffer(levels, np.float32)
    table = np.stack([padded.repeat(16), np.tile(padded, 16)], axis=1).view(np.uint64).ravel()
    table.flags.writeable = False  # shared by every call
    return table


def dequantize_4bit(packed, absmax, levels, blocksize: int, start: int, stop: int, out=None) -> np.ndarray:
    """Elements start to stop of the flat array, float32: level[code] · absmax[index // blocksize].

    out: contiguous float32 (stop - start,) to fill and return; a new one if None.
    """
    out = np.empty(stop - start, np.float32) if out is None else out
    pairs = _pairs(levels.tobytes())
    for a, b, blocks, width in _pieces(start, stop, blocksize):
        x, codes = out[a - start : b - start], packed[a // 2 : -(-b // 2)]
        if a % 2 or b % 2:  # half of the first or the last byte is not asked for
            x[:] = np.take(pairs, codes, mode="wrap").view(np.float32)[a % 2 :][: b - a]
        else:
            # No byte is out of range: "wrap" is the quickest mode, and with "raise" NumPy would make a copy of out.
            np.take(pairs, codes, mode="wrap", out=x.view(np.uint64))
        x *= np.repeat(absmax[blocks], width)  # one long loop: rows of 64 by a column are slower
    return out


def matmul_4bit(x, packed, absmax, levels, blocksize: int, shape: tuple[int, int], transpose: bool = False):
    """x Wᵀ for x (N, d_in), or x W for x (N, d_out) when transpose, W (d_out, d_in) given in 4 bits.

    At most TILE entries of W (in whole rows) exist as floats at any time.
    """

    def entries(start: int, stop: int) -> np.ndarray:
        return dequantize_4bit(packed, absmax, levels, blocksize, start, stop)

    return _matmul(x, entries, shape, transpose)


def matmul_int8(x, codes, absmax, blocksize: int, shape: tuple[int, int], transpose: bool = False):
    """The same for W given in int8."""

    def entries(start: int, stop: int) -> np.ndarray:
        return dequantize_int8(codes, absmax, blocksize, start, stop)

    return _matmul(x, entries, shape, transpose)


def _matmul(x, entries: Callable[[int, int], np.ndarray], shape: tuple[int, int], transpose: bool) -> np.ndarray:
    """x Wᵀ or x W, where entries(start, stop) gives those of the flat W, float32."""
    d_out, d_in = shape
    y = np.empty((len(x), d_in if transpose else d_out), np.float32)
    tiles = -(-d_out // max(1, TILE // d_in))
    height = -(-d_out // tiles)  # of equal tiles: BLAS is slow at a small rest
    for a in range(0, d_out, height):
        b = min(a + height, d_out)
        w = entries(a * d_in, b * d_in).reshape(b - a, d_in)
        if not transpose and len(x) <= FEW:
            y[:, a:b] = (w @ x.T).T
        elif not transpose:
            np.matmul(x, w.T, out=y[:, a:b])
        elif a == 0:
            np.matmul(x[:, :b], w, out=y)
        else:
            y += x[:, a:b] @ w
        del w  # before there is another
    return y


def quantize_8bit(x: np.ndarray, levels: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) uint8 of the nearest of 256 levels, a tie to the lower, and absmax (ceil(n/blocksize),) float32.

    A level that is NaN is never taken.
    """
    order = np.argsort(levels, kind="stable")[: np.isfinite(levels).sum()].astype(np.uint8)  # NaN sorts last
    borders = midpoints(levels[order])
    codes, absmax = np.empty(x.size, np.uint8), np.empty(-(-x.size // blocksize), np.float32)
    for a, b, blocks, width in _pieces_with_absmax(x, blocksize, absmax):
        scaled = x[a:b] / np.repeat(np.maximum(absmax[blocks], TINY), width)
        _count_below(scaled, borders, codes[a:b])
        codes[a:b] = np.take(order, codes[a:b], mode="wrap")
    return codes, absmax


def dequantize_8bit(codes, absmax, levels, blocksize: int) -> np.ndarray:
    """level[code] · absmax of the block, float32. Whole: these are the constants of an array 64 times as large."""
    x = np.take(levels, codes, mode="wrap")
    x *= absmax.repeat(blocksize)[: codes.size]
    return x


def quantize_int8(x: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """round(127 x / absmax), half to even: int8 codes (n,) in -127..127, and absmax per block."""
    codes, absmax = np.empty(x.size, np.int8), np.empty(-(-x.size // blocksize), np.float32)
    for a, b, blocks, width in _pieces_with_absmax(x, blocksize, absmax):
        scaled = np.repeat(np.float32(127) / np.maximum(absmax[blocks], np.float32(1e-36)), width)  # less: overflow
        scaled *= x[a:b]
        codes[a:b] = np.rint(scaled, out=scaled)
    return codes, absmax


def dequantize_int8(codes, absmax, blocksize: int, start: int = 0, stop: int | None = None, out=None) -> np.ndarray:
    """(code · absmax) · (1/127), in this order bit for bit what bitsandbytes computes; start, stop and out as above."""
    stop = codes.size if stop is None else stop
    out = np.empty(stop - start, np.float32) if out is None else out
    for a, b, blocks, width in _pieces(start, stop, blocksize):
        x = out[a - start : b - start]
        x[:] = codes[a:b]
        x *= np.repeat(absmax[blocks], width)
        x *= np.float32(1 / 127)
    return out
