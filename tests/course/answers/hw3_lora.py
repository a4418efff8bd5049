# ruff: noqa: F811  (each answer has the name that the notebook calls)
import numpy as np
from course.answers import collections

WRONG, RIGHT, wrong, right = collections()
USED_BY = {"forward": {"train-check"}, "backward": {"train-check"}}  # checks of other answers that fail with it


@wrong("start", "B random, A zero")
def start(d_in, d_out, r, rng):
    bound = d_in**-0.5
    return np.zeros((r, d_in)), rng.uniform(-bound, bound, (d_out, r))


@wrong("start", "both random")
def start(d_in, d_out, r, rng):
    bound = d_in**-0.5
    return rng.uniform(-bound, bound, (r, d_in)), rng.uniform(-bound, bound, (d_out, r))


@wrong("start", "both zero: they never learn")
def start(d_in, d_out, r, rng):
    return np.zeros((r, d_in)), np.zeros((d_out, r))


@wrong("start", "a generator of its own")
def start(d_in, d_out, r, rng):
    bound = d_in**-0.5
    return np.random.default_rng(0).uniform(-bound, bound, (r, d_in)), np.zeros((d_out, r))


@wrong("start", "the bound of the wrong side")
def start(d_in, d_out, r, rng):
    bound = r**-0.5
    return rng.uniform(-bound, bound, (r, d_in)), np.zeros((d_out, r))


@wrong("forward", "alpha without r")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * kept / (1 - p)
    return X @ W.T + alpha * (seen @ A.T) @ B.T


@wrong("forward", "r is the number of columns of A")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * kept / (1 - p)
    return X @ W.T + alpha / A.shape[1] * (seen @ A.T) @ B.T


@wrong("forward", "dropout for the frozen layer too")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    X = X if kept is None else X * kept / (1 - p)
    return X @ W.T + alpha / len(A) * (X @ A.T) @ B.T


@wrong("forward", "what was kept is not divided")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * kept
    return X @ W.T + alpha / len(A) * (seen @ A.T) @ B.T


@wrong("forward", "divided by p")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * kept / p
    return X @ W.T + alpha / len(A) * (seen @ A.T) @ B.T


@wrong("forward", "what was kept is dropped")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * ~kept / (1 - p)
    return X @ W.T + alpha / len(A) * (seen @ A.T) @ B.T


@wrong("forward", "columns, so that X has two axes only")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    seen = X if kept is None else X * kept / (1 - p)
    return (W @ X.T + alpha / len(A) * B @ (A @ seen.T)).T


@wrong("backward", "X through the adapter alone")
def lora_backward(g, X, W, A, B, alpha):
    scale = alpha / len(A)
    return scale * g @ B @ A, scale * (g @ B).T @ X, scale * g.T @ (X @ A.T)


@wrong("backward", "X through W alone")
def lora_backward(g, X, W, A, B, alpha):
    scale = alpha / len(A)
    return g @ W, scale * (g @ B).T @ X, scale * g.T @ (X @ A.T)


@wrong("backward", "the scale is forgotten")
def lora_backward(g, X, W, A, B, alpha):
    return g @ W + g @ B @ A, (g @ B).T @ X, g.T @ (X @ A.T)


@wrong("backward", "the scale twice in A")
def lora_backward(g, X, W, A, B, alpha):
    g, scale = g * alpha / len(A), alpha / len(A)
    return g / scale @ W + g @ B @ A, scale * (g @ B).T @ X, g.T @ (X @ A.T)


@wrong("train", "the frozen weight is trained")
def train(layer, X, Y, rate, steps):
    for _ in range(steps):
        g = (lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y) / len(X)
        _, gA, gB = lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)
        layer.W, layer.A, layer.B = layer.W - rate * g.T @ X, layer.A - rate * gA, layer.B - rate * gB


@wrong("train", "A first, then B with the new A")
def train(layer, X, Y, rate, steps):
    for _ in range(steps):
        g = (lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y) / len(X)
        layer.A = layer.A - rate * lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)[1]
        layer.B = layer.B - rate * lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)[2]


@wrong("train", "the sum over the rows")
def train(layer, X, Y, rate, steps):
    for _ in range(steps):
        g = lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y
        _, gA, gB = lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)
        layer.A, layer.B = layer.A - rate * gA, layer.B - rate * gB


