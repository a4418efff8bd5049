# %% [markdown]
# # 2. A transformer as an essay
#
# A language model reads a row of numbers, and says for every position how likely each next token is. **What happens
# in between, in how many lines, and how is a position kept from seeing the answer that it is to give?**
#
# *About 14 minutes. Before it: lesson 1 for the gradients, which we do not need again here; matrix products in
# NumPy.*
#
# We write the model from nothing, in NumPy, with every shape said. Then we put minilora's own small base into it: the
# two must give the same logits.

# %%
import numpy as np

import minilora as ml
from minilora.viz.attention import attention_map
from minilora.viz.charts import memory_bars
from minilora.viz.intervals import dots

model, tokenizer = ml.load_model("embedded")
w = {name: p.data for name, p in model.named_parameters()}  # name -> array
text = "def read(path, mode):\n    return open(path"
ids = np.array(tokenizer.encode(text))  # (T,)
tokens = [tokenizer.decode([i]) for i in ids]
T, d, H, hd, V = len(ids), 128, 4, 32, 1024  # tokens, width, heads, width of a head, vocabulary
print(T, "tokens:", tokens)

# %% [markdown]
# ## A row of vectors
#
# Each of the V tokens has a row of d numbers in a table. Looking them up gives x, shape (T, d): the *residual
# stream*. All that follows adds to it. A layer reads x, computes something, and adds that to x; nothing is ever
# overwritten.
#
# $$x \leftarrow x + \text{attention}(\text{norm}(x)), \qquad x \leftarrow x + \text{MLP}(\text{norm}(x))$$
#
# So the gradient has a straight way back to the first layer: through the plus signs.

# %%
x = w["model.embed_tokens.weight"][ids]  # (V, d)[(T,)] -> (T, d)
print(x.shape)

# %% [markdown]
# ## RMSNorm
#
# Before a layer reads a vector, it is divided by the root of its mean square. Then each of the d numbers has a
# trained factor.
#
# **Before you run:** what becomes of the output if the vector is made ten times as large?

# %%
my_guess = None


def rms_norm(x, weight, eps=1e-5):
    """x (..., d), weight (d,)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight  # (..., d)


print("your guess:", my_guess, "   √d =", np.sqrt(d).round(2))
for factor in (1, 10):
    before, after = factor * x[0], rms_norm(factor * x[0], np.ones(d))
    print(f"times {factor:>2}: length {np.linalg.norm(before):.2f} before, {np.linalg.norm(after):.2f} after")

# %% [markdown]
# All vectors get the same length, whatever they had; the direction stays. (LayerNorm subtracts the mean as well. LLaMA
# and its kin leave that out.)
#
# ## Attention: a weighted mean of what came before
#
# Each position asks a question, q. Each has a label, k, and something to tell, v. All three are products of x with a
# matrix. How much position t listens to position s is the product of t's question with s's label:
#
# $$\text{weights} = \text{softmax}\left(\frac{q k^T}{\sqrt{h_d}}\right), \qquad \text{output} = \text{weights} \cdot v$$
#
# The softmax makes the T scores of a row positive, with sum 1. Why the root? If the hd numbers of q and k were
# independent and of variance 1, their product would have variance hd; divided by √hd it has variance 1, and the
# softmax does not begin with all weight on one position.
#
# The mask is where it is decided who sees whom. A score of -∞ gives a weight of 0, and the row still sums to 1.

# %%
def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))  # less the maximum: the same result, and no overflow
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, seen):
    """q, k, v (H, T, hd); seen (T, T), True where the row's position may look at the column's."""
    scores = q @ k.mT / np.sqrt(q.shape[-1])  # (H, T, hd) @ (H, hd, T) -> (H, T, T)
    weights = softmax(np.where(seen, scores, -np.inf))  # (H, T, T)
    return weights @ v, weights  # (H, T, T) @ (H, T, hd) -> (H, T, hd)


# %% [markdown]
# H heads do this beside each other, each in its own hd = d/H columns. A head is a question; four heads ask four.
#
# ## Rotary positions
#
# Nothing so far knows the order: a weighted mean does not care in which order it is taken. So q and k are *turned*
# before they meet. Take entries i and i + hd/2 as a point in the plane; at position t it is turned by the angle t ·
# θ^(-2i/hd), θ = 10,000. The first pair turns by one radian a token, the last hardly at all.
#
# **Before you run:** we take one q and one k and compute their score at the positions (3, 1), then at (103, 101).
# What will change?

# %%
my_guess = None


def rope(x, positions, theta=10000.0):
    """x (..., T, hd), positions (T,)."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-np.arange(half) / half)  # (T, hd/2)
    a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)  # (..., T, hd)


