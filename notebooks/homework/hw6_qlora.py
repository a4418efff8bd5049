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
# # Homework 6: QLoRA
#
# QLoRA trains a model whose weights are stored in 4 bits and never change. What is trained is a pair of thin matrices
# beside each of them. You write one such layer, forward and backward, then what stands around it in a training run: the
# loss, the sum over small batches, an optimizer whose state takes two bytes a weight, merging, and the bill.
#
# A frozen weight is a `QuantizedArray` q of minilora: `q.dequantize()` is the weight in float32, `q.shape` is
# (d_out, d_in), and `q.packed` and `q.absmax` are what is stored (homework 4). A has shape (r, d_in), B has shape
# (d_out, r).
#
# You need NumPy alone. Each problem ends in a cell that checks your answer by laws that it must obey; run it as
# often as you like. Where a law fails it shows a small case. Grading runs the same laws on other cases. Change
# the seed to see other cases yourself.
#
# | problem | points | about |
# |---|---|---|
# | qlora_forward | 3 | 10 min |
# | qlora_backward | 6 | 30 min |
# | answer_loss | 4 | 25 min |
# | accumulated | 3 | 10 min |
# | adam8bit_step | 5 | 30 min |
# | merged | 3 | 10 min |
# | qlora_memory | 4 | 15 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
import numpy as np

from minilora.course.checks import hw6_qlora as checks
from minilora.course.checks.hw6_qlora import SIGNED, UNSIGNED, read, write

seed = 0

# %% [markdown] nbgrader={"grade_id": "forward-text", "locked": true}
# ## The layer
#
# The output for an input x is W x, with W the dequantized weight, plus the adapter's part, (alpha / r) B A x. Here many
# inputs come at once, along the axes before the last: x has shape (..., d_in), the result (..., d_out). The product of B
# and A is as large as W; there is no need to form it.

# %% nbgrader={"grade_id": "forward", "solution": true}
def qlora_forward(x, q, A, B, alpha):
    ### BEGIN SOLUTION
    return x @ q.dequantize().T + alpha / len(A) * (x @ A.T) @ B.T
    ### END SOLUTION


# %% nbgrader={"grade_id": "forward-check", "grade": true, "points": 3}
checks.qlora_forward.score(qlora_forward, seed)

# %% [markdown] nbgrader={"grade_id": "backward-text", "locked": true}
# ## Gradients through a frozen weight
#
# x has shape (n, d_in), and g, the gradient of the layer's output, (n, d_out). Return the gradients of x, of A and of B.
# The stored weight gets none. But the gradient of x passes through it, for the layers before this one: so W is
# dequantized a second time.

# %% nbgrader={"grade_id": "backward", "solution": true}
def qlora_backward(x, g, q, A, B, alpha):
    ### BEGIN SOLUTION
    scaled = alpha / len(A) * g
    low = scaled @ B
    return g @ q.dequantize() + low @ A, low.T @ x, scaled.T @ (x @ A.T)
    ### END SOLUTION


# %% nbgrader={"grade_id": "backward-check", "grade": true, "points": 6}
checks.qlora_backward.score(qlora_backward, seed)

# %% [markdown] nbgrader={"grade_id": "loss-text", "locked": true}
# ## Only the answer
#
# A row of the batch is a prompt, its answer, and padding. In row b of `ids`, of shape (batch, T), the first `prompts[b]`
# tokens are the prompt, those from there up to `lengths[b]` the answer, and the rest padding. (A prompt has one token
# or more, an answer too. The token that pads may be the one that ends an answer.)
#
# `logits[b, t]`, of shape (batch, T, V) in all, is what the model says at position t about the token at t + 1. Return
# the loss: the mean of -log p(token) over all answer tokens of the batch.

# %% nbgrader={"grade_id": "loss", "solution": true}
def answer_loss(logits, ids, prompts, lengths):
    ### BEGIN SOLUTION
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    target = np.arange(1, ids.shape[1])
    return losses[(target >= prompts[:, None]) & (target < lengths[:, None])].mean()
    ### END SOLUTION


# %% nbgrader={"grade_id": "loss-check", "grade": true, "points": 4}
checks.answer_loss.score(answer_loss, seed)