@wrong("train", "up the hill")
def train(layer, X, Y, rate, steps):
    for _ in range(steps):
        g = (lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y) / len(X)
        _, gA, gB = lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)
        layer.A, layer.B = layer.A + rate * gA, layer.B + rate * gB


@wrong("train", "B alone")
def train(layer, X, Y, rate, steps):
    for _ in range(steps):
        g = (lora_forward(X, layer.W, layer.A, layer.B, layer.alpha) - Y) / len(X)
        layer.B = layer.B - rate * lora_backward(g, X, layer.W, layer.A, layer.B, layer.alpha)[2]


@wrong("switch", "the update is subtracted again")
def switch_adapter(layer, adapter):
    if layer.base is not None:
        layer.W = layer.W - layer.base
        layer.base = None
    if adapter is not None:
        A, B, alpha = adapter
        layer.base = alpha / len(A) * B @ A
        layer.W = layer.W + layer.base


@wrong("switch", "one on top of the other")
def switch_adapter(layer, adapter):
    if layer.base is None:
        layer.base = layer.W
    if adapter is None:
        layer.W = layer.base
    else:
        A, B, alpha = adapter
        layer.W = layer.W + alpha / len(A) * B @ A


@wrong("switch", "what is kept is merged already")
def switch_adapter(layer, adapter):
    if adapter is None:
        layer.W = layer.base
    else:
        A, B, alpha = adapter
        layer.base = layer.W
        layer.W = layer.W + alpha / len(A) * B @ A


@wrong("switch", "into the base's array")
def switch_adapter(layer, adapter):
    if layer.base is None:
        layer.base = layer.W.copy()
    layer.W[:] = layer.base
    if adapter is not None:
        A, B, alpha = adapter
        layer.W += alpha / len(A) * B @ A


@wrong("switch", "alpha without r")
def switch_adapter(layer, adapter):
    if layer.base is None:
        layer.base = layer.W
    A, B, alpha = adapter or (0 * layer.base[:1], 0 * layer.base[:, :1], 0)
    layer.W = layer.base + alpha * B @ A


@wrong("count", "the size of B A")
def count_trainable(shapes, targets, r):
    adapted = [shape for path, shape in shapes.items() if any(f".{path}".endswith(f".{name}") for name in targets)]
    if not adapted:
        raise ValueError("no such layer")
    return sum(d_out * d_in for d_out, d_in in adapted)


@wrong("count", "a name within a path")
def count_trainable(shapes, targets, r):
    adapted = [shape for path, shape in shapes.items() if any(name in path for name in targets)]
    if not adapted:
        raise ValueError("no such layer")
    return sum(r * (d_out + d_in) for d_out, d_in in adapted)


@wrong("count", "a layer counts for each of its names")
def count_trainable(shapes, targets, r):
    total = 0
    for name in targets:
        for path, (d_out, d_in) in shapes.items():
            if path == name or path.endswith("." + name):
                total += r * (d_out + d_in)
    if not total:
        raise ValueError("no such layer")
    return total


@wrong("count", "nothing found is 0")
def count_trainable(shapes, targets, r):
    adapted = [shape for path, shape in shapes.items() if any(f".{path}".endswith(f".{name}") for name in targets)]
    return sum(r * (d_out + d_in) for d_out, d_in in adapted)


@wrong("loss", "not shifted")
def completion_loss(logits, labels):
    logits, labels = logits[labels != -100], labels[labels != -100]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


@wrong("loss", "the mask is not shifted with the labels")
def completion_loss(logits, labels):
    keep = labels[:, :-1] != -100
    logits, labels = logits[:, :-1][keep], labels[:, 1:][keep]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


@wrong("loss", "the mean of the rows' means")
def completion_loss(logits, labels):
    losses = []
    for row, tokens in zip(logits[:, :-1], labels[:, 1:], strict=True):
        row, tokens = row[tokens != -100], tokens[tokens != -100]
        if len(tokens):
            row = row - row.max(axis=-1, keepdims=True)
            log_p = row - np.log(np.exp(row).sum(axis=-1, keepdims=True))
            losses.append(-log_p[np.arange(len(tokens)), tokens].mean())
    return np.mean(losses)


@wrong("loss", "divided by all tokens")
def completion_loss(logits, labels):
    logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return -(picked * (labels != -100)).mean()


