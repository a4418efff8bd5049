# %% [markdown]
# # 1. Autograd, step by step
#
# A model has a million numbers. Training needs, at every step, how the loss changes with *each* of them. Changing
# one number at a time and computing the loss again would take a million runs. **How can one pass backwards give all of
# them, for about the price of two runs forward?**
#
# *About 12 minutes. Before it: derivatives, and matrix products in NumPy.*

# %%
import numpy as np

import minilora as ml
from minilora import ops
from minilora.autograd.stepper import BackwardStepper, graph

rng = np.random.default_rng(0)

# %% [markdown]
# ## The chain rule, from the end
#
# A program is a chain of small operations. Say x → y → z → loss. The chain rule multiplies three Jacobians (a Jacobian
# has the derivative of each output by each input, a row for each output). The loss is one number, so the last Jacobian
# is a single row. Starting there, every product is a row times a matrix; starting at x, it is a matrix times a matrix
# each time.
#
# So each operation needs only one thing: a function that takes g = ∂loss/∂output, and returns ∂loss/∂input. It is called a
# *vector-Jacobian product*, vjp. Three of them:

# %%
def multiply(a, b):
    return a * b, (lambda g: g * b, lambda g: g * a)


def add(a, b):
    return a + b, (lambda g: g, lambda g: g)


def tanh(a):
    y = np.tanh(a)
    return y, (lambda g: g * (1 - y * y),)


# %% [markdown]
# Value and rules stand side by side, and the rules keep what they need: `multiply`'s keep a and b, `tanh`'s keeps its
# own output, `add`'s keep nothing. What the rules keep is the memory that training takes.
#
# ## A variable that remembers

# %%
class Variable:
    def __init__(self, value, parents=(), vjps=()):
        self.value, self.parents, self.vjps, self.grad = value, parents, vjps, 0.0


def apply(operation, *inputs):
    value, vjps = operation(*(v.value for v in inputs))
    return Variable(value, inputs, vjps)


# %% [markdown]
# ## Why the order matters
#
# Let b = a + a, and c = b · b, at a = 3. So c = 4a², and the gradient is 8a = 24. Here is a walk that seems natural: go
# from a result to its inputs, and hand the gradient on at once.
#
# **Before you run:** which number will it print, 24 or another?

# %%
my_guess = None


def backward_at_once(result, g=1.0):
    result.grad += g
    for parent, vjp in zip(result.parents, result.vjps, strict=True):
        backward_at_once(parent, vjp(g))


def example():
    a = Variable(3.0)
    b = apply(add, a, a)
    return a, b, apply(multiply, b, b)


a, b, c = example()
backward_at_once(c)
print("your guess:", my_guess, "   gradient of a:", a.grad, "   b's rules were walked twice, once for each use of b")

# %% [markdown]
# The number is right: handing on each share by itself adds up. But b was visited twice, and all behind it too. In a chain
# of 30 such doublings the last one is visited 2³⁰ times. Handing on the *accumulated* gradient instead is worse than
# slow: it is wrong, as the first share is then counted twice.

# %%
def backward_accumulated(result, g=1.0):
    result.grad += g
    for parent, vjp in zip(result.parents, result.vjps, strict=True):
        backward_accumulated(parent, vjp(result.grad))


a, b, c = example()
backward_accumulated(c)
print("gradient of a:", a.grad, "  should be 24")

# %% [markdown]
# Both are cured by waiting: a node hands its gradient on once, when *all* its uses have sent their share. That is an
# order in which every node comes after its uses, a topological order of the reversed graph.

# %%
def backward(result):
    uses, stack = {result: 0}, [result]
    while stack:
        for parent in stack.pop().parents:
            if parent not in uses:
                uses[parent] = 0
                stack.append(parent)
            uses[parent] += 1
    result.grad, ready = 1.0, [result]
    while ready:
        node = ready.pop()
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            parent.grad = parent.grad + vjp(node.grad)
            uses[parent] -= 1
            if uses[parent] == 0:
                ready.append(parent)


a, b, c = example()
backward(c)
print("gradient of a:", a.grad)

x = Variable(1.0)
deep = x
for _ in range(30):
    deep = apply(add, deep, deep)
backward(deep)
print("30 doublings:", x.grad, "=", 2**30)

