# %% [markdown]
# # 9. Double quantization, and every bit counted
#
# "Four-bit" weights take 4.5 bits each: a block of 64 has 4-bit codes and one absmax of 32 bits. **Can we get the half
# bit back, and what does it cost?**
#
# *About 11 minutes. Before it: lesson 8 (NF4).*

# %%
import numpy as np

import minilora as ml
from minilora.files import load_safetensors
from minilora.models.registry import EMBEDDED
from minilora.viz.charts import memory_bars
from minilora.viz.codes import bits_against
from minilora.viz.microscope import microscope
from minilora.viz.picture import Picture

# %% [markdown]
# ## Where the half bit is
#
# Bits a weight: 4 for its code, and its share of the block's absmax, 32/64 = 0.5.
#
# **Before you run:** how many gigabytes are that half bit, in a model of 65 billion weights?

# %%
my_guess = None

n = 65e9
kept = {
    "16 bits": {"weights": n * 16 / 8},
    "NF4": {"codes": n * 4 / 8, "absmax": n / 64 * 4},
}
print("your guess:", my_guess, f"  absmax: {n / 64 * 4 / 1e9:.2f} GB")
memory_bars(kept, "A model of 65 billion weights")

# %% [markdown]
# Four gigabytes of scales. Larger blocks would need fewer of them, but lose precision: one outlier would spoil more
# weights. So keep the blocks, and store each absmax in fewer bits.
#
# ## Quantize the scales
#
# An absmax is a number like any other. So do the same again: take 256 of them as a block, divide by the largest, store 8-bit
# codes and one float32, `absmax2`. First look at what is to be rounded: the absmax of every block of 64 weights in the
# linear layers of minilora's small model.

# %%
tensors, _ = load_safetensors(EMBEDDED / "model.safetensors")
linear = [w.ravel().astype(np.float32) for name, w in tensors.items() if "_proj" in name]
weights = np.concatenate(linear)
blocks = weights.reshape(-1, 64)
absmax = np.abs(blocks).max(axis=1)  # (12544,)
low, high = np.quantile(absmax, (0.05, 0.95))
print(f"{absmax.size:,} scales from {absmax.min():.2f} to {absmax.max():.2f}")
print(f"mean {absmax.mean():.3f}; nine tenths are from {low:.2f} to {high:.2f}")

# %% [markdown]
# The paper stores them in FP8 (E4M3 of lesson 7). E4M3's steps are small near zero and large far from it.
#
# **Before you run:** divided by the largest of 256, where on the line from -1 to 1 will the scales lie? Is it where E4M3 is
# fine?

# %%
my_guess = None

e4m3 = np.sort(ml.quant.E4M3[np.isfinite(ml.quant.E4M3)])
groups = absmax.reshape(-1, 256)  # 12544 = 49 · 256
scaled = groups / groups.max(axis=1, keepdims=True)
microscope(scaled, e4m3, "absmax / absmax2 under E4M3")

# %% [markdown]
# On one side only, and far from zero: the left half is empty, and on the right the levels are far apart. All scales are
# positive and of similar size; what tells them apart is the small difference from their mean. So **subtract the mean
# first**, one number for the whole tensor, and quantize the rest. It has both signs, and most of it is near zero.

# %%
offset = absmax.mean(dtype=np.float64).astype(np.float32)
rest = (absmax - offset).reshape(-1, 256)
absmax2 = np.abs(rest).max(axis=1, keepdims=True)  # (49, 1)
microscope(rest / absmax2, e4m3, "(absmax - mean) / absmax2 under E4M3")

# %% [markdown]
# Now the peak is where the levels are, and the error is spread over both sides. (The levels near zero are too many to
# draw as lines.) How much better is it? Three sorts of 8-bit codes: E4M3 as in the paper; the
# *dynamic map* of bitsandbytes, 256 levels even finer around zero; and plain int8.
#
# **Before you run:** which of the three gains least from the mean, and why?

# %%
my_guess = None

nf4 = ml.quant.CODES["nf4"]
codes = np.searchsorted((nf4[1:] + nf4[:-1]) / 2, blocks / absmax[:, None])  # lesson 8


def store(absmax, levels, subtract_mean):
    """absmax as it comes back from 8 bits."""
    offset = absmax.mean() if subtract_mean else np.float32(0)
    rest = (absmax - offset).reshape(-1, 256)
    absmax2 = np.abs(rest).max(axis=1, keepdims=True)
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, rest / absmax2)
    return (levels[nearest] * absmax2).ravel() + offset


def rms(x):
    return np.sqrt(np.mean(x.astype(float) ** 2))


kinds = {
    "E4M3": e4m3,
    "dynamic": ml.quant.DYNAMIC_MAP,
    "int8": np.arange(-127, 128, dtype=np.float32) / 127,
}
best = rms(nf4[codes] * absmax[:, None] - blocks)
print("                       error of absmax   the weights' error grows by")
for name, levels in kinds.items():
    for subtract in (False, True):
        back = store(absmax, levels, subtract)
        growth = rms(nf4[codes] * back[:, None] - blocks) / best - 1
        how = "less the mean" if subtract else "as they are"
        print(f"{name:<8} {how:<14} {rms(back - absmax) / offset:14.2%} {growth:26.2%}")