# %% [markdown] nbgrader={"grade_id": "accumulate-text", "locked": true}
# ## A large batch in small pieces
#
# Where a batch does not fit into memory, it is cut into pieces, and their gradients are added up. grads[i] is the
# gradient of piece i's *mean* loss over its counts[i] answer tokens. Return the gradient of the mean over all answer
# tokens of the whole batch. A piece may have none (a prompt that fills the window): its mean is 0 / 0, which is NaN.

# %% nbgrader={"grade_id": "accumulate", "solution": true}
def accumulated(grads, counts):
    ### BEGIN SOLUTION
    return sum(n * g for g, n in zip(grads, counts, strict=True) if n) / sum(counts)
    ### END SOLUTION


# %% nbgrader={"grade_id": "accumulate-check", "grade": true, "points": 3}
checks.accumulated.score(accumulated, seed)

# %% [markdown] nbgrader={"grade_id": "adam-text", "locked": true}
# ## An optimizer's state in 8 bits
#
# Adam keeps two numbers for each weight, 8 bytes in float32. In step t (1, 2, ...), with gradient g,
#
# $$m \leftarrow 0.9\, m + 0.1\, g \qquad v \leftarrow 0.999\, v + 0.001\, g^2$$
#
# $$w \leftarrow w - \mathrm{lr}\, \frac{m / (1 - 0.9^t)}{\sqrt{v / (1 - 0.999^t)} + 10^{-8}}$$
#
# Here both are stored in 8 bits, quantized in blocks (of 4, to keep cases small; usually 256): m with the levels
# `SIGNED`, v, which is never negative, with `UNSIGNED`. `read(stored, levels)` gives the numbers,
# `write(numbers, levels)` gives what is to be stored, a pair of codes and absmax. w is updated with the new m and v
# before they are rounded.
#
# One care is needed. A v that is small beside its block's largest would be stored as 0, and the next step divide by
# nothing but the 10⁻⁸. UNSIGNED[0] is 0, UNSIGNED[1] the smallest level above. Where v > 0, store code 1 at least.
#
# w and g are flat. m and v are pairs as `write` returns. Return the new w, m and v.

# %% nbgrader={"grade_id": "adam", "solution": true}
def adam8bit_step(w, g, m, v, t, lr):
    ### BEGIN SOLUTION
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * g * g
    w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    codes, absmax = write(v, UNSIGNED)
    return w, write(m, SIGNED), (np.maximum(codes, v > 0), absmax)
    ### END SOLUTION


# %% nbgrader={"grade_id": "adam-check", "grade": true, "points": 5}
checks.adam8bit_step.score(adam8bit_step, seed)

# %% [markdown] nbgrader={"grade_id": "merged-text", "locked": true}
# ## Merging
#
# After training, the adapter can be added to the weight, so that the layer is one product again. Return that weight, as
# floats, (d_out, d_in). (Why not in 4 bits? Codes are numbers of levels, to which nothing can be added; and where the
# sum is rounded to the levels again, an update smaller than their distance is lost.) q itself stays as it is.

# %% nbgrader={"grade_id": "merged", "solution": true}
def merged(q, A, B, alpha):
    ### BEGIN SOLUTION
    return q.dequantize() + alpha / len(A) * B @ A
    ### END SOLUTION


# %% nbgrader={"grade_id": "merged-check", "grade": true, "points": 3}
checks.merged.score(merged, seed)

# %% [markdown] nbgrader={"grade_id": "memory-text", "locked": true}
# ## The bill
#
# How many bytes do the layers take, of which `shapes` lists the weights' (d_out, d_in), each with an adapter of rank
# r? Return four numbers:
#
# - of the frozen weights: two codes a byte; one byte for each block of 64; a float32 for every 256 blocks; and one
#   float32, the offset, for each weight matrix. Each matrix by itself, and what is left over needs a whole byte, block or
#   float32;
# - of the adapters, in float32;
# - of the gradients, in float32;
# - of Adam's two moments, in float32.

# %% nbgrader={"grade_id": "memory", "solution": true}
def qlora_memory(shapes, r):
    ### BEGIN SOLUTION
    base = trained = 0
    for d_out, d_in in shapes:
        n = d_out * d_in
        blocks = -(-n // 64)
        base += -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4
        trained += r * (d_in + d_out)
    return base, 4 * trained, 4 * trained, 8 * trained
    ### END SOLUTION


# %% nbgrader={"grade_id": "memory-check", "grade": true, "points": 4}
checks.qlora_memory.score(qlora_memory, seed)
