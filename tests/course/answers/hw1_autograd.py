# ruff: noqa: F811  (each answer has the name that the notebook calls)
import numpy as np
from course.answers import collections

WRONG, RIGHT, wrong, right = collections()
USED_BY = {"unbroadcast": {"divide-check"}}  # checks of other answers that fail with it


@wrong("unbroadcast", "missing: the gradient as it comes")
def unbroadcast(g, shape):
    return g


@wrong("unbroadcast", "axes in front are summed over, stretched ones are not")
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    return g


@wrong("unbroadcast", "the mean over the copies")
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g.mean(axis=0)
    for i, n in enumerate(shape):
        if n == 1:
            g = g.mean(axis=i, keepdims=True)
    return g


@wrong("divide", "the sign of b's gradient")
def divide_vjp(a, b, g):
    return unbroadcast(g / b, a.shape), unbroadcast(g * a / b**2, b.shape)


@wrong("divide", "missing unbroadcast")
def divide_vjp(a, b, g):
    return g / b, -g * a / b**2


@wrong("matmul", "transposed")
def matmul_vjp(a, b, g):
    return (b @ g.T).T, g.T @ a


@wrong("softmax", "a product with the diagonal alone")
def softmax_vjp(y, g):
    return g * y * (1 - y)


@wrong("softmax", "the sum over the whole array")
def softmax_vjp(y, g):
    return y * (g - (g * y).sum())


@wrong("cross-entropy", "the sum of the losses, not their mean")
def cross_entropy_grad(logits, targets):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    p[np.arange(len(p)), targets] -= 1
    return p


@wrong("cross-entropy", "exp of large logits")
def cross_entropy_grad(logits, targets):
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    p[np.arange(len(p)), targets] -= 1
    return p / len(p)


@wrong("rms-norm", "the norm taken as constant")
def rms_norm_vjp(x, g, eps):
    return g / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


@wrong("rms-norm", "a sum in place of the mean")
def rms_norm_vjp(x, g, eps):
    rms = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return g / rms - x * (g * x).sum(axis=-1, keepdims=True) / rms**3


@wrong("backward", "overwrites where it should add")
def backward(loss):
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(loss)
    loss.grad = 1.0
    for node in reversed(order):
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            parent.grad = vjp(node.grad)


@wrong("backward", "hands a gradient on before it is whole")
def backward(loss):
    loss.grad, queue = 1.0, [loss]
    while queue:
        node = queue.pop(0)
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            if parent.needs:
                parent.grad = vjp(node.grad) + (parent.grad or 0.0)
                queue.append(parent)


@wrong("backward", "follows every path")
def backward(loss, g=1.0):
    loss.grad = g + (loss.grad or 0.0)
    for parent, vjp in zip(loss.parents, loss.vjps, strict=True):
        if parent.needs:
            backward(parent, vjp(g))


@wrong("backward", "recursion, and frozen parents are computed too")
def backward(loss):
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(loss)
    loss.grad = 1.0
    for node in reversed(order):
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            share = vjp(node.grad)
            parent.grad = share if parent.grad is None else parent.grad + share


@right("unbroadcast", "a loop over the axes")
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    for i, n in enumerate(shape):
        if n == 1:
            g = g.sum(axis=i, keepdims=True)
    return g


@right("unbroadcast", "by reshaping")
def unbroadcast(g, shape):
    padded = (1,) * (g.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i in range(g.ndim) if padded[i] == 1)
    return np.add.reduce(g, axis=axes, keepdims=True).reshape(shape)


@right("divide", "by the quotient itself")
def divide_vjp(a, b, g):
    y, ga = a / b, g / b
    return unbroadcast(ga, np.shape(a)), unbroadcast(-ga * y, np.shape(b))


@right("matmul", "einsum")
def matmul_vjp(a, b, g):
    return np.einsum("nm,km->nk", g, b), np.einsum("nk,nm->km", a, g)


@right("softmax", "each row's Jacobian")
def softmax_vjp(y, g):
    return np.stack([(np.diag(row) - np.outer(row, row)) @ gr for row, gr in zip(y, g, strict=True)])


@right("cross-entropy", "one-hot rows and log-sum-exp")
def cross_entropy_grad(logits, targets):
    top = np.max(logits, axis=1, keepdims=True)
    log_sum = top + np.log(np.sum(np.exp(logits - top), axis=1, keepdims=True))
    return (np.exp(logits - log_sum) - np.eye(logits.shape[1])[targets]) / logits.shape[0]


@right("rms-norm", "by the normalised x")
def rms_norm_vjp(x, g, eps):
    n, rms = x.shape[-1], np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    y = x / rms
    return (g - y * np.sum(g * y, axis=-1, keepdims=True) / n) / rms


@right("backward", "an order by a stack, then the reverse of it")
def backward(loss):
    order, seen, stack = [], set(), [(loss, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents if parent.needs)
    loss.grad = np.float64(1)
    for node in reversed(order):
        for parent, vjp in zip(node.parents, node.vjps, strict=True):
            if parent.needs:
                share = vjp(node.grad)
                parent.grad = share if parent.grad is None else parent.grad + share