# %% [markdown]
# int8 gains least: its steps are even, so it matters little where the numbers lie. E4M3 without the mean costs 4 % of
# error, with it a quarter of one per cent; bitsandbytes' map with the mean 0.06 %.
#
# ## The library's is the same

# %%
rest = absmax - offset
absmax2 = np.abs(rest.reshape(-1, 256)).max(axis=1)
scaled = rest / np.repeat(absmax2, 256)
levels = ml.quant.DYNAMIC_MAP
second = np.searchsorted((levels[1:] + levels[:-1]) / np.float32(2), scaled)

q = ml.quantize(weights, "nf4", blocksize=64, double_quant=True)
assert np.array_equal(q.absmax_codes, second) and np.array_equal(q.absmax2, absmax2)
assert q.offset == offset
assert np.array_equal(q.scales(), levels[second] * np.repeat(absmax2, 256) + offset)
print(q)
for name, array in q.arrays.items():
    print(f"{name:<13} {array.dtype!s:<8} {array.nbytes:>8,} bytes")

# %% [markdown]
# Dequantizing goes in two steps, from the inside out: the 8-bit codes, `absmax2` and `offset` give absmax; absmax and the
# 4-bit codes give the weights. The paper calls it doubleDequant (lesson 10).
#
# Note the order of things when quantizing: the weights' codes were found with the *exact* absmax. What comes back is
# multiplied with the rounded one.
#
# ## Counting
#
# **Before you run:** count the bits a weight: code, absmax, absmax2. (Often one of the last two is forgotten.)

# %%
my_guess = None

bits = {"code": 4, "absmax": 8 / 64, "absmax2": 32 / (64 * 256)}
total = sum(bits.values())
print("your guess:", my_guess, "  parts:", bits, "  sum:", round(total, 3))
print(f"saved: {4.5 - total:.3f} bits; in 65 billion weights {n * (4.5 - total) / 8 / 1e9:.2f} GB")
kept["NF4, double"] = {"codes": n * 4 / 8, "absmax": n / 64 + n / 64 / 256 * 4}
memory_bars(kept, "A model of 65 billion weights")

# %% [markdown]
# Two slips to avoid. 32/(64 · 256) = 0.00195 alone is not the cost: the 8/64 = 0.125 are the larger part. And a half
# bit for each of a million weights is 500,000 bits; 0.127 bits are 127,000.
#
# Small tensors pay a little more: a last group need not be full, and there is the offset, 32 bits for each tensor.

# %%
for shape in ((128, 128), (352, 128), (4096, 4096)):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    print(shape, f"{ml.quantize(x, 'nf4', double_quant=True).bits_per_weight:.6f}")
print("sum of the parts", f"{4 + 8 / 64 + 32 / (64 * 256):.6f}")

# %% [markdown]
# ## Cheap scales change the choice of blocksize
#
# A block of 16 with a float32 absmax takes 6 bits a weight. With 8-bit scales it takes 4.51, as much as blocks of 64
# without. **Before you run:** which of the two has the smaller error?

# %%
my_guess = None

series = {"NF4": [], "NF4, double": []}
for size in (16, 32, 64, 128, 256, 512):
    for name, double in (("NF4", False), ("NF4, double", True)):
        q = ml.quantize(weights, "nf4", blocksize=size, double_quant=double)
        error = rms(q.dequantize() - weights) / rms(weights)
        series[name].append((q.bits_per_weight, error, str(size)))
Picture(bits_against(series, "relative weight error", "With float32 scales, and with 8-bit scales, by blocksize"))

# %% [markdown]
# The line moves to the left and hardly up. At 4.5 bits the error is .081 in blocks of 16, and .092 in blocks of 64 with
# float32 scales. Double quantization is not only smaller at the same error: it is more precise at the same size.
#
# Could one go on, and quantize absmax2? It takes 0.002 bits a weight. There is nothing left to gain.
#
# **Exercise.** How many bytes does a tensor of n weights take, in NF4 with double quantization: codes, absmax codes,
# absmax2, offset? Mind what is not full: the last byte, the last block of 64, the last group of 256 blocks.

# %%
from minilora.course.checks import lesson09 as checks


def stored_bytes(n):
    ...  # yours


checks.stored_bytes.check(stored_bytes)

# %% [markdown]
# **Exercise.** Get absmax back from 8 bits. Here they are int8, so that the level of a code is code/127; groups of
# 256 share an absmax2, and the last group may be shorter.

# %%
def expand(codes, absmax2, offset):
    """codes: int8 (n,); absmax2: (ceil(n / 256),); offset: a number. Give absmax (n,)."""
    ...  # yours


checks.expand.check(expand)

# %% [markdown]
# **To take along**
# - 4 + 8/64 + 32/(64 · 256) = 4.127 bits a weight in place of 4.5; 3 GB in 65 billion.
# - Scales are all positive and alike. Subtract their mean first, else FP8 spends its fine levels where no scale is.
# - Dequantize from the inside out: codes and absmax2 and mean give absmax, absmax and codes give the weight.
# - Storage is 4.127 bits. Nothing is *computed* in four bits: lesson 10.
#
# *T. Dettmers et al., QLoRA, arXiv:2305.14314, section 3, Double Quantization; the dynamic map: T. Dettmers et al.,
# arXiv:2110.02861. In minilora: `minilora/quant/double.py`, `codebooks.py`, `array.py`.*
