# %% [markdown]
# # 11. Where the memory goes
#
# LLaMA has 6.7 billion weights: 13.5 GB at two bytes each. To fine-tune all of them takes more than 80 GB, and with QLoRA
# it fits into 8. **What was in the other 70, and which trick removes which part?**
#
# *About 14 minutes. Before it: lesson 1 (gradients), lesson 5 (LoRA), lesson 10 (QLoRA).*

# %%
import numpy as np

import minilora as ml
from minilora import ops
from minilora.viz.charts import memory_bars
from minilora.viz.intervals import curves

rng = np.random.default_rng(0)

# %% [markdown]
# ## Four parts
#
# - the **weights**;
# - a **gradient** for each weight that is trained;
# - the **optimizer's state**: AdamW keeps two averages for each weight that is trained, in float32;
# - **activations**: what the forward pass must keep so that the backward pass can use it.
#
# The first three are counted by arithmetic. The fourth is the one that people guess, so let us build it. A layer here
# is y = tanh(x Wᵀ). Going back with g = ∂loss/∂y, the rules are
#
# $$d = g\,(1 - y^2) \qquad \partial W = d^\top x \qquad \partial x = d\,W$$
#
# So tanh's rule needs y, and W's own rule needs x. If W is frozen, nobody asks for ∂W, and x is not needed for it. And if
# nothing before or in this layer is trained, nobody asks for anything.

# %%
def kept(x, weights, trained):
    """The arrays that the backward pass will need, each once."""
    arrays, needed = {}, False
    for W, is_trained in zip(weights, trained, strict=True):
        if is_trained:
            arrays[id(x)] = x  # for dW
        needed = needed or is_trained
        x = np.tanh(x @ W.T)
        if needed:
            arrays[id(x)] = x  # for tanh
    return arrays.values()


weights = [rng.standard_normal((256, 256)).astype(np.float32) / 16 for _ in range(8)]
x = rng.standard_normal((512, 256)).astype(np.float32)

# %% [markdown]
# Eight layers. Train all of them; or freeze seven, and train only the last one; or freeze seven, and train only the first one.
#
# **Before you run:** how many arrays of 512 × 256 are kept in each of the three cases?

# %%
my_guess = None  # three numbers

cases = {"all": [True] * 8, "the last": [False] * 7 + [True], "the first": [True] + [False] * 7}
for name, trained in cases.items():
    print(f"{name:<10} {len(kept(x, weights, trained))} arrays")

# %% [markdown]
# Nine, two, and nine again. Training the first layer alone keeps as much as training all: its gradient has to come
# through the other seven, and their tanh needs y. That y is also the next layer's x, so that not keeping it "for ∂W" saves
# nothing. Keep this in mind for LoRA.
#
# minilora's tape does the same, and `ml.ledger()` counts what it holds, by reading the rules:

# %%
def tape(trained):
    layers, y = [ml.nn.Linear(256, 256, bias=False) for _ in weights], ml.Tensor(x)
    for layer, W, is_trained in zip(layers, weights, trained, strict=True):
        layer.weight.data[:] = W
        layer.weight.requires_grad = is_trained
        y = ops.tanh(layer(y))
    return ml.ledger().total


for name, trained in cases.items():
    by_hand = sum(a.nbytes for a in kept(x, weights, trained))
    print(f"{name:<10} by hand {by_hand:>9,} bytes    the tape {tape(trained):>9,} bytes")
    assert by_hand == tape(trained)

# %% [markdown]
# ## An adapter on each layer
#
# LoRA adds B A to a frozen W. A's gradient needs the layer's input x, as W's did; B's needs x Aᵀ, which is thin.
#
# There is a question that is often answered wrongly: B A has the shape of W, so is it not as large as W in memory?
# **Before you run:** two ways to write the same sum. Which one keeps more, and how much?

# %%
W = ml.nn.Linear(256, 256).weight
W.requires_grad = False
A = ml.Tensor(rng.standard_normal((8, 256)).astype(np.float32), requires_grad=True)
B = ml.Tensor(np.zeros((256, 8), np.float32), requires_grad=True)