@wrong("loss", "the prompt is learnt too, as class 0")
def completion_loss(logits, labels):
    logits, labels = logits[:, :-1], np.maximum(labels[:, 1:], 0)
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, labels[..., None], -1).mean()


@wrong("loss", "log of a probability that may be 0")
def completion_loss(logits, labels):
    logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits[labels != -100], labels[labels != -100]
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@right("start", "in float32, from numbers in [0, 1)")
def start(d_in, d_out, r, rng):
    A = (2 * rng.random((r, d_in), dtype=np.float32) - 1) / np.sqrt(np.float32(d_in))
    return A, np.zeros((d_out, r), np.float32)


@right("forward", "with einsum, and where")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    r = A.shape[0]
    seen = X if kept is None else np.where(kept, X / (1 - p), 0)
    low = np.einsum("...i,ri->...r", seen, A)
    return np.einsum("...i,oi->...o", X, W) + np.einsum("...r,or->...o", low, B) * (alpha / r)


@right("forward", "with B A formed")
def lora_forward(X, W, A, B, alpha, p=0.0, kept=None):
    update = alpha / B.shape[1] * (B @ A)
    if kept is None:
        return X @ (W + update).T
    dropped = X.copy()
    dropped[~kept] = 0
    return X @ W.T + dropped @ update.T / (1 - p)


@right("backward", "through the gradient of B A")
def lora_backward(g, X, W, A, B, alpha):
    whole = alpha / A.shape[0] * g.T @ X
    return g @ (W + alpha / A.shape[0] * B @ A), B.T @ whole, whole @ A.T


@right("backward", "row by row")
def lora_backward(g, X, W, A, B, alpha):
    scale, gX, gA, gB = alpha / len(A), np.zeros(X.shape), np.zeros(A.shape), np.zeros(B.shape)
    for i in range(len(X)):
        gX[i] = W.T @ g[i] + scale * A.T @ (B.T @ g[i])
        gA += scale * np.outer(B.T @ g[i], X[i])
        gB += scale * np.outer(g[i], A @ X[i])
    return [gX, gA, gB]


@right("train", "in place")
def train(layer, X, Y, rate, steps):
    while steps > 0:
        H = lora_forward(X, layer.W, layer.A, layer.B, layer.alpha)
        _, gA, gB = lora_backward((H - Y) / X.shape[0], X, layer.W, layer.A, layer.B, layer.alpha)
        layer.A -= rate * gA
        layer.B -= rate * gB
        steps -= 1


@right("train", "with formulas of its own")
def train(layer, X, Y, rate, steps):
    s, rest = layer.alpha / len(layer.A), Y - X @ layer.W.T
    for _ in range(steps):
        A, B = layer.A, layer.B
        error = (s * X @ A.T @ B.T - rest) / len(X)
        layer.A, layer.B = A - rate * s * B.T @ error.T @ X, B - rate * s * error.T @ X @ A.T


@right("switch", "the base is kept as a copy")
def switch_adapter(layer, adapter):
    if layer.base is None:
        layer.base = layer.W.copy()
    new = layer.base.copy()
    if adapter:
        A, B, alpha = adapter
        new += (alpha / A.shape[0]) * np.matmul(B, A)
    layer.W = new


@right("count", "by the parts of a path")
def count_trainable(shapes, targets, r):
    total, found = 0, set()
    for target in targets:
        parts = target.split(".")
        for path, (d_out, d_in) in shapes.items():
            if path.split(".")[-len(parts) :] == parts and path not in found:
                found.add(path)
                total += r * d_in + d_out * r
    if not found:
        raise ValueError(f"no layer is called {targets}")
    return total


@right("loss", "by loops")
def completion_loss(logits, labels):
    losses = []
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != -100:
                z = logits[b, t - 1]
                losses.append(np.log(np.sum(np.exp(z - z.max()))) + z.max() - z[labels[b, t]])
    return sum(losses) / len(losses)


@right("loss", "by a sum with a mask")
def completion_loss(logits, labels):
    z, y = logits[:, :-1], labels[:, 1:]
    mask = (y >= 0).astype(float)
    log_p = z - np.logaddexp.reduce(z, axis=2, keepdims=True)
    picked = np.take_along_axis(log_p, np.where(y < 0, 0, y)[:, :, None], axis=2).squeeze(2)
    return -np.sum(picked * mask) / np.sum(mask)
