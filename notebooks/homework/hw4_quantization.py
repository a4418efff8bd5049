# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] nbgrader={"grade_id": "intro", "locked": true}
# # Homework 4: quantization
#
# A weight takes 32 bits, or 16. How few will do? You store weights in 8 bits, then in 4, as QLoRA does, to the byte:
# what you pack here is what minilora and bitsandbytes write to their files.
#
# All of it rests on one idea. An array is flattened row by row and cut into *blocks*. Each block is divided by its
# largest absolute value, its *absmax*, which is kept; what is left lies between -1 and 1, and each number of it is
# replaced by the nearest of a few fixed *levels*. The level's number is the *code*, and only codes are stored. To come
# back, look up the level and multiply by absmax.
#
# You need NumPy alone. Each problem ends in a cell that checks your answer by laws that it must obey; run it as
# often as you like. Where a law fails it shows a small case. Grading runs the same laws on other cases. Change
# the seed to see other cases yourself. Later answers may call earlier ones.
#
# | problem | points | about |
# |---|---|---|
# | int8_quantize | 4 | 20 min |
# | normal_float | 5 | 30 min |
# | nearest_codes | 3 | 10 min |
# | pack_nibbles | 3 | 15 min |
# | quantize_4bit | 5 | 20 min |
# | dequantize_4bit | 3 | 15 min |
# | double_quantize | 4 | 20 min |
# | bits_per_weight | 2 | 10 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
from statistics import NormalDist

import numpy as np

from minilora.course.checks import hw4_quantization as checks

seed = 0

# %% [markdown] nbgrader={"grade_id": "int8-text", "locked": true}
# ## Eight bits
#
# The levels of int8 are -127/127, -126/127, ..., 127/127, and their codes -127 to 127. (-128 is left out, so that a
# number and its negative get opposite codes.) A number exactly between two codes goes to the even one.
#
# x has any shape; the last block may be shorter than the others. Return the codes, flat and of type int8, and the
# absmax of each block. With the length of a row as blocksize, each row has its own absmax. An absmax of 0 is no
# mistake: some weights are zero.

# %% nbgrader={"grade_id": "int8", "solution": true}
def int8_quantize(x, blocksize):
    ### BEGIN SOLUTION
    flat = np.ravel(x)
    absmax = np.maximum.reduceat(abs(flat), np.arange(0, flat.size, blocksize))
    divisor = np.where(absmax > 0, absmax, 1).repeat(blocksize)[: flat.size]
    return np.rint(127 * flat / divisor).astype(np.int8), absmax
    ### END SOLUTION


# %% nbgrader={"grade_id": "int8-check", "grade": true, "points": 4}
checks.int8_quantize.score(int8_quantize, seed)

# %% [markdown] nbgrader={"grade_id": "normal-float-text", "locked": true}
# ## Levels where the weights are
#
# Trained weights are nearly normally distributed, so levels at even distances are wasted on the ends. NormalFloat puts
# them at quantiles of the normal distribution. Let n = 2^bits, and
#
# $$p = 1 - \frac{1}{2} \left( \frac{1}{2 n} + \frac{1}{2 (n - 1)} \right)$$
#
# (The quantile of 1 is infinite. p stays half a bin away from it, of n bins and of n - 1 in the mean.)
#
# - The n / 2 *positive* levels are the quantiles of n / 2 probabilities at even steps from p down to 1/2, 1/2 itself
#   left out.
# - The n / 2 - 1 *negative* ones are minus the quantiles of n / 2 - 1 such probabilities: fewer of them over the same
#   way, hence other steps.
# - Zero is a level, exactly. That makes n.
#
# Return them sorted, divided by the largest. `NormalDist().inv_cdf(p)` is the quantile of p. With 4 bits it is NF4,
# with 16 levels.

