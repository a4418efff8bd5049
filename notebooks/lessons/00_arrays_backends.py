# %% [markdown]
# # 0. Arrays and backends
#
# Everything in minilora is done with arrays: a weight is one, a batch of tokens is one. **What is an array, that turning one
# on its side costs nothing, and that arrays of different shapes can be added? And how can the same line run on a
# processor and on a GPU?**
#
# *About 12 minutes. Before it: Python. If you know NumPy well, do the predictions and skip where they are right.*

# %%
import types

import numpy as np

import minilora as ml
from minilora.viz.strides import broadcasting, in_memory

rng = np.random.default_rng(0)

# %% [markdown]
# ## A block of memory, and a way to walk through it
#
# Memory is one long row. A matrix lies in it row after row. To find the number at (i, j), one needs two steps: how far it
# is to the next row, and how far to the next column. They are called *strides*, and NumPy counts them in bytes.

# %%
x = np.arange(12, dtype=np.float32).reshape(3, 4)
in_memory(x, "x")

# %% [markdown]
# So an array is four things: a block of memory, where in it to start, a shape, and strides. Here is one in ten lines:

# %%
class View:
    def __init__(self, memory, start, shape, strides):  # in numbers, not bytes
        self.memory, self.start, self.shape, self.strides = memory, start, shape, strides

    def __getitem__(self, index):
        return self.memory[self.start + sum(i * s for i, s in zip(index, self.strides, strict=True))]

    def transposed(self):
        return View(self.memory, self.start, self.shape[::-1], self.strides[::-1])

    def every_second_column(self):
        (rows, columns), (down, right) = self.shape, self.strides
        return View(self.memory, self.start, (rows, (columns + 1) // 2), (down, 2 * right))


v = View(list(range(12)), 0, (3, 4), (4, 1))
print("v[1, 2] =", v[1, 2], "   transposed, [2, 1] =", v.transposed()[2, 1])

# %% [markdown]
# Transposing swaps two pairs of numbers. Nothing is moved, however large the matrix is. NumPy does the same.
#
# **Before you run:** x has strides (16, 4). What are those of `x.T`? Of `x[:, ::2]`? And of `x[::-1]`, the rows from the
# last to the first?

# %%
my_guesses = None

for name, view in {"x.T": x.T, "x[:, ::2]": x[:, ::2], "x[::-1]": x[::-1]}.items():
    print(f"{name:<10} strides {view.strides}")
by_hand, theirs = v.every_second_column(), x[:, ::2]
assert by_hand.strides == tuple(s // 4 for s in theirs.strides) and by_hand[2, 1] == theirs[2, 1]
in_memory(x[::-1], "x[::-1]")

# %% [markdown]
# A stride may be negative, and the start is then elsewhere. It may even be zero, as we shall see.
#
# ## A view or a copy?
#
# Two arrays on the same memory: write through one, and the other changes. Where strides cannot describe the result,
# NumPy copies instead.
#
# **Before you run:** which of the six share x's memory?

# %%
results = {
    "x.T": x.T, "x[:, 1]": x[:, 1], "x.reshape(6, 2)": x.reshape(6, 2), "x.T.reshape(12)": x.T.reshape(12),
    "x[[0, 1]]": x[[0, 1]], "x.astype(np.float32)": x.astype(np.float32),
}  # fmt: skip
for name, y in results.items():
    print(f"{name:<22} {'view' if np.shares_memory(x, y) else 'copy'}")

# %% [markdown]
# `x.T` read in order jumps through memory as 0, 4, 8, 1, 5, 9, ... No single stride walks like that, so `x.T.reshape(12)`
# must copy. A list of indices may be any list, and is always copied.
#
# Why care? A backward pass uses arrays that the forward pass kept. If someone writes into one of them in between, the
# gradient is wrong, and no shape tells. minilora keeps views where it can, and watches:

# %%
t = ml.Tensor(np.ones(3, np.float32), requires_grad=True)
loss = (t * t).sum()
try:
    t.data[0] = 5
except ValueError as error:
    print("written to what backward needs:", error)
loss.backward()
t.data[0] = 5  # allowed again
print("gradient", t.grad, "   data", t.data)

# %% [markdown]
# ## Broadcasting: a stride of zero
#
# A bias of shape (4,) is added to each row of a (3, 4) matrix. Is it copied three times? It need not be: with a stride of
# 0 the walk to the next row goes nowhere.

# %%
bias = np.array([10, 20, 30, 40], np.float32)
print("strides of the bias, stretched:", np.broadcast_to(bias, (3, 4)).strides)
in_memory(np.broadcast_to(bias, (3, 4)), "a bias of shape (4,), stretched to (3, 4)")

# %% [markdown]
# The rule: write the shapes one under the other, *right-aligned*. Each pair must be equal, or one of them is 1 (or
# missing), and that one is stretched.
#
# **Before you run:** which shape does (3, 1) + (4,) have?

# %%
broadcasting(np.array([[0], [10], [20]]), np.array([1, 2, 3, 4]))

# %% [markdown]
# Handy, and dangerous. Here is a loss with a mistake that many have made: the predictions come as a column, (8, 1), the
# targets as (8,).
#
# **Before you run:** the predictions are perfect. What is the loss?

# %%
targets = rng.standard_normal(8)
predictions = targets[:, None]  # right to the last digit, but a column
difference = predictions - targets
print("loss:", (difference**2).mean().round(3), "   shape of the difference:", difference.shape)

# %% [markdown]
# 64 differences instead of 8, and no error. So write down shapes: in minilora each line of a forward pass has its own as a
# comment. And backward, what was stretched is summed: lesson 1.
#
# **Exercise.** The rule as a program: the shape of a + b, from the shapes of a and b; None where they do not fit.

# %%
from minilora.course.checks import lesson00 as checks


def broadcast_shape(a, b):
    ...  # yours: a and b are tuples


checks.broadcast_shape.check(broadcast_shape)

# %% [markdown]
# **Exercise.** The strides, in bytes, of a new array of this shape, row after row in memory. (Its last axis walks from one
# number to the next.)

# %%
def row_strides(shape, itemsize):
    ...  # yours: a tuple


checks.row_strides.check(row_strides)

# %% [markdown]
# ## How many bits a number has
#
# float32 has 4 bytes and about 7 digits; float64, which is NumPy's and Python's own, 8 bytes and 16 digits. Models are
# float32 or shorter: half the memory, and twice as many numbers in an instruction. Two things to know.
#
# First, digits end. **Before you run:** 0.1 is added a million times in float32, one after the other. How far from 100,000
# does it end?

# %%
tenths = np.full(1_000_000, 0.1, np.float32)
print(f"one after the other: {np.cumsum(tenths)[-1]:,.1f}    np.sum: {tenths.sum():,.1f}")

# %% [markdown]
# When the sum has reached 100,000, its last digit is worth 0.008, and each 0.1 is rounded to that. `np.sum` adds pairs,
# then pairs of pairs, so that it adds numbers of the same size. Quantization, lesson 7, is rounding on a much coarser grid.
#
# Second, a longer type wins, and quietly. **Before you run:** x is float32. Which of these are still float32?

# %%
for name, y in {
    "x * 2.0": x * 2.0, "x * np.sqrt(2)": x * np.sqrt(2), "x * np.float32(2)": x * np.float32(2),
    "x / x.mean()": x / x.mean(), "x * np.arange(4)": x * np.arange(4), "x * np.zeros(4)": x * np.zeros(4),
}.items():  # fmt: skip
    print(f"{name:<20} {y.dtype}")

# %% [markdown]
# A Python number takes the array's type. A NumPy number has a type of its own, and `np.sqrt(2)` is a float64: one such factor
# doubles the memory of everything after it. In minilora float32 goes in and float32 comes out; a test holds each op to it.
#
# ## The same line on another machine
#
# CuPy is a library with NumPy's functions whose arrays live on a GPU. So code that takes its functions *from the array's
# own library* runs on both:

# %%
LIBRARIES = {np.ndarray: np}


def namespace(x):
    """The library that x's functions are to come from."""
    return LIBRARIES[type(x)]


def softmax(x):
    xp = namespace(x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


# %% [markdown]
# No GPU here, so let us make a library of our own to see it work: its arrays are NumPy's in disguise, and its functions write
# down their names.

# %%
class Logged(np.ndarray):
    pass


calls = []


def logged(name):
    def function(x, **options):
        calls.append(name)
        return getattr(np, name)(np.asarray(x), **options).view(Logged)

    return function


LIBRARIES[Logged] = types.SimpleNamespace(**{name: logged(name) for name in ("exp", "max", "sum")})
there = softmax(x.view(Logged))
print("the other library did:", calls, "   result the same:", np.array_equal(there, softmax(x)))
assert np.array_equal(there, softmax(x)) and calls == ["max", "exp", "sum"]

# %% [markdown]
# That is the whole idea; minilora's is `array_namespace(x)`. Where a plain NumPy function would not do, there are
# *kernels*: quantizing, dequantizing, the product with a 4-bit matrix. They exist several times under the same names:
# in NumPy, and in CUDA C for a GPU (lesson 12 runs these on a simulated one; they have not run on a real one so far).
# The array decides which is taken, and all give the same codes.
#
# How do we know that a fast kernel is right? It is held to a definition that one can read: the code of a weight is
# the number of the level nearest to weight / absmax.

# %%
from minilora.backend import array_namespace, kernels_for


def quantize_by_definition(w, levels, blocksize):
    blocks = w.reshape(-1, blocksize)
    absmax = abs(blocks).max(axis=1)
    codes = abs(blocks[:, :, None] / absmax[:, None, None] - levels).argmin(axis=2).astype(np.uint8)
    codes = codes.ravel()
    return codes[0::2] << 4 | codes[1::2], absmax  # two codes a byte, the first in the high half


w, levels = rng.standard_normal(64 * 256).astype(np.float32), ml.quant.CODES["nf4"]
packed, absmax = kernels_for(w).quantize_4bit(w, levels, 64)
by_definition = quantize_by_definition(w, levels, 64)
print("namespace:", array_namespace(w).__name__, "   codes equal:", np.array_equal(packed, by_definition[0]))
print("bytes that the definition makes on the way:", 4 * 16 * w.size, "   w has", w.nbytes)
assert np.array_equal(packed, by_definition[0]) and np.array_equal(absmax, by_definition[1])

# %% [markdown]
# The definition makes an array of sixteen distances for each weight, by broadcasting. The kernel never does. Its code is longer,
# and it need not be understood at first: the definition says what it does, and a test holds one to the other.
#
# **To take along**
# - An array is memory, a start, a shape, strides. Transposing and slicing change the last three only.
# - Broadcasting aligns shapes from the right, and stretches 1 with a stride of 0. Write shapes down.
# - float32 has 7 digits. A NumPy float64 scalar turns float32 into float64.
# - Take functions from the array's own library, and the code runs where the array lives.
#
# *C. Harris et al., Array programming with NumPy, Nature 585, 2020; NEP 50 (promotion); the Python array API standard. In minilora:
# `minilora/backend/__init__.py`, `minilora/backend/numpy.py`.*
