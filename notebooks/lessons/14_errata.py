# %% [markdown]
# # 14. Eleven famous mistakes
#
# Here are eleven small programs. Each does what some popular text or code about LoRA and QLoRA says. Each runs, and
# gives numbers of the right shape. **All are wrong. How could you have noticed, without knowing the right answer?**
#
# By a *law*: a sentence that must be true of any right program, and that a computer can try. For each mistake there is one,
# and it takes a line or two.
#
# *About 15 minutes. Before it: lessons 3, 5 and 8. The page "Errata" has these, and twelve more.*

# %%
import numpy as np

import minilora as ml
from minilora import ops
from minilora.viz.codes import levels_under_histogram
from minilora.viz.intervals import curves

rng = np.random.default_rng(0)
results = []
my_guesses = {}  # number of a mistake -> what you expect to see; write yours before you run its cell


def tried(mistake, law, wrong, right):
    """Say whether the law holds of the wrong program and of the right one: two truth values."""
    results.append((mistake, law, bool(wrong), bool(right)))
    words = {True: "holds", False: "FAILS"}
    print(f"law: {law}\n  the mistake: {words[bool(wrong)]}    the right way: {words[bool(right)]}")
    assert right and not wrong


# %% [markdown]
# ## 1. "NF4 is sixteen even steps from -1 to 1"
#
# Sixteen levels, yes. **Before you run:** what becomes of a weight that is 0?

# %%
nf4, even = ml.quant.CODES["nf4"], np.linspace(-1, 1, 16).astype(np.float32)


def rounded(x, levels):
    """Each entry of x (absmax 1) becomes its nearest level."""
    return levels[abs(x[..., None] - levels).argmin(-1)]


zero = np.zeros(1, np.float32)
tried("even steps", "zero stays zero", (rounded(zero, even) == 0).all(), (rounded(zero, nf4) == 0).all())
x = rng.standard_normal((4096, 64)).astype(np.float32)
scaled = x / abs(x).max(1, keepdims=True)
for name, levels in (("even", even), ("NF4", nf4)):
    print(f"mean error, {name:<5} {abs(rounded(scaled, levels) - scaled).mean():.4f}")
density = np.histogram(scaled, 96, (-1, 1), density=True)[0]
codes = {"NF4": nf4.tolist(), "even": even.tolist()}
levels_under_histogram(density.tolist(), codes, "normal weights / absmax")

# %% [markdown]
# The even grid has no zero: every zero becomes ±1/15 of the block's largest entry. And it spends as many levels on the ends,
# where few weights are, as on the middle. NF4's levels are quantiles of the normal distribution.
#
# ## 2. "Scale by 127 / max(x)"
#
# That is how int8 quantization is often written. **Before you run:** find numbers for which it breaks.

# %%
def int8(x, largest):
    return np.rint(127 / largest(x) * x)


def fits(largest):
    x = np.array([-1024, 5, 256])
    return abs(int8(x, largest)).max() <= 127


law = "codes lie in -127..127"
tried("signed maximum", law, fits(np.max), fits(lambda x: abs(x).max()))
print("codes by max(x):", int8(np.array([-1024, 5, 256]), np.max))

# %% [markdown]
# The maximum is that of the absolute values. How often would a test with random weights notice? Of the blocks above:

# %%
print(f"{(x.max(1) == abs(x).max(1)).mean():.0%} have the same maximum either way")

# %% [markdown]
# A test with one block passes every second time. A law is to be tried on many.
#
# ## 3. "U and V are both eigenvectors"
#
# "For the singular value decomposition A = U S Vᵀ take the eigenvectors of A Aᵀ for U, and those of AᵀA for V." True,
# each for itself.

# %%
def two_eigensolves(A):
    left, right = (np.linalg.eigh(M)[1][:, ::-1] for M in (A @ A.T, A.T @ A))  # largest first
    return left, np.linalg.svd(A, compute_uv=False), right.T


def one_eigensolve(A):
    values, V = np.linalg.eigh(A.T @ A)
    s, V = np.sqrt(values[::-1]), V[:, ::-1]
    return A @ V / s, s, V.T


