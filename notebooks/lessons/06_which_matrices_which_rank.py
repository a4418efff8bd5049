# %% [markdown]
# # 6. Which matrices, which rank?
#
# A layer of the transformer has seven matrices, and an adapter of rank r can stand beside each. **Where should it
# stand, and how large must r be?** And why should a change of low rank be enough at all?
#
# *About 13 minutes. Before it: lesson 3 (SVD) and lesson 5 (LoRA).*
#
# Everything is trained here, in seconds, on the small embedded model, with 256 examples and one seed. That shows the
# shape of an answer. The same with three seeds and intervals: `minilora experiment lora-table5` and `lora-table6`.
# (Learning rates are those that did best on validation examples: 0.03 for adapters in attention alone, 0.01 for those
# beside all matrices.)

# %%
import copy
import warnings

import numpy as np

import minilora as ml
from minilora import lowrank
from minilora.data.tasks import encode, load_task
from minilora.experiments.intrinsic_dimension import figures
from minilora.experiments.tuning import train
from minilora.viz.intervals import curves, dots
from minilora.viz.pixels import pixels

rng = np.random.default_rng(0)
base, tokenizer = ml.load_model("embedded")
task = load_task("header_json")  # a function's header is to become JSON
held_out = encode(tokenizer, task.held_out[:96], 320)


def tuned(model, rate, seed=0):
    train(model, tokenizer, task.train[:256], steps=32, batch=8, learning_rate=rate, seed=seed)
    return model


def right(model):
    """The share of the held-out answers' tokens that the model finds."""
    return figures(model, held_out)["token_accuracy"]


# %% [markdown]
# ## What full fine-tuning changes
#
# We train all weights and look at ΔW = W' - W. Is it of low rank?
#
# **Before you run:** ΔW of W_v is 128 × 128. How many of its 128 singular values hold 90 % of its square? Of random
# numbers it is about 65.

# %%
my_guess = None

full = tuned(copy.deepcopy(base), 2e-3)


def weight(model, layer, name):
    return model.get_submodule(f"model.layers.{layer}.{name}").weight.data


def change(layer, name):
    return weight(full, layer, name) - weight(base, layer, name)


lines = {}
for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"):
    S = lowrank.singular_values(change(1, name))
    lines[f"ΔW of {name[10:]}"] = [(i + 1, S[i] / S[0], np.nan) for i in range(0, 100, 4)]
    print(f"{name}: {lowrank.rank_for_energy(S, 0.9)} of 128 for 90 %")
S = lowrank.singular_values(weight(base, 1, "self_attn.v_proj"))
lines["W of v_proj"] = [(i + 1, S[i] / S[0], np.nan) for i in range(0, 100, 4)]
print("your guess:", my_guess)
curves(lines, "i", "σᵢ / σ₁", "Singular values, layer 1", log_y=True)

# %% [markdown]
# ΔW falls much faster than W. Yet it is not of rank 1, nor 8: some twenty directions hold nine tenths, and no σ is
# zero. *"Fine-tuning's change has low rank" is not quite what we see.* So what is low?
#
# ## What the task needs of it
#
# Cut ΔW of every matrix to its best rank r (lesson 3) and look at the answers. `extract_lora` does that, and hands it
# back as an adapter. For comparison we *train* adapters of rank r at the same matrices.
#
# **Before you run:** the best rank 1 misses nine tenths of ΔW (by its norm). How good will the answers be? And will
# the trained rank 1 be better or worse than the best rank 1 of the true change?

# %%
my_guess = None


def adapted(targets, r, rate=1e-2, seed=0):
    """A copy of the base with trained adapters, beside the matrices of these names."""
    config = ml.LoraConfig(r=r, lora_alpha=8, target_modules=targets)
    return tuned(ml.get_peft_model(copy.deepcopy(base), config, seed=seed), rate, seed)


def extracted(r):
    with warnings.catch_warnings():  # it warns that embedding and norms have changed too, and are left out
        warnings.simplefilter("ignore")
        return lowrank.extract_lora(full, copy.deepcopy(base), r)


def factors(model, layer, name):
    """B (d_out, r) and A (r, d_in) of an adapter."""
    at = model.get_submodule(f"base_model.model.model.layers.{layer}.{name}")
    return at.lora_B["default"].weight.data, at.lora_A["default"].weight.data


