# %% [markdown]
# # 7. Floats bit by bit, and eight bits
#
# A weight takes 32 bits. A model of seven billion weights takes 28 GB, and few computers have that. **Which of the 32
# bits can we drop, and what goes wrong when one weight is much larger than all the others?**
#
# *About 13 minutes. Before it: nothing but NumPy. Lesson 8 goes on to four bits.*

# %%
import numpy as np

import minilora as ml
from minilora.files import load_safetensors
from minilora.models.registry import EMBEDDED
from minilora.viz.bits import float_bits
from minilora.viz.blocks import block_map
from minilora.viz.intervals import curves
from minilora.viz.microscope import microscope

# %% [markdown]
# ## What the bits say
#
# A float is a number in scientific notation, in base 2: a sign, an exponent, and a fraction. With e bits of exponent and
# f bits of fraction,
#
# $$x = (-1)^{\text{sign}} \cdot 1.\text{fraction} \cdot 2^{\text{exponent} - \text{bias}}, \qquad \text{bias} = 2^{e-1} - 1$$
#
# The 1 before the point is not stored: a number other than zero always begins with 1 in base 2. One exponent, 0, has no
# such 1. It is for zero and for the *subnormal* numbers next to it, evenly spaced.

# %%
def value(bits, e, f):
    """bits: integers of 1 + e + f bits. The numbers they stand for, the largest exponent like any other."""
    bits = np.asarray(bits, np.int64)
    sign, exponent, fraction = bits >> (e + f), (bits >> f) & (2**e - 1), bits & (2**f - 1)
    bias = 2 ** (e - 1) - 1
    normal = (2**f + fraction) * 2.0 ** (exponent - bias - f)
    subnormal = fraction * 2.0 ** (1 - bias - f)
    return np.where(exponent > 0, normal, subnormal) * np.where(sign, -1.0, 1.0)


# %% [markdown]
# Is it right? NumPy has a float16, with e = 5 and f = 10. There are only 65,536 of them, so compare all. (Where every bit
# of the exponent is 1, float16 has infinity and NaN instead of numbers.)

# %%
every = np.arange(2**16, dtype=np.uint16)
numbers = every.view(np.float16).astype(float)
finite = np.isfinite(numbers)
assert np.array_equal(value(every, 5, 10)[finite], numbers[finite])
print(finite.sum(), "finite numbers, all equal")

# %% [markdown]
# Five formats are common. bfloat16 is a float32 whose last 16 bits are cut off. The two of eight bits are named after
# their bits: E4M3 has four of exponent and three of fraction ("mantissa").
#
# **Before you run:** which of float16 and bfloat16 comes closer to 0.1? And which of the two can hold 100,000?

# %%
my_guess = None


def nearest(x, e, f):
    """The bits of the nearest number of the format to x > 0, ties to the even fraction."""
    every = np.arange(2 ** (e + f) - 2**f)  # all that are positive and below the largest exponent
    numbers = value(every, e, f)
    distance = np.abs(numbers - x)
    close = every[distance == distance.min()]
    return int(close[close % 2 == 0][0] if len(close) > 1 else close[0])


rows = []
for name, e, f in (("float16", 5, 10), ("bfloat16", 8, 7), ("E4M3", 4, 3), ("E5M2", 5, 2)):
    bits = nearest(0.1, e, f)
    rows.append((name, f"{bits:0{1 + e + f}b}", e, f"{value(bits, e, f):.9g}"))
single = f"{np.float32(0.1).view(np.uint32):032b}"
rows.insert(0, ("float32", single, 8, f"{np.float32(0.1):.9g}"))
float_bits(rows, "0.1")

# %% [markdown]
# In base 2 the fraction of 0.1 repeats for ever, 1.10011001..., so every format rounds it. float16 comes closer than
# bfloat16: it has three more bits of fraction. But 100,000 is beyond it; its largest number is 65,504.
# bfloat16 has float32's exponent and so its range, up to 3·10³⁸. Exponent bits buy range, fraction bits buy precision.
# Here are both at once: the largest rounding error for numbers of each size, as a share of the number.

# %%
def worst_error(k, e, f):
    """The largest relative error of rounding to the format among numbers from 2^k to 2^(k + 1)."""
    bias = 2 ** (e - 1) - 1
    step = 2.0 ** (max(k, 1 - bias) - f)  # to the next number; below the normal ones it stays the same
    return min(step / 2 / 2.0**k, 1.0)  # 1: it may become zero