# %% nbgrader={"grade_id": "normal-float", "solution": true}
def normal_float(bits):
    ### BEGIN SOLUTION
    n = 2**bits
    p = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    positive = [NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    negative = [-NormalDist().inv_cdf(q) for q in np.linspace(p, 0.5, n // 2)[:-1]]
    return np.sort([*negative, 0.0, *positive]) / max(positive)
    ### END SOLUTION


# %% nbgrader={"grade_id": "normal-float-check", "grade": true, "points": 5}
checks.normal_float.score(normal_float, seed)

# %% [markdown] nbgrader={"grade_id": "nearest-text", "locked": true}
# ## The nearest level
#
# For each number of x, an array of any shape, return the index of the nearest of `levels`, which are sorted. Exactly
# between two, the lower one is taken. (There has to be a rule: two programs must agree to the bit.)

# %% nbgrader={"grade_id": "nearest", "solution": true}
def nearest_codes(x, levels):
    ### BEGIN SOLUTION
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    ### END SOLUTION


# %% nbgrader={"grade_id": "nearest-check", "grade": true, "points": 3}
checks.nearest_codes.score(nearest_codes, seed)

# %% [markdown] nbgrader={"grade_id": "pack-text", "locked": true}
# ## Two codes in a byte
#
# No computer has an array of 4-bit numbers. A byte holds two codes from 0 to 15: the first in its high half (bits 4 to
# 7), the second in its low half. codes is flat, of type uint8. If their number is odd, the last low half is filled with
# 7, NF4's code of zero. Return bytes, of type uint8.

# %% nbgrader={"grade_id": "pack", "solution": true}
def pack_nibbles(codes):
    ### BEGIN SOLUTION
    even = np.append(codes, np.full(len(codes) % 2, 7)).astype(np.uint8)
    return even[::2] << 4 | even[1::2]
    ### END SOLUTION


# %% nbgrader={"grade_id": "pack-check", "grade": true, "points": 3}
checks.pack_nibbles.score(pack_nibbles, seed)

# %% [markdown] nbgrader={"grade_id": "quantize-text", "locked": true}
# ## Four bits
#
# Now together: x of any shape, flattened; blocks, of which the last may be shorter; in each the nearest of the 16
# `levels` (NF4's), after division by absmax. Return the packed codes and the absmax of each block. A block of
# zeros has codes of zero, 7, and an absmax of 0.

# %% nbgrader={"grade_id": "quantize", "solution": true}
def quantize_4bit(x, levels, blocksize):
    ### BEGIN SOLUTION
    blocks = [x.ravel()[i : i + blocksize] for i in range(0, x.size, blocksize)]
    absmax = np.array([abs(block).max() for block in blocks])
    scaled = [block / (largest or 1) for block, largest in zip(blocks, absmax, strict=True)]
    return pack_nibbles(nearest_codes(np.concatenate(scaled), levels).astype(np.uint8)), absmax
    ### END SOLUTION


# %% nbgrader={"grade_id": "quantize-check", "grade": true, "points": 5}
checks.quantize_4bit.score(quantize_4bit, seed)

# %% [markdown] nbgrader={"grade_id": "dequantize-text", "locked": true}
# ## And back
#
# Return the array of `shape` that the bytes stand for. Blocks were cut from the flattened array: they need not end where
# a row does.

# %% nbgrader={"grade_id": "dequantize", "solution": true}
def dequantize_4bit(packed, absmax, levels, blocksize, shape):
    ### BEGIN SOLUTION
    size = int(np.prod(shape))
    codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()[:size]
    return (levels[codes] * absmax[np.arange(size) // blocksize]).reshape(shape)
    ### END SOLUTION


# %% nbgrader={"grade_id": "dequantize-check", "grade": true, "points": 3}
checks.dequantize_4bit.score(dequantize_4bit, seed)

# %% [markdown] nbgrader={"grade_id": "double-text", "locked": true}
# ## Quantizing the constants
#
# With blocks of 64, the absmax values cost half a bit a weight. They are numbers too, so quantize them. They are all
# positive, and would use only half of a code: first subtract their mean, one number for all of them. The rests are
# quantized like weights, in blocks of their own, of `blocksize` rests each, with 256 `levels` between -1 and 1 (sorted;
# a code fills a byte). The largest absolute rest of each block is `absmax2`.
#
# absmax is flat; return the codes, absmax2 and the offset, from which
# absmax ≈ levels[code] · (its block's absmax2) + offset.

# %% nbgrader={"grade_id": "double", "solution": true}
def double_quantize(absmax, levels, blocksize):
    ### BEGIN SOLUTION
    offset = absmax.mean()
    rest = absmax - offset
    absmax2 = np.maximum.reduceat(abs(rest), np.arange(0, rest.size, blocksize))
    divisor = np.where(absmax2 > 0, absmax2, 1).repeat(blocksize)[: rest.size]
    return nearest_codes(rest / divisor, levels), absmax2, offset
    ### END SOLUTION


# %% nbgrader={"grade_id": "double-check", "grade": true, "points": 4}
checks.double_quantize.score(double_quantize, seed)

# %% [markdown] nbgrader={"grade_id": "bits-text", "locked": true}
# ## The bill
#
# How many bits does a weight take in all, in a large array? A code has 4. Each block of `blocksize` weights has an absmax
# in float32. With double quantization each block has 8 bits instead, and every `blocksize2` blocks share a float32,
# absmax2; the one offset is not counted. blocksize2 is None without double quantization.

# %% nbgrader={"grade_id": "bits", "solution": true}
def bits_per_weight(blocksize, blocksize2=None):
    ### BEGIN SOLUTION
    if blocksize2 is None:
        return 4 + 32 / blocksize
    return 4 + 8 / blocksize + 32 / (blocksize * blocksize2)
    ### END SOLUTION


# %% nbgrader={"grade_id": "bits-check", "grade": true, "points": 2}
checks.bits_per_weight.score(bits_per_weight, seed)
