# %% [markdown]
# # 4. Intrinsic dimension
#
# A model with hundreds of millions of numbers is fine-tuned on a few hundred examples, by plain gradient descent,
# with hardly any regularization. By counting, it could fit anything at all to so few examples. **Why does it learn
# the task instead?**
#
# *About 15 minutes. Before it: lesson 3 (rank).*

# %%
import copy

import numpy as np

import minilora as ml
from minilora import lowrank
from minilora.viz.intervals import curves, dots
from minilora.viz.pixels import pixels

rng = np.random.default_rng(0)

# %% [markdown]
# ## A toy whose answer is known
#
# 1,000 numbers θ in ten groups of 100. The only wish: the sum of group i shall be i. With C (10 × 1000) that adds up
# the groups,
#
# $$\text{loss}(\theta) = \tfrac12 \|C \theta - (1, 2, \dots, 10)\|^2, \qquad \nabla = C^T (C\theta - (1, \dots, 10)).$$
#
# Ten equations, 1,000 unknowns. First, gradient descent on all of them, from random θ0.
#
# **Before you run:** θ moves in a space of 1,000 dimensions. In how many of them does it move? And with 100,000
# numbers in place of 1,000, how many more steps will it take?

# %%
my_guess = None

goal = np.arange(1.0, 11)


