"""The ops of a transformer, each fused into one primitive: normalisation, positions, attention, embedding, loss."""

import numpy as np

from minilora.autograd import primitive
from minilora.backend import array_namespace

_CHUNK = 64  # rows worked on at a time where a pass over them all would leave the CPU's cache
_CACHED = 1 << 16  # entries, likewise


def _at_a_time(x, few: int, rows: int) -> int:
    """Of so many rows, how many to work on at a time: few, which the CPU's cache holds; a GPU takes all."""
    return few if isinstance(x, np.ndarray) else max(1, rows)


def _row_dot(a, b):
    """The dot product of corresponding rows: (..., d), (..., d) -> (..., 1)."""
    return np.einsum("...d,...d->...", a, b)[..., None]


def _softmax_(x):
    """softmax over the last axis, in place. A row's maximum is subtracted first, which changes nothing but overflow."""
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


@primitive
def softmax(x):
    """p_i = exp(x_i) / Σ_j exp(x_j) over the last axis. dx = p (g - <g, p>)."""
    p = _softmax_(x.copy())
    return p, (lambda g: p * (g - _row_dot(g, p)),)


@primitive
def log_softmax(x):
    """x_i - log Σ_j exp(x_j) over the last axis. dx = g - p Σ g."""
    z = x - x.max(-1, keepdims=True)
    y = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return y, (lambda g: g - np.exp(y) * g.sum(-1, keepdims=True),)


@primitive
def rms_norm(x, weight, eps=1e-5):
    """y = w x / √(mean(x²) + eps) over the last axis (arXiv:1910.07467). x (..., d), weight (d,)."""
    d = x.shape[-1]
    r = _row_dot(x, x)
    r /= d
    r += eps
    r **= -0.5
    n = x * r  # (..., d) normalised

    def dx(g):  # r (h - n mean(h n)), h = g w
        h = g * weight
        mean = _row_dot(h, n)
        mean /= -d
        h += n * mean
        h *= r
        return h

    return n * weight, (dx, lambda g: np.einsum("nd,nd->d", g.reshape(-1, d), n.reshape(-1, d)), None)


@primitive
def layer_norm(x, weight, bias, eps=1e-5):
    """y = w (x - mean(x)) / √(var(x) + eps) + b over the last axis (arXiv:1607.06450)."""
    d = x.shape[-1]
    n = x - x.mean(-1, keepdims=True)
    r = _row_dot(n, n)
    r /= d
    r += eps
    r **= -0.5
    n *= r

    def dx(g):  # r (h - mean(h) - n mean(h n)), h = g w
        h = g * weight
        mean = _row_dot(h, n)
        mean /= -d
        h -= h.mean(-1, keepdims=True)
        h += n * mean
        h *= r
        return h

    y = n * weight
    y += bias
    return y, (dx, lambda g: np.einsum("nd,nd->d", g.reshape(-1, d), n.reshape(-1, d)), lambda g: g, None)


def _rotate(x, cos, sin):
    """Turn the pairs (x_i, x_{i + hd/2}) by the angle of their position; a new contiguous array."""
    half = x.shape[-1] // 2
    y, swapped = x.copy(order="C"), np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    y *= np.concatenate([cos, cos], axis=-1)  # whole (T, hd) planes at a time: long inner loops
    swapped *= np.concatenate([-sin, sin], axis=-1)
    y += swapped
    return y


@primitive
def rope(x, cos, sin):
    """Rotary positions (arXiv:2104.09864), pairs (i, i + hd/2) as in Hugging Face's LLaMA.

    x (B, H, T, hd); cos, sin (T, hd/2), constants. The transpose of a rotation is the rotation by the opposite angle.
    """
    cos, sin = (array_namespace(x).asarray(table) for table in (cos, sin))
    return _rotate(x, cos, sin), (lambda g: _rotate(g, cos, -sin), None, None)


