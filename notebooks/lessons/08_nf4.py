# %% [markdown]
# # 8. From quantiles to NF4
#
# Four bits can tell sixteen numbers apart. Each weight of a layer will be replaced by one of sixteen. **Which sixteen
# numbers should they be?**
#
# *About 13 minutes. Before it: lesson 7 (absmax, blocks).*

# %%
from statistics import NormalDist

import numpy as np

import minilora as ml
from minilora.files import load_safetensors
from minilora.models.registry import EMBEDDED
from minilora.viz.intervals import curves
from minilora.viz.microscope import microscope

rng = np.random.default_rng(0)

# %% [markdown]
# ## What there is to round
#
# All linear layers of minilora's own small model, in blocks of 64 weights, each divided by its largest absolute value,
# its *absmax*. So every block reaches 1 or -1 somewhere, and all sixteen numbers, called *levels*, lie in between.

# %%
tensors, _ = load_safetensors(EMBEDDED / "model.safetensors")
linear = [w.ravel().astype(np.float32) for name, w in tensors.items() if "_proj" in name]
weights = np.concatenate(linear)


def in_blocks(x):
    """x / absmax of its block of 64, and absmax; shapes (n, 64) and (n, 1)."""
    blocks = x.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    return blocks / absmax, absmax


scaled, absmax = in_blocks(weights)
print(f"{weights.size:,} weights; half of them are below {np.median(abs(scaled)):.2f} of absmax")

# %% [markdown]
# The obvious sixteen are evenly spaced. **Before you run:** of all weights, what share will have one of the four
# outermost codes, 0, 1, 14 and 15?

# %%
my_guess = None  # a percentage

even = np.linspace(-1, 1, 16)
microscope(scaled, even, "Sixteen even steps under real weights")

# %% [markdown]
# The picture, from above: how the weights are spread, with the sixteen levels in orange; how far a weight is from its
# level, a tooth for each cell; and for each level the share of the weights that it stands for (blue) and the share of
# all squared error that it makes (orange).
#
# Those four codes together stand for less than 5 % of the weights, the two around zero for 14 % each. (The thin towers at
# ±1 are the blocks' largest weights.) And there is no level at zero.
#
# ## Equal shares
#
# If the codes should have equal work, each cell must hold equally many weights. The borders then are *quantiles*: the
# numbers that 1/16, 2/16, ... of all weights are below. This is quantile quantization. It needs the quantiles of each
# tensor, which are slow to find, and a table to store with each.
#
# But weights look alike. A bell curve fits nearly every layer, up to its width, and the width goes away when a block is
# divided by its absmax. So take the quantiles of *the* normal distribution once, and use them for all layers. The
# function that gives them is Φ⁻¹: below Φ⁻¹(p) lies the share p.
#
# The QLoRA paper writes it so (equation 4), for k bits: each level is the mean of two neighbouring quantiles,
#
# $$q_i = \tfrac12 \left( Q\!\left(\tfrac{i}{2^k+1}\right) + Q\!\left(\tfrac{i+1}{2^k+1}\right) \right)$$
#
# **Before you run:** k = 4, so there are quantiles at 1/17, 2/17, ... 16/17. How many levels does that give?

# %%
my_guess = None

Q = NormalDist().inv_cdf  # the inverse of the distribution function
literal = np.array([(Q(i / 17) + Q((i + 1) / 17)) / 2 for i in range(1, 16)])
literal /= literal.max()
print("your guess:", my_guess, "  there are:", len(literal), "\n", literal.round(3))

# %% [markdown]
# Fifteen, symmetric, with zero in the middle. One code of the sixteen would be idle. i = 0 and i = 16 cannot help: Q(0)
# is -∞ and Q(1) is +∞. The sixteenth number must come from elsewhere.
#
# ## Eight above, seven below, and zero
#
# Zero should be exact: a padded or pruned weight must stay zero. With an even number of levels, zero and symmetry do not
# go together. NF4 gives up symmetry: the positive half and the negative half are made apart. Eight levels
# above zero, seven below, and zero itself.
#
# In each half the probabilities are evenly spaced from 1/2 (that is zero) to an outermost one, p. It cannot be 1, as
# Q(1) is infinite. With 15 equal cells the middle of the outermost cell lies at 1 - 1/30, with 16 cells at 1 - 1/32. NF4
# takes the mean of the two, for both halves: p = 929/960 = 0.9677.

