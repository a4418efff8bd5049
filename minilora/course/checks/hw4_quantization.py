"""Homework 4, quantization: codes held to the nearest level, bytes to what minilora.quantize stores.

A code may be off where rounding in another order decides, so that most laws ask how far a number is from what its code
stands for; ties are tried on numbers that all of the usual orders of computing represent exactly.
"""

import numpy as np

import minilora.quant
from minilora.course.check import Problem, Wrong, equal
from minilora.quant import CODES, DYNAMIC_MAP, quantize

NF4 = CODES["nf4"]


def largest_of_blocks(x: np.ndarray, blocksize: int) -> np.ndarray:
    """max |x| of each block of the flattened x: the definition, in a loop."""
    flat = x.ravel()
    return np.array([max(abs(v) for v in flat[i : i + blocksize]) for i in range(0, flat.size, blocksize)])


def indices(codes, size: int, levels: int = 256) -> np.ndarray:
    """The codes as an array of `size` integers below `levels`; raises Wrong for anything else."""
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise Wrong(f"codes are integers, these are {codes.dtype}")
    if codes.shape != (size,):
        raise Wrong(f"expected {size} codes in one row, got shape {codes.shape}")
    if codes.size and not (codes.min() >= 0 and codes.max() < levels):
        raise Wrong(f"codes lie between 0 and {levels - 1}; there are {codes.min()} to {codes.max()}")
    return codes


def nearest(x: np.ndarray, codes: np.ndarray, levels: np.ndarray, absmax: np.ndarray, what: str = "x"):
    """Raises Wrong where another level is nearer to x than levels[code], both times absmax."""
    away = abs(x - levels[codes] * absmax)
    least = abs(x[:, None] - levels * absmax[:, None]).min(1)
    if (bad := np.flatnonzero(~(away <= least + 1e-5 * absmax))).size:
        i = bad[0]
        best = levels[abs(x[i] - levels * absmax[i]).argmin()]
        raise Wrong(
            f"{what}[{i}] = {x[i]:.6g}, with absmax {absmax[i]:.6g}: code {codes[i]} stands for "
            f"{levels[codes[i]] * absmax[i]:.6g}, but {best * absmax[i]:.6g} is nearer"
        )


def _shape(rng, size) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 2 + size // 2, rng.integers(1, 4)))


def _array(rng, size):
    """Of whole numbers other than zero."""
    x = rng.integers(1, 10, _shape(rng, size)).astype(float)
    return {"x": x * rng.choice([-1, 1], x.shape), "blocksize": int(rng.integers(1, 5))}


# int8_quantize(x, blocksize) -> (codes, absmax)

int8_quantize = Problem("int8_quantize", 4)
_HALVES = np.arange(127) + 0.5
_HALVES = _HALVES[(_HALVES / 127 * 127 == _HALVES) & (_HALVES * (1 / 127) * 127 == _HALVES)]  # exact in any order


@int8_quantize.law(
    "absmax is the largest absolute value of each block", draw=_array,
    means="the largest number is not the largest absolute one; or the last, shorter block was left out, or blocks were "
    "taken of each row instead of the flattened array",
)  # fmt: skip
def _(answer, x, blocksize):
    equal(answer(x, blocksize)[1], largest_of_blocks(x, blocksize))


@int8_quantize.law(
    "a number and what its code stands for differ by half a step at most", draw=_array,
    means="127 levels on each side: round 127 x / absmax, to the nearest, not towards zero",
)  # fmt: skip
def _(answer, x, blocksize):
    codes = np.asarray(answer(x, blocksize)[0])
    if codes.dtype != np.int8 or codes.shape != (x.size,):
        raise Wrong(f"expected {x.size} codes of type int8 in one row, got {codes.dtype} of shape {codes.shape}")
    step = largest_of_blocks(x, blocksize).repeat(blocksize)[: x.size] / 127
    back = codes.astype(float) * step
    if (bad := np.flatnonzero(abs(back - x.ravel()) > step / 2 * (1 + 1e-6))).size:
        i = bad[0]
        raise Wrong(f"{x.ravel()[i]:g} has code {codes[i]}, which stands for {back[i]:.6g}; a step is {step[i]:.6g}")