# %% [markdown]
# ## Arrays: undo the broadcasting
#
# NumPy stretches a bias of shape (2,) over the 4 rows of a batch. It is used four times, so its gradient is the sum over the
# four. Copying forward is summing backward. Nothing else is new with arrays.
#
# ## minilora's engine
#
# is this one, with the checks and the counting that a library needs (`minilora/autograd/tensor.py`). Here is a linear layer
# with a loss: first the graph that its tape holds, then the backward pass, rule by rule.
#
# **Before you press *next*:** `add` hands one gradient on to `b`, and one to `matmul`. Which shapes do the two have?

# %%
w = ml.Tensor(rng.standard_normal((2, 3)).astype(np.float32), requires_grad=True)
b = ml.Tensor(np.zeros(2, np.float32), requires_grad=True)
x = rng.standard_normal((4, 3)).astype(np.float32)  # data: no gradient, and so no box
y = ops.tanh(x @ w.T + b)  # (4, 2)
loss = (y * y).sum()
graph(loss, {"w": w, "b": b})

# %%
BackwardStepper(loss, {"w": w, "b": b})

# %% [markdown]
# The same by our own walk: the numbers must be equal.

# %%
def linear(x):
    def operation(w, b):
        return x @ w.T + b, (lambda g: g.T @ x, lambda g: g.sum(axis=0))

    return operation


W, B = Variable(w.data), Variable(b.data)
Y = apply(tanh, apply(linear(x), W, B))
squared = apply(multiply, Y, Y)
total = apply(lambda a: (a.sum(), (lambda g: g * np.ones_like(a),)), squared)
backward(total)
loss.backward()
print("largest difference:", abs(W.grad - w.grad).max(), abs(B.grad - b.grad).max())
assert np.allclose(W.grad, w.grad) and np.allclose(B.grad, b.grad)

# %% [markdown]
# ## Is a rule right?
#
# Never trust a gradient that was only looked at. Two ways to test one:
#
# - Move an input by a little ε and compare: (f(x + ε) - f(x)) / ε. With floats this is good to 8 digits at best.
# - Move it along the imaginary axis: Im f(x + iε) / ε, with ε = 10⁻³⁰. Nothing is subtracted, so nothing is lost.
#
# And never test the gradient of a plain `.sum()`: its g is all ones, and a wrong rule may be right for that alone. A
# softmax row sums to 1 whatever x is, so the gradient of its sum is 0, and a rule that returns 0 passes.

# %%
@ml.autograd.primitive
def wrong_softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), (lambda g: g * 0,)


x = rng.standard_normal((2, 3))
t = ml.Tensor(x, requires_grad=True)
wrong_softmax(t).sum().backward()
print("gradient of the sum, by the wrong rule:", t.grad.ravel(), "(right!)")
try:
    ml.gradcheck(wrong_softmax, x)
except ml.MiniloraError as error:
    print("gradcheck, with a random g:", str(error)[:160])

# %% [markdown]
# **Exercise.** Write the vjp of the sigmoid, y = 1 / (1 + e⁻ˣ). You are given y and g.

# %%
from minilora.course.checks import lesson01 as checks


def sigmoid_vjp(y, g):
    ...  # yours


checks.sigmoid_vjp.check(sigmoid_vjp)

# %% [markdown]
# **Exercise.** And of the mean of each row of x, shape (n, k): the output has shape (n,), and so has g.

# %%
def row_mean_vjp(x, g):
    ...  # yours


checks.row_mean_vjp.check(row_mean_vjp)

# %% [markdown]
# **To take along**
# - One backward pass gives the gradient of one number by all inputs. Each rule is a product of g with a Jacobian that is
#   never built, and costs about as much as its operation: two products for a matrix product, hence "two runs forward".
# - A node hands its gradient on once, after all its uses. Shares add up.
# - Copying forward is summing backward.
# - What the rules keep is what training remembers. An input that needs no gradient has no rule, and nothing is kept for
#   it: that is what a frozen weight saves (lesson 5).
#
# *A. Griewank, A. Walther, Evaluating Derivatives, chapter 3. In minilora: `minilora/autograd/tensor.py`, `primitive.py`,
# `gradcheck.py`; the ops and their rules in `minilora/ops/`.*