def thin(x):
    return x @ W.T + (x @ A.T) @ B.T


def formed(x):
    return x @ (W + B @ A).T


for layer in (thin, formed):
    before = ml.Tensor(x, requires_grad=True)  # as if it came from a trained layer
    y = layer(before)
    print(f"{layer.__name__:<8} {ml.ledger().total:>9,} bytes kept    W has {W.data.nbytes:,}")
    del y

# %% [markdown]
# `formed` makes W + B A, keeps it (to pass the gradient on to x), and computes a gradient as large as W for it. `thin`
# never forms a matrix of W's size: it keeps x Aᵀ, 512 × 8. (x itself is here a leaf, and not counted.) LoRA is written the
# thin way.
#
# ## A whole model
#
# The model that comes with minilora, four sequences of 128 tokens: everything counted, nothing estimated.
#
# **Before you run:** LoRA trains a twelfth of the weights here. By what factor will the total shrink, and which part will
# be the largest?

# %%
ids = rng.integers(0, 1000, (4, 128))


def prepared(kind):
    model, _ = ml.load_model("embedded")
    if kind == "QLoRA":
        ml.quantize_model(model, "nf4", double_quant=True)
    if kind != "full":
        model = ml.get_peft_model(model, ml.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    return model


rows = {}
for kind in ("full", "LoRA", "QLoRA"):
    model = prepared(kind)
    trained = sum(p.data.nbytes for p in model.parameters() if p.requires_grad)
    loss = model.loss(ids, ids)
    rows[kind] = {
        "weights": model.memory_footprint(), "gradients": trained, "optimizer": 2 * trained,
        "activations": ml.ledger().total,
    }  # fmt: skip
    del loss, model
memory_bars(rows, "Training the embedded model on 4 sequences of 128 tokens")

# %% [markdown]
# Gradients and optimizer have all but gone, and QLoRA has shrunk the weights. But the largest part is what it was:
# adapters on every layer need every layer's input. In a small model activations are nearly all; the larger the model, the
# more the weights matter. At the end we look at 7 billion.
#
# Which activations? The same number of tokens, in shorter and in longer sequences:

# %%
model, rows = prepared("QLoRA"), {}
for batch, length in ((16, 32), (4, 128), (2, 256)):
    ids = rng.integers(0, 1000, (batch, length))
    loss = model.loss(ids, ids)
    by_op = dict(ml.ledger().by_op)
    del loss
    parts = {"attention": "attention", "swiglu": "MLP", "linear": "linear layers", "cross_entropy": "loss"}
    rows[f"{batch} × {length}"] = {name: by_op.pop(op) for op, name in parts.items()}
    rows[f"{batch} × {length}"]["others"] = sum(by_op.values())
memory_bars(rows, "What the tape keeps of 512 tokens, by op")

# %% [markdown]
# All parts but one are nearly the same: they grow with the number of tokens. Attention keeps a probability for each pair of
# tokens and head, so that it grows with the *square* of the length. (FlashAttention computes them again instead.) And the loss
# keeps a number for each word of the vocabulary.
#
# ## Compute it again instead
#
# *Gradient checkpointing* keeps only some layers' inputs, and when backward comes there, computes the layers between
# once more. Here it is, for our chain of tanh layers:

# %%
def gradients(x, weights, every):
    """Each weight's gradient of the sum of all outputs, and the most arrays that were kept at one time."""
    starts = range(0, len(weights), every)
    inputs, y = [], x
    for i, W in enumerate(weights):
        if i in starts:
            inputs.append(y)
        y = np.tanh(y @ W.T)
    g, result, most = np.ones_like(y), [None] * len(weights), 0
    for start in reversed(starts):
        ys = [inputs.pop()]
        part = weights[start : start + every]
        for W in part:
            ys.append(np.tanh(ys[-1] @ W.T))  # again
        most = max(most, len(inputs) + len(ys))
        for i in reversed(range(len(part))):
            d = g * (1 - ys[i + 1] ** 2)
            result[start + i] = d.T @ ys[i]
            g = d @ part[i]
    return result, most


# %% [markdown]
# 36 layers. `every=36` keeps everything of the only part: 37 arrays.
#
# **Before you run:** with `every=1` the input of each layer is kept, and nothing else. Is that the least?

# %%
deep = [rng.standard_normal((16, 16)).astype(np.float32) / 4 for _ in range(36)]
start = rng.standard_normal((4, 16)).astype(np.float32)
expected, _ = gradients(start, deep, 36)
most = {}
for every in range(1, 37):
    result, most[every] = gradients(start, deep, every)
    assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))  # bit for bit