# %%
p = 1 - (1 / 30 + 1 / 32) / 2
above = [Q(share) for share in np.linspace(p, 0.5, 9)[:-1]]  # eight
below = [-Q(share) for share in np.linspace(p, 0.5, 8)[:-1]]  # seven
levels = np.sort(np.array([*below, 0.0, *above], np.float32))
largest = levels.max()
levels /= largest
print("divided by", largest, "they are")
print(levels)

# %% [markdown]
# That is all of NF4. The library has the same numbers; only the last digit may differ, because it goes through float32
# where bitsandbytes does, to be equal to it bit for bit.

# %%
nf4 = ml.quant.CODES["nf4"]
print("largest difference:", abs(levels - nf4).max())
assert np.allclose(levels, nf4, atol=3e-7)
microscope(scaled, nf4, "NF4 under real weights")

# %% [markdown]
# The levels are close together where weights are frequent, and the shares are far more equal. Look closer at zero: the
# gap above it is smaller than the one below it, as eight levels have to fit in where there are seven below.

# %%
microscope(scaled, nf4, "NF4 around zero", window=(-0.2, 0.2))

# %% [markdown]
# ## Is each code used equally often?
#
# One often reads that it is. First, normal numbers as the recipe sees them: divided by its largest quantile, 1.848, and
# so reaching beyond ±1.

# %%
borders = (nf4[1:] + nf4[:-1]) / 2  # a cell ends halfway to the next level


def shares(x):
    return np.bincount(np.searchsorted(borders, x.ravel()), minlength=16) / x.size


numbers = rng.standard_normal(1 << 20)
print("shares in %:", (100 * shares(numbers / largest)).round(1))
microscope(numbers / largest, nf4, "Normal numbers divided by 1.848", window=(-1.8, 1.8))

# %% [markdown]
# Nearly equal: one sixteenth is 6.25 %. But the orange towers show why no quantizer does this: what lies beyond ±1 is
# far from any level, and makes three quarters of the error.
#
# **Before you run:** now the same numbers divided by the absmax of their block. Which codes will become more frequent,
# and why?

# %%
my_guess = None

normal, normal_absmax = in_blocks(numbers)
share = shares(normal)
print("shares in %:", (100 * share).round(1))
print("entropy:", round(-np.sum(share * np.log2(share)), 2), "bits of 4")
print("absmax of a block, on average:", round(normal_absmax.mean(), 2))

# %% [markdown]
# A block's absmax is about 2.6, not 1.848. So the numbers are squeezed into the middle, more than the levels are: the
# middle codes gain and the outer ones lose. In larger blocks absmax is larger still.
#
# So NF4 is not optimal in the sense of equal shares. Is it good in the sense that counts, a small error?
#
# ## How large is the error?
#
# For normal weights the expected error can be computed without any sample, by one integral (`docs/expected-error.md`).
# We compare it with what our own code makes of the sample. First quantize: absmax, nearest level, two codes a byte.

# %%
def quantize(x, levels):
    """Codes (n, 64), each of the nearest level, on a border of the lower one; and absmax (n, 1)."""
    blocks = x.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks * (np.float32(1) / absmax)
    return np.searchsorted((levels[1:] + levels[:-1]) / np.float32(2), scaled), absmax


def dequantize(codes, absmax, levels):
    return levels[codes] * absmax


codes, absmax = quantize(weights, nf4)
first, second = codes.ravel()[0::2], codes.ravel()[1::2]
packed = (first << 4 | second).astype(np.uint8)  # the first code in the high half of the byte

q = ml.quantize(weights, "nf4", blocksize=64)
assert np.array_equal(packed, q.packed) and np.array_equal(absmax.ravel(), q.absmax)
assert np.array_equal(dequantize(codes, absmax, nf4).ravel(), q.dequantize())
print(q, "  equal to ours bit for bit")

