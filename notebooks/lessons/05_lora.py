# %% [markdown]
# # 5. LoRA: train a product instead of a matrix
#
# Fine-tuning changes every number of every weight matrix. **Could we train a few thousand numbers instead of millions,
# and lose nothing?** And if the large matrix is frozen, how does a gradient get past it to what we do train?
#
# *About 12 minutes. Before it: lesson 1 (gradients) and lesson 3 (rank).*

# %%
import numpy as np

import minilora as ml
from minilora.nn import CausalLM, TransformerConfig
from minilora.viz.factors import low_rank
from minilora.viz.intervals import curves

rng = np.random.default_rng(0)

# %% [markdown]
# ## Two thin matrices
#
# Keep the weight W (d_out × d_in) as it is, and add the product of B (d_out × r) and A (r × d_in), with a small r.
#
# **Before you run the next cell:** W is 512 × 512. With r = 1, how many numbers do B and A have together? And is the
# array `B @ A` smaller than W in memory?

# %%
my_guess = None  # how many numbers? Write yours here.

W = np.zeros((512, 512), np.float32)
B, A = np.zeros((512, 1), np.float32), np.zeros((1, 512), np.float32)
print("your guess:", my_guess, "   B and A:", B.size + A.size, "   W:", W.size)
print("bytes of B @ A:", (B @ A).nbytes, "   bytes of W:", W.nbytes)

# %% [markdown]
# The saving is in what is *stored and trained*. The product has W's shape and is as large in memory, so it is not
# formed: we never compute (B A) x, but B (A x), two thin products.

# %%
low_rank(512, 512, 16)

# %% [markdown]
# ## A layer, by hand
#
# $$h = W x + \frac{\alpha}{r} B A x$$
#
# Rows of X are inputs, so in code every matrix is transposed. The backward pass takes g = ∂loss/∂h and returns what
# each input of the layer gets. Look at what is *not* there.

# %%
def forward(X, W, A, B, scale):
    return X @ W.T + scale * (X @ A.T) @ B.T  # (n, d_out)


def backward(g, X, W, A, B, scale):
    """g: (n, d_out). Gradients of X, A and B. W gets none: it is frozen."""
    gB = scale * g.T @ (X @ A.T)  # (d_out, r)
    gA = scale * (g @ B).T @ X  # (r, d_in)
    gX = g @ W + scale * (g @ B) @ A  # (n, d_in): for the layer before
    return gX, gA, gB


# %% [markdown]
# "Gradients are passed through the fixed weights" means the term `g @ W` in gX: the layer before needs it, whether or
# not W is trained. What falls away is W's own gradient, `g.T @ X`, which is as large as W. X itself is still kept,
# because A's gradient needs it. (Lesson 11 measures what that means.)
#
# Are the three formulas right? One number tells: for random directions, the change of the loss must be the product
# with the gradient.

# %%
n, d_in, d_out, r = 5, 7, 6, 2
X, W, A, B, g = (rng.standard_normal(s) for s in ((n, d_in), (d_out, d_in), (r, d_in), (d_out, r), (n, d_out)))
gX, gA, gB = backward(g, X, W, A, B, 0.5)
for name, index, gradient in (("X", 0, gX), ("A", 2, gA), ("B", 3, gB)):
    inputs = [X + 0j, W, A + 0j, B + 0j]
    direction = rng.standard_normal(inputs[index].shape)
    inputs[index] = inputs[index] + 1e-30j * direction  # a complex step: exact to rounding
    change = np.sum(g * forward(*inputs, 0.5).imag) / 1e-30
    print(f"{name}: change {change:+.12f}   gradient {np.sum(gradient * direction):+.12f}")

# %% [markdown]
# ## How does it start?
#
# The model must not change at first, so B A = 0. That leaves three ways: A = 0, B = 0, or both.
#
# **Before you run:** which of the three cannot learn at all, and why? Look at gA and gB above.

# %%
def train(r, start_A, start_B, steps=400, rate=0.05):
    """Fit W + a planted change of rank 2 by gradient descent; the loss at each step."""
    rng = np.random.default_rng(1)
    W = rng.standard_normal((16, 12))
    teacher = W + rng.standard_normal((16, 2)) @ rng.standard_normal((2, 12)) / 4
    X = rng.standard_normal((256, 12))
    A, B = start_A * rng.standard_normal((r, 12)) / 4, start_B * rng.standard_normal((16, r)) / 4
    losses = []
    for _ in range(steps):
        error = forward(X, W, A, B, 1.0) - X @ teacher.T
        losses.append(np.mean(error**2))
        _, gA, gB = backward(2 * error / len(X), X, W, A, B, 1.0)
        A, B = A - rate * gA, B - rate * gB
    return losses