@primitive
def attention(q, k, v, *, causal=True, mask=None, bias=None):
    """Attention softmax(q kᵀ / √hd + bias) v, each of K key/value heads serving H / K query heads (arXiv:2305.13245).

    q (B, H, T, hd), k and v (B, K, S, hd); (B, H, T, hd). causal: the queries are the last T of S >= T positions, and
    each sees the keys up to its own position; otherwise it sees all S. mask: booleans (B, S), False where a key is
    padding, which no query sees, or (B, T, S), False where query t does not see key s; every query must be left with a
    key to see. bias: constants added to the scores, of a shape that broadcasts to (H, T, S).
    """
    B, H, T, hd = q.shape
    K, S = k.shape[1:3]
    if H % K:
        raise ValueError(f"{H} query heads cannot be shared evenly by {K} key/value heads")
    if causal and S < T:
        raise ValueError(f"{T} queries but only {S} keys")
    xp = array_namespace(q)
    if mask is not None:
        if mask.shape not in ((B, S), (B, T, S)) or mask.dtype != bool:
            needed = f"bool{[B, S]} or bool{[B, T, S]}"
            raise ValueError(f"the mask is {mask.dtype}{list(mask.shape)}, where {needed} is needed")
        mask = mask if mask.ndim == 3 else mask[:, None]  # (B, T or 1, S)
        if not causal:
            seen = mask
        elif mask.shape[1] == T:
            seen = mask & array_namespace(mask).tri(T, S, S - T, dtype=bool)
        else:
            seen = mask[:, :, : S - T + 1]  # by the first query, which sees the fewest keys
        if not seen.any(-1).all():
            b = seen.any(-1).all(-1).argmin()
            raise ValueError(f"the mask of sequence {b} leaves a query without a key to see")
        padding = np.where(xp.asarray(mask), 0, -np.inf).astype(q.real.dtype)[:, None]  # (B, 1, T or 1, S)
    G, scale = H // K, hd**-0.5
    group = (B, K, G * T, hd)  # a group's queries stacked, so that each product is one matrix product per KV head
    p = xp.empty((B, K, G * T, S), np.result_type(q, k))  # in C order, as what is below works on views of it
    np.matmul(q.reshape(group) * scale, k.mT, out=p)
    future = xp.triu(xp.full((T, S), -np.inf, q.real.dtype), 1 + S - T)  # query t sees keys up to S - T + t
    sequences = p.reshape(B, K * G, T, S)
    together = _at_a_time(q, max(1, _CACHED // max(1, K * G * T * S)), B)
    for start in range(0, B, together):  # as many sequences as stay in the cache
        rows = sequences[start : start + together]
        if causal and T > 1:
            rows += future
        if bias is not None:
            rows += xp.asarray(bias)
        if mask is not None:
            rows += padding[start : start + together]
        rows -= rows.max(-1, keepdims=True)
        np.exp(rows, out=rows)
        rows *= 1 / (rows @ xp.ones((S, 1), q.dtype))
    o = p @ v  # (B, K, G·T, hd)

    def backward_scores(g):
        """dL/d(q kᵀ) = P (dP - <dP, P>), with <dP, P> = <g, o>."""
        ds = g @ v.mT
        dot = _row_dot(g, o)
        for start in range(0, B, together):
            part = slice(start, start + together)
            ds[part] -= dot[part]
            ds[part] *= p[part]
        ds *= scale
        return ds

    shared = {}  # dq and dk both need the scores' gradient: whichever runs first computes it

    def scores(g):
        if "ds" not in shared:
            shared["ds"] = backward_scores(g.reshape(group))
            return shared["ds"]
        return shared.pop("ds")

    return o.reshape(B, H, T, hd), (
        lambda g: (scores(g) @ k).reshape(q.shape),
        lambda g: scores(g).mT @ q.reshape(group),
        lambda g: p.mT @ g.reshape(group),
    )


def _add_rows(shape, ids, g):
    """zeros(shape) with g's rows added at ids: sort, then sum the runs (np.add.at is nineteen times slower).

    CuPy's reduceat takes differences of running sums, which lose digits; its add.at adds atomically, in no fixed order.
    """
    xp = array_namespace(g)
    d = xp.zeros(shape, g.dtype)
    if xp is not np:
        xp.add.at(d, ids, g)
    elif ids.size:
        order = np.argsort(ids, axis=None, kind="stable")
        sorted_ids = ids.ravel()[order]
        starts = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
        d[sorted_ids[starts]] = np.add.reduceat(g.reshape(-1, shape[-1])[order], starts, axis=0)
    return d


@primitive
def embedding(weight, ids):
    """weight[ids]: rows by number. weight (V, d), ids integers of any shape in [0, V); (*ids.shape, d).

    ids on the host are checked there, without waiting for a GPU."""
    if ids.size and (ids.min() < 0 or ids.max() >= len(weight)):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}, but there are rows 0 to {len(weight) - 1} only")
    shape, ids = weight.shape, array_namespace(weight).asarray(ids)
    return np.take(weight, ids, axis=0), (lambda g: _add_rows(shape, ids, g), None)


@primitive
def cross_entropy(logits, targets, reduction="mean"):
    """-log softmax(logits)[target], in nats, summed or averaged. logits (N, V), targets (N,) in [0, V).

    dlogits = (p - onehot(target)) · g; p replaces a copy of the logits, chunk by chunk.
    """
    N, V = logits.shape
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is 'mean' or 'sum', not {reduction!r}")
    if not N:
        raise ValueError("no target")
    if targets.min() < 0 or targets.max() >= V:
        raise ValueError(f"targets from {targets.min()} to {targets.max()}, but the vocabulary has 0 to {V - 1}")
    weight = 1 / N if reduction == "mean" else 1.0
    xp, chunk = array_namespace(logits), _at_a_time(logits, _CHUNK, N)
    p, loss, ones, targets = np.empty_like(logits), 0.0, xp.ones((V, 1), logits.dtype), xp.asarray(targets)
    for start in range(0, N, chunk):
        z = p[start : start + chunk]
        at = xp.arange(len(z)), targets[start : start + chunk]
        np.subtract(logits[start : start + chunk], logits[start : start + chunk].max(1, keepdims=True), out=z)
        chosen = z[at]
        np.exp(z, out=z)
        total = z @ ones
        loss = loss + (np.log(total[:, 0]) - chosen).sum(dtype=np.result_type(z, np.float64))
        z *= weight / total
        z[at] -= weight
    return xp.asarray(loss * weight, logits.dtype), (lambda g: p * g, None, None)


@primitive
def dropout(x, p: float, rng: np.random.Generator):
    """Each entry is 0 with probability p, else x / (1 - p). Drawn by NumPy: a seed drops the same on every device."""
    keep = array_namespace(x).asarray(rng.random(x.shape, np.float32) >= p) * x.dtype.type(1 / (1 - p))
    return x * keep, (lambda g: g * keep, None, None)