U, S, Vt = np.linalg.svd(change(1, "self_attn.v_proj"))
B, A = factors(extracted(8), 1, "self_attn.v_proj")
assert np.allclose((U[:, :8] * S[:8]) @ Vt[:8], B @ A, atol=1e-4)  # lesson 3's truncation

trained = {r: adapted("all-linear", r) for r in (1, 8, 32)}
cut = {r: extracted(r) for r in (1, 2, 4, 8, 32)}
for r, model in cut.items():
    print(f"r = {r:>2}: ‖ΔW - B A‖ / ‖ΔW‖ = {np.mean(list(model.extraction_error.values())):.2f} on average")
parts = {
    "cut from ΔW": [(r, right(model), np.nan) for r, model in cut.items()],
    "trained": [(r, right(model), np.nan) for r, model in trained.items()],
}
levels = {"full fine-tuning": right(full), "base": right(base)}
print("your guess:", my_guess)
curves(parts, "rank r", "answer tokens right", "Rank: cut and trained", log_x=True, levels=levels)

# %% [markdown]
# Two answers in one picture.
#
# - *Cut*, the change serves the task before it is well approximated. At r = 8 the error is more than half of ΔW's
#   norm still, and little is lost.
# - *Trained* at rank 1, the adapter does better than the best rank 1 of ΔW. Eckart and Young find the nearest matrix
#   to ΔW. But nobody asked for ΔW: training looks for *any* change of rank 1 that lowers the loss, and there is
#   another, better one.
#
# So the paper's "low intrinsic rank" says: among the many changes that do the task, there are some of low rank.
# Whether the one that full fine-tuning happens to find is low, is another question.
#
# ## Which rank?
#
# Beside all seven matrices r = 1 brings more than nine tenths of what r = 8 brings, and r = 32 brings no more than 8.
# The paper found even less of a difference on GPT-3 (table 6): 73.4 % at r = 1 and 73.5 % at r = 64 on WikiSQL, for W_q
# and W_v. It is not a law. If the task needs a change of rank k, as lesson 5's planted one, r < k fails. And in a model
# of width 128 a rank is fewer numbers: with W_q and W_v alone, `lora-table6` finds 28 % of whole answers right at r =
# 1, 39 % at r = 8, and 39 % at r = 64. *Try 8; go up only if a larger r is better on validation examples.*
#
# ## Which matrices?
#
# To be fair, the number of trained weights must be the same: twice the matrices, half the rank. The four matrices of
# attention are 128 × 128, so one of them at r = 8 costs 4 layers × 8 × (128 + 128) = 8,192.
#
# **Before you run:** q and k decide where a position looks, v and o what it gets from there. Which of q and v alone
# will be better? And will all four at r = 2 beat one at r = 8?

# %%
my_guess = None

arms = {
    "q, r = 8": (["q_proj"], 8),
    "v, r = 8": (["v_proj"], 8),
    "q v, r = 4": (["q_proj", "v_proj"], 4),
    "q k v o, r = 2": (["q_proj", "k_proj", "v_proj", "o_proj"], 2),
}
rows = {}
for name, (targets, r) in arms.items():
    model = adapted(targets, r, rate=3e-2)
    rows[f"{name}: {sum(p.size for p in model.trainable().values()):,}"] = right(model), np.nan
count = sum(p.size for p in trained[1].trainable().values())
rows[f"all seven, r = 1: {count:,}"] = right(trained[1]), np.nan
print("your guess:", my_guess)
dots({"matrices and trained numbers": rows}, "answer tokens right", "Which matrices, at one budget")

