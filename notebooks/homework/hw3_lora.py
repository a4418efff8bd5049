# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] nbgrader={"grade_id": "intro", "locked": true}
# # Homework 3: LoRA
#
# You write a LoRA layer from its start to its end: how it begins, what it computes, what it learns from, how it is
# trained, and how it disappears into the weight again. Two problems are about what surrounds it: how many numbers are
# trained, and which tokens the loss is taken over. Each is a place where real programs have been wrong without anyone
# noticing.
#
# The layer is
#
# $$h = W x + \frac{\alpha}{r} B A x$$
#
# with W of shape (d_out, d_in), which is frozen, A of shape (r, d_in) and B of shape (d_out, r). (E. Hu et al., LoRA,
# arXiv:2106.09685.) Rows of X are inputs x.
#
# You need NumPy alone. Each problem ends in a cell that checks your answer by laws that it must obey; run it as
# often as you like. Where a law fails it shows a small case. Grading runs the same laws on other cases. Change
# the seed to see other cases yourself.
#
# | problem | points | about |
# |---|---|---|
# | start | 3 | 10 min |
# | lora_forward | 5 | 25 min |
# | lora_backward | 6 | 30 min |
# | train | 5 | 20 min |
# | switch_adapter | 4 | 20 min |
# | count_trainable | 3 | 15 min |
# | completion_loss | 4 | 25 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
import numpy as np

from minilora.course.checks import hw3_lora as checks

seed = 0

# %% [markdown] nbgrader={"grade_id": "start-text", "locked": true}
# ## How it starts
#
# Before the first step the model has to be the one that was given, so the update is zero, and yet both matrices must
# be able to learn. Return `A, B`: B zero, and A uniform between -1/√d_in and 1/√d_in, drawn from `rng`, a
# `numpy.random.Generator`.

# %% nbgrader={"grade_id": "start", "solution": true}
def start(d_in, d_out, r, rng):
    ### BEGIN SOLUTION
    bound = d_in**-0.5
    return rng.uniform(-bound, bound, (r, d_in)), np.zeros((d_out, r))
    ### END SOLUTION


# %% nbgrader={"grade_id": "start-check", "grade": true, "points": 3}
checks.start.score(start, seed)

# %% [markdown] nbgrader={"grade_id": "forward-text", "locked": true}
# ## What it computes
#
# Return the layer's output for X of shape (..., d_in). The matrix B A need not be formed: two thin products are cheaper.
#
# In training, dropout may be applied to what the *adapter* sees. `kept`, if it is not None, is an array of True and
# False in X's shape: where it is False, that number was dropped and the adapter sees 0. Each number is kept with
# probability 1 - p. The output's expected value has to be what it is without dropout.

# %% nbgrader={"grade_id": "forward", "solution": true}
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    ### BEGIN SOLUTION
    seen = X if kept is None else X * kept / (1 - p)
    return X @ W.T + alpha / len(A) * (seen @ A.T) @ B.T
    ### END SOLUTION


# %% nbgrader={"grade_id": "forward-check", "grade": true, "points": 5}
checks.lora_forward.score(lora_forward, seed)

# %% [markdown] nbgrader={"grade_id": "backward-text", "locked": true}
# ## What it learns from
#
# Let g, of shape (n, d_out), be the loss's gradient with respect to the output for X of shape (n, d_in), without
# dropout. Return three gradients: of X, of A and of B. W has none, since nobody needs it. Why is X's needed?

# %% nbgrader={"grade_id": "backward", "solution": true}
def lora_backward(g, X, W, A, B, alpha):
    ### BEGIN SOLUTION
    scale = alpha / len(A)
    back = g @ B  # (n, r)
    return g @ W + scale * back @ A, scale * back.T @ X, scale * g.T @ (X @ A.T)
    ### END SOLUTION


# %% nbgrader={"grade_id": "backward-check", "grade": true, "points": 6}
checks.lora_backward.score(lora_backward, seed)