lines = {}
for name, e, f in (("float16", 5, 10), ("bfloat16", 8, 7), ("E4M3", 4, 3), ("E5M2", 5, 2)):
    largest = 2 ** (e - 1) - (name != "E4M3")  # E4M3 uses its last exponent for numbers too, up to 448
    lines[name] = [(k, worst_error(k, e, f), np.nan) for k in range(-24, min(largest, 24) + 1)]
curves(lines, "size of the number: 2 to this power", "relative error", "Range and precision", log_y=True)

# %% [markdown]
# Each line is flat over a wide range: a float's error is *relative*, half a step in the fraction. To the left, among the
# subnormal numbers, it rises until numbers vanish. To the right the line ends: what is larger overflows.
#
# Gradients can be tiny. In float16 those below 3·10⁻⁸ become zero, so the loss is scaled up in training; in bfloat16 it
# need not be. QLoRA computes in bfloat16.
#
# **Exercise.** Cutting off the last 16 bits rounds toward zero. Round to the *nearest*
# bfloat16 instead. There is a short way with integers: add 0x7FFF to the 32 bits, and 1 more if the last of the bits that
# will stay is 1 (so that a tie goes to the even one); then set the last 16 bits to zero.

# %%
from minilora.course.checks import lesson07 as checks


def to_bfloat16(bits):
    """bits: uint32, those of finite float32 numbers. Give uint32."""
    ...  # yours


checks.to_bfloat16.check(to_bfloat16)

# %% [markdown]
# The library's does the same: `minilora/autograd/rounding.py`.
#
# ## Integers instead
#
# Eight bits can also be an integer from -127 to 127, an even grid. The largest absolute value, *absmax*, gets 127; all
# others are scaled alike and rounded (QLoRA, equations 1 and 2; we keep absmax and not its inverse):
#
# $$\text{code} = \operatorname{round}\!\left( \tfrac{127}{\text{absmax}} \, x \right), \qquad
# x \approx \tfrac{\text{absmax}}{127} \, \text{code}$$
#
# **Before you run:** which four codes will [-1024, 5, 2048, 256] get?

# %%
my_guess = None


def quantize(x):
    absmax = np.abs(x).max()
    return np.rint(x * (np.float32(127) / absmax)).astype(np.int8), absmax


def dequantize(codes, absmax):
    return codes * absmax * np.float32(1 / 127)


x = np.array([-1024, 5, 2048, 256], np.float32)
codes, absmax = quantize(x)
print("your guess:", my_guess, "  codes:", codes, "  back:", dequantize(codes, absmax).round(1))

# %% [markdown]
# The factor 127/2048 is 0.062, and it *multiplies*. absmax is the maximum of the absolute values: with the plain maximum,
# -1024 beside 256 would get the code -508, which is not an int8. The 5 is gone: the grid's step is 16, so anything
# within ±8 is zero. This is the price of an even grid.
#
# ## One large weight
#
# Now a real matrix: a layer of minilora's small model that has *outliers*. Half of all weights are within ±0.12, and one
# is -5.04.
#
# **Before you run:** one absmax for the whole matrix, 255 codes. How many codes stand for 99 % of the weights?

# %%
my_guess = None

tensors, _ = load_safetensors(EMBEDDED / "model.safetensors")
W = tensors["model.layers.3.mlp.down_proj.weight"].astype(np.float32)  # (128, 352)
codes, absmax = quantize(W)
middle = int(np.quantile(np.abs(codes), 0.99))
print("your guess:", my_guess, f"  99 % of the weights have codes from {-middle} to {middle}")
microscope(W / absmax, np.arange(-127, 128) / 127, "int8, one absmax for all", window=(-0.15, 0.15))

# %% [markdown]
# (Codes are counted from 0 in the picture: 127 is the integer 0.) At the top is the whole range, and nearly all of it is
# empty: more than a hundred codes on either side for one weight in a hundred. 27 codes do the work; they would fit
# into five bits.
#
# ## Blocks
#
# The harm that an outlier does goes as far as its absmax. So give every block of 64 weights its own. Here are some rows of
# W in blocks of 64: each line is a block. A cell is strong where the code is large.

# %%
def in_blocks(x, size):
    """Codes and absmax of each block; shapes (n, size) and (n, 1)."""
    blocks = x.reshape(-1, size)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    return np.rint(blocks * (np.float32(127) / absmax)).astype(np.int8), absmax


def rms(x):
    return np.sqrt(np.mean(x**2, axis=-1))


rows = W[42:46]  # (4, 352): 22 blocks of 64
codes, one = quantize(rows)
error = rms((dequantize(codes, one) - rows).reshape(-1, 64))
block_map(codes.reshape(-1, 64) / 127, np.repeat(one, 22), "One absmax for all", error)