print({every: most[every] for every in (1, 2, 6, 18, 36)})
line = [(every, n, np.nan) for every, n in most.items()]
curves({"arrays": line}, "layers between kept inputs", "arrays at one time", "36 layers, checkpointed")

# %% [markdown]
# No: it keeps 37 as well. What was kept and what is computed again must *both* be in memory, n / k inputs and the k
# layers of one part. Their sum is smallest at k = √n: 12 arrays for 36 layers, for one more forward pass. Where all weights
# are trained, that is a third more work: forward is one product a layer, backward two. With frozen weights backward is
# about one, and it is half as much again.
#
# In a transformer one layer keeps many times its own input, so that a part of one layer is what everybody takes.

# %%
ids, kept_bytes, grads = rng.integers(0, 1000, (4, 128)), [], []
for checkpointing in (False, True):
    model = prepared("LoRA")
    for p in model.parameters():  # as if it had been trained: B is zero at first, and so is A's gradient
        if p.requires_grad:
            p.data[:] = 0.05 * np.random.default_rng(p.size).standard_normal(p.shape)
    if checkpointing:
        model.train()  # it is for training only
        model.gradient_checkpointing_enable()
    loss = model.loss(ids, ids)
    kept_bytes.append(ml.ledger().total)
    loss.backward()
    grads.append([p.grad for p in model.parameters() if p.requires_grad])
print(f"kept: {kept_bytes[0]:,} bytes, with checkpointing {kept_bytes[1]:,}")
print("gradients the same, bit for bit:", all(map(np.array_equal, *grads)))
assert all(map(np.array_equal, *grads))

# %% [markdown]
# **Exercise.** How many arrays are alive at most? n layers in parts of `every`, the input of each part kept: what
# `gradients` above returns as `most`, without computing anything. (The last part may be shorter than the others.)

# %%
from minilora.course.checks import lesson11 as checks


def most_kept(n, every):
    ...  # yours


checks.most_kept.check(most_kept)

# %% [markdown]
# ## What does not fit can wait elsewhere
#
# Activations peak for a moment, at the longest batch. The optimizer's state lies there all the time, and is touched once
# a step. QLoRA's *paged optimizer* lets it move: the state is cut into pages, and when room is short, the page that was
# used longest ago moves out (from the GPU's memory to the host's; in minilora, from memory to a file). When it is wanted
# again, it must come back: a *fault*.
#
# **Before you run:** the state has 10 pages, there is room for 9, and each step touches all 10 in order. How many faults
# does a step make?

# %%
def faults_by_hand(order, room):
    """Faults of a list of page numbers; the page that was used longest ago goes."""
    resident, seen, faults = [], set(), 0
    for page in order:
        if page in resident:
            resident.remove(page)
        elif page in seen:
            faults += 1  # it was here before, and has been moved out
        seen.add(page)
        resident = [*resident, page][-room:]
    return faults


steps = 5
order = list(range(10)) * steps
for room in (10, 9, 5):
    print(f"room for {room:>2}: {faults_by_hand(order, room) / (steps - 1):.0f} faults a step")

# %% [markdown]
# Ten, not one! The page that was used longest ago is just the one that comes next. Pages that are short by one are short
# altogether, so a paged optimizer is for peaks, not a way to live. minilora's has the same faults, and AdamW's numbers:

# %%
from minilora.train.optim import AdamW
from minilora.train.paged import PagedAdamW

PAGE = 2 * 4 * 32768  # bytes: both averages of 32,768 weights
weight = rng.standard_normal(10 * 32768).astype(np.float32)
slopes = [rng.standard_normal(weight.size).astype(np.float32) for _ in range(steps)]