def multiplies_back(svd):
    for A in rng.standard_normal((20, 4, 4)):
        U, s, Vt = svd(A)
        if not np.allclose(U * s @ Vt, A):
            return False
    return True


law = "U S Vᵀ is A, for each of 20 matrices"
tried("two eigensolves", law, multiplies_back(two_eigensolves), multiplies_back(one_eigensolve))

# %% [markdown]
# If v is an eigenvector, so is -v. Two solves choose their signs apart, and each sign that differs gives a wrong term.
# (For a 4 × 4 matrix all four agree now and then, by luck: hence 20 of them.) So take one from the other: U = A V / S.
#
# ## 4. "A and B start at zero, so that nothing changes at first"
#
# Nothing changes at first, true. **Before you run:** and later?

# %%
def learns(A, B):
    """Whether the loss goes down in 20 steps of gradient descent."""
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((32, 8)), rng.standard_normal((32, 6))
    losses = []
    for _ in range(20):
        error = X @ A.T @ B.T - Y
        losses.append((error**2).mean())
        g = 2 * error / error.size
        A, B = A - (g @ B).T @ X, B - g.T @ (X @ A.T)
    return losses[-1] < losses[0]


A, B = rng.standard_normal((2, 8)), np.zeros((6, 2))
tried("both zero", "twenty steps lower the loss", learns(0 * A, B), learns(A, B))

# %% [markdown]
# A's gradient has a factor B and B's a factor A. With both at zero, both gradients are zero, for ever.
#
# ## 5. "Weights are brought to mean 0 and variance 1 before NF4"
#
# Normal float, normal weights. It would be a step that one could take. Is it taken?

# %%
def standardized(x):
    return (x - x.mean()) / x.std()


def comes_back(prepare):
    weights = rng.standard_normal(4096).astype(np.float32) + 4
    back = ml.quantize(prepare(weights), "nf4", blocksize=64).dequantize()
    return abs(back.mean() - weights.mean()) < 0.1


tried("standardized", "the mean comes back", comes_back(standardized), comes_back(lambda x: x))

# %% [markdown]
# Whoever subtracts a mean must store it to come back. NF4 stores an absmax for each block, and nothing else: dividing by it is all
# that is done. That weights *are* about normal is what the levels were chosen for, not something that is made so.
#
# ## 6. "Each NF4 code is equally likely"
#
# Quantiles split a distribution into equal shares, so each of the 16 codes gets 1/16 of the weights?
# **Before you run:** the weights are divided by the largest of 64. What does that do to the ends?

# %%
def shares():
    """Of each code, in new normal weights."""
    packed = ml.quantize(rng.standard_normal(1 << 18).astype(np.float32), "nf4", blocksize=64).packed
    return np.bincount(np.concatenate([packed >> 4, packed & 15]), minlength=16) / (2 * packed.size)


def foretold(shares_said):
    return abs(shares() - shares_said).max() < 0.003


share = shares()
law = "the shares are those of new weights"
tried("equal shares", law, foretold(np.full(16, 1 / 16)), foretold(share))
print(f"entropy of a code: {-(share * np.log2(share)).sum():.1f} bits; equal shares have 4")
line = [(code, p, np.nan) for code, p in enumerate(share)]
curves({"share of the weights": line}, "NF4 code", "share", "How often each code", levels={"1/16": 1 / 16})

# %% [markdown]
# The largest of 64 normal numbers is about 2.6 standard deviations. NF4's quantiles were taken as if the end were at 1.85. So
# most weights lie nearer the middle, and only the largest of a block is sure to reach an end.
#
# ## 7. "QLoRA computes with 4-bit numbers"
#
# If it did, one could multiply the codes, and scale afterwards: that is how int8 products are done.