q, k = np.random.default_rng(0).standard_normal((2, 1, hd))
print("your guess:", my_guess)
for at_q, at_k in ((3, 1), (103, 101), (3, 2)):
    score = rope(q, np.array([at_q])) @ rope(k, np.array([at_k])).T  # (1, hd) @ (hd, 1)
    print(f"positions {at_q:>3} and {at_k:>3}: score {score.item():.6f}")

# %% [markdown]
# Only the distance counts: the product of two points in the plane depends on their lengths and on the difference of
# their angles, and that is the distance of the positions times a constant. Nothing is trained here, and v is not
# turned.
#
# ## The MLP
#
# Attention moves things between positions. The MLP works on each position by itself: to ff = 352 numbers, through a
# curve, and back to d. In this one (SwiGLU) one product opens or shuts another: silu(g) = g · sigmoid(g).

# %%
def mlp(x, gate, up, down):
    """x (T, d); gate, up (ff, d), down (d, ff)."""
    g = x @ gate.T  # (T, d) @ (d, ff) -> (T, ff)
    return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T  # (T, ff) @ (ff, d) -> (T, d)


# %% [markdown]
# ## All of it

# %%
def heads(x):
    return x.reshape(len(x), H, hd).transpose(1, 0, 2)  # (T, d) -> (H, T, hd)


def transformer(ids, positions, seen):
    """ids, positions (T,), seen (T, T) -> logits (T, V), and each layer's attention weights (H, T, T)."""
    x, maps = w["model.embed_tokens.weight"][ids], []  # (T, d)
    for layer in range(4):
        p = {name.split(".", 3)[3]: a for name, a in w.items() if name.startswith(f"model.layers.{layer}.")}
        n = rms_norm(x, p["input_layernorm.weight"])  # (T, d)
        q, k, v = (heads(n @ p[f"self_attn.{name}_proj.weight"].T) for name in "qkv")  # (H, T, hd)
        y, weights = attend(rope(q, positions), rope(k, positions), v, seen)  # (H, T, hd), (H, T, T)
        x = x + y.transpose(1, 0, 2).reshape(-1, d) @ p["self_attn.o_proj.weight"].T  # (T, d)
        n = rms_norm(x, p["post_attention_layernorm.weight"])  # (T, d)
        x = x + mlp(n, *(p[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))  # (T, d)
        maps.append(weights)
    x = rms_norm(x, w["model.norm.weight"])  # (T, d)
    return x @ w["model.embed_tokens.weight"].T, maps  # (T, V): the table again, "tied"


causal = np.tri(T, dtype=bool)  # position t sees 0 .. t
logits, maps = transformer(ids, np.arange(T), causal)
theirs = model(ids[None]).data[0]  # minilora's has a batch in front: (1, T) -> (1, T, V)
print("logits:", logits.shape, "   minilora's to 0.001:", np.allclose(logits, theirs, atol=1e-3))
assert np.allclose(logits, theirs, atol=1e-3)
p = softmax(logits[-1])  # (V,)
likeliest = {repr(tokenizer.decode([i])): (p[i], np.nan) for i in p.argsort()[::-1][:5]}
dots({"after …open(path": likeliest}, "probability of the next token", "What comes next?")

# %% [markdown]
# It continues as a programmer would. How does it know? Two of its sixteen heads, both counted from 0. Find the row of
# the second `(`, the last but one, and see where it looks in the map on the right.

# %%
attention_map([maps[1][0], maps[2][1]], tokens, names=["layer 1, head 0", "layer 2, head 1"],
              title="One head looks one back, a later one at what came after the last time")

# %% [markdown]
# The left one looks at the token before, nearly everywhere. So after layer 1 each position knows what came before it.
# The right one can then ask: *where is a token that came after a `(`?* The second `(` finds `path`, and `path` is
# what comes next. The second of such a pair is called an induction head. Nobody built it in: it came with training.
#
# ## Why the mask?
#
# Training asks all positions at once: from tokens 0 .. t, what is token t + 1? The answer stands in the same row, one
# to the right. A position that could see it would learn to copy it, and nothing else. The mask makes T questions out
# of one pass.
#
# **Before you run:** we change the last token. Which rows of the logits change, with the mask and without?

# %%
my_guess = None

other = np.append(ids[:-1], 5)
print("your guess:", my_guess)
for name, seen in (("with the mask", causal), ("without", np.ones((T, T), bool))):
    one, two = (transformer(these, np.arange(T), seen)[0] for these in (ids, other))  # (T, V)
    print(f"{name:<14} rows that change: {np.flatnonzero((one != two).any(axis=1)).tolist()}")

# %% [markdown]
# ## The loss
#
# The logits of position t are for token t + 1. The loss is the mean of -log(probability of the token that came). A
# model that knows nothing gives each of the 1,024 tokens the same: log 1024 = 6.93. Here is each token's share.
#
# **Before you run:** `path` occurs twice, `mode` once. Which of the three will be dearest?

# %%
my_guess = None


def losses(logits, ids):
    """logits (T, V), ids (T,) -> (T - 1,): what token 1 cost, token 2, ..."""
    return -np.log(softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]])