def sums(D):
    """C (10, D): row i has ones at group i."""
    return np.repeat(np.eye(10), D // 10, axis=1)


for D in (1000, 100_000):
    C = sums(D)
    start = rng.standard_normal(D) / 100
    theta, rate = start.copy(), 0.1 / (D // 10)  # 0.1 / curvature
    loss = []
    for _ in range(100):
        error = C @ theta - goal  # (10,)
        theta = theta - rate * (C.T @ error)  # (D,)
        loss.append(0.5 * error @ error)
    move = theta - start
    within = np.linalg.lstsq(C.T, move)[0] @ C  # the part of the move that the ten rows of C can make
    print(f"D = {D:>7,}: after 50 steps the loss is {loss[50] / loss[0]:.1e} of the first;",
          "all of the move in ten directions:", np.allclose(move, within))
print("your guess:", my_guess)

# %% [markdown]
# The gradient is Cᵀ times ten numbers. So every step is a combination of ten directions, however many numbers there
# are. The other 990 directions are flat: the loss does not see them, the gradient is 0 along them, and θ stays there
# as it began. Gradient descent goes to the solution *nearest to its start*. Nobody has to forbid the rest.
#
# So counting parameters was the wrong count. What counts is how many directions the task needs, seen from the start.
#
# ## Measuring it
#
# If k directions matter, then k *random* directions will do: nearly surely some combination of them solves the
# equations. So fix a random matrix P (D × d), and train only d numbers:
#
# $$\theta = \theta_0 + P \theta_d, \qquad \frac{\partial\, \text{loss}}{\partial \theta_d} = P^T \frac{\partial\, \text{loss}}{\partial \theta}$$
#
# The smallest d that works is the *intrinsic dimension* of the task.
#
# **Before you run:** from which d on will the toy be solved? How sharp will the edge be?

# %%
my_guess = None


def descend(d, seed, steps=3000):
    """Part of the goal that is missed, after training d numbers."""
    C, P = sums(1000), np.random.default_rng(seed).standard_normal((1000, d))
    P /= np.linalg.norm(P, axis=0)  # columns of length one
    rate = 1 / np.linalg.norm(C @ P, 2) ** 2
    theta_d, velocity = np.zeros(d), np.zeros(d)
    for _ in range(steps):
        gradient = C.T @ (C @ (P @ theta_d) - goal)  # (1000,): of all numbers
        velocity = 0.99 * velocity - rate * (P.T @ gradient)  # (d,), with momentum
        theta_d = theta_d + velocity
    return np.linalg.norm(C @ (P @ theta_d) - goal) / np.linalg.norm(goal)


lines = {}
for seed in (0, 1):
    lines[f"seed {seed}"] = [(d, max(descend(d, seed), 1e-3), np.nan) for d in range(7, 14)]
print("your guess:", my_guess)
curves(lines, "d, trained numbers", "part of the goal missed", "Ten equations, 1,000 unknowns", log_y=True)

# %% [markdown]
# At d = 9 nothing helps: C P is 10 × 9 and has rank 9 at most (lesson 3), so it does not reach every goal. From 10 on
# it is solved (drawn no lower than 0.1 %); with other seeds d = 10 may take more than 3,000 steps. D = 1,000 played
# no part.
#
# minilora's `Subspace` does this to any model. Its gradient is ours:

# %%
toy = lowrank.GroupSums()
model = lowrank.Subspace(toy, d=10, projection=lowrank.DenseProjection, seed=0)
model.loss().backward()
P = lowrank.DenseProjection(1000, 10, [0, 0]).matrix  # (1000, 10), the one that it drew
by_hand = P.T @ (sums(1000).T @ -goal)
print("same direction:", np.allclose(model.theta_d.grad, np.sqrt(1000 / 10) * by_hand, rtol=1e-4))
assert np.allclose(model.theta_d.grad, np.sqrt(1000 / 10) * by_hand, rtol=1e-4)

# %% [markdown]
# (The factor √(D/d) is a matter of units: with it, a step of θ_d moves each number as far as in full training.)
#
# ## Fastfood: a random matrix that is not stored
#
# **Before you run:** a small model has D = 1,000,000. How many bytes does P take in float32, for d = 1,000?

# %%
my_guess = None
print("your guess:", my_guess)
print(f"P: {4 * 1_000_000 * 1000:,} bytes   Fastfood's: {lowrank.Fastfood(1_000_000, 1000).nbytes:,}")

# %% [markdown]
# Fastfood multiplies by a product of quick matrices, P ~ H G Π H B: B flips signs, Π permutes, G multiplies by normal
# numbers. H is the Walsh-Hadamard matrix, of entries ±1, made of itself: [[H, H], [H, -H]]. So a product with it
# takes n log n additions, and H is never there.

# %%
def hadamard(x):
    """H x for n = 2, 4, 8, ... entries: sums and differences of halves, at every size."""
    y, size = np.asarray(x), 1
    while size < len(x):
        pairs = y.reshape(-1, 2, size)  # two neighbouring pieces of this size
        y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        size *= 2
    return y


def fastfood(F, x):
    """P x from what a lowrank.Fastfood keeps: blocks H G Π H B one after another, cut at D rows."""
    D, d = F.shape
    blocks = []
    for signs, order, gauss in zip(F.signs, F.order, F.gauss, strict=True):
        y = np.zeros(len(signs))
        y[:d] = signs[:d] * x  # B
        blocks.append(hadamard(gauss * hadamard(y)[order]))  # H, Π, G, H
    return np.concatenate(blocks)[:D]


F = lowrank.Fastfood(100, 24, seed=0)
x, g = rng.standard_normal(24), rng.standard_normal(100)
assert np.allclose(hadamard(x[:16]), lowrank.walsh_hadamard(x[:16])) and np.allclose(fastfood(F, x), F @ x)
print("P x equal to minilora's; ⟨P x, g⟩ = ⟨x, Pᵀ g⟩:", np.isclose((F @ x) @ g, x @ (F.T @ g)))
whole = np.stack([F @ e for e in np.eye(24)], axis=1)
dense = lowrank.DenseProjection(100, 24, seed=0).matrix
H = np.stack([hadamard(e) for e in np.eye(32)])
shown = {"H, 32 × 32": H, "Fastfood's P": whole, "normal numbers": dense}
pixels(shown, "A pattern, and two that look like noise", span=(-0.3, 0.3), across=3)

# %% [markdown]
# H alone is all pattern. Signs, a permutation and normal numbers between two of them leave none to the eye.
#
# ## A language model
#
# Now the embedded model, D = 935,040, and a task: a function's header is to become JSON. We train on 256 examples,
# once, and count how many answer tokens of other files' headers are right. Twice: from the pretrained θ0, and from
# random numbers. (The learning rates are those that a validation split chose: `minilora experiment
# intrinsic-dimension`.)
#
# **Before you run:** 512 numbers are 0.05 % of D. How much of full training will they reach? And from random weights,
# does full training, with 935,040 free numbers, catch up with 512 from the pretrained start?

# %%
my_guess = None

from minilora.data.tasks import encode, load_task
from minilora.experiments.intrinsic_dimension import figures
from minilora.experiments.tuning import train
from minilora.nn import CausalLM

base, tokenizer = ml.load_model("embedded")
task = load_task("header_json")
held_out = encode(tokenizer, task.held_out[:96], 320)
D = base.num_parameters()


def tuned(start, d):
    """A copy of which d numbers were trained."""
    model = copy.deepcopy(start)
    if 0 < d < D:
        model = lowrank.Subspace(model, d)
    if d:
        rate = 2e-3 if d == D else 2e-2
        train(model, tokenizer, task.train[:256], steps=32, batch=8, learning_rate=rate, seed=0)
    return model


def right(model, rows):
    """The share of the answers' tokens that the model finds."""
    return figures(model, rows)["token_accuracy"]


labels = {0: "not trained", 512: "d = 512", D: f"all {D:,}"}
starts = {"pretrained start": base, "random start": CausalLM(base.config, seed=0)}
models = {(name, d): tuned(start, d) for name, start in starts.items() for d in labels}
bars = {name: {labels[d]: (right(models[name, d], held_out), np.nan) for d in labels} for name in starts}
print("your guess:", my_guess)
dots(bars, "answer tokens right, on held-out headers", "256 examples")

# %% [markdown]
# And how far did full training go?

# %%
def flat(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])  # (D,)


seen = encode(tokenizer, task.train[:96], 320)
for name, start in starts.items():
    way = np.linalg.norm(flat(models[name, D]) - flat(start)) / np.linalg.norm(flat(start))
    print(f"{name:<16} moved by {way:.0%} of its length;  tokens right: {right(models[name, D], seen):.2f} of those",
          f"it was trained on, {right(models[name, D], held_out):.2f} held out")

# %% [markdown]
# Every example was read only once: nobody learns by heart so. Let us give all the numbers a chance to: 16 examples, 20
# times each, from the pretrained start.
#
# **Before you run:** how many tokens will be right of the 16, and how many held out? (Without training it is 0.60.)

# %%
my_guess = None

few, model = task.train[:16], copy.deepcopy(base)
train(model, tokenizer, few, steps=40, batch=8, learning_rate=2e-3, seed=0)
print("your guess:", my_guess, f"   tokens right: {right(model, encode(tokenizer, few, 320)):.2f} of the 16,",
      f"{right(model, held_out):.2f} held out")

# %% [markdown]
# It knows the 16 by heart, as the counting said it could. And yet it has learnt the task as well, most of the way that
# 256 examples bring it. Many θ fit the 16. Descent has come to one of them near its start, and near *this* start such a
# θ does the task.
#
# From the pretrained start 512 numbers bring about seven tenths of what all 935,040 bring. This answers the question
# of the beginning, in three steps.
#
# - **The number of parameters is not the number of directions that are used.** D is the same in both halves of the
#   picture.
# - **Pretraining has made the task small.** From the pretrained θ0, a point that does the task is near, and a few
#   hundred random directions lead there. From random numbers the same data and the same descent do worse with all of
#   D than a pretrained start with 512 numbers.
# - **Gradient descent leaves alone what the loss does not see.** It moves along what the examples ask for, and the
#   rest stays as pretrained. So there is little that regularization would have to hold back. (In the toy this is
#   exact. Adam, with which we trained here, scales each number's step by itself, and a network's flat directions are
#   only nearly flat. The pretrained start was left by 6 % of its length only.)
#
# Few directions also mean that little can be learnt by heart: bounds on the difference between training and held-out
# error exist that grow with √(d / examples), and D is not in them (Aghajanyan et al., section 5). At our sizes such a
# bound is too loose to promise anything. It says what the difference depends on.
#
# ## How small is it?
#
# d90 is the smallest d that reaches 90 % of full training. The experiment takes three seeds and a grid of d's: 512 to
# 1,024 by answer tokens; by answers that are right as a whole, not even d = 16,384. *A d90 belongs to its metric.* From
# random weights 90 % of what *they* reach takes 1,024 to 2,048, about twice as many; what they reach is much less.
# Published ones: 207 for RoBERTa-large on MRPC, 1,608 for BERT-base (SAID, below).
#
# LoRA draws the practical conclusion: few numbers suffice for the *change*. It does not take random directions in the
# space of all weights, but a product of low rank beside each matrix, and both factors are trained. Lesson 5 builds
# it, lesson 6 asks where it should stand and which rank it needs.
#
# **Exercise.** SAID gives each layer a trained factor λ: θ = θ0 + λ P θ_d. You have g = ∂loss/∂θ (D,), P (D, d), θ_d
# and λ. Return ∂loss/∂θ_d (d,) and ∂loss/∂λ (a number).

# %%
from minilora.course.checks import lesson04 as checks


def said_gradients(g, P, theta_d, scale):
    ...  # yours: return two


checks.said_gradients.check(said_gradients)

# %% [markdown]
# **Exercise.** d90 itself. reached is a dict from d to a metric (the larger the better), full that of full training.
# Return the smallest d with 90 % of it, None where there is none.

# %%
def d90(reached, full):
    ...  # yours


checks.d90.check(d90)

# %% [markdown]
# **To take along**
# - θ = θ0 + P θ_d: train d numbers, measure in how few directions a task can be learnt.
# - The gradient has no part in directions that the loss does not see. Gradient descent leaves them alone.
# - A good start makes the intrinsic dimension small. That, not the model's size, is what a few hundred examples have
#   to fill.
# - Fastfood: random enough, O(D log d), and a few bytes a row.
#
# *C. Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, arXiv:1804.08838, section 2; A. Aghajanyan
# et al., Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning, arXiv:2012.13255; Q. Le
# et al., Fastfood, ICML 2013. In minilora: `minilora/lowrank/intrinsic.py`, `fastfood.py`.*
