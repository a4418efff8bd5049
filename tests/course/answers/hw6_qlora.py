# ruff: noqa: F811  (each answer has the name that the notebook calls)
import numpy as np
from course.answers import collections

from minilora.course.checks.hw6_qlora import SIGNED, UNSIGNED, read, write

WRONG, RIGHT, wrong, right = collections()
USED_BY = {}  # no answer calls another


@wrong("forward", "alpha without r")
def qlora_forward(x, q, A, B, alpha):
    return x @ q.dequantize().T + alpha * (x @ A.T) @ B.T


@wrong("forward", "r taken from the wrong side of A")
def qlora_forward(x, q, A, B, alpha):
    return x @ q.dequantize().T + alpha / A.shape[1] * (x @ A.T) @ B.T


@wrong("forward", "the adapter alone")
def qlora_forward(x, q, A, B, alpha):
    return alpha / len(A) * (x @ A.T) @ B.T


@wrong("forward", "the weight from the left: one input at a time")
def qlora_forward(x, q, A, B, alpha):
    return (q.dequantize() @ x.T + alpha / len(A) * B @ (A @ x.T)).T


@wrong("forward", "the codes taken for weights")
def qlora_forward(x, q, A, B, alpha):
    codes = np.stack([q.packed >> 4, q.packed & 15], axis=1).ravel()[: q.size].reshape(q.shape)
    return x @ codes.T + alpha / len(A) * (x @ A.T) @ B.T


@wrong("backward", "frozen taken for cut off: no way through W")
def qlora_backward(x, g, q, A, B, alpha):
    scaled = alpha / len(A) * g
    return scaled @ B @ A, (scaled @ B).T @ x, scaled.T @ (x @ A.T)


@wrong("backward", "no way through the adapter")
def qlora_backward(x, g, q, A, B, alpha):
    scaled = alpha / len(A) * g
    return g @ q.dequantize(), (scaled @ B).T @ x, scaled.T @ (x @ A.T)


@wrong("backward", "the frozen weight is trained")
def qlora_backward(x, g, q, A, B, alpha):
    scaled = alpha / len(A) * g
    return g @ q.dequantize() + scaled @ B @ A, g.T @ x, (scaled @ B).T @ x, scaled.T @ (x @ A.T)


@wrong("backward", "the codes are moved")
def qlora_backward(x, g, q, A, B, alpha):
    scaled = alpha / len(A) * g
    gx = g @ q.dequantize() + scaled @ B @ A
    q.packed[...] = np.clip(q.packed - np.sign((g.T @ x).ravel()[::2]), 0, 255)
    return gx, (scaled @ B).T @ x, scaled.T @ (x @ A.T)


@wrong("backward", "alpha / r forgotten on the way to A and B")
def qlora_backward(x, g, q, A, B, alpha):
    return g @ q.dequantize() + alpha / len(A) * g @ B @ A, (g @ B).T @ x, g.T @ (x @ A.T)


@wrong("backward", "the adapters' gradients in each other's place")
def qlora_backward(x, g, q, A, B, alpha):
    scaled = alpha / len(A) * g
    return g @ q.dequantize() + scaled @ B @ A, scaled.T @ (x @ A.T), (scaled @ B).T @ x


@wrong("loss", "no shift: each position is asked for its own token")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
    t = np.arange(ids.shape[1])
    return losses[(t >= prompts[:, None]) & (t < lengths[:, None])].mean()


@wrong("loss", "the mask off by one: counted in positions of the logits")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    t = np.arange(ids.shape[1] - 1)
    mask = (t >= prompts[:, None]) & (t < lengths[:, None])
    return (losses * mask).sum() / max(1, mask.sum())


@wrong("loss", "the prompt is learned too")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return losses[np.arange(1, ids.shape[1]) < lengths[:, None]].mean()


@wrong("loss", "padding is learned too")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return losses[np.arange(1, ids.shape[1]) >= prompts[:, None]].mean()


@wrong("loss", "padding by token: the end is never learned")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    t = np.arange(1, ids.shape[1])
    mask = (t >= prompts[:, None]) & (t < lengths[:, None]) & (ids[:, 1:] != 0)
    return (losses * mask).sum() / max(1, mask.sum())


@wrong("loss", "a mean of the rows' means")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    return np.mean([row[p - 1 : n - 1].mean() for row, p, n in zip(losses, prompts, lengths, strict=True)])


@wrong("loss", "divided by all tokens of the batch")
def answer_loss(logits, ids, prompts, lengths):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    t = np.arange(1, ids.shape[1])
    return (losses * ((t >= prompts[:, None]) & (t < lengths[:, None]))).mean()