cost = losses(logits, ids)
assert np.isclose(cost.mean(), model.loss(ids[None], ids[None]).item(), atol=1e-4)
print("your guess:", my_guess, "   mean:", cost.mean().round(3))
rows = {f"{t}  {tokens[t]!r}": (cost[t - 1], np.nan) for t in range(1, T)}
dots({"": rows}, "loss (nats)", "What each token cost")

# %% [markdown]
# The names cost much when they are new, and little when they can be copied. Lesson 13 fine-tunes on a prompt with an
# answer: there only the answer's tokens count, the rest have the label -100.
#
# ## Packed rows
#
# Examples are short, rows are long. So several examples are put into one row. Each is then to be trained as if it
# were alone. Here is the row with nothing done about it: orange is weight that falls on the other example.

# %%
first, second = tokenizer.encode("for key in table:"), tokenizer.encode("key = other(table)")
row = np.array([*first, *second])  # (T,)
segments = np.repeat([1, 2], [len(first), len(second)])  # (T,)
names = [tokenizer.decode([i]) for i in row]
one_row, leaking = transformer(row, np.arange(len(row)), np.tri(len(row), dtype=bool))
shown = ["layer 1, head 0", "layer 2, head 1"]
attention_map([leaking[1][0], leaking[2][1]], names, segments, shown, "Packed, and not masked")

# %% [markdown]
# **Exercise.** The mask of a packed row. segments (T,) has a number for each token, the same within an example.
# Return booleans (T, T): True where the row's position may look at the column's.

# %%
from minilora.course.checks import lesson02 as checks


def visible(segments):
    ...  # yours


checks.visible.check(visible)

# %% [markdown]
# **Exercise.** The labels of a packed row: at each position the token that it is to predict, -100 where there is
# none. ids and segments (T,), the result (T,).

# %%
def next_tokens(ids, segments):
    ...  # yours


checks.next_tokens.check(next_tokens)

# %% [markdown]
# Now for the proof that a packed row equals its examples alone. (The next cell holds a solution of the first
# exercise.) minilora makes the mask from `segment_ids`, and lets the positions begin anew in each example.
#
# **Before you run:** we compare the second example in the row with the same example alone. With the mask, but
# positions that run on through the row: will it be the same? Think of what `rope` showed.

# %%
my_guess = None

block = (segments[:, None] == segments) & np.tri(len(row), dtype=bool)
anew = np.concatenate([np.arange(len(first)), np.arange(len(second))])
alone, _ = transformer(np.array(second), np.arange(len(second)), np.tri(len(second), dtype=bool))
both, masked = transformer(row, anew, block)
ways = {
    "nothing done": one_row,
    "mask alone": transformer(row, np.arange(len(row)), block)[0],
    "mask and positions": both,
    "minilora's": model(row[None], segment_ids=segments[None]).data[0],
}
print("your guess:", my_guess)
for name, found in ways.items():
    print(f"{name:<20} same as alone: {np.allclose(found[segments == 2], alone, atol=1e-3)}")
assert np.allclose(both, ways["minilora's"], atol=1e-3)
attention_map([masked[1][0], masked[2][1]], names, segments, shown, "Packed and masked")

# %% [markdown]
# Rotary positions need no new beginning, as distances are all they tell. Learned positions, as GPT-2's, do.
#
# ## Where the weights are
#
# LoRA's adapters go beside the matrices of attention and MLP: those are what `target_modules` names.

# %%
sizes = dict.fromkeys(("embedding (and output)", "attention", "MLP", "norms"), 0)
for name, array in w.items():
    part = 0 if "embed" in name else 1 if "self_attn" in name else 2 if "mlp" in name else 3
    sizes[list(sizes)[part]] += array.nbytes
memory_bars({"float32": sizes}, f"The {sum(a.size for a in w.values()):,} weights of the embedded model")

# %% [markdown]
# **To take along**
# - A residual stream (T, d). Attention moves things between positions, the MLP works within one; both add.
# - Attention is a weighted mean of v. The weights are a softmax of q · k / √hd, and the mask is -∞ before it.
# - Rotary positions turn q and k; their product then depends on the distance.
# - One pass asks T questions, because no position sees its answer. Shift by one, then the mean of -log p.
# - A packed row needs a mask by segment, and no target across a border. Then it equals its examples alone.
#
# *A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762, section 3; H. Touvron et al., LLaMA,
# arXiv:2302.13971, section 2.2; J. Su et al., RoFormer, arXiv:2104.09864; C. Olsson et al., In-context Learning and
# Induction Heads, arXiv:2209.11895. In minilora: `minilora/nn/transformer.py`, `nn/attention.py`, `ops/nn.py`; the
# base's origin in `minilora/models/embedded/base.json`.*
