# ruff: noqa: F811  (each answer has the name that the notebook calls)
from statistics import NormalDist

import numpy as np
from course.answers import collections

WRONG, RIGHT, wrong, right = collections()
USED_BY = {  # checks of other answers that fail with it
    "nearest": {"quantize-check", "double-check"},
    "pack": {"quantize-check"},
}


@wrong("int8", "absmax without abs")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(flat, np.arange(0, flat.size, blocksize))
    scaled = 127 * flat / np.repeat(absmax, blocksize)[: flat.size]
    return np.rint(scaled).astype(np.int8), absmax


@wrong("int8", "one absmax for the whole array")
def int8_quantize(x, blocksize):
    absmax = abs(x).max()
    return np.rint(127 * x.ravel() / absmax).astype(np.int8), absmax


@wrong("int8", "cut off, not rounded")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    divisor = np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return (127 * flat / divisor).astype(np.int8), absmax


@wrong("int8", "the tie rule: half upwards")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    divisor = np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return np.floor(127 * flat / divisor + 0.5).astype(np.int8), absmax


@wrong("int8", "128 levels on each side, and an overflow")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    divisor = np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return np.rint(128 * flat / divisor).astype(int).astype(np.int8), absmax


@wrong("int8", "the last, shorter block is dropped")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    blocks = flat[: flat.size // blocksize * blocksize].reshape(-1, blocksize)
    absmax = abs(blocks).max(axis=1)
    divisor = np.where(absmax > 0, absmax, 1)[:, None]
    return np.rint(127 * blocks / divisor).astype(np.int8).ravel(), absmax


@wrong("int8", "the constant is rounded, then multiplied")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    divisor = np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return (np.round(127 / divisor) * flat).astype(np.int8), absmax


@wrong("int8", "a block of zeros gets an absmax of 1")
def int8_quantize(x, blocksize):
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    absmax = np.where(absmax > 0, absmax, 1)
    return np.rint(127 * flat / absmax.repeat(blocksize)[: flat.size]).astype(np.int8), absmax


@wrong("normal-float", "quantiles at the middle of equal bins")
def normal_float(bits):
    n = 2**bits
    levels = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    return levels / levels.max()


@wrong("normal-float", "even distances")
def normal_float(bits):
    return np.linspace(-1, 1, 2**bits)


@wrong("normal-float", "the paper's equation 4 to the letter: midpoints between neighbouring quantiles")
def normal_float(bits):
    n = 2**bits
    quantiles = [NormalDist().inv_cdf(i / (n + 1)) for i in range(1, n + 1)]
    levels = (np.array(quantiles[1:]) + np.array(quantiles[:-1])) / 2
    return levels / levels.max()


@wrong("normal-float", "not divided by the largest")
def normal_float(bits):
    n = 2**bits
    p = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    positive = [NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    negative = [-NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2)[:-1]]
    return np.sort([*negative, 0.0, *positive])


@wrong("normal-float", "the negative half is the positive one without its smallest")
def normal_float(bits):
    n = 2**bits
    p = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    positive = [NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    return np.sort([*(-q for q in positive[:-1]), 0.0, *positive]) / max(positive)


@wrong("normal-float", "p of n bins alone")
def normal_float(bits):
    n = 2**bits
    p = 1 - 1 / (2 * n)
    positive = [NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    negative = [-NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2)[:-1]]
    return np.sort([*negative, 0.0, *positive]) / max(positive)


@wrong("nearest", "the tie rule: upwards")
def nearest_codes(x, levels):
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="right")


@wrong("nearest", "the next level below")
def nearest_codes(x, levels):
    return np.searchsorted(levels, x, side="right") - 1


@wrong("nearest", "as if the levels were at even distances")
def nearest_codes(x, levels):
    return np.rint((x + 1) / 2 * (len(levels) - 1)).astype(int)


@wrong("pack", "nibbles swapped")
def pack_nibbles(codes):
    even = np.append(codes, np.full(len(codes) % 2, 7)).astype(np.uint8)
    return even[1::2] << 4 | even[::2]


@wrong("pack", "an odd last code is dropped")
def pack_nibbles(codes):
    even = codes[: len(codes) // 2 * 2]
    return even[::2] << 4 | even[1::2]


@wrong("pack", "filled up with 0, which is the code of -1")
def pack_nibbles(codes):
    even = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    return even[::2] << 4 | even[1::2]


@wrong("pack", "bytes of 64 bits")
def pack_nibbles(codes):
    even = np.append(codes, np.full(len(codes) % 2, 7)).astype(int)
    return 16 * even[::2] + even[1::2]


@wrong("pack", "a sum without a shift")
def pack_nibbles(codes):
    even = np.append(codes, np.full(len(codes) % 2, 7)).astype(np.uint8)
    return even[::2] + even[1::2]


@wrong("quantize", "absmax without abs")
def quantize_4bit(x, levels, blocksize):
    blocks = [x.ravel()[i : i + blocksize] for i in range(0, x.size, blocksize)]
    absmax = np.array([block.max() for block in blocks])
    scaled = [block / (largest or 1) for block, largest in zip(blocks, absmax, strict=True)]
    return pack_nibbles(nearest_codes(np.concatenate(scaled), levels).astype(np.uint8)), absmax


@wrong("quantize", "the last, shorter block is dropped")
def quantize_4bit(x, levels, blocksize):
    whole = x.size // blocksize * blocksize
    blocks = x.ravel()[:whole].reshape(-1, blocksize)
    absmax = abs(blocks).max(axis=1)
    scaled = blocks / np.where(absmax > 0, absmax, 1)[:, None]
    return pack_nibbles(nearest_codes(scaled.ravel(), levels).astype(np.uint8)), absmax


@wrong("quantize", "blocks of zeros divide by zero")
def quantize_4bit(x, levels, blocksize):
    flat = x.ravel()
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    scaled = flat / absmax.repeat(blocksize)[: flat.size]
    return pack_nibbles(nearest_codes(scaled, levels).astype(np.uint8)), absmax


@wrong("quantize", "codes in another order, the largest level first")
def quantize_4bit(x, levels, blocksize):
    flat = x.ravel()
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    scaled = flat / np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return pack_nibbles((15 - nearest_codes(scaled, levels)).astype(np.uint8)), absmax


@wrong("quantize", "each row's absmax, where a block's is asked for")
def quantize_4bit(x, levels, blocksize):
    rows = x.reshape(-1, x.shape[-1])
    absmax = abs(rows).max(axis=1)
    scaled = rows / np.where(absmax > 0, absmax, 1)[:, None]
    return pack_nibbles(nearest_codes(scaled.ravel(), levels).astype(np.uint8)), absmax


@wrong("dequantize", "nibbles swapped")
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    size = int(np.prod(shape))
    codes = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:size]
    return (levels[codes] * absmax[np.arange(size) // blocksize]).reshape(shape)


@wrong("dequantize", "blocks counted along each row")
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    size, width = int(np.prod(shape)), shape[-1]
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[:size]
    row, column = np.divmod(np.arange(size), width)
    block = row * (width // blocksize) + column // blocksize
    return (levels[codes] * absmax[np.minimum(block, absmax.size - 1)]).reshape(shape)


@wrong("dequantize", "absmax forgotten")
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[: int(np.prod(shape))]
    return levels[codes].reshape(shape)


@wrong("dequantize", "an odd end is not thought of")
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
    return (levels[codes] * absmax.repeat(blocksize)[: codes.size]).reshape(shape)


@wrong("double", "missing mean offset")
def double_quantize(absmax, levels, blocksize):
    absmax2 = np.maximum.reduceat(absmax, np.arange(0, absmax.size, blocksize))
    scaled = absmax / absmax2.repeat(blocksize)[: absmax.size]
    return nearest_codes(scaled, levels), absmax2, 0.0


@wrong("double", "the mean of each block, of which the first's is returned")
def double_quantize(absmax, levels, blocksize):
    blocks = [absmax[i : i + blocksize] for i in range(0, absmax.size, blocksize)]
    rests = [block - block.mean() for block in blocks]
    absmax2 = np.array([abs(rest).max() for rest in rests])
    scaled = [rest / (largest or 1) for rest, largest in zip(rests, absmax2, strict=True)]
    return nearest_codes(np.concatenate(scaled), levels), absmax2, blocks[0].mean()


@wrong("double", "absmax without abs, as if rests were positive")
def double_quantize(absmax, levels, blocksize):
    offset = absmax.mean()
    rest = absmax - offset
    absmax2 = np.maximum.reduceat(rest, np.arange(0, rest.size, blocksize))
    divisor = np.where(absmax2 > 0, absmax2, 1).repeat(blocksize)[: rest.size]
    return nearest_codes(rest / divisor, levels), absmax2, offset


@wrong("double", "absmax2 taken before the mean is subtracted")
def double_quantize(absmax, levels, blocksize):
    offset = absmax.mean()
    absmax2 = np.maximum.reduceat(absmax, np.arange(0, absmax.size, blocksize))
    scaled = (absmax - offset) / absmax2.repeat(blocksize)[: absmax.size]
    return nearest_codes(scaled, levels), absmax2, offset


@wrong("bits", "the float32 of the second level alone")
def bits_per_weight(blocksize, blocksize2=None):
    if blocksize2 is None:
        return 4 + 32 / blocksize
    return 4 + 32 / (blocksize * blocksize2)


@wrong("bits", "bytes for bits")
def bits_per_weight(blocksize, blocksize2=None):
    if blocksize2 is None:
        return 4 + 4 / blocksize
    return 4 + 1 / blocksize + 4 / (blocksize * blocksize2)


@wrong("bits", "the codes alone")
def bits_per_weight(blocksize, blocksize2=None):
    return 4


@right("int8", "a loop over blocks")
def int8_quantize(x, blocksize):
    flat, codes, absmax = np.ravel(x), [], []
    for start in range(0, len(flat), blocksize):
        block = flat[start : start + blocksize]
        largest = np.abs(block).max()
        codes += [round(127 * float(v) / float(largest)) if largest else 0 for v in block]
        absmax.append(largest)
    return np.array(codes, np.int8), absmax


@right("int8", "padded to whole blocks, and where twice")
def int8_quantize(x, blocksize):
    n = x.size
    blocks = np.pad(x.ravel(), (0, -n % blocksize)).reshape(-1, blocksize)
    absmax = np.max(np.abs(blocks), axis=1, keepdims=True)
    codes = np.where(absmax > 0, np.round(blocks / absmax * 127), 0)
    return codes.astype(np.int8).ravel()[:n], absmax.ravel()


@right("int8", "times 127 / absmax, in float32")
def int8_quantize(x, blocksize):
    flat = np.asarray(x, np.float32).ravel()
    absmax = np.array([np.abs(flat[i : i + blocksize]).max() for i in range(0, flat.size, blocksize)])
    factor = np.float32(127) / np.maximum(absmax, np.float32(1e-30))
    return np.rint(flat * np.repeat(factor, blocksize)[: flat.size]).astype(np.int8), absmax


@right("normal-float", "probabilities written out")
def normal_float(bits):
    n, inv = 2**bits, NormalDist().inv_cdf
    p = 1 - 0.25 / n - 0.25 / (n - 1)
    levels = [0.0]
    for sign, steps in ((1, n // 2), (-1, n // 2 - 1)):
        levels += [sign * inv(p + (0.5 - p) * i / steps) for i in range(steps)]
    levels.sort()
    return [v / levels[-1] for v in levels]


@right("nearest", "argmin over all distances")
def nearest_codes(x, levels):
    return np.argmin(np.abs(np.asarray(x)[..., None] - levels), axis=-1)


@right("nearest", "counting the borders below")
def nearest_codes(x, levels):
    codes = np.zeros(np.shape(x), np.uint8)
    for i in range(len(levels) - 1):
        codes += (x > (levels[i] + levels[i + 1]) / 2).astype(np.uint8)
    return codes


@right("pack", "a loop")
def pack_nibbles(codes):
    out = []
    for i in range(0, len(codes), 2):
        second = int(codes[i + 1]) if i + 1 < len(codes) else 7
        out.append(int(codes[i]) * 16 + second)
    return np.array(out, np.uint8)


@right("quantize", "padded to whole blocks")
def quantize_4bit(x, levels, blocksize):
    n = x.size
    blocks = np.pad(x.ravel(), (0, -n % blocksize)).reshape(-1, blocksize)
    absmax = np.abs(blocks).max(axis=1)
    scaled = blocks * (1 / np.maximum(absmax, 1e-38))[:, None]
    codes = np.abs(scaled.ravel()[:n, None] - levels).argmin(axis=1).astype(np.uint8)
    if n % 2:
        codes = np.append(codes, np.uint8(7))
    return codes[0::2] * 16 + codes[1::2], absmax


@right("dequantize", "a loop")
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    x = np.empty(shape)
    for i in range(x.size):
        byte = int(packed[i // 2])
        code = byte % 16 if i % 2 else byte // 16
        x.flat[i] = levels[code] * absmax[i // blocksize]
    return x


@right("double", "a loop over blocks")
def double_quantize(absmax, levels, blocksize):
    offset = float(np.mean(absmax, dtype=np.float64))
    codes, absmax2 = [], []
    for start in range(0, len(absmax), blocksize):
        rest = absmax[start : start + blocksize] - offset
        absmax2.append(max(abs(rest.max()), abs(rest.min())))
        codes += [int(np.abs(levels * (absmax2[-1] or 1) - r).argmin()) for r in rest]
    return np.array(codes, np.uint8), absmax2, offset


@right("bits", "as a sum of fractions of a block")
def bits_per_weight(blocksize, blocksize2=None):
    bits_of_a_constant = 32 if blocksize2 is None else 8 + 32 / blocksize2
    return (4 * blocksize + bits_of_a_constant) / blocksize