@wrong("accumulate", "the mean of the means")
def accumulated(grads, counts):
    return sum(g for g, n in zip(grads, counts, strict=True) if n) / sum(n > 0 for n in counts)


@wrong("accumulate", "the sum of the means")
def accumulated(grads, counts):
    return sum(g for g, n in zip(grads, counts, strict=True) if n)


@wrong("accumulate", "sums, never divided")
def accumulated(grads, counts):
    return sum(n * g for g, n in zip(grads, counts, strict=True) if n)


@wrong("accumulate", "0 times NaN")
def accumulated(grads, counts):
    return sum(n * g for g, n in zip(grads, counts, strict=True)) / sum(counts)


@wrong("adam", "no correction of the first steps")
def adam8bit_step(w, g, m, v, t, lr):
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * g * g
    codes, absmax = write(v, UNSIGNED)
    return w - lr * m / (np.sqrt(v) + 1e-8), write(m, SIGNED), (np.maximum(codes, v > 0), absmax)


@wrong("adam", "v in the signed levels")
def adam8bit_step(w, g, m, v, t, lr):
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, SIGNED) + 0.001 * g * g
    w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w, write(m, SIGNED), write(v, SIGNED)


@wrong("adam", "a small v is stored as zero")
def adam8bit_step(w, g, m, v, t, lr):
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * g * g
    w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w, write(m, SIGNED), write(v, UNSIGNED)


@wrong("adam", "v of the gradient, not of its square")
def adam8bit_step(w, g, m, v, t, lr):
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * abs(g)
    w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    codes, absmax = write(v, UNSIGNED)
    return w, write(m, SIGNED), (np.maximum(codes, v > 0), absmax)


@wrong("adam", "the old moments are stored again")
def adam8bit_step(w, g, m, v, t, lr):
    new_m, new_v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * g * g
    return w - lr * (new_m / (1 - 0.9**t)) / (np.sqrt(new_v / (1 - 0.999**t)) + 1e-8), m, v


@wrong("adam", "w moves by the moments as stored")
def adam8bit_step(w, g, m, v, t, lr):
    m, v = 0.9 * read(m, SIGNED) + 0.1 * g, 0.999 * read(v, UNSIGNED) + 0.001 * g * g
    m, (codes, absmax) = write(m, SIGNED), write(v, UNSIGNED)
    v = np.maximum(codes, v > 0), absmax
    hat_m, hat_v = read(m, SIGNED) / (1 - 0.9**t), read(v, UNSIGNED) / (1 - 0.999**t)
    return w - lr * hat_m / (np.sqrt(hat_v) + 1e-8), m, v


@wrong("merged", "merge on packed codes")
def merged(q, A, B, alpha):
    from dataclasses import replace

    delta = (alpha / len(A) * B @ A).ravel()
    codes = np.stack([q.packed >> 4, q.packed & 15], axis=1).ravel()[: q.size]
    codes = np.clip(np.rint(codes + delta), 0, 15).astype(np.uint8)
    if codes.size % 2:
        codes = np.append(codes, np.uint8(7))
    return replace(q, packed=codes[::2] << 4 | codes[1::2]).dequantize()


@wrong("merged", "rounded to 4 bits again")
def merged(q, A, B, alpha):
    from minilora import quantize

    return quantize(q.dequantize() + alpha / len(A) * B @ A, q.code, q.blocksize).dequantize()


@wrong("merged", "alpha without r")
def merged(q, A, B, alpha):
    return q.dequantize() + alpha * B @ A


@wrong("merged", "A and B in the wrong order")
def merged(q, A, B, alpha):
    return q.dequantize() + alpha / len(A) * A.T @ B.T


@wrong("merged", "the stored scales are overwritten")
def merged(q, A, B, alpha):
    weight = q.dequantize() + alpha / len(A) * B @ A
    q.absmax[...] = abs(weight).max() + 1
    return weight