# %%
W, v = rng.standard_normal((8, 64)).astype(np.float32), rng.standard_normal(64).astype(np.float32)
q = ml.quantize(W, "nf4", blocksize=64)
codes = np.stack([q.packed >> 4, q.packed & 15], axis=-1).reshape(W.shape).astype(np.float32)
levels = (q.dequantize() / q.absmax[:, None]).ravel()
slope, offset = np.polyfit(codes.ravel(), levels, 1)  # the best line there is
by_codes = q.absmax * (slope * (codes @ v) + offset * v.sum())
by_levels = ops.linear_4bit(ml.Tensor(v[None]), q).data[0]  # the library's product


def close(y):
    return abs(y - q.dequantize() @ v).max() < 1e-3


tried("4-bit products", "the product is the dequantized matrix's", close(by_codes), close(by_levels))
error = abs(by_codes - by_levels).max()
print(f"off by up to {error:.1f}, where results are about {abs(by_levels).mean():.1f}")

# %% [markdown]
# Even the best line through the levels is not the levels: code 10 is not twice code 5. Codes are places in a table. So each
# is replaced by its level before it is multiplied, in floating point. Four bits are for storage.
#
# ## 8. "Merge the adapter into the 4-bit model, and you have the trained model"
#
# Merge and quantize again, that is. **Before you run:** the weights have a standard deviation of 0.02. How large must a change be
# to survive rounding to 16 levels?

# %%
W = 0.02 * rng.standard_normal((256, 256)).astype(np.float32)
change = (rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256)) / 8**0.5).astype(np.float32)
base = ml.quantize(W, "nf4").dequantize()


def merged_4bit(update):
    return ml.quantize(base + update, "nf4").dequantize()


def merged(update):
    return base + update


def survives(merge, update):
    """How much of the update is in the merged weight: 1 is all."""
    return np.vdot(merge(update) - base, update) / np.vdot(update, update)


small = np.float32(0.0005) * change
tried("merging into 4 bits", "at least 9/10 of the update is there", survives(merged_4bit, small) > 0.9,
      survives(merged, small) > 0.9)  # fmt: skip
sizes = 0.0002 * 2.0 ** np.arange(7)
lines = {
    name: [(s, survives(merge, np.float32(s) * change), np.nan) for s in sizes]
    for name, merge in (("4 bits again", merged_4bit), ("floats", merged))
}
curves(lines, "standard deviation of the update", "part of the update that survives", "Merging", log_x=True)

# %% [markdown]
# The base lies *on* the levels. A change that does not carry a weight half-way to the next level is rounded away, and
# fine-tuning makes small changes. minilora merges into floats unless told otherwise, and then says what was lost.
#
# ## 9. "Pad with the end token, and mask the padding"
#
# There is no padding token, so one takes the end-of-text token for it, and leaves it out of the loss.
# **Before you run:** which token will this model never learn to write?

# %%
END, IGNORED = 0, -100
texts = [[5, 6, 7, END], [8, END]]
batch = np.array([[5, 6, 7, END], [8, END, END, END]])


def masked_by_number(ids):
    return np.where(ids == END, IGNORED, ids)


labels = ml.DataCollatorForLanguageModeling()([{"input_ids": ids} for ids in texts])["labels"]


def ends_are_learnt(labels):
    return all(labels[i, len(ids) - 1] == END for i, ids in enumerate(texts))


law = "each text's end is a target"
tried("masked by number", law, ends_are_learnt(masked_by_number(batch)), ends_are_learnt(labels))
print(masked_by_number(batch), labels, sep="\n\n")

# %% [markdown]
# It never stops. The padding must be known by its *position*: what lies behind the text's length.
#
# ## 10. "Accumulating gradients is averaging the small batches' losses"
#
# A batch of 33 target tokens does not fit, so it is split into 3 and 30, and the two losses are averaged.

# %%
scores, targets = 3 * rng.standard_normal((33, 10)).astype(np.float32), rng.integers(0, 10, 33)
scores[:3] = 0  # a short answer, whose loss is another: ln 10
small = [slice(0, 3), slice(3, 33)]


def loss(part, reduction):
    return ops.cross_entropy(ml.Tensor(scores[part]), targets[part], reduction=reduction).item()