# %%
sample = rng.standard_normal(1 << 20).astype(np.float32)
print("mean absolute error, as a share of the standard deviation, in blocks of 64")
for name in ("nf4", "e2m1", "linear16", "int4", "fp4"):
    table = np.sort(ml.quant.CODES[name])
    measured = abs(dequantize(*quantize(sample, table), table).ravel() - sample).mean()
    real = abs(dequantize(*quantize(weights, table), table).ravel() - weights).mean()
    real /= weights.std()
    expected = ml.quant.expected_error(name, blocksize=64).mae
    print(f"{name:<9} expected {expected:.4f}   sample {measured:.4f}   model {real:.4f}")

# %% [markdown]
# (`int4` is -7..7 over 7; `e2m1` a float with two bits of exponent and one of fraction; `fp4` bitsandbytes' own.)
# NF4 has the smallest error of the five, on the sample and on the model. Could any code do better? Alternate two steps
# until nothing moves: put each border halfway between its levels, and each level at the median of its cell. Keep -1,
# 0 and 1. What comes out is, for this error, the best code of its kind (Lloyd and Max).

# %%
x, x_absmax = ml.quant.scaled_normal(64, size=1 << 18)
best = ml.quant.lloyd_max(x, fixed=(-1, 0, 1), weights=x_absmax)


def error(table):
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, x)]
    return np.average(abs(nearest - x), weights=x_absmax)


print(f"NF4 {error(nf4):.5f}   best {error(best):.5f}   less by {1 - error(best) / error(nf4):.2%}")

# %% [markdown]
# Less than a thousandth. NF4's recipe was not made to minimise this error, and yet at blocks of 64 it all but does.
#
# ## Where it is not the best
#
# **Before you run:** the error of each code, in blocks from 16 to 4096. Which lines will rise the most?
#
# The height is the mean *squared* error now. It weighs large errors more, and NF4 makes those at its outer cells,
# as the microscope shows: code 1 makes 15 % of the squared error with 4 % of the weights.

# %%
names = ("nf4", "e2m1", "linear16", "int4", "fp4")
sizes = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
lines = {}
for name in names:
    lines[name] = [(size, ml.quant.expected_error(name, size).mse, np.nan) for size in sizes]
curves(lines, "blocksize", "mean squared error", "The error of normal weights", log_x=True)

# %% [markdown]
# Every code gets worse in larger blocks, since absmax grows; even grids the most, as their inner steps grow with it. At
# 16 the even grid `linear16` is better than NF4: absmax is only about twice the standard deviation there, and more of
# the weights lie in NF4's wide outer cells. And a smaller block costs bits: each has an absmax of 32 bits. At 64 that
# is 4 + 32/64 = 4.5 bits a weight. Lesson 9 gets most of that half bit back.
#
# **Exercise.** The recipe for any number of bits: 2ᵇ levels, half of them above zero, one fewer below, and zero. The
# outermost probability is p = 1 - ½ (1/(2 (2ᵇ - 1)) + 1/(2 · 2ᵇ)). Give the levels sorted.

# %%
from minilora.course.checks import lesson08 as checks


def normal_float(bits):
    ...  # yours


checks.normal_float.check(normal_float)

# %% [markdown]
# **Exercise.** Take the codes out of the bytes again: `packed` holds two codes a byte, the first in its high half; there
# are n codes (with n odd, the last half byte is padding).

# %%
def unpack(packed, n):
    ...  # yours


checks.unpack.check(unpack)

# %% [markdown]
# **To take along**
# - A code is a table of levels. Nearest level in, table entry out; the rest is scaling by absmax.
# - NF4: quantiles of the normal distribution, eight above zero, seven below, and an exact zero; divided by the largest.
#   It is not `linspace(-1, 1, 16)`, and not equation 4 taken literally.
# - Its codes are not equally frequent after scaling by absmax: 3.88 bits of 4 at blocks of 64.
# - In mean absolute error it is within a thousandth of the best code with -1, 0 and 1, for normal weights at blocks of 64.
# - Weights are only divided by absmax. Nothing is shifted to mean zero, nothing set to variance one.
#
# *T. Dettmers et al., QLoRA, arXiv:2305.14314, section 3, equation 4; D. Yoshida, arXiv:2306.06965, on the shares. In
# minilora: `minilora/quant/codebooks.py`, `theory.py`, `lloyd.py`; `minilora/backend/numpy.py` quantizes.*