@wrong("memory", "the codes alone")
def qlora_memory(shapes, r):
    trained = sum(r * (d_in + d_out) for d_out, d_in in shapes)
    return sum(d_in * d_out // 2 for d_out, d_in in shapes), 4 * trained, 4 * trained, 8 * trained


@wrong("memory", "absmax not quantized")
def qlora_memory(shapes, r):
    trained = sum(r * (d_in + d_out) for d_out, d_in in shapes)
    base = sum(-(-d_in * d_out // 2) + 4 * -(-d_in * d_out // 64) for d_out, d_in in shapes)
    return base, 4 * trained, 4 * trained, 8 * trained


@wrong("memory", "gradients and moments of the frozen weights too")
def qlora_memory(shapes, r):
    base = trained = every = 0
    for d_out, d_in in shapes:
        blocks = -(-d_out * d_in // 64)
        base += -(-d_out * d_in // 2) + blocks + 4 * -(-blocks // 256) + 4
        trained += r * (d_in + d_out)
        every += d_out * d_in + r * (d_in + d_out)
    return base, 4 * trained, 4 * every, 8 * every


@wrong("memory", "one moment")
def qlora_memory(shapes, r):
    base = trained = 0
    for d_out, d_in in shapes:
        blocks = -(-d_out * d_in // 64)
        base += -(-d_out * d_in // 2) + blocks + 4 * -(-blocks // 256) + 4
        trained += r * (d_in + d_out)
    return base, 4 * trained, 4 * trained, 4 * trained


@right("forward", "by the package's product with a quantized weight")
def qlora_forward(x, q, A, B, alpha):
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
    y = q.matmul(rows)
    y += (alpha / A.shape[0]) * ((rows @ A.T) @ B.T)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@right("forward", "einsum")
def qlora_forward(x, q, A, B, alpha):
    r = B.shape[1]
    low = np.einsum("...i,ri->...r", x, A) * (alpha / r)
    return np.einsum("...i,oi->...o", x, q.dequantize()) + np.einsum("...r,or->...o", low, B)


@right("backward", "by the full-size gradient, as one would without knowing better")
def qlora_backward(x, g, q, A, B, alpha):
    s = alpha / A.shape[0]
    whole = q.dequantize() + s * (B @ A)
    dW = g.T @ x
    return g @ whole, s * (B.T @ dW), s * (dW @ A.T)


@right("backward", "a list, and the package's transposed product")
def qlora_backward(x, g, q, A, B, alpha):
    s = alpha / B.shape[1]
    gx = q.matmul(np.ascontiguousarray(g), transpose=True) + s * ((g @ B) @ A)
    return [gx, s * np.einsum("no,or,ni->ri", g, B, x), s * np.einsum("no,ni,ri->or", g, x, A)]


@right("loss", "a loop")
def answer_loss(logits, ids, prompts, lengths):
    losses = []
    for row, tokens, first, end in zip(logits, ids, prompts, lengths, strict=True):
        for t in range(first, end):
            z = row[t - 1] - row[t - 1].max()
            losses.append(np.log(np.exp(z).sum()) - z[tokens[t]])
    return sum(losses) / len(losses)


@right("loss", "labels of -100")
def answer_loss(logits, ids, prompts, lengths):
    labels = ids.copy()
    for b, (first, end) in enumerate(zip(prompts, lengths, strict=True)):
        labels[b, :first] = -100
        labels[b, end:] = -100
    labels, logits = labels[:, 1:].ravel(), logits[:, :-1].reshape(-1, logits.shape[-1])
    logits, labels = logits[labels != -100], labels[labels != -100]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float(-np.log(p[np.arange(len(p)), labels] / p.sum(axis=1)).mean())


@right("accumulate", "weights that sum to one")
def accumulated(grads, counts):
    shares = np.array(counts) / np.sum(counts)
    total = np.zeros_like(grads[0])
    for g, share in zip(grads, shares, strict=True):
        total += share * np.where(share > 0, g, 0)
    return total


@right("adam", "in one expression each, and a code of 1 put in afterwards")
def adam8bit_step(w, g, m, v, t, lr):
    m = read(m, SIGNED) + 0.1 * (g - read(m, SIGNED))
    v = read(v, UNSIGNED) + 0.001 * (g**2 - read(v, UNSIGNED))
    rate = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    codes, absmax = write(v, UNSIGNED)
    codes[(codes == 0) & (v > 0)] = 1
    return w - rate * m / (np.sqrt(v) + 1e-8 * np.sqrt(1 - 0.999**t)), write(m, SIGNED), (codes, absmax)


@right("merged", "column by column, as outputs of the unit vectors")
def merged(q, A, B, alpha):
    units = np.eye(q.shape[1], dtype=np.float32)
    return (units @ q.dequantize().T + (alpha / A.shape[0]) * (units @ A.T) @ B.T).T


@right("memory", "by making the arrays")
def qlora_memory(shapes, r):
    from minilora import quantize

    frozen = sum(quantize(np.ones(shape), "nf4", 64, double_quant=True).nbytes for shape in shapes)
    adapters = sum(np.zeros((r, shape[0] + shape[1]), np.float32).nbytes for shape in shapes)
    return frozen, adapters, adapters, 2 * adapters
