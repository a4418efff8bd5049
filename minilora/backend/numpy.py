"""The reference kernels, vectorised NumPy: 4-bit and 8-bit quantize and dequantize, and a product with a 4-bit matrix.

    packed, absmax = quantize_4bit(x, levels, 64)
    dequantize_4bit(packed, absmax, levels, 64, 0, x.size)       # level[code] · absmax of the block
    matmul_4bit(a, packed, absmax, levels, 64, (d_out, d_in))    # a @ W.T, a tile of W's rows at a time

The format is bitsandbytes' (Linear4bit, CPU): the array is flattened row by row, cut into blocks, and each block
divided by its largest absolute value; two codes share a byte, the first in the high half.
"""

import numpy as np

TINY = np.float32(1e-38)  # stands in for the absmax of an all-zero block, so that 0 / absmax is 0
TILE = 1 << 18  # entries of a weight that are dequantized at a time: 1 MiB of float32
_CHUNK = 1024  # blocks quantized at a time: they stay in the cache through the fifteen comparisons


def midpoints(levels: np.ndarray) -> np.ndarray:
    """The float32 borders between sorted levels."""
    return (levels[1:] + levels[:-1]) / np.float32(2)


def block_absmax(x: np.ndarray, blocksize: int) -> np.ndarray:
    """The largest absolute value of each block of a flat array, the last one possibly partial; (ceil(n/blocksize),)."""
    starts = np.arange(0, x.size, blocksize)
    return np.maximum(np.maximum.reduceat(x, starts), -np.minimum.reduceat(x, starts)) if x.size else x[:0]


def quantize_4bit(x: np.ndarray, levels: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the nearest levels (float32, at most 16; a tie goes to the lower level) of a flat float32 x, two a byte.

    Of a code's two zeros (fp4, e2m1) the first is for zero and what rounds up to it, the second for what rounds down.
    Returns packed (ceil(n/2),) uint8 and absmax (ceil(n/blocksize),) float32. Full blocks are multiplied by the rounded
    reciprocal of absmax and a partial last block is divided, as bitsandbytes does: the last bit depends on it.
    """
    absmax = block_absmax(x, blocksize)
    order = np.argsort(levels, kind="stable").astype(np.uint8)  # the stored code of each level, from the lowest up
    borders, codes = midpoints(levels[order]), np.empty(x.size + x.size % 2, np.uint8)
    full = x.size // blocksize * blocksize
    reciprocal = np.float32(1) / np.maximum(absmax, TINY)
    for start in range(0, full, _CHUNK * blocksize):
        stop = min(start + _CHUNK * blocksize, full)
        scaled = x[start:stop].reshape(-1, blocksize) * reciprocal[start // blocksize : stop // blocksize, None]
        codes[start:stop] = _count_below(scaled, borders).ravel()
    if full < x.size:
        absmax[-1] = np.maximum(absmax[-1], TINY)
        codes[full : x.size] = _count_below(x[full:] / absmax[-1], borders)
    codes[x.size :] = np.searchsorted(borders, np.float32(0))  # an odd end is padded with the code of zero
    if (order[1:] < order[:-1]).any():
        codes = order[codes]
    return codes[0::2] << 4 | codes[1::2], absmax


def _count_below(x: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """How many borders lie below each x: np.searchsorted's answer, twelve times sooner for fifteen borders."""
    count = np.zeros(x.shape, np.uint8)
    for border in borders:
        count += x > border
    return count


def _pairs(levels: np.ndarray) -> np.ndarray:
    """For each byte the two levels that it stands for, as one 8-byte item: (256,) uint64. Unused codes are 0."""
    levels = np.concatenate([levels, np.zeros(16 - levels.size, np.float32)])
    return np.stack([levels.repeat(16), np.tile(levels, 16)], axis=1).view(np.uint64).ravel()


def dequantize_4bit(packed, absmax, levels, blocksize: int, start: int, stop: int) -> np.ndarray:
    """Elements start to stop of the flat array, float32: level[code] · absmax[index // blocksize]."""
    first, last = start // blocksize, -(-stop // blocksize)
    codes = packed[first * blocksize // 2 : -(-last * blocksize // 2)]
    x = np.take(_pairs(levels), codes, mode="clip").view(np.float32)
    odd = first * blocksize % 2  # a block of odd length may begin, and end, within a byte
    x = x[odd : odd + (last - first) * blocksize]
    full = x.size // blocksize
    blocks = x[: full * blocksize].reshape(full, blocksize)
    blocks *= absmax[first : first + full, None]
    if full * blocksize < x.size:
        x[full * blocksize :] *= absmax[last - 1]
    return x[start - first * blocksize : stop - first * blocksize]


def matmul_4bit(x, packed, absmax, levels, blocksize: int, shape: tuple[int, int], transpose: bool = False):
    """x Wᵀ for x (N, d_in), or x W for x (N, d_out) when transpose, W (d_out, d_in) given in 4 bits.

    At most TILE entries of W (in whole rows) exist as floats at any time.
    """
    d_out, d_in = shape
    y = np.empty((len(x), d_in if transpose else d_out), np.float32)
    rows = max(1, TILE // d_in)
    for a in range(0, d_out, rows):
        b = min(a + rows, d_out)
        tile = dequantize_4bit(packed, absmax, levels, blocksize, a * d_in, b * d_in).reshape(b - a, d_in)
        if not transpose:
            np.matmul(x, tile.T, out=y[:, a:b])
        elif a == 0:
            np.matmul(x[:, :b], tile, out=y)
        else:
            y += x[:, a:b] @ tile
    return y


def quantize_8bit(x: np.ndarray, levels: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) uint8 of the nearest of 256 levels, a tie to the lower, and absmax (ceil(n/blocksize),) float32.

    A level that is NaN is never taken.
    """
    absmax = block_absmax(x, blocksize)
    scaled = x / np.maximum(absmax, TINY).repeat(blocksize)[: x.size]
    order = np.argsort(levels, kind="stable")[: np.isfinite(levels).sum()].astype(np.uint8)  # NaN sorts last
    return order[np.searchsorted(midpoints(levels[order]), scaled)], absmax


def dequantize_8bit(codes, absmax, levels, blocksize: int) -> np.ndarray:
    return levels[codes] * absmax.repeat(blocksize)[: codes.size]


def quantize_int8(x: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    """round(127 x / absmax), half to even: int8 codes (n,) in -127..127, and absmax per block."""
    absmax = block_absmax(x, blocksize)
    scale = np.float32(127) / np.maximum(absmax, np.float32(1e-36))  # a smaller one would overflow
    return np.rint(x * scale.repeat(blocksize)[: x.size]).astype(np.int8), absmax


def dequantize_int8(codes, absmax, blocksize: int) -> np.ndarray:
    """(code · absmax) · (1/127): in this order bit for bit what bitsandbytes computes."""
    return codes * absmax.repeat(blocksize)[: codes.size] * np.float32(1 / 127)