# %% [markdown] nbgrader={"grade_id": "train-text", "locked": true}
# ## Training
#
# `layer` has W, A, B and alpha. Let H be its output for X, of shape (n, d_in), and the loss the sum over rows and
# columns of (H - Y)², divided by 2 n. Take `steps` steps of gradient descent, on all rows, at the given rate: change
# `layer.A` and `layer.B`. Nothing is returned.

# %% nbgrader={"grade_id": "train", "solution": true}
def train(layer, X, Y, rate, steps):
    ### BEGIN SOLUTION
    for _ in range(steps):
        error = lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y
        _, gA, gB = lora_backward(error / len(X), X, layer.W, layer.A, layer.B, layer.alpha)
        layer.A, layer.B = layer.A - rate * gA, layer.B - rate * gB
    ### END SOLUTION


# %% nbgrader={"grade_id": "train-check", "grade": true, "points": 5}
checks.train.score(train, seed)

# %% [markdown] nbgrader={"grade_id": "switch-text", "locked": true}
# ## Merging, and merging something else
#
# In use, an adapter need not cost anything: it is merged into the weight. `switch_adapter(layer, adapter)` gives
# `layer.W` a value that does by itself what W and the adapter did together. `adapter` is a tuple `(A, B, alpha)`, or
# None: then the layer is to be the base's again. A server does this thousands of times, so the base may not change by
# a single bit, and the array that was `layer.W` at first may be in use elsewhere.
#
# `layer.base` is None at first; put into it what you like.

# %% nbgrader={"grade_id": "switch", "solution": true}
def switch_adapter(layer, adapter):
    ### BEGIN SOLUTION
    if layer.base is None:
        layer.base = layer.W
    layer.W = layer.base
    if adapter is not None:
        A, B, alpha = adapter
        layer.W = layer.base + alpha / len(A) * B @ A
    ### END SOLUTION


# %% nbgrader={"grade_id": "switch-check", "grade": true, "points": 4}
checks.switch_adapter.score(switch_adapter, seed)

# %% [markdown] nbgrader={"grade_id": "count-text", "locked": true}
# ## How many numbers are trained
#
# `shapes` tells for each linear layer of a model, by its path, the shape (d_out, d_in) of its weight:
#
#     {"layers.0.q_proj": (64, 64), "layers.0.up_proj": (172, 64), ...}
#
# `targets` is a list of names. A layer gets an adapter of rank r if its path is one of them or ends in a dot and
# one of them, as in Hugging Face's PEFT. Return how many numbers there are to train. If no layer has such a name,
# raise a ValueError.
#
# (GPT-3 has 96 blocks whose four attention matrices are 12,288 × 12,288. With rank 1 on q and v you should find the
# 4.7 million of the paper's table 4.)

# %% nbgrader={"grade_id": "count", "solution": true}
def count_trainable(shapes, targets, r):
    ### BEGIN SOLUTION
    adapted = [shape for path, shape in shapes.items() if any(f".{path}".endswith(f".{name}") for name in targets)]
    if not adapted:
        raise ValueError(f"no layer is called {targets}; there are {list(shapes)}")
    return sum(r * (d_out + d_in) for d_out, d_in in adapted)
    ### END SOLUTION


# %% nbgrader={"grade_id": "count-check", "grade": true, "points": 3}
checks.count_trainable.score(count_trainable, seed)

# %% [markdown] nbgrader={"grade_id": "loss-text", "locked": true}
# ## Which tokens count
#
# A language model's `logits[b, t]`, of `logits` (B, T, V), are its scores for the token *after* position t of row b.
# `labels` (B, T) holds the tokens of the same rows, not shifted, with -100 in place of those that are no targets: the
# prompt, which the model is not to learn, and padding. The loss of a target is -log of the probability that softmax
# of its logits gives it. Return the mean over all targets of the batch. (The first token of a row has nothing before
# it: nobody predicts it.)

# %% nbgrader={"grade_id": "loss", "solution": true}
def completion_loss(logits, labels):
    ### BEGIN SOLUTION
    logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits[labels != -100], labels[labels != -100]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "loss-check", "grade": true, "points": 4}
checks.completion_loss.score(completion_loss, seed)