# %%
codes, absmax = in_blocks(rows, 64)
error = rms(dequantize(codes, absmax) - rows.reshape(-1, 64))
block_map(codes / 127, absmax.ravel(), "One absmax for each block of 64", error)

# %% [markdown]
# With one absmax, all is pale: small codes, few different ones, the same error everywhere. With blocks, only those few
# that hold an outlier are pale, and their neighbours use the full range. The error is that of each block's own absmax.
#
# The library does the same, bit for bit:

# %%
codes, absmax = in_blocks(W, 64)
q = ml.quantize(W, "int8", blocksize=64)
assert np.array_equal(q.packed, codes.ravel()) and np.array_equal(q.absmax, absmax.ravel())
assert np.array_equal(q.dequantize().ravel(), dequantize(codes, absmax).ravel())
print(q)

# %% [markdown]
# **Before you run:** a smaller block has a smaller error, and costs more: 32 bits for each absmax. And what of E4M3,
# also eight bits, whose steps are small near zero? Scale so that absmax becomes its largest number, 448. Which of the
# two will be better with one absmax for all, and which in blocks of 64?

# %%
my_guess = None

table = np.sort(value(np.arange(256), 4, 3))[1:-1]  # without ±480: that pattern is NaN in E4M3
assert table.max() == 448
table = (table / 448).astype(np.float32)
borders = (table[1:] + table[:-1]) / 2


def relative_error(x):
    return rms((x - W).ravel()) / rms(W.ravel())


def e4m3(size):
    blocks = W.reshape(-1, size)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    return (table[np.searchsorted(borders, blocks / absmax)] * absmax).reshape(W.shape)


lines = {"int8": [], "E4M3": []}
for size in (16, 64, 352, W.size):
    bits = 8 + 32 / size
    int8 = relative_error(ml.quantize(W, "int8", blocksize=size).dequantize())
    fp8 = relative_error(e4m3(size))
    lines["int8"].append((size, int8, np.nan))
    lines["E4M3"].append((size, fp8, np.nan))
    print(f"blocks of {size:>6}: {bits:6.3f} bits a weight   int8 {int8:.4f}   E4M3 {fp8:.4f}")
curves(lines, "blocksize", "relative error", "Outliers in eight bits", log_x=True, log_y=True)

# %% [markdown]
# E4M3's line is flat. Its error is relative to each weight, whatever the largest one is. int8's error is relative
# to absmax: with one absmax for all it is the larger, in blocks of 64 nearly four times smaller. Blocks do what the
# exponent is there for; and then an even grid, with no bits spent on an exponent, is more precise.
#
# ## All on one side
#
# What comes out of a ReLU has no negative numbers, and half of the codes -127..127 are idle. A *zero point* shifts the
# grid: lay 256 codes from the smallest to the largest number, and remember which code is zero.

# %%
positive = np.maximum(np.random.default_rng(0).standard_normal(4096), 0).astype(np.float32)
z = ml.quant.quantize_zeropoint(positive)
symmetric = ml.quantize(positive, "int8", blocksize=None)
print("code of zero:", z.zero_point)
for name, back in (("zero point", z.dequantize()), ("absmax", symmetric.dequantize())):
    print(f"{name:<11} mean error {np.mean(abs(back - positive)):.5f}")

# %% [markdown]
# Half the step, half the error. Weights lie on both sides of zero, so QLoRA needs none of this.
#
# **Exercise.** Absmax int8 for one array: give the codes and absmax. Mind negative numbers, and an array of zeros.

# %%
def absmax_int8(x):
    """x: float array. Give (codes, absmax)."""
    ...  # yours


checks.absmax_int8.check(absmax_int8)

# %% [markdown]
# **To take along**
# - Exponent bits are range, fraction bits are precision. bfloat16: float32's range with 8 bits of precision, counting
#   the 1 that is not stored. float16: 11 bits, and an end at 65,504.
# - A float's error is relative to the number, an integer grid's to absmax.
# - int8: multiply by 127 / absmax and round. absmax is the maximum of absolute values.
# - One outlier spoils all that share its absmax. Blocks keep the damage small, at 32 bits a block: 8.5 bits a weight at 64.
#
# *IEEE 754; OCP 8-bit floating point, arXiv:2209.05433; T. Dettmers et al., QLoRA, arXiv:2305.14314, equations 1 and 2.
# In minilora: `minilora/quant/int8.py`, `codebooks.py` (`e4m3`), `minilora/backend/numpy.py`.*