def _ties(rng, size):
    x = np.append(rng.choice(_HALVES, size), 127.0) * rng.choice([-1, 1], size + 1) * rng.choice([0.5, 1, 2])
    return {"x": tuple(rng.permutation(x).tolist()), "blocksize": size + 1}  # no array: its numbers must stay


@int8_quantize.law(
    "a number exactly between two codes goes to the even one", draw=_ties,
    means="np.rint and np.round do so; adding 1/2 and cutting off does not, and turns negative numbers upwards",
)  # fmt: skip
def _(answer, x, blocksize):
    x = np.array(x)
    equal(answer(x, blocksize)[0], np.rint(127 * x / abs(x).max()))


def _zero_block(rng, size):
    x = rng.integers(1, 9, (size, 2)).astype(float)
    x[rng.integers(size)] = 0
    return {"x": x, "blocksize": 2}


@int8_quantize.law(
    "a block of zeros has codes 0 and absmax 0", draw=_zero_block,
    means="0 / 0 is NaN: divide by something else where absmax is 0, but return the 0",
)  # fmt: skip
def _(answer, x, blocksize):
    codes, absmax = answer(x, blocksize)
    equal(np.asarray(codes)[x.ravel() == 0], x[x == 0])
    equal(absmax, largest_of_blocks(x, blocksize))


# normal_float(bits) -> levels

normal_float = Problem("normal_float", 5)


def _bits(rng, size):
    return {"bits": min(1 + size, 8)}


def _levels(answer, bits):
    levels = np.asarray(answer(bits))
    if levels.shape != (2**bits,):
        raise Wrong(f"expected {2**bits} levels, got shape {levels.shape}")
    return levels


@normal_float.law(
    "2^bits levels, in ascending order, from -1 to 1", draw=_bits,
    means="the largest has to become 1, and the smallest is then -1: both halves begin at p",
)  # fmt: skip
def _(answer, bits):
    levels = _levels(answer, bits)
    if not (np.diff(levels) > 0).all():
        raise Wrong(f"the levels do not ascend: {levels}")
    equal(levels[[0, -1]], [-1.0, 1.0])


@normal_float.law(
    "zero is a level, exactly, and there is one more positive level than negative ones", draw=_bits,
    means="quantiles at the middle of 16 equal bins are symmetric, and none is zero: a weight of 0 would be lost",
)  # fmt: skip
def _(answer, bits):
    levels = _levels(answer, bits)
    if not (levels == 0).any():
        raise Wrong(f"the level next to zero is {levels[abs(levels).argmin()]:.6g}")
    equal([(levels > 0).sum(), (levels < 0).sum()], [2 ** (bits - 1), 2 ** (bits - 1) - 1])


@normal_float.law(
    "the positive levels are the quantiles, divided by the largest", draw=_bits,
    means="another p; or other steps: np.linspace(p, 1/2, n / 2 + 1) without its last, whose quantile is the zero",
)  # fmt: skip
def _(answer, bits):
    half = 2 ** (bits - 1)
    equal(_levels(answer, bits)[half:], minilora.quant.normal_float(bits)[half:], 1e-5)


@normal_float.law(
    "the negative levels are minus the quantiles of one step fewer", draw=_bits,
    means="they are not the positive ones mirrored: n / 2 - 1 steps from p to 1/2, where the positive half has n / 2",
)  # fmt: skip
def _(answer, bits):
    negative = 2 ** (bits - 1) - 1
    equal(_levels(answer, bits)[:negative], minilora.quant.normal_float(bits)[:negative], 1e-5)


# nearest_codes(x, levels) -> codes