def trained(make):
    p = ml.Tensor(weight.copy(), requires_grad=True)
    optimizer = make([p])
    for g in slopes:
        p.grad = g
        optimizer.step()
    return p.data, optimizer


plain, _ = trained(lambda params: AdamW(params, lr=1e-3))
for room in (10, 9, 5):
    paged, optimizer = trained(lambda p, room=room: PagedAdamW(p, lr=1e-3, resident_bytes=room * PAGE))
    faults, same = optimizer.pages.faults, np.array_equal(paged, plain)
    print(f"room for {room:>2}: {faults / (steps - 1):.0f} faults a step    same weights: {same}")
    assert same and faults == faults_by_hand(order, room)

# %% [markdown]
# **Exercise.** It is the order that hurts. Give the order of two steps over `pages` pages for which the second step makes the
# fewest faults, whatever the room (at least 1): a list of 2 · `pages` numbers, each step touching each page once. The first
# step goes 0, 1, 2, ...

# %%
def better_order(pages):
    ...  # yours


checks.better_order.check(better_order)

# %% [markdown]
# ## Seven billion
#
# `minilora memory llama-7b`, or in Python: the same count for a model that need not exist here. One sequence of 512 tokens,
# 16 bits, adapters on all linear layers.

# %%
from minilora.memory import BUILT_IN, estimate

llama, settings = BUILT_IN["llama-7b"], {"batch": 1, "seq": 512, "dtype": "bfloat16"}
needs = {
    "full": estimate(llama, "full", **settings),
    "LoRA": estimate(llama, "lora", **settings),
    "QLoRA": estimate(llama, "qlora", **settings),
    "QLoRA, ckpt.": estimate(llama, "qlora", checkpointing=True, **settings),
}
rows = {
    name: {
        "weights and adapters": n.weights + n.adapters, "gradients": n.gradients, "optimizer": n.optimizer,
        "activations and their gradients": n.activations + n.input_gradients,
    }
    for name, n in needs.items()
}  # fmt: skip
memory_bars(rows, "Fine-tuning LLaMA 7B")

# %% [markdown]
# One trick for each part: LoRA takes gradients and optimizer state, quantization takes the weights, checkpointing takes
# the activations. And what does QLoRA's paper say of 65 billion?

# %%
big = BUILT_IN["llama-65b"]
full = estimate(big, "full", **settings)
qlora = estimate(big, "qlora", checkpointing=True, **settings)
print(f"full fine-tuning, without activations: {full.model_state / 1e9:.0f} GB (the paper: more than 780 GB)")
print(f"QLoRA with checkpointing, at its peak: {qlora.peak / 1e9:.1f} GB (the paper: less than 48 GB)")

# %% [markdown]
# Does such an estimate hold? For the model that is here, it can be held to the tape:

# %%
from minilora.memory import named

for kind in ("full", "lora", "qlora"):
    model = prepared({"full": "full", "lora": "LoRA", "qlora": "QLoRA"}[kind])
    loss = model.loss(ids, ids)
    said = estimate(named("embedded"), kind, batch=4, seq=128).activations
    print(f"{kind:<6} estimate / counted: {said / ml.ledger().total:.3f}")
    assert abs(said / ml.ledger().total - 1) < 0.05
    del loss, model

# %% [markdown]
# **To take along**
# - Weights, gradients, optimizer state, activations: ask of each trick which of the four it takes.
# - A frozen weight saves its gradient and its optimizer state. What it saves of activations depends on who else needs them.
# - (x Aᵀ) Bᵀ, never (B A): no array of W's size.
# - Checkpointing: n / k kept inputs and k layers again; one more forward pass; the same gradients bit for bit.
# - Pages that are used longest ago are used next. Paging is for peaks.
#
# *T. Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174; T. Dettmers et al., QLoRA,
# arXiv:2305.14314, sections 2 and 3. In minilora: `minilora/autograd/ledger.py`, `checkpoint.py`, `minilora/train/paged.py`,
# `minilora/memory.py`.*