starts = {"A random, B zero": (1, 0), "A zero, B random": (0, 1), "both zero": (0, 0)}
losses = {name: train(2, *start) for name, start in starts.items()}
lines = {name: [(i, loss[i], np.nan) for i in range(0, 400, 20)] for name, loss in losses.items()}
curves(lines, "step", "loss", "Three ways to start with B A = 0")

# %% [markdown]
# With both zero, gA has a factor B and gB a factor A: both are zero for ever. LoRA takes A random and B zero.
#
# ## Which rank is enough?
#
# The planted change has rank 2. **Before you run:** what will the loss of r = 1, 2 and 4 end at? Will 4 be better
# than 2?

# %%
losses = {f"r = {r}": train(r, 1, 0, 1000) for r in (1, 2, 4)}
lines = {name: [(i, loss[i], np.nan) for i in range(0, 1000, 40)] for name, loss in losses.items()}
curves(lines, "step", "loss", "A planted change of rank 2", log_y=True)

# %% [markdown]
# r = 1 stops where the best rank-1 matrix leaves it: the second singular value of the change stays (lesson 3, Eckart
# and Young). From r = 2 on the loss goes to zero. Nobody knows the rank of a real fine-tuning's change beforehand;
# lesson 6 measures what ranks do there.
#
# ## What is alpha / r for?
#
# B A is a sum of r terms, a column of B times a row of A each. Dividing by r keeps their sum from growing with their number,
# so that a learning rate found with one r is a first guess for another. It is a rule of thumb: at large r it makes the
# update too small, and rsLoRA (arXiv:2312.03732) divides by √r. But forget the division, and at r = 8 every update is eight
# times as large as whoever chose α meant.
#
# **Exercise.** Write the layer's weight after merging: one matrix that does what W, A and B do together.

# %%
from minilora.course.checks import lesson05 as checks


def merged_weight(W, A, B, alpha):
    """A has shape (r, d_in)."""
    ...  # yours


checks.merged_weight.check(merged_weight)

# %% [markdown]
# ## The library's layer is the same layer
#
# A LLaMA in small, of the size of minilora's own base model (its weights are random here: shapes and sums do not depend
# on what a model knows), with adapters on two of its matrices. Hugging Face's PEFT has the same names.

# %%
small_llama = TransformerConfig(1024, 128, 352, num_hidden_layers=4, num_attention_heads=4)

model = CausalLM(small_llama, seed=0)
before = model(np.array([[5, 6, 7]])).data
model = ml.get_peft_model(model, ml.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
model.print_trainable_parameters()
print("unchanged at first:", np.array_equal(before, model(np.array([[5, 6, 7]])).data))

# %%
layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
layer.lora_B["default"].weight.data[:] = rng.standard_normal((128, 8), np.float32)  # as if it had been trained
X = rng.standard_normal((3, 128), np.float32)
A, B = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
by_hand = forward(X, layer.base_layer.weight.data, A, B, 16 / 8)
print("largest difference from our layer:", abs(layer(ml.Tensor(X)).data - by_hand).max())
assert np.allclose(layer(ml.Tensor(X)).data, by_hand, atol=1e-3)

# %% [markdown]
# ## What a frozen weight saves
#
# The tape keeps an array only if some gradient rule needs it. `ledger()` counts what it holds; nothing is estimated.

# %%
ids = np.arange(128)[None] % 1000
rows = []
for name in ("full fine-tuning", "LoRA"):
    model = CausalLM(small_llama, seed=0)
    if name == "LoRA":
        model = ml.get_peft_model(model, ml.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    loss = model.loss(ids, ids)
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    rows.append((name, trained, ml.ledger().total))
    del loss
for name, trained, kept in rows:
    print(f"{name:<18} trained {trained:>9,}   gradients and Adam's moments {12 * trained:>11,} B   tape {kept:>10,} B")

# %% [markdown]
# The gradients and the optimizer's state all but vanish. The tape shrinks much less: activations are what remains,
# and what lesson 11 goes after.
#
# **To take along**
# - W + (α/r) B A: the update has W's shape and r (d_out + d_in) numbers.
# - A random and B zero: nothing changes at first, and both can learn.
# - The gradient passes through W on its way to earlier layers. W's own gradient is never computed.
# - Merged, it costs nothing at inference: `model.merge_and_unload()`.
# - Whether anything is lost depends on the task, the rank and the layers: lesson 6 measures it.
#
# *E. Hu et al., LoRA, arXiv:2106.09685: equation 3, section 4.1. In minilora: `minilora/lora/layers.py`.*