nearest_codes = Problem("nearest_codes", 3)


def _even_levels(rng, size):
    """Sorted multiples of 1/8 from -1 to 1: numbers between two of them are exact."""
    inner = rng.choice(np.arange(-7, 8), size, replace=False)
    return tuple((np.sort(np.concatenate([[-8], inner, [8]])) / 8).tolist())


def _anywhere(rng, size):
    return {"x": rng.integers(-32, 33, _shape(rng, size)) / 32 + 0.001, "levels": _even_levels(rng, size)}


@nearest_codes.law(
    "no level is nearer", draw=_anywhere,
    means="the nearest level, not the next lower one: the borders lie in the middle between two levels",
)  # fmt: skip
def _(answer, x, levels):
    levels = np.array(levels)
    codes = np.asarray(answer(x, levels))
    if codes.shape != x.shape:
        raise Wrong(f"x has shape {x.shape}, the codes {codes.shape}")
    nearest(x.ravel(), indices(codes.ravel(), x.size, levels.size), levels, np.ones(x.size))


@nearest_codes.law(
    "exactly between two levels, the lower one is taken",
    draw=lambda rng, size: {"levels": _even_levels(rng, size)},
    means="of np.searchsorted's sides \"left\" gives the lower; of equal distances np.argmin takes the first",
)  # fmt: skip
def _(answer, levels):
    levels = np.array(levels)
    equal(answer((levels[1:] + levels[:-1]) / 2, levels), np.arange(levels.size - 1))


# pack_nibbles(codes) -> bytes

pack_nibbles = Problem("pack_nibbles", 3)


def _codes(odd):
    return lambda rng, size: {"codes": rng.integers(0, 16, 2 * size - odd).astype(np.uint8)}


def _bytes(codes) -> list[int]:
    return [16 * int(a) + int(b) for a, b in zip(codes[::2], [*codes[1::2], 7], strict=False)]


@pack_nibbles.law(
    "the first code of two is in the high half", draw=_codes(0),
    means="code << 4 is the high half of the first of two; the second is added as it is",
)  # fmt: skip
def _(answer, codes):
    equal(answer(codes), _bytes(codes))


@pack_nibbles.law(
    "an odd last code is kept, with a 7 in the low half", draw=_codes(1),
    means="codes[::2] is one longer than codes[1::2]: append a 7 first",
)  # fmt: skip
def _(answer, codes):
    equal(answer(codes), _bytes(codes))


@pack_nibbles.law(
    "they are bytes: uint8", draw=_codes(0),
    means="NumPy's integers have 64 bits unless told otherwise, and nothing would be saved: .astype(np.uint8)",
)  # fmt: skip
def _(answer, codes):
    if (dtype := np.asarray(answer(codes)).dtype) != np.uint8:
        raise Wrong(f"expected uint8, got {dtype}")


# quantize_4bit(x, levels, blocksize) -> (packed, absmax)

quantize_4bit = Problem("quantize_4bit", 5)


