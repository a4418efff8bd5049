"""The yardstick: a GPT's training step written out by hand in straight-line NumPy, to hold the autograd engine against.

No graph, no closures, the same tricks as the ops (in-place passes, flattened products, chunked softmax) and nothing
allocated that the backward pass does not need. Weights are those of a CausalLM with learned positions, LayerNorm,
tanh GELU, biases and a tied head; `lora` maps layer names to (A, B) and freezes the rest.
"""

import math

import numpy as np

CHUNK, FLAT_CHUNK, LEARNING_RATE = 64, 1 << 15, 1e-6
C0, C1 = math.sqrt(2 / math.pi), 0.044715


def _norm(x, weight, bias):
    n = x - x.mean(-1, keepdims=True)
    r = np.einsum("nd,nd->n", n, n)[:, None] / x.shape[1]
    r += 1e-5
    r **= -0.5
    n *= r
    y = n * weight
    y += bias
    return y, n, r


def _norm_backward(g, weight, n, r):
    h = g * weight
    dot = np.einsum("nd,nd->n", h, n)[:, None] / -n.shape[1]
    h -= h.mean(-1, keepdims=True)
    h += n * dot
    h *= r
    return h


def step(W, ids, heads: int, layers: int, lora: dict | None = None, scaling: float = 1.0):
    """Loss and gradients by name. ids (B, T+1): each token is predicted from those before it."""
    inputs, targets = ids[:, :-1], ids[:, 1:].ravel()
    (B, T), d = inputs.shape, W["embed_tokens"].shape[1]
    N, hd, lora, G = B * T, d // heads, lora or {}, {}
    full, saved = not lora, []
    mask, ones = np.triu(np.full((T, T), -np.inf, np.float32), 1), np.ones((T, 1), np.float32)

    def split(y):
        return y.reshape(B, T, heads, hd).transpose(0, 2, 1, 3)

    def merge(y):
        return y.transpose(0, 2, 1, 3).reshape(N, d)

    def linear(x, name):
        y = x @ W[name].T
        y += W[name + ".bias"]
        if name in lora:
            A, Bm = lora[name]
            y += (x @ A.T * scaling) @ Bm.T
        return y

    def linear_backward(g, x, name, need_dx=True):
        if full:
            G[name], G[name + ".bias"] = g.T @ x, np.ones(N, np.float32) @ g
        dx = g @ W[name] if need_dx else None
        if name in lora:
            A, Bm = lora[name]
            low = g @ Bm * scaling
            G[name] = low.T @ x, g.T @ (x @ A.T * scaling)
            if need_dx:
                dx += low @ A
        return dx

    x = np.take(W["embed_tokens"], inputs.ravel(), axis=0)
    x.reshape(B, T, d)[...] += W["embed_positions"][:T]
    for l in range(layers):
        h, n1, r1 = _norm(x, W[f"{l}.ln1"], W[f"{l}.ln1.bias"])
        q, k, v = (split(linear(h, f"{l}.{name}")) for name in "qkv")
        p = (q * hd**-0.5) @ k.mT
        for rows in p:
            rows += mask
            rows -= rows.max(-1, keepdims=True)
            np.exp(rows, out=rows)
            rows *= 1 / (rows @ ones)
        o = merge(p @ v)
        x = x + linear(o, f"{l}.o")
        h2, n2, r2 = _norm(x, W[f"{l}.ln2"], W[f"{l}.ln2.bias"])
        f = linear(h2, f"{l}.up")
        t = f * f
        t *= C0 * C1
        t += C0
        t *= f
        np.tanh(t, out=t)
        a = t + 1
        a *= f
        a *= 0.5
        x = x + linear(a, f"{l}.down")
        saved.append((h, n1, r1, q, k, v, p, o, h2, n2, r2, f, t, a))
    hf, nf, rf = _norm(x, W["norm"], W["norm.bias"])
    z, loss, every = hf @ W["embed_tokens"].T, 0.0, np.ones((len(W["embed_tokens"]), 1), np.float32)
    for start in range(0, N, CHUNK):
        part = z[start : start + CHUNK]
        at = np.arange(len(part)), targets[start : start + CHUNK]
        part -= part.max(1, keepdims=True)
        chosen = part[at]
        np.exp(part, out=part)
        total = part @ every
        loss += float((np.log(total[:, 0]) - chosen).sum())
        part *= (1 / N) / total
        part[at] -= np.float32(1 / N)
    dh = z @ W["embed_tokens"]
    if full:
        G["embed_tokens"] = z.T @ hf
        G["norm"], G["norm.bias"] = np.einsum("nd,nd->d", dh, nf), np.ones(N, np.float32) @ dh
    dx = _norm_backward(dh, W["norm"], nf, rf)
    for l in reversed(range(layers)):
        h, n1, r1, q, k, v, p, o, h2, n2, r2, f, t, a = saved.pop()
        da = linear_backward(dx, a, f"{l}.down")
        s = f * f
        s *= 3 * C0 * C1
        s += C0
        s *= f
        slope = t * t
        np.subtract(1, slope, out=slope)
        s *= slope
        s += t
        s += 1
        s *= 0.5
        da *= s
        dh = linear_backward(da, h2, f"{l}.up")
        if full:
            G[f"{l}.ln2"], G[f"{l}.ln2.bias"] = np.einsum("nd,nd->d", dh, n2), np.ones(N, np.float32) @ dh
        dx = dx + _norm_backward(dh, W[f"{l}.ln2"], n2, r2)
        do = linear_backward(dx, o, f"{l}.o")
        dot = np.einsum("nhk,nhk->nh", do.reshape(N, heads, hd), o.reshape(N, heads, hd))
        dot, do = dot.reshape(B, T, heads).transpose(0, 2, 1)[..., None], split(do)
        ds = do @ v.mT
        for rows, probabilities, along in zip(ds, p, dot, strict=True):
            rows -= along
            rows *= probabilities
            rows *= hd**-0.5
        last = l == 0 and not full
        parts = (("q", ds @ k), ("k", None if last else ds.mT @ q), ("v", p.mT @ do))
        dh = None
        for name, g in parts:
            if g is None:
                continue
            more = linear_backward(merge(g), h, f"{l}.{name}", not last)
            dh = more if dh is None else np.add(dh, more, out=dh)
        if last:
            break
        if full:
            G[f"{l}.ln1"], G[f"{l}.ln1.bias"] = np.einsum("nd,nd->d", dh, n1), np.ones(N, np.float32) @ dh
        dx = dx + _norm_backward(dh, W[f"{l}.ln1"], n1, r1)
    if full:
        G["embed_positions"] = dx.reshape(B, T, d).sum(0)
        flat = inputs.ravel()
        order = np.argsort(flat, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(flat[order]) != 0])
        G["embed_tokens"][flat[order][starts]] += np.add.reduceat(dx[order], starts, axis=0)
    return loss / N, G


def adamw(arrays: dict, gradients: dict, state: dict, b1=0.9, b2=0.999):
    """The first update of AdamW, by hand: what an optimizer costs does not depend on the step."""
    work = np.empty(FLAT_CHUNK, np.float32)
    for name, g in gradients.items():
        theta, g, (m, v) = arrays[name].reshape(-1), g.reshape(-1), state[name]
        for start in range(0, g.size, FLAT_CHUNK):
            part = slice(start, start + FLAT_CHUNK)
            gp, mp, vp, t = g[part], m[part], v[part], work[: g[part].size]
            mp *= b1
            np.multiply(gp, 1 - b1, out=t)
            mp += t
            vp *= b2
            np.multiply(gp, gp, out=t)
            t *= 1 - b2
            vp += t
            np.sqrt(vp, out=t)
            t *= (1 - b2) ** -0.5
            t += 1e-8
            np.divide(mp, t, out=t)
            t *= LEARNING_RATE / (1 - b1)
            theta[part] -= t