whole = loss(slice(None), "mean")
means = np.mean([loss(part, "mean") for part in small])
sums = sum(loss(part, "sum") for part in small) / 33
law = "the loss does not depend on how the batch is split"
tried("mean of means", law, np.isclose(means, whole), np.isclose(sums, whole))
print(f"whole {whole:.4f}   mean of means {means:.4f}   sum over all targets {sums:.4f}")

# %% [markdown]
# A mean of means gives each of 3 tokens ten times the weight of each of 30. Sum, then divide by the number of targets of all.
#
# ## 11. "A smaller rank trains faster"
#
# LoRA on 512 × 512 with r = 1 has an eighth of the numbers of r = 8. **Before you run:** by what factor does the work of a training step
# shrink? Count multiply-adds, a row of x forward and backward.

# %%
def counted(r):
    """Multiply-adds of all products of a step, as they are done."""
    done = 0

    def product(a, b):
        nonlocal done
        done += a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    x, g, W, A, B = (np.ones(shape) for shape in ((1, 512), (1, 512), (512, 512), (r, 512), (512, r)))
    thin = product(x, A.T)
    product(x, W.T), product(thin, B.T)  # forward
    back = product(g, B)
    product(g.T, thin), product(back.T, x)  # the gradients of B and A
    product(g, W), product(back, A)  # passed on; there is none for W itself
    return done


def multiply_adds(r):
    return 2 * 512 * 512 + 3 * r * (512 + 512)


def holds_for(formula):
    return all(formula(r) == counted(r) for r in (1, 8, 64))


in_proportion = holds_for(lambda r: r / 8 * counted(8))
tried("small is fast", "the formula is the count", in_proportion, holds_for(multiply_adds))
print(f"r = 1 takes {multiply_adds(1) / multiply_adds(8):.1%} of the work of r = 8")
ranks = [1, 2, 4, 8, 16, 32, 64, 128, 256]
line = [(r, multiply_adds(r) / 1000, np.nan) for r in ranks]
curves({"LoRA": line}, "rank r", "multiply-adds a row, in thousands", "A 512 × 512 layer", log_x=True,
       levels={"full fine-tuning": 3 * 512 * 512 / 1000})  # fmt: skip

# %% [markdown]
# The frozen matrix is multiplied with, whatever r is. LoRA never saves more than a third of these products, and from r = 86
# on it takes *more* than full fine-tuning. What it saves is memory.
#
# ## All of them
#
# A law for each; each mistake fails its own.

# %%
for number, (mistake, law, *_) in enumerate(results, 1):
    print(f"{number:>2}  {mistake:<22} {law}")
assert len(results) == 11 and not any(wrong for *_, wrong, _ in results)

# %% [markdown]
# **Exercise.** Now write the law yourself. You get a function `scale(x)` that claims to give int8's scale: the codes are
# `np.rint(scale(x) * x)`. Return whether it is right: for any x (not all zero) the codes lie in -127..127, and one of them is
# 127 or -127. You do not see the functions that it will be tried on. Which x should you try?

# %%
from minilora.course.checks import lesson14 as checks


def is_right(scale):
    ...  # yours: True or False


checks.is_right.check(is_right)

# %% [markdown]
# **Exercise.** And mend number 9. `ids` is (n, T), padded on the right; `lengths` are the texts' own lengths, their end tokens
# counted. Return the labels: the ids, and -100 where there is padding.

# %%
def labels_of(ids, lengths):
    ...  # yours


checks.labels_of.check(labels_of)

# %% [markdown]
# **To take along**
# - Numbers of the right shape are no evidence. Nor is a loss that goes down.
# - A law says what must hold for *any* input: zero stays zero, codes fit, factors multiply back, a split does not matter.
# - Try it on many inputs, small ones and odd ones first. One lucky case proves nothing (number 2).
#
# *E. Hu et al., LoRA, arXiv:2106.09685; T. Dettmers et al., QLoRA, arXiv:2305.14314; K. Claessen, J. Hughes, QuickCheck, ICFP 2000, for laws.
# In minilora: `docs/errata.md`, each entry with lines that prove it, and `tests/test_errata.py`.*