def _unpacked(packed, size: int) -> np.ndarray:
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.shape != (-(-size // 2),):
        raise Wrong(f"{size} codes are {-(-size // 2)} bytes (uint8); got {packed.dtype} of shape {packed.shape}")
    return np.array([half for byte in packed.tolist() for half in divmod(byte, 16)][:size])


@quantize_4bit.law(
    "absmax is the largest absolute value of each block", draw=_array,
    means="blocks of the flattened array, the last one possibly shorter; the largest of |x|, not of x",
)  # fmt: skip
def _(answer, x, blocksize):
    equal(answer(x, NF4, blocksize)[1], largest_of_blocks(x, blocksize))


@quantize_4bit.law(
    "no level times absmax is nearer to a weight than its own", draw=_array,
    means="each weight is divided by the absmax of its own block, not of the whole array or the row",
)  # fmt: skip
def _(answer, x, blocksize):
    codes = _unpacked(answer(x, NF4, blocksize)[0], x.size)
    nearest(x.ravel(), codes, NF4, largest_of_blocks(x, blocksize).repeat(blocksize)[: x.size])


def _of_levels(rng, size):
    """Codes of weights that are levels, each block with an end of the scale in it: nothing is left to rounding."""
    codes = rng.integers(0, 16, 16 * size + int(rng.integers(16)))
    codes[::16] = rng.choice([0, 15], codes[::16].size)
    return {"codes": codes, "absmax": float(2.0 ** rng.integers(-3, 4)), "blocksize": 16}


@quantize_4bit.law(
    "weights levels[codes] · absmax give the bytes that minilora.quantize stores", draw=_of_levels,
    means="the order of the two codes in a byte, or the codes are numbered in another way",
)  # fmt: skip
def _(answer, codes, absmax, blocksize):
    x = NF4[codes] * np.float32(absmax)
    equal(answer(x, NF4, blocksize)[0], quantize(x, "nf4", blocksize).packed)


@quantize_4bit.law(
    "a block of zeros has codes 7 and absmax 0", draw=_zero_block,
    means="0 / 0 is NaN, and NaN has no nearest level: divide by something else where absmax is 0",
)  # fmt: skip
def _(answer, x, blocksize):
    packed, absmax = answer(x, NF4, blocksize)
    zero = x.ravel() == 0
    equal(_unpacked(packed, x.size)[zero], np.full(zero.sum(), 7))
    equal(absmax, largest_of_blocks(x, blocksize))


# dequantize_4bit(packed, absmax, levels, blocksize, shape) -> x

dequantize_4bit = Problem("dequantize_4bit", 3)


def _stored(rng, size, odd=False):
    shape = (size, int(rng.integers(1, 4))) if not odd else (2 * size - 1,)
    n, blocksize = int(np.prod(shape)), int(rng.integers(1, 6))
    return {"packed": rng.integers(0, 256, -(-n // 2)).astype(np.uint8), "blocksize": blocksize,
            "absmax": rng.integers(1, 9, -(-n // blocksize)).astype(np.float32), "shape": shape}  # fmt: skip


def _meaning(packed, absmax, blocksize, shape):
    """The definition, number by number."""
    n = int(np.prod(shape))
    halves = [half for byte in packed.tolist() for half in divmod(byte, 16)]
    return np.array([float(NF4[halves[i]]) * float(absmax[i // blocksize]) for i in range(n)]).reshape(shape)


@dequantize_4bit.law(
    "each number is the level of its code times the absmax of its block", draw=_stored,
    means="number i of the flattened array is in block i // blocksize, also where blocks do not end with a row",
)  # fmt: skip
def _(answer, **stored):
    equal(answer(**stored, levels=NF4), _meaning(**stored), 1e-6)


@dequantize_4bit.law(
    "an odd number of weights comes back without the half byte that filled up", draw=lambda r, n: _stored(r, n, True),
    means="there are as many numbers as the shape says; the last byte may have half a byte more",
)  # fmt: skip
def _(answer, **stored):
    equal(answer(**stored, levels=NF4), _meaning(**stored), 1e-6)


@dequantize_4bit.law(
    "what minilora.quantize stored comes back as minilora has it",
    draw=lambda rng, size: {"x": rng.standard_normal((size, 12)).astype(np.float32), "blocksize": 16},
    means="rows of 12 in blocks of 16: count through the flattened array, not along rows",
)  # fmt: skip
def _(answer, x, blocksize):
    q = quantize(x, "nf4", blocksize)
    equal(answer(q.packed, q.absmax, NF4, q.blocksize, q.shape), q.dequantize(), 1e-6)


# double_quantize(absmax, levels, blocksize) -> (codes, absmax2, offset)

double_quantize = Problem("double_quantize", 4)


def _absmaxes(rng, size):
    absmax = rng.integers(4, 33, 1 + size).astype(np.float32) / np.float32(8)
    return {"absmax": absmax, "blocksize": int(rng.integers(2, 5))}


def _own(blocks, size: int, blocksize: int) -> np.ndarray:
    blocks = np.asarray(blocks, float)
    if blocks.shape != (-(-size // blocksize),):
        raise Wrong(f"{size} rests are {-(-size // blocksize)} blocks of {blocksize}; got absmax2 {blocks.shape}")
    return blocks.repeat(blocksize)[:size]


@double_quantize.law(
    "the offset is the mean of all absmax", draw=_absmaxes,
    means="one mean for the whole array; without it, half of the levels, the negative ones, are never used",
)  # fmt: skip
def _(answer, absmax, blocksize):
    equal(answer(absmax, DYNAMIC_MAP, blocksize)[2], absmax.astype(float).mean(), 1e-6)


@double_quantize.law(
    "absmax2 is the largest absolute rest of each block", draw=_absmaxes,
    means="rests have both signs, once the mean is subtracted: take their absolute values",
)  # fmt: skip
def _(answer, absmax, blocksize):
    _, absmax2, offset = answer(absmax, DYNAMIC_MAP, blocksize)
    equal(absmax2, largest_of_blocks(absmax - float(offset), blocksize), 1e-6)


@double_quantize.law(
    "no level is nearer to a rest than its own", draw=_absmaxes,
    means="the rest, absmax - offset, is divided by its block's absmax2 before the nearest level is looked for",
)  # fmt: skip
def _(answer, absmax, blocksize):
    codes, _, _ = answer(absmax, DYNAMIC_MAP, blocksize)
    rest = absmax - absmax.astype(float).mean()
    largest = largest_of_blocks(rest, blocksize).repeat(blocksize)[: rest.size]
    nearest(rest, indices(codes, rest.size), DYNAMIC_MAP, np.where(largest > 1e-6, largest, 1), "rest")


@double_quantize.law(
    "what comes back differs by less than a 64th of its block's absmax2", draw=_absmaxes,
    means="level times absmax2, plus the offset, has to be absmax again; these three do not belong together",
)  # fmt: skip
def _(answer, absmax, blocksize):
    codes, absmax2, offset = answer(absmax, DYNAMIC_MAP, blocksize)
    own = _own(absmax2, absmax.size, blocksize)
    back = DYNAMIC_MAP[indices(codes, absmax.size)] * own + float(offset)
    if not (abs(back - absmax) <= own / 64 + 1e-5).all():
        raise Wrong(f"absmax = {absmax} comes back as {np.round(back, 4)}")


# bits_per_weight(blocksize, blocksize2)

bits_per_weight = Problem("bits_per_weight", 2)


def _bill(nested):
    return lambda rng, size: {"blocksize": int(8 << rng.integers(1, 2 + size)),
                              "blocksize2": int(16 << rng.integers(1, 2 + size)) if nested else None}  # fmt: skip


def _counted(blocksize, blocksize2) -> float:
    """By counting the bytes of an array of as many weights as one second-level block has."""
    blocks = blocksize2 or 1
    n = blocks * blocksize
    return 8 * (n / 2 + (4 * blocks if blocksize2 is None else blocks + 4)) / n


@bits_per_weight.law(
    "4 bits, and one float32 for each block", draw=_bill(False), means="32 bits are shared by the block's weights"
)
def _(answer, blocksize, blocksize2):
    equal(answer(blocksize, blocksize2), _counted(blocksize, blocksize2))


@bits_per_weight.law(
    "double quantized: 4 bits, 8 for each block, and 32 for every blocksize2 blocks", draw=_bill(True),
    means="both remain to be paid for: 8 bits a block, and a float32 shared by blocksize · blocksize2 weights",
)  # fmt: skip
def _(answer, blocksize, blocksize2):
    equal(answer(blocksize, blocksize2), _counted(blocksize, blocksize2))