# %% [markdown]
# W_q alone is last. It can only change where positions look, however large its rank. W_v alone is better, half and
# half better than either. Beyond that the differences are as small as those between seeds: two kinds, four or all
# seven, much the same. (`lora-table5`, with three seeds: q and k are last, q with v is above v alone, and two kinds
# cannot be told from four.)
#
# In the paper (table 5, GPT-3, 18 million numbers, WikiSQL): W_q 70.4, W_k 70.0, W_v 73.0, W_o 73.2, W_q and W_v
# 73.7, all four 73.7: the same order. The MLP was left out there. QLoRA then found that adapters at *all* linear
# layers are needed to match full fine-tuning, and that r hardly matters (arXiv:2305.14314, section 4). Here all seven
# at r = 8 come nearest to it, as the picture before has it, though with eight times the numbers of the last row.
#
# ## Do two adapters find the same directions?
#
# Train twice, with two seeds. If the top directions of the two are the same, they belong to the task, not to chance.
# Let V_i be the first i right singular vectors of one update, as columns, V'_j the first j of the other. The paper
# (section 7.2) compares the spaces that they span:
#
# $$\varphi(i, j) = \frac{\|V_i^T V'_j\|_F^2}{\min(i, j)}$$
#
# It is 1 where the smaller lies within the larger, 0 where they are orthogonal.
#
# **Before you run:** what is φ(8, 8) for two random spaces in 128 dimensions? (A random direction has 1/128 of its
# square along any other.)

# %%
my_guess = None


def phi(one, other, most=8):
    """φ(i, j) at [i - 1, j - 1] for i, j up to `most`; one (m, d), other (n, d)."""
    V, V2 = (np.linalg.svd(x)[2][:most] for x in (one, other))  # (most, d): directions as rows
    squares = (V @ V2.T) ** 2  # (most, most)
    smaller = np.minimum.outer(np.arange(1, most + 1), np.arange(1, most + 1))
    return squares.cumsum(0).cumsum(1) / smaller


again, name = adapted("all-linear", 8, seed=1), "self_attn.q_proj"
first, second = (B @ A for B, A in (factors(trained[8], 2, name), factors(again, 2, name)))
noise = [a @ b for a, b in rng.standard_normal((2, 2, 128, 128))]
pairs = {
    "two seeds of LoRA": phi(first, second),
    "LoRA and full": phi(first, change(2, name)),
    "two random ones": phi(*noise),
}
theirs = lowrank.subspace_similarities(first, second)[:8, :8]
assert np.allclose(pairs["two seeds of LoRA"], theirs, atol=1e-3)
print("your guess:", my_guess)
for words, values in pairs.items():
    print(f"{words:<18} φ(1, 8) = {values[0, 7]:.2f}   φ(8, 8) = {values[7, 7]:.2f}")
pixels(pairs, "φ(i, j): i down, j to the right; black 0, white 1", span=(0, 1), across=3)

# %% [markdown]
# The first direction of one run lies largely within the first eight of the other, and of full fine-tuning's. The
# eighth does not: φ(8, 8) is low, though above chance, which is 8/128 = 0.06. So a few directions are the task's, and
# the rest of the eight are whatever each run happened to take. That is another way to see why a small r is enough.
#
# **Exercise.** shapes is a list of (d_out, d_in), the matrices to be adapted. What is the largest r for which all
# their adapters together have at most `budget` trained numbers? 0 if not even r = 1 fits.

# %%
from minilora.course.checks import lesson06 as checks


def rank_for_budget(shapes, budget):
    ...  # yours


checks.rank_for_budget.check(rank_for_budget)

# %% [markdown]
# **Exercise.** Two adapters stand beside one matrix; the update is B1 A1 + B2 A2. Return one B and one A that do the
# same. (It is not B1 + B2 and A1 + A2. Which rank does it take?)

# %%
def joined(B1, A1, B2, A2):
    ...  # yours: return B, A


checks.joined.check(joined)

# %% [markdown]
# **To take along**
# - Full fine-tuning's ΔW falls off faster than W, but is not of low rank. Some change of low rank does the task; that
#   suffices.
# - Which matrices? Several kinds at a small rank rather than one at a large one, and not those of q and k alone. All
#   linear layers is a safe choice.
# - Which rank? Small. 8 is a good first guess; test it on validation examples rather than believe it.
# - φ: two runs share their first directions, the others are chance.
#
# *E. Hu et al., LoRA, arXiv:2106.09685: section 7, tables 5 and 6. T. Dettmers et al., QLoRA, arXiv:2305.14314,
# section 4. In minilora: `minilora/lowrank/compare.py`; `minilora/experiments/lora_table5.py` and `lora_table6.py`.*
