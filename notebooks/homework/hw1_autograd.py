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
# # Homework 1: autograd
#
# A program that learns needs the derivative of one number, the loss, by every weight. You write the two halves of
# the machine that finds it: rules that send a gradient back through one operation, and the walk that applies them
# in the right order.
#
# A rule is a *vector-Jacobian product*. For y = f(x), and g with y's shape (how the loss changes with each number
# of y), it returns an array of x's shape: how the loss changes with each number of x.
#
# You need NumPy alone. Each problem ends in a cell that checks your answer by laws that it must obey; run it as
# often as you like. Where a law fails it shows a small case. Grading runs the same laws on other cases. Change
# the seed to see other cases yourself.
#
# | problem | points | about |
# |---|---|---|
# | unbroadcast | 3 | 15 min |
# | divide_vjp | 3 | 10 min |
# | matmul_vjp | 3 | 15 min |
# | softmax_vjp | 4 | 20 min |
# | cross_entropy_grad | 3 | 15 min |
# | rms_norm_vjp | 3 | 20 min |
# | backward | 6 | 40 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
import numpy as np

from minilora.course.checks import hw1_autograd as checks

seed = 0

# %% [markdown] nbgrader={"grade_id": "unbroadcast-text", "locked": true}
# ## Undoing broadcasting
#
# NumPy copies numbers to make shapes fit: in `a + b` with a of shape (3, 4) and b of shape (4,), every number of b is
# used three times. Its gradient is therefore the sum over those three uses. Given g, of the shape after
# broadcasting, return the gradient of an array of `shape`.

# %% nbgrader={"grade_id": "unbroadcast", "solution": true}
def unbroadcast(g, shape):
    ### BEGIN SOLUTION
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True)
    ### END SOLUTION


# %% nbgrader={"grade_id": "unbroadcast-check", "grade": true, "points": 3}
checks.unbroadcast.score(unbroadcast, seed)

# %% [markdown] nbgrader={"grade_id": "divide-text", "locked": true}
# ## A rule with two inputs
#
# The rule of y = a / b returns two gradients, a's and b's. Either input may have been broadcast.

# %% nbgrader={"grade_id": "divide", "solution": true}
def divide_vjp(a, b, g):
    ### BEGIN SOLUTION
    return unbroadcast(g / b, a.shape), unbroadcast(-g * a / b**2, b.shape)
    ### END SOLUTION


# %% nbgrader={"grade_id": "divide-check", "grade": true, "points": 3}
checks.divide_vjp.score(divide_vjp, seed)

# %% [markdown] nbgrader={"grade_id": "matmul-text", "locked": true}
# ## The rule that does the work
#
# y = a @ b, with a of shape (n, k) and b of shape (k, m). Most of a transformer's time goes into this rule. Notice
# which input each gradient needs: if b is frozen, its own gradient is never asked for, and a need not be kept.

# %% nbgrader={"grade_id": "matmul", "solution": true}
def matmul_vjp(a, b, g):
    ### BEGIN SOLUTION
    return g @ b.T, a.T @ g
    ### END SOLUTION


# %% nbgrader={"grade_id": "matmul-check", "grade": true, "points": 3}
checks.matmul_vjp.score(matmul_vjp, seed)

# %% [markdown] nbgrader={"grade_id": "softmax-text", "locked": true}
# ## Softmax
#
# Each row of y is exp(x) divided by its sum, so that a row of y sums to 1. You are given y itself, since the rule
# needs nothing else. (The Jacobian of a row is diag(y) - y yᵀ. Do not build it.)

# %% nbgrader={"grade_id": "softmax", "solution": true}
def softmax_vjp(y, g):
    ### BEGIN SOLUTION
    return y * (g - (g * y).sum(axis=-1, keepdims=True))
    ### END SOLUTION


# %% nbgrader={"grade_id": "softmax-check", "grade": true, "points": 4}
checks.softmax_vjp.score(softmax_vjp, seed)

# %% [markdown] nbgrader={"grade_id": "cross-entropy-text", "locked": true}
# ## The loss
#
# The loss of a row of logits is -log of the probability that softmax gives its target, a class number. The loss of
# a batch is the mean over rows. Return the gradient of that mean with respect to the logits.

# %% nbgrader={"grade_id": "cross-entropy", "solution": true}
def cross_entropy_grad(logits, targets):
    ### BEGIN SOLUTION
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    p[np.arange(len(p)), targets] -= 1
    return p / len(p)
    ### END SOLUTION


# %% nbgrader={"grade_id": "cross-entropy-check", "grade": true, "points": 3}
checks.cross_entropy_grad.score(cross_entropy_grad, seed)

# %% [markdown] nbgrader={"grade_id": "rms-norm-text", "locked": true}
# ## Normalisation
#
# y = x / sqrt(mean(x²) + eps), the mean over the last axis. Return the gradient of x.

# %% nbgrader={"grade_id": "rms-norm", "solution": true}
def rms_norm_vjp(x, g, eps):
    ### BEGIN SOLUTION
    rms = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return g / rms - x * (g * x).mean(axis=-1, keepdims=True) / rms**3
    ### END SOLUTION


# %% nbgrader={"grade_id": "rms-norm-check", "grade": true, "points": 3}
checks.rms_norm_vjp.score(rms_norm_vjp, seed)

# %% [markdown] nbgrader={"grade_id": "backward-text", "locked": true}
# ## The walk
#
# A `Node` has `value`, `parents` (the nodes it was computed from), `vjps` (one function for each parent, from this
# node's gradient to what the parent receives from it), `needs` (whether any gradient is wanted there) and `grad`,
# which is None so far. `backward(loss)` sets `loss.grad` to 1.0, and then `grad` of every node before it that needs
# one. A node may be used many times, there may be very many nodes, and a rule whose result nobody needs should not be
# called at all.

# %% nbgrader={"grade_id": "backward", "solution": true}
def backward(loss):
    ### BEGIN SOLUTION
    uses, stack, seen = {}, [loss], {id(loss)}
    while stack:  # how often each node is used by a node before the loss
        for parent in stack.pop().parents:
            if parent.needs:
                uses[id(parent)] = uses.get(id(parent), 0) + 1
                if id(parent) not in seen:
                    seen.add(id(parent))
                    stack.append(parent)
    loss.grad, ready = 1.0, [loss]
    while ready:
        node = ready.pop()
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            if parent.needs:
                share = vjp(node.grad)
                parent.grad = share if parent.grad is None else parent.grad + share
                uses[id(parent)] -= 1
                if not uses[id(parent)]:
                    ready.append(parent)
    ### END SOLUTION


# %% nbgrader={"grade_id": "backward-check", "grade": true, "points": 6}
checks.backward.score(backward, seed)
